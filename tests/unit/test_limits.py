"""What the operator's limits stop, and what they let pass; and the time before a node is away."""

from __future__ import annotations

from typing import Any

import pytest
from builders import (
    BUYER,
    OPERATOR,
    ORG,
    SELLER,
    START_MS,
    By,
    Happening,
    Later,
    job_id,
    job_of,
    job_submitted,
    make,
    node_of,
    node_offered,
    wallet,
)
from desk import Desk
from hypothesis import given as over
from hypothesis import strategies as st

from buyer_cli.render_quote import waiting_sentence
from events import identity, jobs, market, nodes
from events.reasons import Refusal
from events.values import OrgRole, Requirements, charge_uusd
from events.wire import QuoteRequest
from projections.market import Limit, Market
from projections.nodes import NodeState, state_at
from projections.nodes import planned as coming
from projections.parties import DAY_MS, Party, month_of
from services.matcher.checks import CHECKS
from services.matcher.limit_words import told
from services.matcher.limits import NOTHING_UUSD, UNLIMITED_UUSD, price_cap
from services.matcher.quotes import quote

ALICE, BOB = wallet("alice"), wallet("bob")
MINUTE_MS = 60_000


def limit(party: str = BUYER, **limits: Any) -> By:
    return By(OPERATOR, make(market.LimitChanged, party=party, **({"gpus": None} | limits)))


def by(who: str, name: str, **changes: Any) -> By:
    return By(who, job_submitted(name, **changes))


def end(desk: Desk, name: str, *, ran_ms: int = 0) -> tuple[Happening, ...]:
    """The job is claimed, runs so long and ends."""
    attempt = desk.attempt(job_id(name))
    begun = (By(SELLER, make(jobs.JobClaimed, **attempt)), By(SELLER, make(jobs.JobStarted, **attempt)), Later(ran_ms))
    return (*begun, By(SELLER, make(jobs.JobSucceeded, **attempt, ran_ms=ran_ms)), By(SELLER, make(jobs.GpusReleased, **attempt)))


# Cards.


def test_a_wallet_gets_no_more_cards_than_its_limit_and_others_pass() -> None:
    desk = Desk(limit(ALICE, gpus=2), *(by(ALICE, f"a{number}") for number in range(4)), by(BOB, "b"), node_offered(gpus=8))
    assert ["a0", "a1", "b"] == list(desk.match_all())
    desk.happen(*end(desk, "a0"))
    assert ["a2"] == list(desk.match_all())


def test_a_smaller_job_passes_a_larger_one_that_is_over_the_limit() -> None:
    desk = Desk(
        limit(gpus=3), job_submitted("two", num_gpus=2), job_submitted("also two", num_gpus=2), job_submitted("one"), node_offered(gpus=8)
    )
    assert ["two", "one"] == list(desk.match_all())


def test_a_limit_below_what_runs_ends_nothing_and_stops_new_matches() -> None:
    desk = Desk(*(job_submitted(f"job{number}") for number in range(3)), node_offered(gpus=2))
    assert 2 == len(desk.match_all())
    desk.happen(limit(gpus=0), node_offered("other"))
    assert {} == desk.match_all()
    assert 2 == desk.market.parties[BUYER].gpus


def test_a_job_without_a_card_is_under_no_limit_of_cards() -> None:
    assert 1 == len(Desk(limit(gpus=0), job_submitted(num_gpus=0), node_offered()).match_all())


def test_a_limit_that_is_lifted_lets_jobs_go() -> None:
    desk = Desk(limit(gpus=0), job_submitted(), node_offered())
    assert {} == desk.match_all()
    desk.happen(limit(gpus=None))
    assert {"job": "node"} == desk.match_all()


