"""Processes, clocks and memory as Linux shows them to the guard of plain processes: standard library only, copied to other machines.

Reads /proc and sends signals; keeps nothing and decides nothing. A process that vanished or is not ours to see reads as absent.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from typing import NamedTuple

MARK = "BAZAAR_RUN_FOLDER"
"""In the environment of every job: the folder of the run to which it, and whatever it starts, belongs."""


class Process(NamedTuple):
    pid: int
    state: str
    ppid: int
    group: int
    session: int
    start_ticks: int


def read_bytes(path: str) -> bytes:
    """The file's bytes, none when it cannot be read (processes vanish, others' are closed to us)."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def process(pid: int) -> Process | None:
    stat = read_bytes(f"/proc/{pid}/stat")
    if not stat:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def processes() -> list[Process]:
    """Every process of the machine that is not a zombie."""
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [one for one in found if one is not None and one.state != "Z"]


def children() -> list[int]:
    """Our direct children, also those inherited from runs. Complete, because only we can take one off the list, by reaping it."""
    me = os.getpid()
    path = f"/proc/{me}/task/{me}/children"
    if os.path.exists(path):
        return [int(pid) for pid in read_bytes(path).split()]
    return [one.pid for one in processes() if one.ppid == me]  # a kernel without CONFIG_PROC_CHILDREN


def with_descendants(pids: Iterable[int], everything: list[Process]) -> set[int]:
    below: dict[int, list[int]] = {}
    for one in everything:
        below.setdefault(one.ppid, []).append(one.pid)
    found: set[int] = set()
    todo = list(pids)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(below.get(pid, ()))
    return found


def run_below(path: str, root: str) -> str | None:
    """The name of the run under `root` in whose folder `path` lies."""
    return path[len(root) + 1 :].partition("/")[0] or None if path.startswith(root + "/") else None


def run_by_mark(pid: int, root: str) -> str | None:
    """The name of the run under `root` that a process belongs to by the environment it was started with."""
    for entry in read_bytes(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(MARK.encode() + b"="):
            return run_below(os.fsdecode(entry.partition(b"=")[2]), root)
    return None


def run_by_place(pid: int, root: str) -> str | None:
    """Likewise by its working directory or output. A person may stand in that folder too: for our own descendants only."""
    for link in ("cwd", "fd/1", "fd/2"):
        with contextlib.suppress(OSError):
            name = run_below(os.readlink(f"/proc/{pid}/{link}"), root)
            if name is not None:
                return name
    return None


def send_signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone, or another user's by now: nothing that we may end
        os.kill(pid, number)


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def boot_id() -> str:
    return read_bytes("/proc/sys/kernel/random/boot_id").decode().strip()


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot, here or elsewhere on the machine."""
    found = re.search(rb"^oom_kill (\d+)$", read_bytes("/proc/vmstat"), re.MULTILINE)
    return int(found[1]) if found else 0


def leftovers(root: str, sessions: dict[int, int]) -> set[int]:
    """What earlier runs under `root` left running: by mark, and by session, given as its first process and that one's start time."""
    everything = processes()
    starts = {one.pid: one.start_ticks for one in everything}
    roots = []
    for one in everything:
        begun = sessions.get(one.session)
        # The first process's number is taken by another: then its session has ended, or the number could not have been given away.
        of_session = begun is not None and starts.get(one.session, begun) == begun and one.start_ticks >= begun
        if of_session or run_by_mark(one.pid, root) is not None:
            roots.append(one.pid)
    return with_descendants(roots, everything) - {os.getpid(), os.getppid()}


def end_leftovers(root: str, sessions: dict[int, int], patience_s: float) -> set[int]:
    """Kill until nothing is left; what is still there after `patience_s` (a process that the kernel cannot end) is returned."""
    until = time.monotonic() + patience_s
    while True:
        found = leftovers(root, sessions)
        if not found or time.monotonic() > until:
            return found
        for pid in found:
            send_signal(pid, signal.SIGKILL)
        time.sleep(0.005)
