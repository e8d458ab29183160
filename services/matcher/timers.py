"""Names to look at again when their time has come. Pure data; each name is kept once, with the earliest of its times."""

from __future__ import annotations

import heapq
from collections.abc import Iterator


class Timers:
    """A heap of (due, name)."""

    __slots__ = ("_due", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._due: dict[str, int] = {}

    def wake(self, due_ms: int, name: str) -> None:
        """Give this name when the time has come."""
        known = self._due.get(name)
        if known is None or due_ms < known:
            self._due[name] = due_ms
            heapq.heappush(self._heap, (due_ms, name))

    def is_due(self, now_ms: int) -> bool:
        """Whether any time has come."""
        return bool(self._heap) and self._heap[0][0] <= now_ms

    def due(self, now_ms: int) -> Iterator[str]:
        """The names whose time has come; each is given once at least."""
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            due_ms, name = heapq.heappop(heap)
            if self._due.get(name) == due_ms:
                del self._due[name]
            yield name

    def next_ms(self) -> int | None:
        """When the next time comes; None: never."""
        return self._heap[0][0] if self._heap else None
