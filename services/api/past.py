"""The market as it was: the ledger folded again up to a moment, one question at a time, the last few answers kept.

A moment is the end of a page, for a page is what the matcher decided at once. Reads only.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from events.log import Log
from events.page import Page
from projections.market import Market
from services.follower import Follower
from services.matcher.waits import WaitWatch

KEPT = 2
"""Folded markets kept: whoever moves a slider asks for one moment many times."""
SLICE_S = 0.02


class Until(NamedTuple):
    """The last moment to fold: of the page that holds this event, or of the last page up to this time."""

    seq: int | None = None
    time_ms: int | None = None

    def is_past(self, page: Page) -> bool:
        """Whether the page lies after the moment."""
        if self.seq is not None:
            return page.first_seq > self.seq
        return self.time_ms is not None and page.time_ms > self.time_ms


class Past:
    """Folds one ledger again and again."""

    def __init__(self, ledger: Log) -> None:
        self._ledger = ledger
        self._kept: OrderedDict[Until, Market] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def market(self, until: Until) -> Market:
        """The market at that moment; not to be changed. Raises LogUnavailable, LogCorrupt."""
        async with self._one_at_a_time:
            known = self._kept.pop(until, None)
            market = await self._fold(until, None) if known is None else known
            self._kept[until] = market
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return market

    async def watched(self, until: Until, watch: WaitWatch) -> Market:
        """The same, with every page shown to the watch. Raises LogUnavailable, LogCorrupt."""
        async with self._one_at_a_time:
            return await self._fold(until, watch)

    async def _fold(self, until: Until, watch: WaitWatch | None) -> Market:
        follower = Follower()
        head = await self._ledger.head()
        began_s = time.monotonic()
        stop: Callable[[Page], bool] = until.is_past
        async for stored in self._ledger.follow(0, until=head.position):
            page, folded = follower.fold(stored, stop)
            if stop(page):
                break
            if watch is not None:
                watch.page(follower.market, [record for record, _ in folded])
            if time.monotonic() - began_s > SLICE_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()
        return follower.market
