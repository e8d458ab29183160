"""The cards of this machine, read through NVIDIA's management library, and simulated ones for trying things out.

The only module that imports pynvml. Every call of the library is wrapped: what a card does not support is simply unknown, a card that has
fallen off the bus is unhealthy, and a machine without library or driver has no cards, with the reason. It decides nothing about offers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pynvml

from seller_agent.models import find_card

MIB = 1 << 20
SIMULATED_DRIVER = "simulated"
SIMULATED_CUDA = 12_080

T = TypeVar("T")


class NoCards(StrEnum):
    """Why there is nothing to list."""

    LIBRARY_ABSENT = "library_absent"  # libnvidia-ml.so.1 is not installed: a machine without NVIDIA cards, or without their driver
    DRIVER_ABSENT = "driver_absent"  # the kernel module is not loaded
    DRIVER_MISMATCH = "driver_mismatch"  # the driver was replaced under the running kernel module: reboot
    NO_PERMISSION = "no_permission"
    NONE_FOUND = "none_found"  # driver and library are fine, there is no card
    FAILED = "failed"


class DetectedCard(msgspec.Struct, frozen=True, kw_only=True):
    """One card. `cuda` as NVML gives it: 12040 is 12.4, 0 is unknown. `fault` says why a card is not healthy."""

    index: int
    uuid: str
    model: str
    vram_mib: int
    driver: str = ""
    cuda: int = 0
    pci: str = ""
    healthy: bool = True
    fault: str = ""
    simulated: bool = False
    compute_capability: str = ""
    mig: bool = False


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All cards, or why there are none."""

    cards: tuple[DetectedCard, ...] = ()
    reason: NoCards | None = None
    detail: str = ""


class CardTelemetry(msgspec.Struct, frozen=True, kw_only=True):
    """What one card is doing now; None is not known (many consumer cards do not tell everything)."""

    index: int
    uuid: str
    healthy: bool = True
    fault: str = ""
    utilisation_percent: int | None = None
    memory_used_mib: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    ecc_errors: int | None = None
    """Uncorrected, since the driver was loaded."""
    pids: tuple[int, ...] | None = None
    """Processes that compute on it, as the host numbers them."""


class NvmlHung(Exception):
    """The library has not answered in time; a hung driver cannot be interrupted, only waited for."""


def inventory(known: Iterable[DetectedCard] = ()) -> Inventory:
    """Every card of this machine. `known` lends their names to cards that no longer tell their own. May block for seconds."""
    try:
        with _library():
            count = pynvml.nvmlDeviceGetCount()
            driver = _clean(_ask(pynvml.nvmlSystemGetDriverVersion) or "", r"[^A-Za-z0-9._+-]")[:32]
            cuda = int(_ask(pynvml.nvmlSystemGetCudaDriverVersion_v2) or 0)
            by_index = {card.index: card for card in known}
            cards = [_card(index, driver, cuda, by_index.get(index)) for index in range(count)]
    except pynvml.NVMLError as error:
        return Inventory(reason=_why_none(error), detail=str(error))
    found = tuple(card for card in cards if card is not None)
    if len(found) < count:
        return Inventory(cards=found, detail=f"{count - len(found)} of {count} cards do not answer")
    return Inventory(cards=found, reason=None if found else NoCards.NONE_FOUND)


def telemetry(known: Iterable[DetectedCard]) -> tuple[CardTelemetry, ...]:
    """What the given cards are doing, in their order; simulated ones do nothing. May block for seconds."""
    cards = tuple(known)
    if all(card.simulated for card in cards):
        return tuple(_idle(card) for card in cards)
    try:
        with _library():
            return tuple(_idle(card) if card.simulated else _telemetry(card) for card in cards)
    except pynvml.NVMLError as error:
        return tuple(_idle(card) if card.simulated else _faulty(card, error) for card in cards)


def simulate(text: str, node_id: str, first_index: int = 0) -> tuple[DetectedCard, ...]:
    """Cards that do not exist, from `2xRTX 4090`, `H100`, `2xRTX 4090:24GB` or `1xA100 80GB`. Raises ValueError with the form.

    Their UUIDs depend on node and index alone, so that they are the same after every restart.
    """
    match = re.fullmatch(r"\s*(?:(\d{1,2})\s*[xX×*]\s*)?(\S.*?)(?:\s*:\s*|\s+)(\d+)\s*(GB|GiB|G)\s*", text)
    match = match or re.fullmatch(r"\s*(?:(\d{1,2})\s*[xX×*]\s*)?([^\s:][^:]*?)()()\s*", text)
    if match is None:
        raise ValueError(_form(text))
    count, name, size, unit = int(match[1] or 1), " ".join(match[2].split()), match[3], match[4]
    if not 1 <= count <= 64 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._()/+-]{0,63}", name):
        raise ValueError(_form(text))
    model, vram_mib = _model(text, name, size, unit)
    return tuple(
        DetectedCard(
            index=index,
            uuid="SIM-" + hashlib.sha256(f"{node_id}/{index}".encode()).hexdigest()[:32],
            model=model,
            vram_mib=vram_mib,
            driver=SIMULATED_DRIVER,
            cuda=SIMULATED_CUDA,
            simulated=True,
        )
        for index in range(first_index, first_index + count)
    )


