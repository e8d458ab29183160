"""Shapes of jobs that may fit a node, each with a bound: none of its jobs before that key fits any. Pure; the engine makes bounds exact."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from services.matcher.shapes import Shape, ShapeKey


class Frontier:
    """A heap of (bound, number of the shape, shape); an entry counts while its bound is the shape's own."""

    __slots__ = ("_shapes", "heap")

    def __init__(self, shapes: Mapping[ShapeKey, Shape]) -> None:
        self.heap: list[tuple[int, int, Shape]] = []
        self._shapes = shapes

    def push(self, shape: Shape, key: int) -> None:
        """From this key on, jobs of the shape may fit a node."""
        if shape.bound is not None and shape.bound <= key:
            return
        shape.bound = key
        heapq.heappush(self.heap, (key, shape.number, shape))
        if len(self.heap) > 4 * len(self._shapes) + 64:
            self.heap = [(one.bound, one.number, one) for one in self._shapes.values() if one.bound is not None]
            heapq.heapify(self.heap)

    def push_all(self, shape: Shape) -> None:
        """Any job of the shape may fit a node."""
        low = shape.jobs.low()
        if low is not None:
            self.push(shape, low)

    def push_each(self, shapes: Iterable[Shape]) -> None:
        """Any job of any of them may fit a node."""
        for shape in shapes:
            self.push_all(shape)
