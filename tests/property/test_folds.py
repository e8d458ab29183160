"""Whatever happens, in whatever order: folds are total, counters are right, no card is held twice, and a replay is the same to the byte."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from builders import BUYER, DEFAULTS, SELLER, By, History, Later, job_id, job_submitted, make, node_offered, wallet
from hypothesis import given as over
from hypothesis import strategies as st

from events import ids, jobs, nodes
from events.fact import Event
from events.jobs import AttemptEvent, JobSubmitted
from events.nodes import NodeOffered
from events.reasons import Reason, Refusal
from projections import snapshot
from projections.arbiter import fold
from projections.job_states import HELD, QUEUED, TERMINAL
from projections.market import Market

Step = tuple[str, int, int, int, bool]
NAMES = ("a", "b", "c")
STRANGER = wallet("stranger")
JOB_EVENTS = tuple(kind for kind in DEFAULTS if kind.__module__ == jobs.__name__ and kind is not JobSubmitted)
NODE_EVENTS = tuple(kind for kind in DEFAULTS if kind.__module__ == nodes.__name__ and kind is not NodeOffered)
OTHER_EVENTS = tuple(kind for kind in DEFAULTS if kind not in (*JOB_EVENTS, *NODE_EVENTS, JobSubmitted, NodeOffered))


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """One thing that somebody tries: what, about which, from whom; most of it makes sense for the job's present attempt."""
    what = draw(st.sampled_from(["submit", "offer", "job", "job", "job", "job", "node", "other", "wait"]))
    return what, draw(st.integers(0, 50)), draw(st.integers(0, 2)), draw(st.integers(0, 2)), draw(st.booleans())


def try_step(history: History, step: Step) -> None:
    what, kind, first, second, honest = step
    market, name = history.market, NAMES[first]
    node = ids.node_id(SELLER, NAMES[second])
    event: Event
    match what:
        case "submit":
            event = job_submitted(name, retries=kind % 3, num_gpus=second)
        case "offer":
            event = node_offered(name, gpus=1 + second, price=1 + kind)
        case "job":
            changes = {"job_id": job_id(name)}
            chosen = JOB_EVENTS[kind % len(JOB_EVENTS)]
            job = market.jobs.get(job_id(name))
            if issubclass(chosen, AttemptEvent) and job is not None and job.run is not None and honest:
                changes |= {"attempt": job.run.attempt, "epoch": job.run.epoch}
                node = job.run.node_id
            if "node_id" in chosen.__struct_fields__:
                changes["node_id"] = node
            if chosen is jobs.JobMatched and job is not None and node in market.nodes:
                free = [card.uuid for card in market.nodes[node].offer.cards][: job.submitted.requirements.num_gpus]
                changes |= {"attempt": job.attempts + 1, "cards": tuple(free)}
            if chosen is jobs.JobFailed:
                changes["reason"] = list(Reason)[kind % len(Reason)]
            event = make(chosen, **changes)
        case "node":
            event = make(NODE_EVENTS[kind % len(NODE_EVENTS)], node_id=node)
        case "other":
            event = make(OTHER_EVENTS[kind % len(OTHER_EVENTS)])
        case _:
            history.happen(Later(kind * 1000))
            return
    record = history.record(event if honest or what != "job" else By(STRANGER, event))  # may authorise the sender's key first
    before = snapshot.digest(market)
    if isinstance(history.apply(record), Refusal):
        assert before == snapshot.digest(market), f"a refused {type(event).__name__} changed the market"


