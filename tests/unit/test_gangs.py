"""Gangs in turns of the matcher: taken, matched, ended and tried again as a whole, wherever one looks at the ledger."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from builders import digest, job_id, job_submitted, make, node_offered
from desk import Desk
from unit.test_turn import Trade, party, trade

from events import ids
from events.codec import encode_event
from events.fact import Event
from events.gangs import ranks_from
from events.jobs import (
    GangStopped,
    GpusReleased,
    JobCancelRequested,
    JobClaimed,
    JobDeclined,
    JobFailed,
    JobRequeued,
    JobStarted,
    JobSubmitted,
    JobSucceeded,
)
from events.log import StoredPage
from events.market import Policy
from events.nodes import NodeLost
from events.reasons import Reason, Refusal
from events.send_window import Entry, SendWindow
from events.wire import QuoteRequest
from projections.job_states import HELD, JobState
from projections.jobs import Job
from seller_agent.attempts.attempt import Attempt, Run, Work
from seller_agent.attempts.decisions import Do, Node, decide
from seller_agent.attempts.endings import end_event
from seller_agent.attempts.reconcile import catch_up
from seller_agent.runners.runner import RunState, RunStatus, StopReason
from seller_agent.runs.preparing import rendezvous
from services.follower import Follower
from services.matcher.answers import sync_job
from services.matcher.draft import Draft
from services.matcher.quotes import quote
from services.matcher.why import Moment, why

__all__ = ["trade"]  # the fixture

PLACE = "10.0.0.7"


def gang(name: str = "gang", number: int = 3, **changes: Any) -> list[JobSubmitted]:
    """All ranks, in order."""
    shared = {"num_nodes": number, "group_id": ids.group_id(digest(name)), **changes}
    return [job_submitted(f"{name}-{rank}", rank=rank, **shared) for rank in range(number)]


def names(number: int = 3) -> list[str]:
    return [f"gang-{rank}" for rank in range(number)]


def ranks(trade: Trade, number: int = 3) -> list[Job]:
    return [trade.world.market.jobs[job_id(name)] for name in names(number)]


def states(trade: Trade, number: int = 3) -> list[JobState]:
    return [rank.state for rank in ranks(trade, number)]


def offered(trade: Trade, number: int) -> None:
    trade.world.turn(trade.seller.say(*[trade.offer(f"node{index}", address=PLACE) for index in range(number)]))


def say_of_all(trade: Trade, kind: Any, **changes: object) -> None:
    trade.world.turn(trade.seller.say(*[trade.world.of_run(name, kind, **changes) for name in names()]))


@pytest.fixture
def running(trade: Trade) -> Trade:
    """A gang of three that runs on three of four nodes."""
    offered(trade, 4)
    trade.world.turn(trade.buyer.say(*gang()))
    say_of_all(trade, JobClaimed)
    say_of_all(trade, JobStarted)
    assert [JobState.RUNNING] * 3 == states(trade)
    return trade


def test_all_ranks_are_matched_in_one_page_on_different_nodes_and_know_where_to_meet(trade: Trade) -> None:
    offered(trade, 3)
    pages = len(trade.world.pages)
    trade.world.turn(trade.buyer.say(*gang()))
    assert pages + 1 == len(trade.world.pages)
    runs = [rank.run for rank in ranks(trade)]
    assert all(run is not None and run.master_addr == PLACE and run.master_port for run in runs)
    assert 1 == len({run.master_port for run in runs if run is not None})
    assert 3 == len({run.node_id for run in runs if run is not None})


def test_too_few_nodes_take_no_rank_and_are_kept_for_nobody(trade: Trade) -> None:
    offered(trade, 2)
    trade.world.turn(trade.buyer.say(*gang()))
    assert [JobState.QUEUED] * 3 == states(trade)
    trade.world.turn(trade.buyer.say(job_submitted("small")))
    assert JobState.MATCHED is trade.world.state("small")
    trade.world.turn(trade.seller.say(trade.offer("node3", address=PLACE), trade.offer("node4")))
    assert [JobState.QUEUED] * 3 == states(trade), "a node without an address takes no rank"
    trade.world.turn(trade.seller.say(trade.offer("node5", address=PLACE)))
    assert [JobState.MATCHED] * 3 == states(trade)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda events: events[:2],
        lambda events: events[1:],
        lambda events: [events[1], events[0], events[2]],
        lambda events: [events[0], events[1], msgspec.structs.replace(events[2], timeout_s=7)],
        lambda events: [events[0], events[1], msgspec.structs.replace(events[2], job_id=events[0].job_id)],
        lambda events: [msgspec.structs.replace(event, group_id=None) for event in events],
        lambda events: [msgspec.structs.replace(event, org_id="o" + "a" * 15) for event in events],
        lambda events: [*events[:2], make(JobCancelRequested)],
    ],
)
def test_of_what_is_no_whole_gang_nothing_is_taken(trade: Trade, spoil: Any) -> None:
    message = spoil(gang())
    before = trade.world.market.last_seq
    trade.world.turn(trade.buyer.say(*message))
    assert {} == trade.world.market.jobs
    assert {} == trade.world.market.gangs
    assert before == trade.world.market.last_seq or not ranks_from(encode_event(message[0])) > 1
    assert all(one.reason is not None for one in trade.world.outcomes(trade.buyer)[-len(message) :])


def test_a_gang_counts_as_a_whole_against_the_queue(trade: Trade) -> None:
    for start in (0, 49):
        trade.world.turn(trade.buyer.say(*[job_submitted(f"j{number}") for number in range(start, start + 49)]))
    trade.world.turn(trade.buyer.say(*gang()))
    assert [Refusal.QUEUE_FULL] * 3 == [one.reason for one in trade.world.outcomes(trade.buyer)[-3:]]
    assert 98 == len(trade.world.market.jobs)


def test_a_gang_that_is_sent_twice_is_there_once_and_nobody_else_joins_it(trade: Trade) -> None:
    message = trade.buyer.say(*gang())
    trade.world.turn(message)
    trade.world.turn(message)
    assert 3 == len(trade.world.market.jobs)
    stranger = party("stranger", trade.buyer.session.role)
    foreign = [msgspec.structs.replace(event, job_id=job_id(f"foreign-{event.rank}")) for event in gang()]
    trade.world.turn(stranger.hello(), stranger.say(*foreign))
    assert [Refusal.ILLEGAL_IN_STATE] * 3 == [one.reason for one in trade.world.outcomes(stranger)[-3:]]


def test_a_gang_never_leaves_in_two_messages() -> None:
    window = SendWindow(b"k" * 32, 0)
    events: list[Event] = [job_submitted(f"before{number}", labels={"a": "b" * 60}) for number in range(40)]
    for number, event in enumerate([*events, *gang(number=30)]):
        window.add(Entry(bytes([number]), encode_event(event)))
    sizes = []
    while taken := window.take():
        sizes.append([entry.together for entry in taken].count(30) and len(taken) - [entry.together for entry in taken].index(30))
        for entry in taken:
            window.flying.pop(entry.number)
    assert 30 == max(sizes)


def test_when_one_rank_fails_the_others_are_stopped_and_fail_with_it(running: Trade) -> None:
    world, seller = running.world, running.seller
    world.turn(seller.say(world.of_run("gang-1", JobFailed, reason=Reason.EXITED_NONZERO, exit_code=7, ran_ms=500)), after_ms=1000)
    assert [JobState.STOPPING, JobState.FAILED, JobState.STOPPING] == states(running)
    assert 2 == sum(isinstance(event, GangStopped) for event in world.heard(seller))
    for name in ("gang-0", "gang-2"):
        ended = world.of_run(name, JobFailed, reason=Reason.GANG_RANK_FAILED, ran_ms=900)
        world.turn(seller.say(ended, world.of_run(name, GpusReleased)))
    assert [JobState.FAILED] * 3 == states(running)
    assert [Reason.GANG_RANK_FAILED, Reason.EXITED_NONZERO, Reason.GANG_RANK_FAILED] == [rank.reason for rank in ranks(running)]
    assert all(rank.charged_uusd for rank in ranks(running)), "the failure was the buyer's own: every rank is paid for"


def test_a_failure_that_is_nobodys_puts_all_ranks_back_together_and_costs_nothing(running: Trade) -> None:
    world, seller = running.world, running.seller
    failed = world.market.jobs[job_id("gang-1")].run
    assert failed is not None
    world.turn(seller.say(world.of_run("gang-1", JobFailed, reason=Reason.EVICTED, ran_ms=500), world.of_run("gang-1", GpusReleased)))
    assert [JobState.STOPPING, JobState.QUEUED, JobState.STOPPING] == states(running)
    ended = world.of_run("gang-0", JobFailed, reason=Reason.GANG_RANK_FAILED, ran_ms=500)
    world.turn(seller.say(ended, world.of_run("gang-0", GpusReleased)), after_ms=1000)
    assert [JobState.QUEUED, JobState.QUEUED, JobState.STOPPING] == states(running), "nothing is matched before all wait"
    world.turn(seller.say(world.of_run("gang-2", JobSucceeded, ran_ms=500), world.of_run("gang-2", GpusReleased)))
    assert [JobState.QUEUED] * 3 == states(running)
    assert 3 == sum(isinstance(event, JobRequeued) for event in world.heard(running.buyer))
    world.turn(after_ms=5000)
    assert [JobState.MATCHED] * 3 == states(running)
    assert [2, 2, 2] == [rank.attempts for rank in ranks(running)]
    assert failed.node_id not in {rank.run.node_id for rank in ranks(running) if rank.run is not None}
    assert [0, 0, 0] == [rank.charged_uusd for rank in ranks(running)]


def test_a_lost_node_under_one_rank_begins_all_anew(running: Trade) -> None:
    world = running.world
    run = world.market.jobs[job_id("gang-2")].run
    assert run is not None
    draft = Draft(world.market, world.memory, world.now_ms)
    draft.decide_all([NodeLost(node_id=run.node_id)])
    draft.close()
    world._written(draft.closed)
    assert [JobState.STOPPING, JobState.STOPPING, JobState.QUEUED] == states(running)


def test_a_rank_that_is_declined_before_any_is_claimed_puts_all_back_at_once(trade: Trade) -> None:
    offered(trade, 3)
    trade.world.turn(trade.buyer.say(*gang()))
    trade.world.turn(trade.seller.say(trade.world.of_run("gang-2", JobDeclined)))
    assert [JobState.QUEUED] * 3 == states(trade)
    assert {} == trade.world.market.leases
    assert 1 == len({rank.not_before_ms for rank in ranks(trade)})


def test_a_gang_with_a_rank_that_succeeded_is_not_tried_again(running: Trade) -> None:
    world, seller = running.world, running.seller
    world.turn(seller.say(world.of_run("gang-0", JobSucceeded, exit_code=0), world.of_run("gang-0", GpusReleased)))
    assert [JobState.SUCCEEDED, JobState.RUNNING, JobState.RUNNING] == states(running)
    world.turn(seller.say(world.of_run("gang-1", JobFailed, reason=Reason.EVICTED)))
    assert [JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPING] == states(running)


def test_to_cancel_a_rank_cancels_all_also_while_they_are_stopped_to_begin_anew(running: Trade) -> None:
    world, seller, buyer = running.world, running.seller, running.buyer
    world.turn(seller.say(world.of_run("gang-1", JobFailed, reason=Reason.EVICTED), world.of_run("gang-1", GpusReleased)))
    world.turn(buyer.say(JobCancelRequested(job_id=job_id("gang-0"))))
    assert [JobState.STOPPING, JobState.CANCELLED, JobState.STOPPING] == states(running)
    for name in ("gang-0", "gang-2"):
        world.turn(seller.say(world.of_run(name, JobFailed, reason=Reason.GANG_RANK_FAILED), world.of_run(name, GpusReleased)))
    assert [JobState.CANCELLED] * 3 == states(running)
    assert {Reason.CANCELLED_BY_BUYER} == {rank.reason for rank in ranks(running)}


def test_a_gang_that_waited_too_long_expires_as_a_whole(trade: Trade) -> None:
    trade.world.turn(trade.buyer.say(*gang(queue_timeout_s=5)))
    trade.world.turn(after_ms=6000)
    assert [JobState.EXPIRED] * 3 == states(trade)


def test_at_the_end_of_every_page_all_ranks_are_held_or_none_was_matched(running: Trade) -> None:
    """Folded again page by page: no page ends between the matches of one gang."""
    follower = Follower()
    seen = set()
    for position, data in enumerate(running.world.pages, 1):
        follower.fold(StoredPage(position, data, 0))
        held = [job.state in HELD for job in follower.market.jobs.values()]
        seen.add((len(held), sum(held)))
    assert {(0, 0), (3, 3)} == seen


def test_why_and_quote_tell_a_gang_how_many_nodes_it_needs_and_how_many_fit(trade: Trade) -> None:
    offered(trade, 3)
    trade.world.turn(trade.buyer.say(*gang(number=4)))
    market, now_ms = trade.world.market, trade.world.now_ms
    told = why(market, market.jobs[job_id("gang-2")], Moment(now_ms))
    assert "It waits: it needs 4 nodes, 3 fit." == told.summary
    answer = quote(market, QuoteRequest(num_nodes=4), trade.buyer.wallet, now_ms)
    assert ("nodes", "4 nodes needed, 3 fit, 3 free", 3) == (answer.failing, answer.steps[-1].asked, answer.steps[-1].nodes)
    assert 0 == answer.could_run == answer.free_now
    trade.world.turn(trade.seller.say(trade.offer("docker")))
    told = why(market, market.jobs[job_id("gang-2")], Moment(now_ms))
    assert {"docker": "address"} == {node.name: node.condition for node in told.nodes if node.name == "docker"}
    answer = quote(market, QuoteRequest(num_nodes=3), trade.buyer.wallet, now_ms)
    assert (3, 3, None) == (answer.could_run, answer.free_now, answer.failing)


def test_a_gang_that_waits_costs_no_look_at_every_node() -> None:
    """Nodes free themselves under a gang that needs one more than fit: each time only a few rows are looked at."""

    def touched(nodes: int) -> int:
        desk = Desk()
        for number in range(nodes):
            desk.happen(node_offered(f"node{number}", price=100_000 + number, address=PLACE if number < 7 else None))
        desk.happen(*gang(number=8))
        assert desk.next_match() is None
        before = desk.engine.touched
        for number in range(10):
            desk.happen(job_submitted(f"job{number}", timeout_s=60))
            match = desk.next_match()
            assert match is not None
            desk.fold_match(match)
            desk.happen(make(JobCancelRequested, job_id=match.job_id))
            assert desk.next_match() is None
        return desk.engine.touched - before

    assert touched(1000) <= 2 * touched(50)


def test_a_gang_waits_until_the_market_has_room_for_all_of_its_ranks() -> None:
    desk = Desk(policy=Policy(max_concurrent=3))
    desk.happen(*[node_offered(f"node{number}", address=PLACE) for number in range(4)], node_offered("other"))
    desk.happen(job_submitted("first"))
    assert ["first"] == list(desk.match_all())
    desk.happen(*gang())
    assert desk.next_match() is None
    desk.happen(make(JobCancelRequested, job_id=job_id("first")))
    match = desk.next_match()
    assert match is not None
    assert 2 == len(match.others)


def test_a_node_that_was_away_learns_that_its_rank_is_stopped_and_reports_why(running: Trade) -> None:
    world, seller = running.world, running.seller
    run = world.market.jobs[job_id("gang-0")].run
    assert run is not None
    held = [sync_job(world.market.jobs[job_id("gang-0")], with_order=True)]
    attempts: dict[int, Attempt] = {}
    [attempt] = catch_up(attempts, held, world.market.last_seq)
    assert {"BAZAAR_RANK": "0", "BAZAAR_NNODES": "3", "BAZAAR_MASTER_ADDR": PLACE} == {
        name: value for name, value in rendezvous(attempt).items() if name != "BAZAAR_MASTER_PORT"
    }
    assert str(run.master_port) == rendezvous(attempt)["BAZAAR_MASTER_PORT"]
    attempt.run, attempt.started_told, attempt.prepared = Run.RUNNING, True, Work.DONE
    world.turn(seller.say(world.of_run("gang-1", JobFailed, reason=Reason.EXITED_NONZERO)))
    catch_up(attempts, [sync_job(world.market.jobs[job_id("gang-0")], with_order=True)], world.market.last_seq)
    assert Do.STOP in decide(attempt, Node(), 0)
    attempt.run, attempt.status = Run.EXITED, RunStatus(key=attempt.key, state=RunState.EXITED, stop_reason=StopReason.ASKED, ran_ms=5)
    assert Reason.GANG_RANK_FAILED is end_event(attempt).reason
