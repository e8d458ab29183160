"""The log as everybody sees it: append pages at an expected place, read them, follow them. Two implementations, one contract suite.

A log knows bytes and positions; what pages mean is `events/page.py`, what they change is `projections/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class StoredPage(NamedTuple):
    """The bytes of one page and its position in the log (1 for the first)."""

    position: int
    data: bytes
    stored_ms: int
    """The broker's own clock at the append; advisory."""


class LogHead(NamedTuple):
    """Where the log ends. `created` identifies this very log: it changes when the log is made anew."""

    position: int
    created: str


class Log(Protocol):
    """An append-only list of pages."""

    async def append(self, data: bytes, expected_position: int) -> int:
        """The position of the page, now durable. Raises AppendConflict when the log does not end at `expected_position`,
        LogUnavailable when it is unknown whether the page was appended."""

    async def head(self) -> LogHead:
        """Where the log ends now. Raises LogUnavailable."""

    async def read(self, position: int) -> StoredPage | None:
        """The page at this position, or None when there is none. Raises LogUnavailable."""

    def follow(self, after: int, *, until: int | None = None) -> AsyncIterator[StoredPage]:
        """Every page after this position, in order and without a gap; ends after `until`, else waits for more.
        Raises LogUnavailable when the connection is lost for good, LogCorrupt on a gap."""
