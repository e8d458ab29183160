"""What a party is counted for: days and months, decay in whole numbers, and levels that waiting does not reorder."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from builders import BUYER, OPERATOR, ORG, SELLER, By, Happening, History, Later, given, job_submitted, make, matched, node_offered
from hypothesis import given as over
from hypothesis import strategies as st

from events import identity, jobs, market
from events.market import Policy
from projections.market import Market
from projections.parties import DAY_MS, decayed, level_of, month_of, next_day_ms, spent_this_month_uusd, spent_today_uusd, worst_uusd

HOUR_MS = 3_600_000
TIMES = st.integers(0, 4 * 10**12)


@over(TIMES)
def test_months_are_those_of_the_calendar(now_ms: int) -> None:
    date = datetime.fromtimestamp(now_ms / 1000, UTC)
    assert (date.year - 1970) * 12 + date.month - 1 == month_of(now_ms)


def test_a_day_ends_at_midnight() -> None:
    assert DAY_MS == next_day_ms(0) == next_day_ms(DAY_MS - 1)
    assert 2 * DAY_MS == next_day_ms(DAY_MS)


@over(st.integers(0, 10**12), TIMES, st.integers(60_000, 365 * DAY_MS))
def test_after_a_half_life_a_use_counts_half(gpu_ms: int, now_ms: int, half_life_ms: int) -> None:
    later = decayed(gpu_ms, now_ms, now_ms + half_life_ms, half_life_ms)
    assert abs(later - gpu_ms // 2) <= 1


@over(st.integers(0, 10**12), TIMES, st.integers(0, 100 * DAY_MS), st.integers(0, 100 * DAY_MS))
def test_decay_in_two_steps_is_decay_in_one_but_for_rounding(gpu_ms: int, now_ms: int, first_ms: int, second_ms: int) -> None:
    once = decayed(gpu_ms, now_ms, now_ms + first_ms + second_ms, DAY_MS)
    twice = decayed(decayed(gpu_ms, now_ms, now_ms + first_ms, DAY_MS), now_ms + first_ms, now_ms + first_ms + second_ms, DAY_MS)
    assert abs(once - twice) <= 2


@over(st.integers(1, 10**12), TIMES, st.integers(0, 30 * DAY_MS))
def test_waiting_leaves_a_level_where_it_is_as_seen_from_others(gpu_ms: int, now_ms: int, wait_ms: int) -> None:
    """The same use, reckoned now or decayed later, is within one level: so levels never need to be reckoned anew."""
    left = decayed(gpu_ms << 40, now_ms, now_ms + wait_ms, DAY_MS)
    assert abs(level_of(gpu_ms << 40, now_ms, DAY_MS) - level_of(left, now_ms + wait_ms, DAY_MS)) <= 1


@over(st.integers(1, 10**14), TIMES)
def test_twice_the_use_is_four_levels_more(gpu_ms: int, now_ms: int) -> None:
    assert 4 == level_of(2 * gpu_ms, now_ms, DAY_MS) - level_of(gpu_ms, now_ms, DAY_MS)
    assert 0 == level_of(0, now_ms, DAY_MS) < level_of(1, now_ms, DAY_MS)


def test_the_most_that_a_run_can_cost_ends_at_what_the_buyer_lets_it_cost() -> None:
    assert [800_000, 500_000, 0] == [worst_uusd(3600, 2, 400_000, left) for left in (None, 500_000, -1)]


def running(**changes: Any) -> Market:
    state = given(node_offered(gpus=2), make(identity.OrganisationCreated), job_submitted(num_gpus=2, org_id=ORG, **changes))
    return given_more(state, matched(state))


def given_more(state: Market, *happenings: Happening) -> Market:
    return History(state, at_ms=state.time_ms).happen(*happenings)


def test_a_job_on_a_node_counts_for_its_buyer_and_its_organisation_with_what_is_expected_of_it() -> None:
    state = running(estimate_s=600)
    for name in (BUYER, ORG):
        party = state.parties[name]
        assert (2, 800_000, 2 * 600_000) == (party.gpus, party.committed_uusd, party.committed_gpu_ms)
        assert (state.last_seq, True) == (party.turn_seq, party.level > 0)


def test_when_the_attempt_is_over_what_it_took_counts_instead() -> None:
    state = running(estimate_s=600)
    attempt = {"epoch": state.last_seq, "attempt": 1}
    given_more(state, make(jobs.JobClaimed, **attempt), make(jobs.JobStarted, **attempt), Later(HOUR_MS // 2))
    given_more(state, Later(HOUR_MS // 2), make(jobs.JobSucceeded, **attempt, ran_ms=HOUR_MS // 2))
    party = state.parties[BUYER]
    assert (0, 0, 0) == (party.gpus, party.committed_uusd, party.committed_gpu_ms)
    assert HOUR_MS == party.used_gpu_ms
    assert 400_000 == spent_today_uusd(party, state.time_ms) == spent_this_month_uusd(party, state.time_ms)
    assert 0 == spent_today_uusd(party, state.time_ms + DAY_MS)


def test_more_time_for_a_run_is_more_that_it_may_cost() -> None:
    state = given_more(running(), make(jobs.JobExtended, extra_s=1800))
    assert (1_200_000, 2 * 5400_000) == (state.parties[BUYER].committed_uusd, state.parties[BUYER].committed_gpu_ms)
    node = next(iter(state.nodes.values()))
    assert [5_400_000] == [held.expected_ms for held in node.allocations.values()]


def test_a_match_that_came_to_nothing_uses_nothing_and_costs_a_turn() -> None:
    state = running()
    seq = state.last_seq
    given_more(state, By(SELLER, make(jobs.JobDeclined, epoch=seq)))
    party = state.parties[BUYER]
    assert (0, 0, 0, 0, seq) == (party.gpus, party.committed_uusd, party.used_gpu_ms, party.level, party.turn_seq)


def test_another_half_life_reckons_every_level_anew() -> None:
    state = running()
    before = state.parties[BUYER].level
    given_more(state, By(OPERATOR, make(market.PolicyChanged, policy=Policy(half_life_s=3600))))
    assert before != state.parties[BUYER].level
