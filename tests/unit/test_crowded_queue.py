"""One wallet with very many jobs: the others keep their place in the queue, and the matcher looks at no more rows for them."""

from __future__ import annotations

import pytest
from builders import BUYER, OPERATOR, By, job_id, job_submitted, make, node_offered, wallet
from desk import Desk
from unit.test_turn import Trade, party, trade

from events.jobs import JobCancelRequested
from events.market import LimitChanged, Policy
from events.reasons import Refusal
from events.values import Role
from projections.job_states import JobState
from services.matcher.checks import CHECKS
from services.matcher.why import Moment, why

__all__ = ["trade"]  # the fixture
OTHER = wallet("other")
POLICIES = ("priority", "fcfs", "sjf", "fair-share", "least-backlog")


def crowded(jobs: int, policy: str) -> Desk:
    """Two nodes with a free card each, and a wallet with many jobs that need two."""
    desk = Desk(node_offered("a"), node_offered("b"), policy=Policy(name=policy, max_queue=10**6))
    desk.happen(*(By(BUYER, job_submitted(f"many{number}", num_gpus=2, timeout_s=60 + number)) for number in range(jobs)))
    assert desk.next_match() is None
    return desk


def touched_by_another(desk: Desk) -> int:
    """How many rows the matcher looks at until the other wallet's jobs have their nodes."""
    before = desk.engine.touched
    for number in range(20):
        name = f"other{number}"
        desk.happen(By(OTHER, job_submitted(name, timeout_s=60)))
        match = desk.next_match()
        assert match is not None and job_id(name) == match.job_id
        desk.fold_match(match)
        desk.happen(By(OTHER, make(JobCancelRequested, job_id=match.job_id)))
        assert desk.next_match() is None
    return desk.engine.touched - before


@pytest.mark.parametrize("policy", POLICIES)
def test_jobs_of_one_wallet_that_wait_cost_another_wallet_nothing(policy: str) -> None:
    assert touched_by_another(crowded(3000, policy)) <= 2 * touched_by_another(crowded(30, policy))


def test_who_came_before_the_crowd_is_placed_before_it() -> None:
    desk = Desk(By(OTHER, job_submitted("other")), policy=Policy(max_queue=10**6))
    desk.happen(*(By(BUYER, job_submitted(f"many{number}")) for number in range(500)))
    desk.happen(node_offered())
    match = desk.next_match()
    assert match is not None and job_id("other") == match.job_id


def test_under_fair_share_who_comes_after_the_crowd_is_placed_as_soon_as_it_has_had_something() -> None:
    desk = Desk(policy=Policy(name="fair-share", max_queue=10**6))
    desk.happen(*(By(BUYER, job_submitted(f"many{number}")) for number in range(500)), node_offered())
    desk.fold_match(desk.next_match() or pytest.fail("nothing is matched"))
    desk.happen(By(OTHER, job_submitted("other")), node_offered("next"))
    match = desk.next_match()
    assert match is not None and job_id("other") == match.job_id
    answer = why(desk.market, desk.market.jobs[job_id("other")], Moment(desk.now_ms))
    assert 0 == answer.queue_position


def test_a_wallet_that_queues_too_many_is_told_how_many_it_may_and_the_others_are_served(trade: Trade) -> None:
    most = trade.world.policy.max_queue
    for first in range(0, most, 20):
        trade.world.turn(trade.buyer.say(*(job_submitted(f"many{first + number}", num_gpus=8) for number in range(20))))
    trade.world.turn(trade.buyer.say(job_submitted("one more")))
    last = trade.world.outcomes(trade.buyer)[-1]
    assert (Refusal.QUEUE_FULL, f"a wallet may have {most} jobs in the queue, and this one has {most}") == (last.reason, last.detail)
    other = party("other", Role.BUYER)
    trade.world.turn(other.hello(), trade.seller.say(trade.offer("node")))
    trade.world.turn(other.say(job_submitted("theirs")))
    assert JobState.MATCHED is trade.world.market.jobs[job_id("theirs")].state


def test_a_priority_above_the_limit_is_refused_with_the_highest_that_is_allowed() -> None:
    desk = Desk(By(OPERATOR, make(LimitChanged, party=BUYER, gpus=None, priority_max=50)))
    event = job_submitted(priority=75)
    refused = CHECKS[type(event)](desk.market, BUYER, event)
    assert refused is not None
    assert "priority 75 is above 50, the highest that this wallet or organisation may use: take 50 or less" == refused.detail