def check(market: Market) -> None:
    """What must hold after every event."""
    for name, node in market.nodes.items():
        held = [uuid for allocation in node.allocations.values() for uuid in allocation.cards]
        assert len(held) == len(set(held)) and set(held) == set(node.taken)
        assert all(market.leases[epoch] == name for epoch in node.allocations)
        assert node.cores_taken == sum(allocation.cores for allocation in node.allocations.values())
    assert len(market.leases) == sum(len(node.allocations) for node in market.nodes.values())
    for job in market.jobs.values():
        if job.state in HELD:
            assert job.run is not None and job.run.epoch in market.leases
        assert (job.ended_ms > 0) == (job.state in TERMINAL)
        assert job.charged_uusd >= 0
    queued = Counter(job.buyer for job in market.jobs.values() if job.state is QUEUED)
    assert dict(queued) == market.queued_of
    states = Counter(job.state for job in market.jobs.values())
    assert all(states[state] == count for state, count in market.states.items())
    check_parties(market)
    assert sum(market.ledger.balances.values()) == 0
    assert all(amount >= 0 for account, amount in market.ledger.balances.items() if account != "world")


def check_parties(market: Market) -> None:
    """What a party is counted for is what nodes have of its jobs."""
    for name, party in market.parties.items():
        held = [job for job in market.jobs.values() if name in (job.buyer, job.submitted.org_id) and job.state in HELD]
        runs = [job.run for job in held if job.run is not None]
        assert party.gpus == sum(len(run.cards) for run in runs)
        assert party.committed_uusd == sum(run.stake.uusd for run in runs)
        assert party.committed_gpu_ms == sum(run.stake.gpu_ms for run in runs)
        assert min(party.level, party.used_gpu_ms, party.day_uusd) >= 0
        assert party.day_uusd <= party.month_uusd


@over(st.lists(steps(), max_size=60))
def test_no_order_of_events_breaks_the_market(happenings: list[Step]) -> None:
    history = History()
    history.happen(node_offered("a", gpus=2), job_submitted("a"))
    for step in happenings:
        try_step(history, step)
        check(history.market)


@over(st.lists(steps(), max_size=60), st.integers(0, 60))
def test_live_fold_replay_and_snapshot_with_tail_are_the_same_to_the_byte(happenings: list[Step], cut: int) -> None:
    history = History()
    history.happen(node_offered("a", gpus=2), job_submitted("a"))
    for step in happenings:
        try_step(history, step)
    start = Market(operators=history.market.operators)
    replay = fold(history.records, start)
    half = fold(history.records[:cut], Market(operators=history.market.operators))
    resumed = fold(history.records[cut:], snapshot.decode(snapshot.encode(half)))
    assert snapshot.digest(history.market) == snapshot.digest(replay) == snapshot.digest(resumed)


@over(st.lists(steps(), max_size=40))
def test_events_that_come_twice_change_nothing(happenings: list[Step]) -> None:
    history = History()
    history.happen(node_offered("a", gpus=2), job_submitted("a"))
    for step in happenings:
        try_step(history, step)
    from_senders = [record for record in history.records if record.number]
    before = snapshot.digest(history.market)
    void: dict[str, int] = {}
    fold(from_senders, history.market, void)
    assert before == snapshot.digest(history.market)
    assert len(from_senders) == sum(void.values())


def test_a_snapshot_of_another_log_or_a_changed_one_is_not_used() -> None:
    history = History()
    history.happen(node_offered(), job_submitted())
    data = snapshot.take(history.market, "log 1")
    assert snapshot.digest(history.market) == snapshot.digest(snapshot.restore(data, "log 1"))
    changed = bytearray(data)
    changed[-10] ^= 1
    old = msgspec.msgpack.decode(data)
    old[0]["fold_version"] += 1
    for bad, log in ((data, "log 2"), (bytes(changed), "log 1"), (b"", "log 1"), (msgspec.msgpack.encode(old), "log 1")):
        with pytest.raises(snapshot.SnapshotRefused):
            snapshot.restore(bad, log)


def test_buyers_are_counted_by_who_submitted() -> None:
    history = History()
    history.happen(job_submitted("a"), By(STRANGER, job_submitted("b")))
    assert {BUYER: 1, STRANGER: 1} == history.market.queued_of
