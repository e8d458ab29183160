"""Indexes over the fold that answer lists without looking at every job: what is unfinished, whose it is, and who is placed first.

Kept in step job by job as pages are folded; all of it follows from the market and can be made anew at any time. Pure.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from projections.job_states import QUEUED, TERMINAL
from projections.jobs import Job
from projections.market import Market
from services.api.read_model import JobFilter
from services.api.views import shown_run
from services.matcher.policies import order_key, row_of

Facet = tuple[str, str]
"""(what, its value): something that jobs are asked for by."""


class _Entry(NamedTuple):
    """What of a job its places in the index hang on, besides what never changes."""

    job_id: str
    state: str
    node: str | None


class Unfinished:
    """Jobs that have not ended, by the sequence of their submission; and by what they are asked for by."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._seqs: list[int] = []
        self._facets: dict[Facet, list[int]] = {}

    def __len__(self) -> int:
        return len(self._seqs)

    def put(self, job: Job) -> None:
        """A job that is not over, as it is now."""
        seq, run = job.submitted_seq, shown_run(job)
        entry = _Entry(job.submitted.job_id, job.state.value, None if run is None else run.node_id)
        before = self._entries.get(seq)
        if entry == before:
            return
        if before is None:
            insort(self._seqs, seq)
            added = {*_lasting(job), *_passing(entry)}
        else:
            added = {*_passing(entry)} - {*_passing(before)}
            self._leave({*_passing(before)} - {*_passing(entry)}, seq)
        self._entries[seq] = entry
        for facet in added:
            insort(self._facets.setdefault(facet, []), seq)

    def remove(self, job: Job) -> None:
        """A job that is over."""
        before = self._entries.pop(job.submitted_seq, None)
        if before is not None:
            _drop(self._seqs, job.submitted_seq)
            self._leave({*_lasting(job), *_passing(before)}, job.submitted_seq)

    def _leave(self, facets: Iterable[Facet], seq: int) -> None:
        for facet in facets:
            seqs = self._facets[facet]
            _drop(seqs, seq)
            if not seqs:
                del self._facets[facet]

    def among(self, states: Iterable[str]) -> tuple[int, Iterator[str]]:
        """How many are in one of these states, and their ids, the oldest first."""
        lists = [self._facets.get(("state", state), []) for state in states]
        return sum(map(len, lists)), (self._entries[seq].job_id for seq in heapq.merge(*lists))

    def newest_first(self, wanted: JobFilter, before_seq: int | None) -> Iterator[str]:
        """Ids of jobs that may be what is asked for, found by whatever is rarest of it; the rest is for the caller to look at."""
        lists = min(
            ([self._facets.get(facet, []) for facet in choice] for choice in _choices(wanted)),
            key=lambda lists: sum(map(len, lists)),
            default=[self._seqs],
        )
        parts = [_backwards(seqs, before_seq) for seqs in lists]
        for seq in parts[0] if len(parts) == 1 else heapq.merge(*parts, reverse=True):
            yield self._entries[seq].job_id


def _lasting(job: Job) -> Iterator[Facet]:
    """By what a job is found all its life."""
    asked = job.submitted
    yield "buyer", job.buyer
    if asked.org_id is not None:
        yield "org", asked.org_id
    if asked.group_id is not None:
        yield "group", asked.group_id
    for key, value in asked.labels.items():
        yield "label", f"{key}={value}"


def _passing(entry: _Entry) -> Iterator[Facet]:
    """By what it is found for now."""
    yield "state", entry.state
    if entry.node is not None:
        yield "node", entry.node


def _choices(wanted: JobFilter) -> Iterator[list[Facet]]:
    """The ways to find what is asked for: each is a list of facets of which a job must have one."""
    if wanted.states:
        yield [("state", state) for state in wanted.states]
    for name, value in (("buyer", wanted.buyer), ("node", wanted.node), ("org", wanted.org), ("group", wanted.group)):
        if value is not None:
            yield [(name, value)]
    for label in wanted.labels:
        yield [("label", label)]
    if wanted.seen_by is not None and not wanted.seen_by[1]:
        yield [("buyer", wanted.seen_by[0])]


def _backwards(seqs: list[int], before_seq: int | None) -> Iterator[int]:
    place = len(seqs) if before_seq is None else bisect_left(seqs, before_seq)
    for index in range(place - 1, -1, -1):
        yield seqs[index]


class Queue:
    """Queued jobs in the order in which the policy would place them."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._ids: dict[int, str] = {}
        self._key_of: dict[str, int] = {}
        self._moved_in: Market | None = None
        """The market in which any job may stand elsewhere by now; None: all stand where they belong."""

    def __len__(self) -> int:
        return len(self._keys)

    def _settle(self) -> None:
        """Under a policy by shares a match moves all jobs of its buyer: they are put in order when somebody asks."""
        market, self._moved_in = self._moved_in, None
        if market is not None:
            keyed = {order_key(market.jobs[name], market.policy, market): name for name in self._key_of if name in market.jobs}
            self._keys, self._ids, self._key_of = sorted(keyed), keyed, {name: key for key, name in keyed.items()}

    def touch(self, job_id: str, job: Job | None, market: Market) -> None:
        """Put a job where it belongs now; nowhere when it is not queued."""
        key = order_key(job, market.policy, market) if job is not None and job.state is QUEUED else None
        before = self._key_of.get(job_id)
        if key == before:
            return
        if before is not None:
            _drop(self._keys, before)
            del self._ids[before], self._key_of[job_id]
        if key is not None:
            insort(self._keys, key)
            self._ids[key] = job_id
            self._key_of[job_id] = key

    def parties_moved(self, market: Market) -> None:
        """What some party uses may have changed, and the order hangs on that."""
        self._moved_in = market

    def position(self, job_id: str) -> int | None:
        """How many jobs the policy would place first; None when it is not queued."""
        self._settle()
        key = self._key_of.get(job_id)
        return None if key is None else bisect_left(self._keys, key)

    def in_order(self) -> Iterator[str]:
        """The ids, first to be placed first."""
        self._settle()
        return (self._ids[key] for key in self._keys)


def oldest_first(market: Market) -> list[tuple[str, Job]]:
    """All jobs by their ids, in the order in which indexes are made of them fastest."""
    return sorted(market.jobs.items(), key=lambda item: item[1].submitted_seq)


class Standing:
    """Both indexes over one market. `jobs`: those that they begin with; all, unless the caller adds them a few at a time."""

    def __init__(self, market: Market, jobs: Iterable[tuple[str, Job]] | None = None) -> None:
        self._market = market
        self.unfinished = Unfinished()
        self.queue = Queue()
        for job_id, job in oldest_first(market) if jobs is None else jobs:
            self.touch(job_id, job)

    def touch(self, job_id: str, job: Job | None) -> None:
        """A job may have changed."""
        self.queue.touch(job_id, job, self._market)
        if row_of(self._market.policy).by_share:
            self.queue.parties_moved(self._market)
        if job is not None and job.state in TERMINAL:
            self.unfinished.remove(job)
        elif job is not None:
            self.unfinished.put(job)

    def reorder(self) -> None:
        """The policy has changed: every queued job may stand elsewhere."""
        ids = list(self.queue.in_order())
        self.queue = Queue()
        for job_id in ids:
            self.queue.touch(job_id, self._market.jobs.get(job_id), self._market)


def _drop(ordered: list[int], value: int) -> None:
    place = bisect_left(ordered, value)
    assert ordered[place] == value
    del ordered[place]
