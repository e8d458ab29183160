"""Queued jobs of one shape in policy order, indexed by what they would pay: "who comes first that pays this price?" in a few steps.

Most buyers name a price of their own, so jobs cannot be grouped by it; a search by price over the order must not walk the queue.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate, islice

from events.values import JobId
from services.matcher.ordered import Block, Ordered

ANY_PRICE = 10**18
"""What a job without a maximum would pay: more than any price."""
NEVER = 1 << 400
"""Above every order key."""


class PriceIndex(Ordered[int, int]):
    """Jobs by their order key; the amount of a row is the most that the job pays."""

    __slots__ = ()

    block_rows_max = 512

    def added(self, block: Block[int, int], index: int) -> None:
        """From the new row to the next that pays more, it pays the most so far."""
        so_far = block.most_so_far
        if so_far is not None:
            price = block.amounts[index]
            before = so_far[index - 1] if index else -1
            if price <= before:
                so_far.insert(index, before)
            else:
                end = bisect_left(so_far, price, index)
                so_far[index:end] = [price] * (end - index + 1)

    def removed(self, block: Block[int, int], index: int, amount: int) -> None:
        """If the row paid the most so far, those behind it do now, up to the next that pays more."""
        so_far = block.most_so_far
        if so_far is not None:
            del so_far[index]
            before = so_far[index - 1] if index else -1
            if amount > before:
                end = bisect_right(so_far, amount, index)
                so_far[index:end] = islice(accumulate(block.amounts[index:end], max, initial=before), 1, None)
                self.tally.touched += end - index

    @staticmethod
    def most(amounts: list[int]) -> int:
        """The highest price."""
        return max(amounts)

    @staticmethod
    def more(one: int, other: int) -> int:
        """The higher price."""
        return one if one >= other else other

    @staticmethod
    def reaches(amount: int, most: int) -> bool:
        """Whether this may be the highest price."""
        return amount >= most

    def first(self, price: int, before: int = NEVER) -> tuple[int, JobId] | None:
        """The first job that pays this price, if its key is below `before`: its key and id."""
        block, tally = self.root, self.tally
        while True:
            tally.touched += 1
            so_far = block.most_so_far
            if so_far is None:
                so_far = block.most_so_far = list(accumulate(block.amounts, max))
                tally.touched += len(so_far)
            at = bisect_left(so_far, price)
            if at == len(so_far):
                return None
            key = block.keys[at]
            if key >= before:
                return None
            if block.leaf:
                return key, block.items[at]
            block = block.items[at]
