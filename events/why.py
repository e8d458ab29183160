"""Why a job is not running: the shape of that answer, which travels as JSON over HTTP and as msgpack on `rpc.why`. None of it is a fact.

Who reads it and what it is made of is decided elsewhere (`services/matcher/why.py`, `waits.py`); here are only the words and their bounds.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from events.values import JobId
from events.wire import Failure


class Nearness(StrEnum):
    """How near a node is to running the job, farthest first."""

    NEVER = "never"  # as it is offered it can never run this job
    PRICE = "price"  # it asks more than the job may cost
    AWAY = "away"  # it would do, but takes nothing now: draining, in maintenance, lost, silent, or it has just failed this job
    CAPACITY = "capacity"  # it would do, and others hold its cards, cores or memory
    FREE = "free"  # it could run the job this moment


class Cause(StrEnum):
    """What a job waited for during one interval."""

    PAUSED = "paused"  # the operator paused the market
    RETRY = "retry"  # the pause before another attempt
    MARKET_FULL = "market_full"  # as many jobs run as the policy allows
    LIMIT = "limit"  # its wallet or organisation is at its limit
    IMPOSSIBLE = "impossible"  # no node could ever run it
    PRICE = "price"  # only nodes that ask more could run it
    AWAY = "away"  # only nodes that take nothing at the time could run it
    CAPACITY = "capacity"  # the nodes that could run it were taken
    SILENT = "silent"  # a node was free in the ledger, and not matched: it was not heard of, or a place there was kept for a job ahead
    CLAIM = "claim"  # a node had been found and had not answered yet
    PREPARING = "preparing"  # the node fetched inputs, pulled the image, created the container


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes are left after one more condition."""

    condition: str
    asked: str
    nodes: int


class NodeVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Why one node does not run the job."""

    node: str
    name: str
    tier: Nearness
    condition: str
    """The first condition that it does not meet, as in the funnel; `free` when it meets all."""
    why: str
    """In words: what was asked, and what it has."""
    price_uusd_per_gpu_hour: int
    free_in_s: int | None = None
    """When it has room at the latest, by the timeouts of what runs there."""


class Ahead(msgspec.Struct, frozen=True, kw_only=True):
    """A queued job that the policy places first."""

    job: str
    why: str


class PlaceKept(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes kept for the first job that must wait: others start there only if they are over by then."""

    job: str
    nodes: list[str]
    from_ms: int
    """When it has room there at the latest."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A single change of the job that would place it."""

    flag: str
    """As the buyer would write it: `--max-price 0.45`."""
    condition: str
    why: str
    node: str
    name: str
    price_uusd_per_gpu_hour: int
    cost_uusd: int
    """Of the whole timeout at that price."""
    at_once: bool
    """The matcher, run on the changed job, places it now; else the node could run it once it is free."""


class Interval(msgspec.Struct, kw_only=True):
    """A part of the wait, and what the job waited for. The intervals of a job follow one another without a gap."""

    from_ms: int
    until_ms: int
    cause: Cause
    why: str
    attempt: int
    seq: int
    """The last event of the ledger at its beginning."""
    placed_meanwhile: int = 0
    """How many other jobs were placed in it on nodes that could have run this one."""


class WaitHistory(msgspec.Struct, frozen=True, kw_only=True):
    """How long jobs with as many cards waited lately."""

    jobs: int
    p50_s: int
    p90_s: int


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job is not running, at one moment of the ledger."""

    job: str
    name: str
    state: str
    time_ms: int
    """The moment: the time of the last event before it, or now."""
    summary: str
    """In one sentence."""
    cause: Cause | None = None
    """None: it does not wait."""
    steps: list[Step] = []
    tiers: dict[str, int] = {}
    """How many nodes are in each tier."""
    nodes: list[NodeVerdict] = []
    """Nearest first, at most 50."""
    queue_position: int | None = None
    ahead: list[Ahead] = []
    place_kept: PlaceKept | None = None
    """For this job, or for one ahead of it that keeps it from a free node."""
    change: Change | None = None
    history: WaitHistory | None = None
    wait_ms: int | None = None
    """All of the waiting up to the moment; with `waits` only."""
    waits: list[Interval] = []


class WhyRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`rpc.why`. `as_of`: a sequence (below 10^12) or milliseconds since 1970; None: now. `waits`: with the intervals of the whole wait."""

    job_id: JobId
    as_of: int | None = None
    waits: bool = False


class WhyAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `rpc.why`."""

    as_of_seq: int
    why: Why | None = None
    failure: Failure | None = None
