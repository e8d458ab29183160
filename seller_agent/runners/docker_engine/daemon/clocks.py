"""Clocks, the boot and the start of a process, as Linux tells them. Standard library only, because the guard imports it."""

from __future__ import annotations

import time
from pathlib import Path


def boot_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME: never set back, and counts while the machine is suspended."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def unix_ms() -> int:
    """Milliseconds of the wall clock since 1970."""
    return time.time_ns() // 1_000_000


def boot_id() -> str:
    """What tells this start of the machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def process_start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; with the pid it names the process for good. None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])