def test_an_organisation_is_limited_as_one() -> None:
    members = (make(identity.OrganisationCreated), make(identity.MemberAdded, wallet=ALICE, role=OrgRole.MEMBER))
    asked = (by(BUYER, "his", org_id=ORG), by(ALICE, "hers", org_id=ORG), by(ALICE, "her own"))
    desk = Desk(*members, limit(ORG, gpus=1), *asked, node_offered(gpus=8))
    assert ["his", "her own"] == list(desk.match_all())
    assert "your organisation may have 1 GPU at once and has 1" == told(desk.market, job_of(desk.market, "hers"), desk.now_ms)


# Money.


def test_what_runs_counts_with_the_most_that_it_may_cost() -> None:
    """0.40 an hour; each may run an hour."""
    desk = Desk(limit(spend_day_uusd=1_000_000), *(job_submitted(f"job{number}") for number in range(3)), node_offered(gpus=8))
    assert ["job0", "job1"] == list(desk.match_all())
    desk.happen(*end(desk, "job0", ran_ms=15 * MINUTE_MS))
    assert ["job2"] == list(desk.match_all()), "a quarter of an hour cost 0.10"


def test_a_cheaper_node_or_a_shorter_job_is_still_within_the_limit() -> None:
    asked = (job_submitted("long"), job_submitted("short", timeout_s=900), job_submitted("capped", max_total_uusd=100_000))
    desk = Desk(limit(spend_day_uusd=200_000), *asked, node_offered(gpus=8))
    assert ["short", "capped"] == list(desk.match_all())
    desk = Desk(limit(spend_day_uusd=200_000), *asked, node_offered("dear", price=200_001), node_offered("cheap", price=200_000))
    assert {"long": "cheap"} == desk.match_all()


def test_the_next_day_and_the_next_month_begin_anew() -> None:
    """The engine wakes for them by itself."""
    for field, days in (("spend_day_uusd", 1), ("spend_month_uusd", 31)):
        desk = Desk(limit(**{field: 400_000}), job_submitted("first"), job_submitted("second"), node_offered())
        desk.match_all()
        desk.happen(*end(desk, "first", ran_ms=30 * MINUTE_MS))
        began = desk.now_ms
        while not desk.match_all():
            wakeup_ms = desk.engine.next_wakeup_ms()
            assert wakeup_ms is not None and wakeup_ms > desk.now_ms
            desk.happen(Later(wakeup_ms - desk.now_ms))
        assert 0 == desk.now_ms % DAY_MS
        assert desk.now_ms - began <= days * DAY_MS
        assert field == "spend_day_uusd" or month_of(desk.now_ms) == month_of(began) + 1


@over(st.integers(0, 10**7), st.integers(1, 10**5), st.integers(0, 8), st.integers(0, 10**7))
def test_the_highest_price_is_exactly_the_one_that_the_limit_can_bear(
    room_uusd: int, timeout_s: int, num_gpus: int, left_uusd: int
) -> None:
    state = Market(limits={BUYER: Limit(spend_day_uusd=room_uusd)}, parties={BUYER: Party(number=0, turn_seq=1)})
    for left in (None, left_uusd):
        cap = price_cap(state, BUYER, None, num_gpus=num_gpus, timeout_s=timeout_s, left_uusd=left, now_ms=START_MS)
        if cap == UNLIMITED_UUSD:
            assert left is not None and left <= room_uusd
        else:
            assert charge_uusd(timeout_s * 1000, num_gpus, cap) <= room_uusd < charge_uusd(timeout_s * 1000, num_gpus, cap + 1)


def test_more_committed_than_may_be_spent_lets_not_even_a_free_job_go() -> None:
    party = Party(number=0, turn_seq=1, committed_uusd=2)
    state = Market(limits={BUYER: Limit(spend_month_uusd=1)}, parties={BUYER: party})
    assert NOTHING_UUSD == price_cap(state, BUYER, None, num_gpus=0, timeout_s=1, left_uusd=None, now_ms=START_MS)


