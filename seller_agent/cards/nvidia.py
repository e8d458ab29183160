"""The cards of this machine as NVIDIA's management library tells them.

The only module that imports pynvml. Every call of the library is wrapped: what a card does not support is simply unknown, a card that has
fallen off the bus is unhealthy, and a machine without library or driver has no cards, with the reason. It decides nothing about offers.
A card that is divided (MIG) is listed as its slices, each a card of its own with the UUID by which a job is given it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pynvml

from seller_agent.cards.card import MIB, CardTelemetry, DetectedCard, Inventory, NoCards, clean, faulty, idle, pci_address

INDEX_MAX = 63
DRIVER_REPLACED = "the driver was replaced under the running system: drain the node, then restart the machine"
SLICES_NEEDED = "its MIG mode is on and it has no slices: make some (nvidia-smi mig), or turn that mode off"

T = TypeVar("T")

_GONE = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH})
"""What is told of one value and means that nothing more can be had of the card."""
_STALE = frozenset({pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_DRIVER_NOT_LOADED})
"""After these the library must be initialised anew, or it will never answer otherwise."""


class Nvml:
    """The library, initialised once and again when it must be: doing so for every reading may cost a second on a card that sleeps."""

    def __init__(self) -> None:
        self._is_up = False

    def inventory(self, known: Iterable[DetectedCard] = ()) -> Inventory:
        """Every card. `known` lends their names to cards that no longer tell their own. May block for seconds, or for ever."""
        self.close()  # the count of cards is told once for each initialisation
        try:
            with self._library():
                return _inventory(tuple(known))
        except pynvml.NVMLError as error:
            return Inventory(reason=_why_none(error), detail=_words(error))

    def telemetry(self, cards: Iterable[DetectedCard]) -> tuple[CardTelemetry, ...]:
        """What the given cards are doing, in their order. May block for seconds, or for ever."""
        asked = tuple(cards)
        try:
            with self._library():
                readings = tuple(_telemetry(card) for card in asked)
        except pynvml.NVMLError as error:
            replaced = error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
            return tuple(faulty(card, _fault(error), spares_runs=replaced) for card in asked)
        if not all(reading.healthy for reading in readings):
            self.close()  # a card that was reset, or put back, is seen only by a library that looks again
        return readings

    def close(self) -> None:
        """Let go of the driver."""
        if self._is_up:
            self._is_up = False
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    @contextlib.contextmanager
    def _library(self) -> Iterator[None]:
        if not self._is_up:
            pynvml.nvmlInit()
            self._is_up = True
        try:
            yield
        except pynvml.NVMLError as error:
            if error.value in _STALE:
                self.close()
            raise


def inventory(known: Iterable[DetectedCard] = ()) -> Inventory:
    """Every NVIDIA card of this machine, once. May block for seconds."""
    nvml = Nvml()
    try:
        return nvml.inventory(known)
    finally:
        nvml.close()


def telemetry(cards: Iterable[DetectedCard]) -> tuple[CardTelemetry, ...]:
    """What the given cards are doing, in their order, once; simulated ones do nothing. May block for seconds."""
    asked = tuple(cards)
    real = tuple(card for card in asked if not card.simulated)
    nvml = Nvml()
    try:
        readings = {reading.uuid: reading for reading in nvml.telemetry(real)} if real else {}
    finally:
        nvml.close()
    return tuple(readings.get(card.uuid) or idle(card) for card in asked)


def driver_version() -> str | None:
    """The version of the driver; None without one. May block."""
    nvml = Nvml()
    try:
        with nvml._library():
            return clean(pynvml.nvmlSystemGetDriverVersion(), r"[^A-Za-z0-9._+-]")[:32]
    except pynvml.NVMLError:
        return None
    finally:
        nvml.close()


def _ask(function: Callable[..., T], *arguments: Any) -> T | None:
    """One value of the library; None where the card or the driver does not have it, or says nonsense. A lost card raises."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _GONE:
            raise
        return None
    except ValueError:
        return None  # bytes that are no text


def _inventory(known: tuple[DetectedCard, ...]) -> Inventory:
    count = pynvml.nvmlDeviceGetCount()
    driver = clean(_ask(pynvml.nvmlSystemGetDriverVersion) or "", r"[^A-Za-z0-9._+-]")[:32]
    cuda = int(_ask(pynvml.nvmlSystemGetCudaDriverVersion_v2) or 0)
    cards: list[DetectedCard] = []
    missing, place = 0, 0
    for number in range(count):
        found = _cards(number, place, driver, cuda) or _as_lost(known, place)
        missing += not found
        cards += found
        place += max(1, len(found))
    listed = tuple(card for card in cards if card.index <= INDEX_MAX)
    detail = f"{missing} of {count} cards do not answer" if missing else ""
    return Inventory(cards=listed, reason=None if listed or missing else NoCards.NONE_FOUND, detail=detail)


