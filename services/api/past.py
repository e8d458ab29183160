"""The market as it was: the ledger folded again up to a moment, one question at a time, the last few answers kept.

A moment is the end of a page, for a page is what the matcher decided at once. What only heartbeats told nobody knows any more. Reads only.
A long ledger takes long: who may wait for how much of it is bounded, for everybody but the owner of the machine, so that no reader who
asks for one moment after another keeps the others from theirs, or from the answers that need no reading.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from events.log import Log
from events.page import Page
from events.reasons import Refusal
from projections.market import Market
from services.api import queries
from services.api.access import Viewer
from services.api.mirror import Mirror
from services.api.problems import ProblemFound, Trouble, bad_query
from services.api.standing import Standing, oldest_first
from services.follower import Follower
from services.matcher.waits import WaitWatch

KEPT = 2
"""Folded markets kept: whoever moves a slider asks for one moment many times."""
SLICE_S = 0.02
PLACES, PER_READER = 4, 2
"""Moments that are read or waited for at once: by all readers, fewer than `rpc.CONCURRENCY`, and by one; all strangers are one."""
AGAIN_S = 5
JOBS_AT_ONCE = 1000
"""So many jobs are put in order before others have their turn."""
FOLD_S_MAX = 60.0
"""So long one reading may keep the next waiting."""


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

    def __init__(self, ledger: Log, *, fold_s_max: float = FOLD_S_MAX) -> None:
        self._ledger = ledger
        self._fold_s_max = fold_s_max
        self._kept: OrderedDict[Until, Mirror] = OrderedDict()
        self._folding: dict[Until, asyncio.Task[Mirror]] = {}
        self._readers: Counter[Viewer] = Counter()
        self._one_at_a_time = asyncio.Lock()

    async def mirror(self, until: Until, viewer: Viewer) -> Mirror:
        """What answers are made of, as it was at that moment; not to be folded on. Raises ProblemFound, LogUnavailable, LogCorrupt."""
        kept = self._kept.get(until)
        if kept is not None:
            self._kept.move_to_end(until)
            return kept
        folding = self._folding.get(until)
        if folding is None:
            folding = self._folding[until] = asyncio.create_task(self._mirror(until, viewer))
            folding.add_done_callback(lambda done: self._folded(until, done))
        return await asyncio.shield(folding)

    async def watched(self, until: Until, watch: WaitWatch, viewer: Viewer) -> Market:
        """The market at that moment, after every page was shown to the watch. Raises ProblemFound, LogUnavailable, LogCorrupt."""
        async with self._turn(viewer):
            return (await self._fold(until, watch)).market

    async def _mirror(self, until: Until, viewer: Viewer) -> Mirror:
        async with self._turn(viewer):
            follower = await self._fold(until, None)
            market = follower.market
            now_ms, standing = until.time_ms or market.time_ms, await _standing(market)
            mirror = Mirror(follower, log_created="", on_disk_pages=market.pages, now_ms=now_ms, standing=standing)
            mirror.remember_ended()
            self._kept[until] = mirror
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return mirror

    def _folded(self, until: Until, done: asyncio.Task[Mirror]) -> None:
        del self._folding[until]
        if not done.cancelled():
            done.exception()  # whoever still waits is told

    @asynccontextmanager
    async def _turn(self, viewer: Viewer) -> AsyncIterator[None]:
        """The ledger for oneself, when it is one's turn. Raises ProblemFound."""
        if viewer.sees_all:
            async with self._one_at_a_time:
                yield
            return
        if self._readers.total() >= PLACES or self._readers[viewer] >= PER_READER:
            raise ProblemFound(Refusal.RATE_LIMITED, "Other moments of the past are being read.", retry_after_s=AGAIN_S)
        self._readers[viewer] += 1
        try:
            async with self._one_at_a_time, asyncio.timeout(self._fold_s_max):
                yield
        except TimeoutError:
            raise ProblemFound(Trouble.NOT_READY, f"Reading the ledger again took longer than {self._fold_s_max:g} s.") from None
        finally:
            self._readers[viewer] -= 1
            if not self._readers[viewer]:
                del self._readers[viewer]

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


async def _standing(market: Market) -> Standing:
    """The indexes over a market that stands still, made a few jobs at a time: of a large one they take as long as hundreds of answers."""
    jobs, standing = oldest_first(market), Standing(market, ())
    for first in range(0, len(jobs), JOBS_AT_ONCE):
        for job_id, job in jobs[first : first + JOBS_AT_ONCE]:
            standing.touch(job_id, job)
        await asyncio.sleep(0)
    return standing
