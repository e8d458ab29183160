"""What a reader sees of the market as a whole: where it stands, its rules, its figures. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

import msgspec

from events.market import Policy
from projections.job_states import TERMINAL
from projections.jobs import Job
from projections.market import Market
from services.api.tallies import Tallies

HOUR_MS = 3_600_000


class MarketView(msgspec.Struct, frozen=True, kw_only=True):
    """Where the market stands; what a stranger needs to know before anything else."""

    id: str
    name: str
    seq: int
    page_hash: str
    pages: int
    time_ms: int
    paused: bool
    policy: str
    matcher_key: str
    payments: str
    root: str
    operators: tuple[str, ...]
    void: dict[str, int]
    """Events in the ledger that had no effect, by refusal: none, unless something is badly wrong."""
    digest: str | None


def market_view(market: Market, void: dict[str, int], digest: bytes | None) -> MarketView:
    """The JSON of the market."""
    return MarketView(
        id=market.market_id,
        name=market.name,
        seq=market.last_seq,
        page_hash=market.page_hash.hex(),
        pages=market.pages,
        time_ms=market.time_ms,
        paused=market.paused,
        policy=market.policy.name,
        matcher_key=market.matcher_key,
        payments=market.payments,
        root=market.root,
        operators=market.operators,
        void=void,
        digest=None if digest is None else digest.hex(),
    )


class PolicyView(msgspec.Struct, frozen=True, kw_only=True):
    """Every number that decides something, since when, and the rule in one sentence."""

    policy: dict[str, int | str | bool | None]
    sentence: str
    since_seq: int


def policy_view(policy: Policy, sentence: str, since_seq: int) -> PolicyView:
    """The JSON of the policy."""
    return PolicyView(policy=msgspec.structs.asdict(policy), sentence=sentence, since_seq=since_seq)


class StatsView(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of this moment, and of the last hour."""

    nodes: int
    """Offered and heard of."""
    gpus: int
    available_gpus: int
    utilization_percent: int
    waiting: int
    running: int
    mean_wait_s: float | None
    """From submission to the match, of the matches of the last hour; `None` when there was none."""
    jobs_per_hour: int
    """Ended in the last hour."""
    finished: dict[str, int]
    """How many jobs ever ended in which state."""


class LastHour:
    """What ended and what was matched in the last hour of ledger time, as it is folded."""

    def __init__(self) -> None:
        self._ends: deque[int] = deque()
        self._waits: deque[tuple[int, int]] = deque()
        self._wait_ms = 0

    def ended(self, ended_ms: int) -> None:
        """A job is over."""
        self._ends.append(ended_ms)

    def matched(self, matched_ms: int, wait_ms: int) -> None:
        """A job was given a node after having waited so long."""
        self._waits.append((matched_ms, wait_ms))
        self._wait_ms += wait_ms

    def forget(self, now_ms: int) -> None:
        """Drop what is older than an hour."""
        late_ms = now_ms - HOUR_MS
        while self._ends and self._ends[0] < late_ms:
            self._ends.popleft()
        while self._waits and self._waits[0][0] < late_ms:
            self._wait_ms -= self._waits.popleft()[1]

    @property
    def ends(self) -> int:
        return len(self._ends)

    @property
    def mean_wait_s(self) -> float | None:
        return round(self._wait_ms / len(self._waits) / 1000, 1) if self._waits else None


WAIT_BUCKETS_S = (0.01, 0.1, 1, 10, 60, 600, 3600, 21_600, 86_400)


class Waits:
    """How long jobs waited for their matches, since this process began to read: counts by upper bound, the last one without."""

    def __init__(self) -> None:
        self.counts = [0] * (len(WAIT_BUCKETS_S) + 1)
        self.total_s = 0.0

    def matched(self, wait_ms: int) -> None:
        """A job was matched after this time."""
        wait_s = wait_ms / 1000
        self.total_s += wait_s
        self.counts[bisect_left(WAIT_BUCKETS_S, wait_s)] += 1


def remembered(jobs: dict[str, Job]) -> LastHour:
    """The last hour as far as the fold's own jobs tell it."""
    hour = LastHour()
    for ended_ms in sorted(job.ended_ms for job in jobs.values() if job.state in TERMINAL):
        hour.ended(ended_ms)
    for matched_ms, wait_ms in sorted(
        (job.run.matched_ms, job.run.matched_ms - job.submitted_ms) for job in jobs.values() if job.run is not None
    ):
        hour.matched(matched_ms, wait_ms)
    return hour


def stats_view(market: Market, tallies: Tallies, hour: LastHour, now_ms: int) -> StatsView:
    """The JSON of the figures. Cards of nodes that are silent, draining or banned are not on offer."""
    tallies.settle(now_ms)
    cards = tallies.heard_cards
    hour.forget(now_ms)
    states = market.states
    return StatsView(
        nodes=tallies.heard_nodes,
        gpus=cards.gpus,
        available_gpus=cards.free,
        utilization_percent=round(100 * cards.taken / cards.gpus) if cards.gpus else 0,
        waiting=states.get("queued", 0),
        running=sum(states.get(state, 0) for state in ("matched", "claimed", "starting", "running", "stopping")),
        mean_wait_s=hour.mean_wait_s,
        jobs_per_hour=hour.ends,
        finished={state.value: states.get(state, 0) for state in sorted(TERMINAL)},
    )
