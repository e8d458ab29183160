"""Shapes of jobs, each with a bound: none of its jobs before that key meets some condition (fits a node, could run at all). Pure; whoever
owns one makes the bounds exact."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from services.matcher.shapes import Shape, ShapeKey


class Frontier:
    """A heap of (bound, number of the shape, shape); an entry counts while its bound is the shape's own."""

    __slots__ = ("_shapes", "bounds", "heap")

    def __init__(self, shapes: Mapping[ShapeKey, Shape]) -> None:
        self.heap: list[tuple[int, int, Shape]] = []
        self.bounds: dict[Shape, int] = {}
        """A shape that is not here has no such job at all, as far as is known."""
        self._shapes = shapes

    def push(self, shape: Shape, key: int) -> None:
        """From this key on, jobs of the shape may meet the condition."""
        bound = self.bounds.get(shape)
        if bound is not None and bound <= key:
            return
        self.bounds[shape] = key
        heapq.heappush(self.heap, (key, shape.number, shape))
        if len(self.heap) > 4 * len(self._shapes) + 64:
            self.heap = [(bound, one.number, one) for one, bound in self.bounds.items()]
            heapq.heapify(self.heap)

    def push_all(self, shape: Shape) -> None:
        """Any job of the shape may."""
        low = shape.jobs.low()
        if low is not None:
            self.push(shape, low)

    def push_each(self, shapes: Iterable[Shape]) -> None:
        """Any job of any of them may."""
        for shape in shapes:
            self.push_all(shape)

    def top(self) -> tuple[int, Shape] | None:
        """The lowest bound, and whose it is."""
        heap, bounds = self.heap, self.bounds
        while heap:
            bound, _, shape = heap[0]
            if bounds.get(shape) == bound:
                return bound, shape
            heapq.heappop(heap)
        return None

    def raise_top(self, shape: Shape, bound: int | None) -> None:
        """The bound of the shape on top is higher than was known; None: it has no such job."""
        if bound is None:
            heapq.heappop(self.heap)
            del self.bounds[shape]
        else:
            self.bounds[shape] = bound
            heapq.heapreplace(self.heap, (bound, shape.number, shape))

    def forget(self, shapes: Iterable[Shape]) -> None:
        """There are no such shapes any more."""
        for shape in shapes:
            self.bounds.pop(shape, None)
