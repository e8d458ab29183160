"""What a card is, whoever made it and however it is read: its fixed properties, what it is doing now, and why there is none.

Values only; the modules that read cards (`nvidia`, `others`, `simulated`) make them, and `health` judges them.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

MIB = 1 << 20


class NoCards(StrEnum):
    """Why there is nothing to list."""

    LIBRARY_ABSENT = "library_absent"  # libnvidia-ml.so.1 is not installed: a machine without NVIDIA cards, or without their driver
    DRIVER_ABSENT = "driver_absent"  # the kernel module is not loaded
    DRIVER_MISMATCH = "driver_mismatch"  # the driver was replaced under the running kernel module: reboot
    NO_PERMISSION = "no_permission"
    NONE_FOUND = "none_found"  # driver and library are fine, there is no card
    HUNG = "hung"  # the driver does not answer
    FAILED = "failed"


class Vendor(StrEnum):
    """Who made a card, and so how a job is given it."""

    NVIDIA = "nvidia"
    AMD = "amd"
    APPLE = "apple"


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
    """A slice of a card, let like a card of its own."""
    vendor: Vendor = Vendor.NVIDIA


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
    spares_runs: bool = False
    """The fault is one with which new programs cannot start, while those that run go on."""
    utilisation_percent: int | None = None
    memory_used_mib: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    ecc_errors: int | None = None
    """Uncorrected, since the driver was loaded."""
    pids: tuple[int, ...] | None = None
    """Processes that compute on it, as the host numbers them."""


def idle(card: DetectedCard) -> CardTelemetry:
    """A card that does nothing."""
    return CardTelemetry(index=card.index, uuid=card.uuid, utilisation_percent=0, memory_used_mib=0, pids=())


def faulty(card: DetectedCard, fault: str, *, spares_runs: bool = False) -> CardTelemetry:
    """A card that cannot be used."""
    return CardTelemetry(index=card.index, uuid=card.uuid, healthy=False, fault=fault, spares_runs=spares_runs)


def clean(value: Any, forbidden: str = r"[^A-Za-z0-9 ._()/+-]") -> str:
    """A name as the market accepts names: whatever a driver says, nothing in it can be taken for a command."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return re.sub(r"\s+", " ", re.sub(forbidden, " ", text)).strip()[:64].strip()


def pci_address(text: Any) -> str:
    """An address such as 00000000:01:00.0 as offers hold it, lower case; empty when it is none."""
    found = clean(text, r"[^0-9A-Fa-f:.]").lower()
    return found if re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", found) else ""
