"""What this machine's process table says about Docker: its daemon's start and a container's first process. Reads only."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seller_agent.runners import guard_files


def container_pid(inspected: Mapping[str, Any]) -> int | None:
    """The container's first process, if its number means the same here as to Docker."""
    pid = int(inspected["State"].get("Pid") or 0)
    with contextlib.suppress(OSError):
        if pid and inspected["Id"] in Path(f"/proc/{pid}/cgroup").read_text():
            return pid
    return None


def daemon_started_unix_ms(socket_path: str) -> int | None:
    """When the Docker daemon behind a socket was started, as far as this machine tells; None when it does not."""
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(5)
            connection.connect(socket_path)
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        if pid and Path(f"/proc/{pid}/comm").read_text().strip() == "dockerd":
            ticks = guard_files.process_start_ticks(pid)
            if ticks is not None:
                started_boot_ms = ticks * 1000 // os.sysconf("SC_CLK_TCK")
                return guard_files.unix_ms() - (guard_files.boot_ms() - started_boot_ms)
        return Path("/var/run/docker.pid").stat().st_mtime_ns // 1_000_000
    except OSError:
        return None
