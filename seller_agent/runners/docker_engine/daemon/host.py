"""Where Docker is, and what this machine's process table says about it: its daemon's start, a container's first process. Reads only."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.runner import RunnerError

DEFAULT_SOCKET = "/var/run/docker.sock"


def socket_of(docker_host: str | None) -> str:
    """The socket that a Docker host (`unix:///path`, or the path alone) names; Docker's own default when there is none.

    Raises RunnerError for a Docker that is reached through a network: a run's folders lie here, and it could not mount them.
    """
    if not docker_host:
        return DEFAULT_SOCKET
    path = docker_host.removeprefix("unix://")
    if not path.startswith("/"):
        raise RunnerError("container_error", f"The Docker host {docker_host[:200]!a} is no socket on this machine, such as unix:///path.")
    return path


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
            ticks = clocks.process_start_ticks(pid)
            if ticks is not None:
                started_boot_ms = ticks * 1000 // os.sysconf("SC_CLK_TCK")
                return clocks.unix_ms() - (clocks.boot_ms() - started_boot_ms)
        return Path("/var/run/docker.pid").stat().st_mtime_ns // 1_000_000
    except OSError:
        return None