def _as_lost(known: tuple[DetectedCard, ...], place: int) -> list[DetectedCard]:
    """The card that was at this place, or its slices, now that it does not answer; nothing when nobody knew it."""
    first = next((card for card in known if card.index == place), None)
    if first is None:
        return []
    fault = _fault(pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST))
    pieces = [card for card in known if card.mig and card.pci == first.pci] if first.mig else [first]
    return [msgspec.structs.replace(card, healthy=False, fault=fault) for card in pieces]


def _cards(number: int, place: int, driver: str, cuda: int) -> list[DetectedCard]:
    """What the device of this number is let as, numbered from `place` on: itself, or its slices; nothing when it does not answer."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(number)
        whole = _card(handle, place, driver, cuda)
        mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
        if mode is None or mode[0] != 1:
            return [whole]
        slices = [_slice(piece, whole, place + offset) for offset, piece in enumerate(_slices(handle))]
        return slices or [msgspec.structs.replace(whole, healthy=False, fault=SLICES_NEEDED)]
    except pynvml.NVMLError as error:
        if error.value in _STALE:
            raise
        return []
    except ValueError:
        return []  # an UUID that is no text


def _card(handle: Any, index: int, driver: str, cuda: int) -> DetectedCard:
    pci = _ask(pynvml.nvmlDeviceGetPciInfo, handle)
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return DetectedCard(
        index=index,
        uuid=clean(pynvml.nvmlDeviceGetUUID(handle), r"[^A-Za-z0-9-]"),
        model=clean(_ask(pynvml.nvmlDeviceGetName, handle) or "") or "unknown",
        vram_mib=_memory_mib(handle),
        driver=driver,
        cuda=cuda,
        pci=pci_address(pci.busId) if pci is not None else "",
        compute_capability="" if capability is None else f"{capability[0]}.{capability[1]}",
    )


def _slices(handle: Any) -> list[Any]:
    """The handles of a card's slices; numbers without one are skipped."""
    found = []
    for number in range(int(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0)):
        piece = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if piece is not None:
            found.append(piece)
    return found


def _slice(handle: Any, whole: DetectedCard, index: int) -> DetectedCard:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return msgspec.structs.replace(
        whole,
        index=index,
        uuid=clean(pynvml.nvmlDeviceGetUUID(handle), r"[^A-Za-z0-9-]"),
        model=clean(_ask(pynvml.nvmlDeviceGetName, handle) or f"{whole.model} MIG"),
        vram_mib=int(memory.total) // MIB if memory is not None else 0,
        mig=True,
    )


def _memory_mib(handle: Any) -> int:
    """The card's memory; on machines where card and processor share it the library does not say, and it is the machine's."""
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    if memory is not None and memory.total:
        return int(memory.total) // MIB
    with contextlib.suppress(OSError):
        found = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return int(found[1]) // 1024 if found else 0
    return 0


def _telemetry(card: DetectedCard) -> CardTelemetry:
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(card.uuid)
        # A slice has no sensors of its own: what its card tells holds for it.
        sensors = _ask(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, handle) if card.mig else handle
        load = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        processes = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        ecc = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        errors = _ask(pynvml.nvmlDeviceGetTotalEccErrors, sensors, *ecc)
        return CardTelemetry(
            index=card.index,
            uuid=card.uuid,
            utilisation_percent=int(load.gpu) if load is not None else None,
            memory_used_mib=int(memory.used) // MIB if memory is not None else None,
            temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, sensors, pynvml.NVML_TEMPERATURE_GPU),
            power_mw=_ask(pynvml.nvmlDeviceGetPowerUsage, sensors),
            ecc_errors=None if errors is None else int(errors),
            pids=tuple(sorted(int(process.pid) for process in processes)) if processes is not None else None,
        )
    except pynvml.NVMLError as error:
        if error.value in _STALE:
            raise
        return faulty(card, _fault(error))


def _fault(error: pynvml.NVMLError) -> str:
    match error.value:
        case pynvml.NVML_ERROR_GPU_IS_LOST:
            return "it has fallen off the bus: the machine must be restarted"
        case pynvml.NVML_ERROR_RESET_REQUIRED:
            return "it must be reset: nvidia-smi --gpu-reset"
        case pynvml.NVML_ERROR_NOT_FOUND:
            return "it is not there any more"
        case pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return DRIVER_REPLACED
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return "the driver is not loaded any more"
    return f"it does not answer: {_words(error)}"


def _words(error: pynvml.NVMLError) -> str:
    return clean(error, r"[^ -~]")


def _why_none(error: pynvml.NVMLError) -> NoCards:
    return {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NoCards.LIBRARY_ABSENT,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NoCards.DRIVER_ABSENT,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NoCards.DRIVER_MISMATCH,
        pynvml.NVML_ERROR_NO_PERMISSION: NoCards.NO_PERMISSION,
    }.get(error.value, NoCards.FAILED)
