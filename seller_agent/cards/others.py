"""Cards that are not NVIDIA's, behind the same interface: AMD's by `amdsmi` or the kernel's own files, Apple's one by what macOS tells.

Where nothing of the kind is there, nothing is found; whatever a file or a library says badly is unknown. No decisions.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import re
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from seller_agent.cards.card import MIB, CardTelemetry, DetectedCard, Vendor, clean, faulty, pci_address

SYSFS = Path("/sys")
VENDOR_AMD = 4098
SYSCTL_S = 5.0
GPU_SHARE_PERCENT = 75
"""Of an Apple machine's memory: what its graphics processor is let use at most."""


def _load_amdsmi() -> Any:
    """AMD's library, if it is installed and answers; None otherwise, whatever goes wrong in it."""
    try:
        library = import_module("amdsmi")
        library.amdsmi_init()
        return library
    except Exception:
        return None


class Amd:
    """AMD's cards. The kernel lists them; their names come from amdsmi when that is there."""

    vendor = Vendor.AMD

    def __init__(self, sysfs: Path = SYSFS, library: Callable[[], Any] = _load_amdsmi) -> None:
        self._sysfs = sysfs
        self._load = library
        self._devices: dict[str, Path] = {}

    def cards(self) -> list[DetectedCard]:
        """Every card that can compute (those of /sys/class/kfd)."""
        nodes = self._sysfs / "class/kfd/kfd/topology/nodes"
        folders = sorted((path for path in nodes.glob("[0-9]*") if path.name.isdigit()), key=lambda path: int(path.name))
        found = [card for folder in folders if (card := self._card(folder)) is not None]
        if not found:
            return []
        names = self._names()
        self._devices = {card.uuid: device for card, device in found}
        return [msgspec.structs.replace(card, model=names.get(card.pci) or card.model) for card, _ in found]

    def _card(self, folder: Path) -> tuple[DetectedCard, Path] | None:
        facts = _numbers(folder / "properties")
        if not facts.get("simd_count") or facts.get("vendor_id") != VENDOR_AMD:
            return None  # a processor
        device = self._sysfs / f"class/drm/renderD{facts.get('drm_render_minor', 0)}/device"
        location, domain = facts.get("location_id", 0), facts.get("domain", 0)
        pci = pci_address(f"{domain:08x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}")
        unique = facts.get("unique_id", 0)
        version = facts.get("gfx_target_version", 0)
        target = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
        return (
            DetectedCard(
                index=0,
                uuid=f"AMD-{unique:016x}" if unique else f"AMD-{pci.replace(':', '-').replace('.', '-')}",
                model=clean(f"AMD {_text(device / 'product_name') or target}"),
                vram_mib=_vram_mib(folder, device),
                driver=clean(_text(self._sysfs / "module/amdgpu/version"), r"[^A-Za-z0-9._+-]")[:32],
                pci=pci,
                compute_capability=target,
                vendor=Vendor.AMD,
            ),
            device,
        )

    def _names(self) -> dict[str, str]:
        """Product names by address, from amdsmi; its answers change shape from version to version."""
        library = self._load()
        names: dict[str, str] = {}
        if library is None:
            return names
        try:
            for handle in library.amdsmi_get_processor_handles():
                asic = library.amdsmi_get_gpu_asic_info(handle)
                address = str(library.amdsmi_get_gpu_device_bdf(handle))
                if isinstance(asic, dict) and asic.get("market_name"):
                    names[pci_address(address.rjust(len("00000000:00:00.0"), "0"))] = clean(asic["market_name"])
        except Exception:
            return names
        return names

    def telemetry(self, card: DetectedCard) -> CardTelemetry:
        """What the kernel tells of the card now."""
        if card.uuid not in self._devices:
            self.cards()
        device = self._devices.get(card.uuid)
        if device is None or not device.exists():
            return faulty(card, "it is not there any more")
        used = _number(device / "mem_info_vram_used")
        warm = _first(device, "hwmon/hwmon*/temp1_input")
        power = _first(device, "hwmon/hwmon*/power1_average")
        errors = re.search(r"^ue: (\d+)", _text(device / "ras/umc_err_count"), re.MULTILINE)
        return CardTelemetry(
            index=card.index,
            uuid=card.uuid,
            utilisation_percent=_number(device / "gpu_busy_percent"),
            memory_used_mib=None if used is None else used // MIB,
            temperature_c=None if warm is None else warm // 1000,
            power_mw=None if power is None else power // 1000,
            ecc_errors=int(errors[1]) if errors else None,
        )


class Apple:
    """The graphics processor of an Apple machine, which shares the machine's memory: it counts as one card."""

    vendor = Vendor.APPLE

    def __init__(self, system: str | None = None, machine: str | None = None, sysctl: Callable[[str], str] | None = None) -> None:
        self._is_there = (system or platform.system(), machine or platform.machine()) == ("Darwin", "arm64")
        self._sysctl = sysctl or _sysctl

    def cards(self) -> list[DetectedCard]:
        """One, or none."""
        if not self._is_there:
            return []
        memory = self._sysctl("hw.memsize")
        if not memory.isdigit():
            return []
        who = self._sysctl("kern.uuid") or self._sysctl("kern.hostname")
        return [
            DetectedCard(
                index=0,
                uuid="MPS-" + hashlib.sha256(who.encode()).hexdigest()[:32],
                model=clean(f"{self._sysctl('machdep.cpu.brand_string') or 'Apple'} GPU"),
                vram_mib=int(memory) // MIB * GPU_SHARE_PERCENT // 100,
                driver=clean(self._sysctl("kern.osproductversion"), r"[^A-Za-z0-9._+-]")[:32],
                vendor=Vendor.APPLE,
            )
        ]

    def telemetry(self, card: DetectedCard) -> CardTelemetry:
        """It tells nothing without root."""
        return CardTelemetry(index=card.index, uuid=card.uuid)


def _sysctl(name: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=SYSCTL_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _first(folder: Path, pattern: str) -> int | None:
    for path in sorted(folder.glob(pattern)):
        return _number(path)
    return None


def _numbers(path: Path) -> dict[str, int]:
    """A file of names and numbers."""
    found: dict[str, int] = {}
    for line in _text(path).splitlines():
        name, _, value = line.partition(" ")
        with contextlib.suppress(ValueError):
            found[name] = int(value)
    return found


def _vram_mib(node: Path, device: Path) -> int:
    """The card's own memory; the banks of the topology where the driver does not sum them up."""
    total = _number(device / "mem_info_vram_total")
    if total is None:
        banks = [_numbers(path) for path in node.glob("mem_banks/*/properties")]
        total = sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in (1, 2))
    return total // MIB
