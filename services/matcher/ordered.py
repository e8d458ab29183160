"""An ordered list that knows, for every stretch of it, the most that a row in that stretch offers. Pure data, no rule of the market.

A shallow tree of small blocks: a leaf holds rows, any other block holds blocks. Beside its rows' keys a block holds their amounts, and
beside its blocks' first keys the most that each of them offers. So a search for the first row that offers enough passes over whole
blocks, and adding or removing a row, anywhere, changes one short path. What an amount is, is the subclass's affair.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Any)
A = TypeVar("A", bound=Any)


class Tally:
    """How many rows were looked at; what tests assert instead of time."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched = 0


class Block(Generic[K, A]):
    """Part of the list. `items` are rows' ids in a leaf, blocks elsewhere; `keys` there are lower bounds."""

    __slots__ = ("amounts", "items", "keys", "leaf", "most_so_far")

    def __init__(self, leaf: bool, keys: list[K], amounts: list[A], items: list[Any]) -> None:
        self.leaf = leaf
        self.keys = keys
        self.amounts = amounts
        self.items = items
        self.most_so_far: list[A] | None = None
        """The most among the rows up to each one, made when a search wants it; None after a change that did not keep it right."""


class Ordered(Generic[K, A]):
    """Rows by unique key, each with an amount and what it stands for (an id, mostly)."""

    __slots__ = ("root", "size", "tally")

    block_rows_max = 64
    """A block with less than a quarter of that is joined to its neighbour when both fit well into one."""

    def __init__(self, tally: Tally) -> None:
        self.root: Block[K, A] = Block(True, [], [], [])
        self.size = 0
        self.tally = tally

    @staticmethod
    def most(amounts: list[A]) -> A:
        """The most of several amounts."""
        raise NotImplementedError

    @staticmethod
    def more(one: A, other: A) -> A:
        """The most of two."""
        raise NotImplementedError

    @staticmethod
    def reaches(amount: A, most: A) -> bool:
        """Whether without this amount, `most` may no longer be reached."""
        raise NotImplementedError

    def added(self, block: Block[K, A], index: int) -> None:
        """A row has come into this leaf: keep `most_so_far` right, or forget it."""
        block.most_so_far = None

    def removed(self, block: Block[K, A], index: int, amount: A) -> None:
        """A row with this amount has gone from this place of this leaf."""
        block.most_so_far = None

    def low(self) -> K | None:
        """A key that is not above the first row's; None when there is no row."""
        return self.root.keys[0] if self.size else None

    def add(self, key: K, amount: A, item: Any) -> None:
        """Put a row in its place. Its key is not there yet."""
        path, block = self._descend(key)
        index = bisect_left(block.keys, key)
        assert index == len(block.keys) or block.keys[index] != key, key
        block.keys.insert(index, key)
        block.amounts.insert(index, amount)
        block.items.insert(index, item)
        self.added(block, index)
        self.size += 1
        for parent, at in reversed(path):
            was = parent.amounts[at]
            now = self.more(was, amount)
            if now == was:
                break
            parent.amounts[at] = now
            parent.most_so_far = None
        if len(block.keys) > self.block_rows_max:
            self._split(path, block)

    def remove(self, key: K) -> None:
        """Take the row with this key out. It is there."""
        path, block = self._descend(key)
        index = bisect_left(block.keys, key)
        assert block.keys[index] == key, key
        gone = block.amounts[index]
        del block.keys[index], block.amounts[index], block.items[index]
        self.removed(block, index, gone)
        self.size -= 1
        for parent, at in reversed(path):
            if 4 * len(block.keys) < self.block_rows_max and self._join(parent, at):
                block = parent
                continue
            if not self.reaches(gone, parent.amounts[at]):
                return
            now = self.most(block.amounts)
            if now == parent.amounts[at]:
                return
            parent.amounts[at] = now
            parent.most_so_far = None
            block = parent
        while not self.root.leaf and len(self.root.items) == 1:
            self.root = self.root.items[0]

    def _descend(self, key: K) -> tuple[list[tuple[Block[K, A], int]], Block[K, A]]:
        """The leaf where this key belongs, and the way to it."""
        path = []
        block = self.root
        while not block.leaf:
            at = bisect_right(block.keys, key) - 1
            if at < 0:
                at = 0
                block.keys[0] = key
            path.append((block, at))
            block = block.items[at]
        return path, block

    def _split(self, path: list[tuple[Block[K, A], int]], block: Block[K, A]) -> None:
        """Halve a block that has grown too long, and its parents where that makes them too long. Amounts on the path are right after it."""
        for parent, at in reversed(path):
            if len(block.keys) <= self.block_rows_max:
                return
            right = self._halve(block)
            parent.amounts[at] = self.most(block.amounts)
            parent.keys.insert(at + 1, right.keys[0])
            parent.amounts.insert(at + 1, self.most(right.amounts))
            parent.items.insert(at + 1, right)
            parent.most_so_far = None
            block = parent
        if len(block.keys) > self.block_rows_max:
            right = self._halve(block)
            parts = [block, right]
            self.root = Block(False, [part.keys[0] for part in parts], [self.most(part.amounts) for part in parts], parts)

    def _halve(self, block: Block[K, A]) -> Block[K, A]:
        """The upper half of a block, taken off it."""
        half = len(block.keys) // 2
        right: Block[K, A] = Block(block.leaf, block.keys[half:], block.amounts[half:], block.items[half:])
        del block.keys[half:], block.amounts[half:], block.items[half:]
        block.most_so_far = None
        return right

    def _join(self, parent: Block[K, A], at: int) -> bool:
        """Join the short block at this place of its parent to a neighbour, if there is one with room; an empty one just goes, and may
        leave its parent empty (never the root, which has two items or is a leaf)."""
        block = parent.items[at]
        if block.keys:
            left = at if at + 1 < len(parent.items) else at - 1
            if left < 0:
                return False
            first, second = parent.items[left], parent.items[left + 1]
            if len(first.keys) + len(second.keys) > self.block_rows_max * 3 // 4:
                return False
            first.keys += second.keys
            first.amounts += second.amounts
            first.items += second.items
            first.most_so_far = None
            parent.amounts[left] = self.most(first.amounts)
            at = left + 1
        del parent.keys[at], parent.amounts[at], parent.items[at]
        parent.most_so_far = None
        return True
