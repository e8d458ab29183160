"""The market as it was: the ledger folded again up to a moment, one question at a time, the last few answers kept.

A moment is the end of a page, for a page is what the matcher decided at once. What only heartbeats told nobody knows any more. Reads only.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import NamedTuple

from events.log import Log
from events.page import Page
from projections.market import Market
from services.api import queries
from services.api.mirror import Mirror
from services.api.problems import bad_query
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


def moment(as_of: int, last_seq: int, now_ms: int) -> Until:
    """The moment that a query means, which must not lie ahead. Raises ProblemFound."""
    if as_of < queries.FIRST_TIME_MS:
        if as_of > last_seq:
            raise bad_query("as_of", f"the ledger ends at {last_seq}")
        return Until(seq=as_of)
    if as_of > now_ms + 1000:
        raise bad_query("as_of", "that moment has not come yet")
    return Until(time_ms=as_of)


class Past:
    """Folds one ledger again and again."""

    def __init__(self, ledger: Log) -> None:
        self._ledger = ledger
        self._kept: OrderedDict[Until, Mirror] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def mirror(self, until: Until) -> Mirror:
        """What answers are made of, as it was at that moment; not to be folded on. Raises LogUnavailable, LogCorrupt."""
        async with self._one_at_a_time:
            mirror = self._kept.pop(until, None)
            if mirror is None:
                follower = await self._fold(until, None)
                market = follower.market
                mirror = Mirror(follower, log_created="", on_disk_pages=market.pages, now_ms=until.time_ms or market.time_ms)
                mirror.remember_ended()
            self._kept[until] = mirror
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return mirror

    async def watched(self, until: Until, watch: WaitWatch) -> Market:
        """The market at that moment, after every page was shown to the watch. Raises LogUnavailable, LogCorrupt."""
        async with self._one_at_a_time:
            return (await self._fold(until, watch)).market

    async def _fold(self, until: Until, watch: WaitWatch | None) -> Follower:
        follower = Follower()
        head = await self._ledger.head()
        began_s = time.monotonic()
        async for stored in self._ledger.follow(0, until=head.position):
            page, folded = follower.fold(stored, until.is_past)
            if until.is_past(page):
                break
            if watch is not None:
                watch.page(follower.market, [record for record, _ in folded])
            if time.monotonic() - began_s > SLICE_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()
        return follower
