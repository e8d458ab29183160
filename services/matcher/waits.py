"""The whole wait of one job as intervals, each with its cause, found by folding the ledger again and looking after every page. Pure.

Between two pages nothing changes but the time, so what time alone will bring about (the end of a pause, of passing a node over, of a
maintenance) is reckoned in advance. What no ledger holds is said as such: a node that was free and not matched had not been heard of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from events.fact import Event
from events.identity import MemberAdded, MemberRemoved, MemberRoleChanged
from events.jobs import AttemptEvent, GpusReleased, JobMatched, LeaseExpired
from events.page import Record
from events.why import Cause, Interval, Nearness
from projections.job_states import CLAIMED, MATCHED, QUEUED
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Node, NodeState
from services.matcher.feasibility import Ask, Scene, asks_of
from services.matcher.verdicts import OfferKeys, tier_of, verdicts
from services.matcher.why import NEAREST_FIRST, cause_of

NEAR = frozenset({Nearness.FREE, Nearness.CAPACITY})
RANK = {tier: at for at, tier in enumerate(NEAREST_FIRST)}
CHANGES_ACCESS: tuple[type[Event], ...] = (MemberAdded, MemberRemoved, MemberRoleChanged)


class Later(NamedTuple):
    """What time alone will change."""

    at_ms: int
    cause: Cause
    why: str


class WaitWatch:
    """Watches one job while the market is folded. `page` after each page, `end` once."""

    def __init__(self, job_id: str) -> None:
        self.waits: list[Interval] = []
        self._job_id = job_id
        self._keys = OfferKeys()
        self._open: Interval | None = None
        self._later: list[Later] = []
        self._tiers: dict[str, Nearness] = {}
        self._timed: set[str] = set()
        """Nodes whose answer may change with the time alone."""
        self._holders: dict[int, str] = {}
        """Epoch -> the node that holds cards for it."""
        self._seen_seq = 0
        """The job's `updated_seq` when all nodes were asked last."""

    def page(self, market: Market, records: Iterable[Record]) -> None:
        """A page has been folded, every page from the first one on."""
        records = list(records)
        touched = self._follow(records)
        job = market.jobs.get(self._job_id)
        if job is None:
            return
        now_ms, seq = market.time_ms, market.last_seq
        self._pass_time(now_ms)
        if job.state is QUEUED:
            self._look(market, job, records, touched)
        elif job.state is MATCHED or job.state is CLAIMED:
            self._later = []
            node = market.nodes.get(job.run.node_id) if job.run is not None else None
            name = "a node" if node is None else node.offer.name
            if job.state is MATCHED:
                self._wait_for(Cause.CLAIM, f"{name} had been found and had not answered yet", job, now_ms, seq)
            else:
                self._wait_for(Cause.PREPARING, f"{name} prepared the run: inputs, image, container", job, now_ms, seq)
        else:
            self._later = []
            self._close(now_ms)

    def end(self, now_ms: int) -> list[Interval]:
        """The moment that was asked about has come; all intervals up to it."""
        self._pass_time(now_ms)
        self._close(now_ms)
        return self.waits

    # -- looking --

    def _follow(self, records: list[Record]) -> set[str]:
        """Who holds cards for which epoch; and the nodes of which these events speak."""
        touched: set[str] = set()
        for record in records:
            event = record.event
            if isinstance(event, JobMatched):
                self._holders[record.seq] = event.node_id
            node_id: str | None = getattr(event, "node_id", None)
            if node_id is None and isinstance(event, AttemptEvent):
                node_id = self._holders.get(event.epoch)
            if node_id is not None:
                touched.add(node_id)
            if isinstance(event, GpusReleased | LeaseExpired):
                self._holders.pop(event.epoch, None)
        return touched

    def _look(self, market: Market, job: Job, records: list[Record], touched: set[str]) -> None:
        scene, asks = Scene(market, market.time_ms), asks_of(job)
        if job.updated_seq != self._seen_seq or any(isinstance(record.event, CHANGES_ACCESS) for record in records):
            self._tiers, self._timed = {}, set()
            self._ask(market, scene, asks, market.nodes)
            self._seen_seq = job.updated_seq
        else:
            self._count_placed(records)
            self._ask(market, scene, asks, touched)
        cause, text = cause_of(market, job, self._count(), scene.now_ms)
        self._wait_for(cause, text, job, scene.now_ms, market.last_seq)
        self._later = list(self._foresee(market, job, asks, scene.now_ms))

    def _ask(self, market: Market, scene: Scene, asks: Sequence[Ask], node_ids: Iterable[str]) -> None:
        """What these nodes say now to the nearest of what the buyer would take; the others say what they said."""
        nodes = []
        for node_id in node_ids:
            node = market.nodes.get(node_id)
            if node is None or (node.state is NodeState.WITHDRAWN and node_id != asks[0].requirements.target_node):
                self._tiers.pop(node_id, None)
                continue
            nodes.append(node)
            is_tiered = any(ask.requirements.min_tier for ask in asks) and node.tier_until_ms
            is_timed = node_id in asks[0].avoid or node.maintenance is not None or is_tiered
            (self._timed.add if is_timed else self._timed.discard)(node_id)
        for place, ask in enumerate(asks):
            found = verdicts(ask, scene, nodes, self._keys)
            tiers = [tier_of(condition) for condition in (*found.asked, None)]
            for node_id, at in found.first.items():
                if place == 0 or RANK[tiers[at]] < RANK[self._tiers[node_id]]:
                    self._tiers[node_id] = tiers[at]

    def _count_placed(self, records: list[Record]) -> None:
        """Others were placed where this job could have run."""
        if self._open is not None:
            matches = (record.event for record in records if isinstance(record.event, JobMatched))
            self._open.placed_meanwhile += sum(self._tiers.get(match.node_id) in NEAR for match in matches)

    def _count(self) -> dict[Nearness, int]:
        counts: dict[Nearness, int] = {}
        for tier in self._tiers.values():
            counts[tier] = counts.get(tier, 0) + 1
        return counts

    # -- what time alone changes --

    def _foresee(self, market: Market, job: Job, asks: Sequence[Ask], now_ms: int) -> Iterator[Later]:
        changing = [market.nodes[node_id] for node_id in self._timed if node_id in market.nodes]
        moments = {job.not_before_ms, *asks[0].avoid.values()}
        for node in changing:
            moments.update(_moments(node, job))
        before = dict(self._tiers) if changing else self._tiers
        for at_ms in sorted(at for at in moments if at > now_ms):
            self._ask(market, Scene(market, at_ms), asks, [node.node_id for node in changing])
            cause, text = cause_of(market, job, self._count(), at_ms)
            yield Later(at_ms, cause, text)
        self._tiers = before

    def _pass_time(self, now_ms: int) -> None:
        """Let come true what was foreseen before this time."""
        while self._later and self._later[0].at_ms < now_ms:
            later = self._later.pop(0)
            if self._open is not None:
                self._turn_to(later.cause, later.why, self._open.attempt, later.at_ms, self._open.seq)

    # -- intervals --

    def _wait_for(self, cause: Cause, text: str, job: Job, now_ms: int, seq: int) -> None:
        waiting_for = job.attempts + 1 if job.state is QUEUED else job.attempts
        begin_ms = job.submitted_ms if self._open is None and not self.waits else now_ms
        self._turn_to(cause, text, waiting_for, begin_ms, seq)

    def _turn_to(self, cause: Cause, text: str, attempt: int, now_ms: int, seq: int) -> None:
        if self._open is not None:
            if self._open.cause is cause and self._open.attempt == attempt:
                return
            self._close(now_ms)
        last = self.waits[-1] if self.waits else None
        if last is not None and (last.cause, last.attempt, last.until_ms) == (cause, attempt, now_ms):
            self._open = self.waits.pop()  # what came in between took no time
            return
        self._open = Interval(from_ms=now_ms, until_ms=now_ms, cause=cause, why=text, attempt=attempt, seq=seq)

    def _close(self, now_ms: int) -> None:
        if self._open is not None:
            self._open.until_ms = now_ms
            if now_ms > self._open.from_ms:
                self.waits.append(self._open)
            self._open = None


def _moments(node: Node, job: Job) -> Iterator[int]:
    """When the mere passing of time may change what the node says to the job."""
    if node.maintenance is not None:
        from_ms, until_ms, _ = node.maintenance
        yield from_ms - job.timeout_s * 1000 + 1
        yield until_ms
    if node.tier_until_ms:
        yield node.tier_until_ms
