"""Figures that are kept in step with the ledger: after any events, in any order, they are what counting all nodes anew would give."""

from __future__ import annotations

from collections import Counter
from typing import Any

from builders import OPERATOR, START_MS, By, History, job_id, job_submitted, make, matched, node_of, node_offered
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as some

from events.fact import Event
from events.jobs import GpusReleased, JobCancelled, JobCancelRequested, JobClaimed, JobDeclined, JobStarted, JobSucceeded, LeaseExpired
from events.market import NodeBanned, Policy, PolicyChanged
from events.nodes import NodeDrained, NodeLost, NodeRepriced, NodeResumed, NodeWithdrawn
from events.reasons import Refusal
from events.wire import Beat, BeatView
from projections.market import Market
from projections.nodes import Node, NodeState, free_cards
from services.api.candles import NO_CARD
from services.api.sorted_nodes import SortedNodes
from services.api.tallies import Tallies
from services.api.telemetry import Telemetry

NODES, JOBS = ("a", "b"), ("j", "k", "l")
ATTEMPT_EVENTS = (JobClaimed, JobDeclined, JobStarted, JobSucceeded, JobCancelled, GpusReleased, LeaseExpired)
NODE_EVENTS = (NodeDrained, NodeResumed, NodeWithdrawn, NodeLost, NodeRepriced)
SUSPECT_S = Policy().suspect_s


class Watched:
    """A market in which anything may happen, and its tallies from before all of it, or from the middle on."""

    def __init__(self) -> None:
        self.history = History()
        self.telemetry = Telemetry(START_MS)
        self.tallies = Tallies(self.market, self.telemetry)
        self.epochs: list[tuple[str, int, int, str]] = []

    @property
    def market(self) -> Market:
        return self.history.market

    def say(self, happening: Event | By) -> None:
        record = self.history.record(happening)
        if isinstance(self.history.apply(record), Refusal):
            return
        self.tallies.folded(record)
        if hasattr(record.event, "job_id"):
            self.tallies.touch(record.event.job_id)
        if isinstance(record.event, PolicyChanged):
            self.tallies.count_anew()

    def beat(self, name: str) -> None:
        if name in self.names():
            node_id = node_of(self.market, name).node_id
            view = BeatView(beat=Beat(node_id=node_id, boot="b"), wallet="", time_ms=0)
            self.telemetry.note(view, self.history.now_ms)
            self.tallies.heard(node_id)

    def names(self) -> set[str]:
        return {node.offer.name for node in self.market.nodes.values()}


def step(watched: Watched, what: str, node: str, job: str, number: int) -> None:
    """One thing that may happen; what makes no sense has no effect, as in a market."""
    market = watched.market
    match what:
        case "offer":
            model = ("NVIDIA A100", "NVIDIA H100")[number % 2]
            watched.say(node_offered(node, gpus=number % 4, price=100_000 * (1 + number), model=model, healthy=number != 3))
        case "node":
            changes = {"price_uusd_per_gpu_hour": 50_000 * (1 + number)} if NODE_EVENTS[number % 5] is NodeRepriced else {}
            if node in watched.names():
                watched.say(make(NODE_EVENTS[number % 5], node_id=node_of(market, node).node_id, **changes))
        case "ban" if node in watched.names():
            watched.say(By(OPERATOR, make(NodeBanned, node_id=node_of(market, node).node_id, lifted=number % 2 == 1)))
        case "submit":
            watched.say(job_submitted(job, num_gpus=number % 3))
        case "match" if node in watched.names() and job_id(job) in market.jobs:
            match = matched(market, job, node)
            watched.say(match)
            if market.leases.get(market.last_seq) == match.node_id:
                watched.epochs.append((match.job_id, match.attempt, market.last_seq, match.node_id))
        case "attempt" if watched.epochs:
            name, attempt, epoch, node_id = watched.epochs[number % len(watched.epochs)]
            kind = ATTEMPT_EVENTS[number % len(ATTEMPT_EVENTS)]
            more = {"node_id": node_id} if kind is LeaseExpired else {}
            watched.say(make(kind, job_id=name, attempt=attempt, epoch=epoch, **more))
        case "cancel" if job_id(job) in market.jobs:
            watched.say(make(JobCancelRequested, job_id=job_id(job)))
        case "beat":
            watched.beat(node)
        case "time":
            watched.history.now_ms += (1000, SUSPECT_S * 700, SUSPECT_S * 1500)[number % 3]
        case "policy":
            watched.say(By(OPERATOR, make(PolicyChanged, policy=Policy(suspect_s=SUSPECT_S + number))))


