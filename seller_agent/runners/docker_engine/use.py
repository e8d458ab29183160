"""What a container uses: from the files of its control group where this machine shows them, else from Docker. Reads only.

Memory is counted without the page cache that the kernel would give back at once: what a job reads from files is not what it needs.
"""

from __future__ import annotations

import contextlib
import http.client
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seller_agent.runners.docker_engine.daemon.asking import ask, quoted
from seller_agent.runners.docker_engine.daemon.clocks import process_start_ticks
from seller_agent.runners.docker_engine.guard.files import Watch
from seller_agent.runners.runner import RunUse

PIDS_MAX = 4096


def use_of(watch: Watch) -> RunUse | None:
    """What the container of this watch uses; None when it does not run or that cannot be told."""
    if watch.pid is not None and process_start_ticks(watch.pid) == watch.pid_start_ticks:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _from_files(places(Path(f"/proc/{watch.pid}/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()))
    with contextlib.suppress(OSError, http.client.HTTPException):
        status, told = ask(watch.socket, "GET", f"/containers/{quoted(watch.container)}/stats?stream=false&one-shot=true")
        if status == 200 and isinstance(told, dict):
            return from_engine(told, watch.pid)
    return None


def places(groups: str, mounts: str) -> dict[str, Path]:
    """Controller -> the folder of a process's group, `` for all of version 2; from its /proc/PID/cgroup and our /proc/self/mountinfo."""
    mounted: dict[str, tuple[str, str]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind and kind[0] == "cgroup2":
            mounted[""] = (fields[3], fields[4])
        elif kind and kind[0] == "cgroup":
            mounted.update(dict.fromkeys(kind[2].split(","), (fields[3], fields[4])))
    found = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            root, folder = mounted.get(controller, ("", ""))
            below = path.removeprefix(root.rstrip("/"))
            if folder and (root == "/" or path.startswith(root)):
                found[controller] = Path(folder + below)
    return found


def _from_files(folders: Mapping[str, Path]) -> RunUse:
    """Raises OSError, ValueError, KeyError where the files are not there or not as expected."""
    if "memory" in folders:
        memory, cpu = folders["memory"], folders["cpuacct"]
        cpu_ms = int((cpu / "cpuacct.usage").read_text()) // 1_000_000
        used = int((memory / "memory.usage_in_bytes").read_text()) - _row(memory / "memory.stat", "total_inactive_file")
    else:
        memory = folders[""]
        cpu_ms = _row(memory / "cpu.stat", "usage_usec") // 1000
        used = int((memory / "memory.current").read_text()) - _row(memory / "memory.stat", "inactive_file")
    mib = max(0, used) >> 20
    return RunUse(cpu_ms=cpu_ms, memory_mib=mib, peak_memory_mib=mib, pids=_pids(memory))


def _row(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name + " "):
            return int(line.split()[1])
    raise KeyError(name)


def _pids(group: Path) -> tuple[int, ...]:
    """Its processes and those of groups below it, which a job may have made."""
    found: list[int] = []
    for folder, _, _ in os.walk(group):
        found += map(int, Path(folder, "cgroup.procs").read_text().split())
    return tuple(found[:PIDS_MAX])


def from_engine(told: Mapping[str, Any], pid: int | None) -> RunUse | None:
    """What Docker's statistics say; a container that has ended has none."""
    memory, cpu = told.get("memory_stats") or {}, (told.get("cpu_stats") or {}).get("cpu_usage") or {}
    if "usage" not in memory or "total_usage" not in cpu:
        return None
    details = memory.get("stats") or {}
    mib = max(0, int(memory["usage"]) - int(details.get("total_inactive_file", details.get("inactive_file", 0)))) >> 20
    return RunUse(cpu_ms=int(cpu["total_usage"]) // 1_000_000, memory_mib=mib, peak_memory_mib=mib, pids=() if pid is None else (pid,))
