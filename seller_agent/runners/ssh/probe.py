"""Tells what a machine is and how its cards are, as one JSON object: uploaded to it, standard library only.

The cards come from NVIDIA's management library through ctypes, where it is installed; whatever a card does not tell is left out, a card
that has fallen off the bus is told with its fault.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

from seller_agent.runners.process.supervisor import proc

MIB = 1 << 20
REASONS = {9: "driver_absent", 18: "driver_mismatch", 4: "no_permission"}
LOST = 15
TEXT_BYTES = 96

Facts = dict[str, Any]


class Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Rates(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class Pci(ctypes.Structure):
    _fields_ = [
        ("legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    ]


class Process(ctypes.Structure):
    _fields_ = [("pid", ctypes.c_uint), ("used", ctypes.c_ulonglong), ("instance", ctypes.c_uint), ("compute", ctypes.c_uint)]


class Lost(Exception):
    """The card does not answer any more."""


class Cards:
    """The library, asked one value at a time."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libnvidia-ml.so.1")

    def call(self, name: str, *arguments: Any) -> int:
        function = getattr(self.library, name, None)
        return 13 if function is None else int(function(*arguments))  # 13: the driver is too old to have it

    def ask(self, name: str, *arguments: Any) -> bool:
        """Whether the card told; what it told is in the arguments. Raises Lost."""
        code = self.call(name, *arguments)
        if code == LOST:
            raise Lost
        return code == 0

    def text(self, name: str, *arguments: Any) -> str:
        buffer = ctypes.create_string_buffer(TEXT_BYTES)
        return buffer.value.decode(errors="replace") if self.ask(name, *arguments, buffer, ctypes.c_uint(TEXT_BYTES)) else ""

    def number(self, name: str, *arguments: Any, kind: Any = ctypes.c_uint) -> int | None:
        value = kind()
        return int(value.value) if self.ask(name, *arguments, ctypes.byref(value)) else None

    def card(self, index: int) -> Facts:
        handle = ctypes.c_void_p()
        facts: Facts = {"index": index}
        try:
            if not self.ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle)):
                return {**facts, "fault": "it does not answer"}
            facts["uuid"] = self.text("nvmlDeviceGetUUID", handle)
            facts["model"] = self.text("nvmlDeviceGetName", handle)
            facts.update(self.fixed(handle))
            facts.update(self.passing(handle))
        except Lost:
            facts["fault"] = "it has fallen off the bus: the machine must be restarted"
        return facts

    def fixed(self, handle: ctypes.c_void_p) -> Facts:
        facts: Facts = {}
        pci, major, minor, current, pending = Pci(), ctypes.c_int(), ctypes.c_int(), ctypes.c_uint(), ctypes.c_uint()
        if self.ask("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci)):
            facts["pci"] = pci.bus_id.decode(errors="replace")
        if self.ask("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor)):
            facts["compute_capability"] = f"{major.value}.{minor.value}"
        if self.ask("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending)):
            facts["mig"] = current.value == 1
        return facts

    def passing(self, handle: ctypes.c_void_p) -> Facts:
        facts: Facts = {}
        memory, rates = Memory(), Rates()
        if self.ask("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)):
            facts["vram_mib"], facts["memory_used_mib"] = memory.total // MIB, memory.used // MIB
        if self.ask("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates)):
            facts["utilisation_percent"] = rates.gpu
        facts["temperature_c"] = self.number("nvmlDeviceGetTemperature", handle, ctypes.c_uint(0))
        facts["power_mw"] = self.number("nvmlDeviceGetPowerUsage", handle)
        ecc = (ctypes.c_uint(1), ctypes.c_uint(0))  # uncorrected, since the driver was loaded
        facts["ecc_errors"] = self.number("nvmlDeviceGetTotalEccErrors", handle, *ecc, kind=ctypes.c_ulonglong)
        found, processes = ctypes.c_uint(256), (Process * 256)()
        if self.ask("nvmlDeviceGetComputeRunningProcesses_v3", handle, ctypes.byref(found), processes):
            facts["pids"] = sorted(processes[n].pid for n in range(min(found.value, 256)))
        return facts


def cards() -> Facts:
    """The cards, or why there are none."""
    try:
        library = Cards()
    except OSError as error:
        return {"cards": [], "reason": "library_absent", "detail": str(error)}
    code = library.call("nvmlInit_v2")
    if code != 0:
        return {"cards": [], "reason": REASONS.get(code, "failed"), "detail": f"NVML error {code}"}
    try:
        count = library.number("nvmlDeviceGetCount_v2") or 0
        shared = {
            "driver": library.text("nvmlSystemGetDriverVersion"),
            "cuda": library.number("nvmlSystemGetCudaDriverVersion_v2", kind=ctypes.c_int) or 0,
        }
        found = [{**shared, **library.card(index)} for index in range(count)]
    finally:
        library.call("nvmlShutdown")
    return {"cards": found, "reason": None if found else "none_found", "detail": ""}


def main(_: str) -> int:
    """Print everything. `pids` of cards are as this machine numbers them."""
    facts = {
        "boot_ms": proc.boot_ms(),
        "boot_id": proc.boot_id(),
        "path": os.environ.get("PATH", os.defpath),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
        "shm": os.access("/dev/shm", os.W_OK | os.X_OK),
        "uid": os.geteuid(),
        **cards(),
    }
    facts["boot_ms"] = proc.boot_ms()  # the library may have taken its time
    json.dump(facts, sys.stdout)
    return 0
