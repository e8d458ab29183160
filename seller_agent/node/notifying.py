"""Tells systemd that the agent is ready, alive and on its way out: the few lines of sd_notify, and nothing without systemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send one state such as `READY=1` to whoever supervises us; whether somebody does."""
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sender:
        try:
            sender.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often life must be shown; `None` when nobody watches this process."""
    given, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not given.isdigit() or int(given) == 0 or pid != str(os.getpid()):
        return None
    return int(given) / 1_000_000


async def feed_watchdog(is_alive: Callable[[], bool]) -> None:
    """Show life three times as often as is asked, for as long as `is_alive`: from the agent's own loop, so that a hung one starves."""
    period_s = watchdog_s()
    while period_s is not None:
        if is_alive():
            notify("WATCHDOG=1")
        await asyncio.sleep(period_s / 3)
