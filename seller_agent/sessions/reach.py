"""What a tunnel may reach in a run: what its runner reaches, and the session's own word on how its pages are opened.

That word holds the token; it leaves the node only so, inside a tunnel that is sealed for the job's buyer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from events.market_client import MarketClient
from events.tunnel_frames import SESSION
from seller_agent.attempts.attempt import Attempt
from seller_agent.runners.runner import RunKey, Runner, Stream, Terminal, run_folder
from seller_agent.sessions.session import read_access
from seller_agent.sessions.tunnels import Tunnels


class Words:
    """A stream that says one thing and is over; what is said to it is lost."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    async def read(self, most: int) -> bytes:
        """Some bytes; empty at the end."""
        data, self._left = self._left[:most], self._left[most:]
        return data

    async def write(self, data: bytes) -> None:
        """Nobody listens."""

    async def write_eof(self) -> None:
        """Nobody listens."""

    async def close(self) -> None:
        """There is nothing to let go of."""


class SessionReach:
    """A runner as tunnels see it. `runs` has the folders of its runs."""

    def __init__(self, runner: Runner, runs: Path) -> None:
        self._runner = runner
        self._runs = str(runs)

    async def dial(self, key: RunKey, place: str) -> Stream:
        """As `Runner.dial`, and SESSION. Raises ConnectionError, RunnerError."""
        if place != SESSION:
            return await self._runner.dial(key, place)
        access = await asyncio.to_thread(read_access, run_folder(self._runs, key))
        if access is None:
            raise ConnectionRefusedError("this job is no session")
        return Words(msgspec.json.encode(access))

    async def shell(self, key: RunKey, argv: tuple[str, ...], columns: int, rows: int) -> Terminal:
        """As `Runner.shell`. Raises RunnerError."""
        return await self._runner.shell(key, argv, columns, rows)


def reach_runs(client: MarketClient, runner: Runner, runs: Path, attempts: Mapping[int, Attempt]) -> Coroutine[Any, Any, None]:
    """Let buyers reach what runs for them here, for ever."""
    return Tunnels(client.connection.url, lambda: client.session, SessionReach(runner, runs), attempts).run()
