"""Why the first of the queued jobs wait, in words: where many nodes have to be asked, found out one by one, and told for a while.

Ten thousand nodes take as long to ask as a whole answer may; so whoever asks is told what was found lately, and it is found anew
beside. Where nodes are few everything is found when it is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from projections.job_states import QUEUED
from projections.jobs import Job
from projections.market import Market
from services.api.tallies import Tallies
from services.matcher.verdicts import OfferKeys
from services.matcher.why import Moment, why_in_words

JOBS_MAX = 100
LOOKS_MAX = 10_000
"""Nodes that are asked for the words of one answer, over all jobs."""
FEW_NODES = 200
"""As long as there are no more, all words are found anew for every answer;"""
SERVES_MS_PER_NODE = 1
"""beyond, they serve for so long;"""
RESTS_TIMES = 5
"""whoever finds them rests so many times as long as it took."""
NEVER_MS = -(1 << 62)


class Words(NamedTuple):
    """Why a job waits, and when that was found out."""

    text: str
    at_ms: int


class WaitWords:
    """The words of one market's queued jobs."""

    def __init__(self, market: Market, tallies: Tallies, keys: OfferKeys) -> None:
        self._market = market
        self._tallies = tallies
        self._keys = keys
        self._known: dict[str, Words] = {}
        self._finding: asyncio.Task[None] | None = None

    def forget(self, job_id: str) -> None:
        """The job may have changed."""
        self._known.pop(job_id, None)

    def most(self) -> int:
        """Of how many jobs they are told."""
        return max(3, min(JOBS_MAX, LOOKS_MAX // max(1, self._tallies.there)))

    async def prepare(self, jobs: Iterable[tuple[int, Job]], now_ms: int) -> None:
        """See to it that the words of these jobs, each with its place in the queue, are known or will be soon; waits the first time."""
        nodes, is_first = self._tallies.there, not self._known
        if nodes <= FEW_NODES:
            return
        old_ms = now_ms - nodes * SERVES_MS_PER_NODE
        wanted = [(place, job.submitted.job_id) for place, job in jobs if self._at_ms(job) <= old_ms]
        if wanted and (self._finding is None or self._finding.done()):
            self._finding = asyncio.create_task(self._find_all(wanted, now_ms, rests=not is_first), name="wait words")
        if wanted and is_first and self._finding is not None:
            await asyncio.shield(self._finding)

    def tell(self, jobs: Iterable[tuple[int, Job]], now_ms: int) -> dict[str, str]:
        """The words of these jobs, as far as they are known."""
        is_cheap, told = self._tallies.there <= FEW_NODES, {}
        for place, job in jobs:
            if is_cheap:
                self._find(job, place, now_ms)
            known = self._known.get(job.submitted.job_id)
            if known is not None:
                told[job.submitted.job_id] = known.text
        return told

    def _at_ms(self, job: Job) -> int:
        known = self._known.get(job.submitted.job_id)
        return NEVER_MS if known is None else known.at_ms

    async def _find_all(self, wanted: list[tuple[int, str]], now_ms: int, *, rests: bool) -> None:
        if len(self._known) > 2 * JOBS_MAX:
            self._known.clear()
        for place, name in wanted:
            job, began_s = self._market.jobs.get(name), time.monotonic()
            if job is not None and job.state is QUEUED:
                self._find(job, place, now_ms)
            await asyncio.sleep(RESTS_TIMES * (time.monotonic() - began_s) if rests else 0)

    def _find(self, job: Job, place: int, now_ms: int) -> None:
        moment = Moment(max(now_ms, self._market.time_ms), self._tallies.silent, (), place)
        self._known[job.submitted.job_id] = Words(why_in_words(self._market, job, moment, self._keys), now_ms)
