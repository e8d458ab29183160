"""Nodes in an order that is kept while they change: what belongs before what is found again, not sorted again, for every list. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K", int, str)


class SortedNodes(Generic[K]):
    """Node ids by a key, and by id where keys are equal."""

    def __init__(self, keys: Iterable[tuple[K, str]]) -> None:
        self._ordered: list[tuple[K, str]] = sorted(keys)
        self._keys: dict[str, K] = {node_id: key for key, node_id in self._ordered}

    def put(self, node_id: str, key: K) -> None:
        """A node has this key now."""
        before = self._keys.get(node_id)
        if before == key:
            return
        if before is not None:
            del self._ordered[bisect_left(self._ordered, (before, node_id))]
        self._keys[node_id] = key
        insort(self._ordered, (key, node_id))

    def after(self, place: tuple[K, str] | None = None) -> Iterator[str]:
        """The ids behind a place, or all of them. To be read before anything is put."""
        start = 0 if place is None else bisect_right(self._ordered, place)
        return (node_id for _, node_id in islice(self._ordered, start, None))