def _model(text: str, name: str, size: str, unit: str) -> tuple[str, int]:
    """Full name and memory: of the card that is meant, or as given for one that nobody knows."""
    known = find_card(name, int(size) if size else None)
    if known is not None:
        return known.name, known.vram_mib
    if not size:
        raise ValueError(f"No card is known as {name!r}: add its memory, as in '{name}:24GB'.")
    vram_mib = int(size) * 1024 if unit == "GiB" else int(size) * 10**9 // MIB
    if not 1 <= vram_mib <= 1 << 24:
        raise ValueError(_form(text))
    namesake = find_card(name)
    return namesake.name if namesake is not None else name, vram_mib


def _form(text: str) -> str:
    return (
        f"{text[:80]!r} names no cards to simulate. Write COUNTxMODEL with a count up to 64, as in '2xRTX 4090'; "
        "a model that nobody knows needs its memory too, as in '1xMy Card:24GB'."
    )


@contextlib.contextmanager
def _library() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _ask(function: Callable[..., T], *arguments: Any) -> T | None:
    """One value of the library; None where the card or the driver does not have it. A lost card raises."""
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise
        return None


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _clean(value: Any, forbidden: str = r"[^A-Za-z0-9 ._()/+-]") -> str:
    """A name as the market accepts names: whatever a driver says, nothing in it can be taken for a command."""
    return re.sub(r"\s+", " ", re.sub(forbidden, " ", _text(value))).strip()[:64]


def _card(index: int, driver: str, cuda: int, known: DetectedCard | None) -> DetectedCard | None:
    """One card; an unhealthy copy of what was known of it when it has fallen off the bus; None when nothing was."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _clean(pynvml.nvmlDeviceGetUUID(handle))
        pci = _ask(pynvml.nvmlDeviceGetPciInfo, handle)
        mig = _ask(pynvml.nvmlDeviceGetMigMode, handle)
        fault = "its MIG mode is on: it cannot be let as a whole" if mig is not None and mig[0] == 1 else ""
        return DetectedCard(
            index=index,
            uuid=uuid,
            model=_clean(_ask(pynvml.nvmlDeviceGetName, handle) or "unknown"),
            vram_mib=_memory_mib(handle),
            driver=driver,
            cuda=cuda,
            pci=_clean(pci.busId, r"[^0-9A-Fa-f:.]").lower() if pci is not None else "",
            healthy=not fault,
            fault=fault,
        )
    except pynvml.NVMLError as error:
        return msgspec.structs.replace(known, healthy=False, fault=_fault(error)) if known is not None else None


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
        load = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        processes = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
        ecc = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        return CardTelemetry(
            index=card.index,
            uuid=card.uuid,
            utilisation_percent=int(load.gpu) if load is not None else None,
            memory_used_mib=int(memory.used) // MIB if memory is not None else None,
            temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            power_mw=_ask(pynvml.nvmlDeviceGetPowerUsage, handle),
            ecc_errors=_ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, *ecc),
            pids=tuple(sorted(int(process.pid) for process in processes)) if processes is not None else None,
        )
    except pynvml.NVMLError as error:
        return _faulty(card, error)


def _idle(card: DetectedCard) -> CardTelemetry:
    return CardTelemetry(index=card.index, uuid=card.uuid, utilisation_percent=0, memory_used_mib=0, pids=())


def _faulty(card: DetectedCard, error: pynvml.NVMLError) -> CardTelemetry:
    return CardTelemetry(index=card.index, uuid=card.uuid, healthy=False, fault=_fault(error))


def _fault(error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
        return "it has fallen off the bus: the machine must be restarted"
    if error.value == pynvml.NVML_ERROR_NOT_FOUND:
        return "it is not there any more"
    return f"it does not answer: {error}"


def _why_none(error: pynvml.NVMLError) -> NoCards:
    return {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: NoCards.LIBRARY_ABSENT,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: NoCards.DRIVER_ABSENT,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: NoCards.DRIVER_MISMATCH,
        pynvml.NVML_ERROR_NO_PERMISSION: NoCards.NO_PERMISSION,
    }.get(error.value, NoCards.FAILED)


class NvmlReader:
    """Reads the cards in a thread of its own, so that a hung driver stops nobody: a call that takes too long raises NvmlHung,
    and so does every further one at once until the driver has answered."""

    def __init__(self, timeout_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy: Future[Any] | None = None

    async def inventory(self, known: Iterable[DetectedCard] = ()) -> Inventory:
        """`inventory`, or NvmlHung."""
        return await self._read(lambda: inventory(known))

    async def telemetry(self, known: Iterable[DetectedCard]) -> tuple[CardTelemetry, ...]:
        """`telemetry`, or NvmlHung."""
        return await self._read(lambda: telemetry(known))

    def close(self) -> None:
        """Let the thread end; one that hangs is left to end with the process."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    async def _read(self, function: Callable[[], T]) -> T:
        if self._busy is not None and not self._busy.done():
            raise NvmlHung("The graphics driver has not answered an earlier question yet. Try nvidia-smi; if it hangs too, restart.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="nvml", daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._busy = future

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(call)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self._timeout_s)
        except TimeoutError:
            raise NvmlHung(f"The graphics driver has not answered for {self._timeout_s:g} s.") from None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
