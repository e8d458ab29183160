"""The log in memory, for tests, simulations and what-if runs: the same promises as the one on NATS, kept until the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from events.errors import AppendConflict
from events.log import LogHead, StoredPage


class MemoryLog:
    """A list of pages. `now_ms` stands for the broker's clock."""

    def __init__(self, now_ms: Callable[[], int] = lambda: 0, *, created: str = "memory") -> None:
        self._pages: list[StoredPage] = []
        self._now_ms = now_ms
        self._created = created
        self._grown = asyncio.Event()

    async def append(self, data: bytes, expected_position: int) -> int:
        """See `Log.append`."""
        position = len(self._pages)
        if position != expected_position:
            raise AppendConflict(why=f"expected the log to end at {expected_position}, it ends at {position}")
        self._pages.append(StoredPage(position + 1, data, self._now_ms()))
        self._grown.set()
        self._grown = asyncio.Event()
        return position + 1

    async def head(self) -> LogHead:
        """See `Log.head`."""
        return LogHead(len(self._pages), self._created)

    async def read(self, position: int) -> StoredPage | None:
        """See `Log.read`."""
        return self._pages[position - 1] if 1 <= position <= len(self._pages) else None

    async def follow(self, after: int, *, until: int | None = None) -> AsyncIterator[StoredPage]:
        """See `Log.follow`."""
        position = after
        while until is None or position < until:
            while position >= len(self._pages):
                await self._grown.wait()
            position += 1
            yield self._pages[position - 1]
