"""The example of docs/policies.md: one small market and seven jobs, run to the end under each policy, with nothing simulated but the time.

The page is written from this and a test runs it again, so what the page says is what the matcher does.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

from builders import OPERATOR, SELLER, By, Later, job_id, job_submitted, make, node_offered, wallet
from desk import Desk

from events import jobs, market
from events.market import Policy

MINUTE_MS = 60_000


class Asked(NamedTuple):
    """A job of the example. It runs exactly as long as `minutes`; the market knows that only where an estimate is given."""

    name: str
    who: str
    minutes: int
    estimated: bool = True
    priority: int = 50
    max_price_uusd: int = 400_000
    gpus: int = 1


ALREADY = Asked("long", "alice", 60)
"""Runs on the cheap node when the others come."""
QUEUE = (
    Asked("a1", "alice", 30),
    Asked("a2", "alice", 10, max_price_uusd=200_000),
    Asked("b1", "bob", 40, estimated=False),
    Asked("b2", "bob", 20),
    Asked("c1", "carol", 50, priority=75),
    Asked("c2", "carol", 5, max_price_uusd=200_000),
)
"""Come in this order, a minute apart, while the market is paused."""
NODES = {"cheap": 200_000, "dear": 400_000}
"""Two cards each, and their price per GPU-hour."""


class Start(NamedTuple):
    """A job gets its node."""

    minute: int
    name: str
    node: str


def submitted(asked: Asked) -> By:
    """The submission of a job of the example."""
    estimate_s = asked.minutes * 60 if asked.estimated else None
    values: dict[str, Any] = {"priority": asked.priority, "max_price": asked.max_price_uusd, "num_gpus": asked.gpus}
    return By(wallet(asked.who), job_submitted(asked.name, estimate_s=estimate_s, timeout_s=2 * 3600, **values))


def run(policy: str) -> list[Start]:
    """Every start after the market goes on, in order."""
    desk = Desk(policy=Policy(name=policy))
    desk.happen(*(node_offered(name, gpus=2, price=price) for name, price in NODES.items()), submitted(ALREADY))
    _begin(desk, [*desk.match_all()])
    desk.happen(By(OPERATOR, make(market.MatchingPaused)))
    for asked in QUEUE:
        desk.happen(Later(MINUTE_MS), submitted(asked))
    desk.happen(By(OPERATOR, make(market.MatchingResumed)))
    begin_ms, minutes = desk.now_ms, {asked.name: asked.minutes for asked in (ALREADY, *QUEUE)}
    ends = [(begin_ms + (ALREADY.minutes - len(QUEUE)) * MINUTE_MS, ALREADY.name)]
    starts = []
    while True:
        begun = desk.match_all()
        _begin(desk, [*begun])
        for name, node in begun.items():
            starts.append(Start((desk.now_ms - begin_ms) // MINUTE_MS, name, node))
            heapq.heappush(ends, (desk.now_ms + minutes[name] * MINUTE_MS, name))
        if not ends:
            return starts
        end_ms, name = heapq.heappop(ends)
        desk.happen(Later(end_ms - desk.now_ms), *_end(desk, name, minutes[name]))


def _begin(desk: Desk, names: list[str]) -> None:
    for name in names:
        attempt = desk.attempt(job_id(name))
        desk.happen(*(By(SELLER, make(kind, **attempt)) for kind in (jobs.JobClaimed, jobs.JobStarted)))


def _end(desk: Desk, name: str, minutes: int) -> tuple[By, By]:
    attempt = desk.attempt(job_id(name))
    ended = make(jobs.JobSucceeded, **attempt, ran_ms=minutes * MINUTE_MS)
    return By(SELLER, ended), By(SELLER, make(jobs.GpusReleased, **attempt))