def counted(market: Market, telemetry: Telemetry, now_ms: int) -> dict[str, Any]:
    """Everything, by looking at every node."""
    nodes = list(market.nodes.values())
    silent = {node.node_id for node in nodes if telemetry.is_suspect(node, market.policy.suspect_s, now_ms)}
    offered = [node for node in nodes if node.state is NodeState.OFFERED]
    models: dict[str, list[Any]] = {}
    for node in offered:
        free = Counter(card.model for card in free_cards(node))
        for model, gpus in (Counter(card.model for card in node.offer.cards) or {NO_CARD: 0}).items():
            row = models.setdefault(model, [0, 0, []])
            row[0], row[1] = row[0] + gpus, row[1] + free[model]
            row[2] = sorted([*row[2], node.price_uusd_per_gpu_hour])
    return {
        "silent": silent,
        "there": sum(node.state is not NodeState.WITHDRAWN or bool(node.allocations) for node in nodes),
        "states": Counter(node.state for node in nodes),
        "silent_states": Counter(node.state for node in nodes if node.node_id in silent),
        "offered": cards_of(offered),
        "heard": cards_of([node for node in offered if node.node_id not in silent]),
        "models": models,
    }


def cards_of(nodes: list[Node]) -> tuple[int, ...]:
    counts = ((len(node.offer.cards), len(node.taken), len(free_cards(node))) for node in nodes)
    return tuple(map(sum, zip((0, 0, 0), *counts, strict=True)))


def kept(tallies: Tallies) -> dict[str, Any]:
    return {
        "silent": set(tallies.silent),
        "there": tallies.there,
        "states": +tallies.states,
        "silent_states": +tallies.silent_states,
        "offered": tuple(tallies.offered),
        "heard": tuple(tallies.heard_cards),
        "models": {model: [tally.gpus, tally.free, tally.prices_uusd] for model, tally in tallies.models.items()},
    }


WHAT = ("offer", "node", "match", "attempt", "time") * 2 + ("ban", "submit", "cancel", "beat", "policy")
steps = some.tuples(some.sampled_from(WHAT), some.sampled_from(NODES), some.sampled_from(JOBS), some.integers(0, 11), some.booleans())


@settings(max_examples=200)  # a fault needs several things to come together
@for_all(some.lists(steps, min_size=10, max_size=80))
def test_figures_kept_in_step_are_those_of_counting_anew(happenings: list[tuple[str, str, str, int, bool]]) -> None:
    watched = Watched()
    for what, node, job, number, looks in happenings:
        step(watched, what, node, job, number)
        if looks:
            watched.tallies.settle(watched.history.now_ms)
            assert counted(watched.market, watched.telemetry, watched.history.now_ms) == kept(watched.tallies)
    now_ms = watched.history.now_ms
    late = Tallies(watched.market, watched.telemetry)
    for tallies in (watched.tallies, late):
        tallies.settle(now_ms)
        assert counted(watched.market, watched.telemetry, now_ms) == kept(tallies)


def test_a_run_from_match_to_release_takes_its_cards_and_gives_them_back() -> None:
    watched = Watched()
    for what, number in (("offer", 2), ("submit", 2), ("match", 0)):
        step(watched, what, "a", "j", number)
    watched.tallies.settle(START_MS)
    assert (2, 2, 0) == tuple(watched.tallies.offered)
    for kind in (JobClaimed, JobStarted, JobSucceeded):
        step(watched, "attempt", "a", "j", ATTEMPT_EVENTS.index(kind))
    watched.tallies.settle(START_MS)
    assert (2, 2, 0) == tuple(watched.tallies.offered), "held until the node says that they are clean"
    step(watched, "attempt", "a", "j", ATTEMPT_EVENTS.index(GpusReleased))
    watched.tallies.settle(START_MS)
    assert (2, 0, 2) == tuple(watched.tallies.offered)


def test_a_node_falls_silent_by_the_clock_alone_and_is_back_with_its_next_word() -> None:
    watched = Watched()
    step(watched, "offer", "a", "", 1)
    late_ms = START_MS + SUSPECT_S * 1000
    for now_ms, silent in ((late_ms, 0), (late_ms + 1, 1), (late_ms + 5000, 1)):
        watched.tallies.settle(now_ms)
        assert silent == len(watched.tallies.silent), now_ms
    watched.history.now_ms = late_ms + 5000
    watched.beat("a")
    watched.tallies.settle(late_ms + 5000)
    assert set() == watched.tallies.silent


@for_all(some.lists(some.tuples(some.sampled_from("abcdef"), some.integers(0, 5)), max_size=40))
def test_nodes_that_change_are_found_where_they_belong(puts: list[tuple[str, int]]) -> None:
    known: dict[str, int] = {"a": 3, "b": 3, "f": 0}
    ordered = SortedNodes((key, name) for name, key in known.items())
    for name, key in puts:
        ordered.put(name, key)
        known[name] = key
        expected = sorted((key, name) for name, key in known.items())
        assert [name for _, name in expected] == list(ordered.after())
        assert [name for place, name in expected if (place, name) > (3, "b")] == list(ordered.after((3, "b")))
