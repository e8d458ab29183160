"""Indexes over the fold that answer lists without looking at every job: what is unfinished, whose it is, and who is placed first.

Kept in step job by job as pages are folded; all of it follows from the market and can be made anew at any time. Pure.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from projections.jobs import QUEUED, TERMINAL, Job
from projections.market import Market
from services.matcher.policies import order_key


class Unfinished:
    """Jobs that have not ended, by the sequence of their submission."""

    def __init__(self) -> None:
        self._seqs: list[int] = []
        self._ids: dict[int, str] = {}
        self._of_buyer: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._seqs)

    def add(self, job: Job) -> None:
        """A job that is not over; a known one stays as it is."""
        if job.submitted_seq in self._ids:
            return
        self._ids[job.submitted_seq] = job.submitted.job_id
        insort(self._seqs, job.submitted_seq)
        insort(self._of_buyer.setdefault(job.buyer, []), job.submitted_seq)

    def remove(self, job: Job) -> None:
        """A job that is over."""
        if self._ids.pop(job.submitted_seq, None) is None:
            return
        _drop(self._seqs, job.submitted_seq)
        mine = self._of_buyer[job.buyer]
        _drop(mine, job.submitted_seq)
        if not mine:
            del self._of_buyer[job.buyer]

    def newest_first(self, *, before_seq: int | None, buyer: str | None) -> Iterator[str]:
        """Ids of jobs that were submitted before this sequence."""
        seqs = self._seqs if buyer is None else self._of_buyer.get(buyer, [])
        place = len(seqs) if before_seq is None else bisect_left(seqs, before_seq)
        for index in range(place - 1, -1, -1):
            yield self._ids[seqs[index]]


class Queue:
    """Queued jobs in the order in which the policy would place them."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._ids: dict[int, str] = {}
        self._key_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

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

    def position(self, job_id: str) -> int | None:
        """How many jobs the policy would place first; None when it is not queued."""
        key = self._key_of.get(job_id)
        return None if key is None else bisect_left(self._keys, key)

    def in_order(self) -> Iterator[str]:
        """The ids, first to be placed first."""
        return (self._ids[key] for key in self._keys)


class Standing:
    """Both indexes over one market."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self.unfinished = Unfinished()
        self.queue = Queue()
        for job_id, job in sorted(market.jobs.items(), key=lambda item: item[1].submitted_seq):
            self.touch(job_id, job)

    def touch(self, job_id: str, job: Job | None) -> None:
        """A job may have changed."""
        self.queue.touch(job_id, job, self._market)
        if job is not None and job.state in TERMINAL:
            self.unfinished.remove(job)
        elif job is not None:
            self.unfinished.add(job)

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