def test_a_run_is_not_extended_past_what_may_be_spent() -> None:
    desk = Desk(limit(spend_day_uusd=500_000), job_submitted(), node_offered())
    desk.match_all()
    refused = CHECKS[jobs.JobExtended](desk.market, BUYER, make(jobs.JobExtended, extra_s=901))
    assert refused is not None and Refusal.QUOTA_EXCEEDED is refused.refusal
    assert None is CHECKS[jobs.JobExtended](desk.market, BUYER, make(jobs.JobExtended, extra_s=900))


# Priorities, policies.


@pytest.mark.parametrize("event", [job_submitted(priority=76), make(jobs.JobReprioritised, priority=76)])
def test_a_priority_above_the_limit_is_refused_with_the_highest_that_is_not(event: Any) -> None:
    desk = Desk(limit(priority_max=75))
    if not isinstance(event, jobs.JobSubmitted):
        desk.happen(job_submitted())
    refused = CHECKS[type(event)](desk.market, BUYER, event)
    assert refused is not None
    assert (Refusal.QUOTA_EXCEEDED, True) == (refused.refusal, "75" in refused.detail)


def test_a_policy_that_nobody_knows_is_refused_with_those_that_there_are() -> None:
    refused = CHECKS[market.PolicyChanged](Market(), OPERATOR, make(market.PolicyChanged, policy=market.Policy(name="astrology")))
    assert refused is not None
    assert all(name in refused.detail for name in ("priority", "fcfs", "sjf", "fair-share", "least-backlog"))


# What a buyer is told.


def test_a_quote_speaks_of_a_limit_only_where_it_takes_something_away() -> None:
    desk = Desk(node_offered())
    request = QuoteRequest(requirements=Requirements())
    assert "limit" not in [step.condition for step in quote(desk.market, request, BUYER, desk.now_ms).steps]
    desk.happen(limit(gpus=0))
    answer = quote(desk.market, request, BUYER, desk.now_ms)
    assert ("limit", 0) in [(step.condition, step.nodes) for step in answer.steps]
    assert (1, 0, None, None) == (answer.could_run, answer.free_now, answer.failing, answer.free_in_s)
    assert "your wallet may have no GPU; only the operator can change that" == waiting_sentence(answer)


# Maintenance.


def planned(from_s: int, until_s: int) -> By:
    times = {"from_ms": START_MS + from_s * 1000, "until_ms": START_MS + until_s * 1000}
    return By(SELLER, make(nodes.NodeMaintenancePlanned, **times))


def test_a_job_that_could_reach_into_a_maintenance_is_not_matched_there() -> None:
    desk = Desk(node_offered(gpus=2), planned(3600, 7200), job_submitted("hour"), job_submitted("more", timeout_s=3601))
    assert ["hour"] == list(desk.match_all())
    desk.happen(node_offered("other", price=900_000))
    assert {"more": "other"} == desk.match_all()


def test_as_a_maintenance_comes_nearer_only_shorter_jobs_fit() -> None:
    desk = Desk(node_offered(gpus=8), planned(3600, 7200), Later(60_000))
    desk.happen(job_submitted("hour"), job_submitted("minutes", timeout_s=600))
    assert ["minutes"] == list(desk.match_all())


def test_nothing_is_matched_during_a_maintenance_and_all_is_as_before_when_it_is_over() -> None:
    desk = Desk(node_offered(), planned(10, 60), Later(10_000), job_submitted(timeout_s=1))
    assert {} == desk.match_all()
    wakeup_ms = desk.engine.next_wakeup_ms()
    assert START_MS + 60_000 == wakeup_ms
    desk.happen(Later(wakeup_ms - desk.now_ms))
    assert {"job": "node"} == desk.match_all()


def test_a_node_counts_as_draining_while_a_maintenance_lasts() -> None:
    desk = Desk(node_offered(), planned(10, 60))
    node = node_of(desk.market)
    shown = [(state_at(node, START_MS + at_ms), coming(node, START_MS + at_ms) is None) for at_ms in (9999, 10_000, 59_999, 60_000)]
    draining, offered = NodeState.DRAINING, NodeState.OFFERED
    assert [(offered, False), (draining, False), (draining, False), (offered, True)] == shown


def test_a_plan_that_is_taken_back_or_put_off_lets_jobs_go_at_once() -> None:
    for changed in (planned(0, 0), planned(7200, 9000)):
        desk = Desk(node_offered(), planned(600, 1200), job_submitted())
        assert {} == desk.match_all()
        desk.happen(changed)
        assert {"job": "node"} == desk.match_all()


def test_a_targeted_job_waits_for_the_end_of_the_maintenance() -> None:
    here = node_offered().node_id
    desk = Desk(node_offered(), planned(600, 1200), job_submitted(target_node=here))
    assert {} == desk.match_all()
    desk.happen(Later(1_200_000))
    assert {"job": "node"} == desk.match_all()


def test_a_job_that_is_given_more_time_while_it_waits_no_longer_fits() -> None:
    desk = Desk(node_offered(), planned(3600, 7200), By(OPERATOR, make(market.MatchingPaused)), job_submitted())
    desk.happen(make(jobs.JobExtended, extra_s=1), By(OPERATOR, make(market.MatchingResumed)))
    assert {} == desk.match_all()


def test_a_quote_counts_only_nodes_that_stay_up_for_the_whole_run() -> None:
    desk = Desk(node_offered(), node_offered("leaving"))
    here = node_offered("leaving").node_id
    times = {"from_ms": START_MS + 1_800_000, "until_ms": START_MS + 3_600_000}
    desk.happen(By(SELLER, make(nodes.NodeMaintenancePlanned, node_id=here, **times)))
    answer = quote(desk.market, QuoteRequest(requirements=Requirements(), timeout_s=3600), BUYER, desk.now_ms)
    assert ("maintenance", 1) in [(step.condition, step.nodes) for step in answer.steps]
    assert (2, 1) == (answer.could_run, answer.free_now)
    desk.happen(Later(1_900_000), job_submitted(timeout_s=9000))
    assert {"job": "node"} == desk.match_all()
    busy = quote(desk.market, QuoteRequest(requirements=Requirements(), timeout_s=600), BUYER, desk.now_ms)
    assert 1700 == busy.free_in_s, "when the maintenance is over"


def test_a_short_job_is_quoted_without_a_word_of_a_later_maintenance() -> None:
    desk = Desk(node_offered(), planned(1800, 3600))
    short = quote(desk.market, QuoteRequest(requirements=Requirements(), timeout_s=600), BUYER, desk.now_ms)
    assert "maintenance" not in [step.condition for step in short.steps]
    assert 1 == short.free_now


def test_many_nodes_with_a_plan_do_not_make_a_decision_look_at_more() -> None:
    """Every node will be away at a time of its own; jobs have several timeouts and prices of their own."""

    def touched(num_nodes: int) -> int:
        desk = Desk()
        for number in range(num_nodes):
            name = f"node{number}"
            offered = node_offered(name, price=300_000 + number)
            leaves_ms = START_MS + 600_000 + number * 1000
            plan = make(nodes.NodeMaintenancePlanned, node_id=offered.node_id, from_ms=leaves_ms, until_ms=leaves_ms + 1000)
            desk.happen(By(SELLER, offered), By(SELLER, plan))
        for number in range(200):
            timeout_s = (300, 590, 300, 90_000)[number % 4]
            desk.happen(job_submitted(f"job{number}", timeout_s=timeout_s, max_price=400_000 + number, priority=number % 3))
        before = desk.engine.touched
        desk.next_match()
        settled = desk.engine.touched
        matches = len(desk.match_all())
        assert settled > before and matches > 100
        return (desk.engine.touched - settled) // matches

    few, many = touched(300), touched(3000)
    assert many <= 2 * few, (few, many)
