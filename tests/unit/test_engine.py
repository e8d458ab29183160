"""The engine in small cases a person can follow, and how little it looks at in large ones."""

from __future__ import annotations

import tracemalloc
from random import Random
from typing import Any

import pytest
from builders import (
    BUYER,
    OPERATOR,
    ORG,
    SELLER,
    START_MS,
    By,
    Later,
    card,
    job_id,
    job_submitted,
    make,
    node_of,
    node_offered,
    wallet,
)
from desk import Desk

from events import identity, jobs, market, nodes
from events.market import Policy
from events.reasons import Reason
from events.values import Accept, OrgRole, Program, Requirements, Tier
from projections import jobs as job_fold
from projections import nodes as node_fold
from projections.market import Market
from services.matcher.engine import Engine

HOUR_MS = 3_600_000


def test_the_cheapest_node_gets_the_job() -> None:
    desk = Desk(node_offered("dear", price=400_000), node_offered("cheap", price=200_000), job_submitted())
    assert {"job": "cheap"} == desk.match_all()


def test_a_second_cheaper_seller_wins_the_next_job() -> None:
    other = wallet("other seller")
    desk = Desk(node_offered("first", gpus=2, price=400_000), job_submitted("a"))
    assert {"a": "first"} == desk.match_all()
    desk.happen(By(other, node_offered("second", owner=other, price=200_000)), job_submitted("b"))
    assert {"b": "second"} == desk.match_all()


def test_of_equally_cheap_nodes_the_tightest_fit_is_taken() -> None:
    desk = Desk(node_offered("large", gpus=4), node_offered("small", gpus=2), node_offered("middle", gpus=3), job_submitted(num_gpus=2))
    assert {"job": "small"} == desk.match_all()


def test_of_equally_tight_nodes_the_smaller_cards_are_taken() -> None:
    desk = Desk(node_offered("80gb", vram_mib=81_920), node_offered("24gb"), job_submitted())
    assert {"job": "24gb"} == desk.match_all()


def test_of_equal_nodes_the_lowest_id_is_taken() -> None:
    names = [f"node{number}" for number in range(5)]
    desk = Desk(*(node_offered(name) for name in names), job_submitted())
    lowest = min(names, key=lambda name: node_of(desk.market, name).node_id)
    assert {"job": lowest} == desk.match_all()


def test_the_same_question_twice_has_the_same_answer() -> None:
    desk = Desk(node_offered(), job_submitted())
    first = desk.next_match()
    assert first is not None
    assert first == desk.next_match()


def test_a_match_names_the_cards_and_locks_the_price() -> None:
    desk = Desk(node_offered(gpus=2, price=350_000), job_submitted(num_gpus=2))
    match = desk.next_match()
    assert match is not None
    assert (card(0).uuid, card(1).uuid) == match.cards
    assert 350_000 == match.price_uusd_per_gpu_hour


def test_higher_priority_goes_first_under_priority_and_not_under_fcfs() -> None:
    happenings = (job_submitted("low", priority=25), job_submitted("high", priority=75), node_offered())
    assert {"high": "node"} == Desk(*happenings).match_all()
    assert {"low": "node"} == Desk(*happenings, policy=Policy(name="fcfs")).match_all()


def test_waiting_makes_up_for_priority() -> None:
    """25 points of priority are a head start of half an hour."""
    early = (job_submitted("normal", priority=50), Later(HOUR_MS // 2 + 1), job_submitted("high", priority=75), node_offered())
    assert {"normal": "node"} == Desk(*early).match_all()
    late = (job_submitted("normal", priority=50), Later(HOUR_MS // 2 - 1), job_submitted("high", priority=75), node_offered())
    assert {"high": "node"} == Desk(*late).match_all()


def test_without_ageing_priority_alone_decides() -> None:
    happenings = (job_submitted("normal"), Later(1000 * HOUR_MS), job_submitted("high", priority=51), node_offered())
    assert {"high": "node"} == Desk(*happenings, policy=Policy(ageing_s_per_point=0)).match_all()


def test_a_policy_that_changes_changes_who_is_next() -> None:
    desk = Desk(job_submitted("low", priority=25), job_submitted("high", priority=75))
    assert {} == desk.match_all()
    desk.happen(By(OPERATOR, make(market.PolicyChanged, policy=Policy(name="fcfs"))), node_offered())
    assert {"low": "node"} == desk.match_all()


def test_a_job_that_pays_too_little_does_not_hold_up_those_behind_it() -> None:
    desk = Desk(job_submitted("poor", max_price=100_000), job_submitted("rich", max_price=500_000), node_offered(price=400_000))
    assert {"rich": "node"} == desk.match_all()


def test_a_job_that_no_node_can_run_waits_and_the_rest_goes_on() -> None:
    desk = Desk(job_submitted("huge", num_gpus=8, priority=100), job_submitted("small"), node_offered())
    assert {"small": "node"} == desk.match_all()


def test_a_new_price_of_a_node_or_a_job_makes_a_match() -> None:
    desk = Desk(node_offered(price=400_000), job_submitted(max_price=300_000))
    assert {} == desk.match_all()
    desk.happen(make(nodes.NodeRepriced, price_uusd_per_gpu_hour=300_000))
    assert {"job": "node"} == desk.match_all()
    desk = Desk(node_offered(price=400_000), job_submitted(max_price=300_000))
    assert {} == desk.match_all()
    desk.happen(make(jobs.JobRepriced, max_price_uusd_per_gpu_hour=400_000))
    assert {"job": "node"} == desk.match_all()


def test_cards_are_let_again_once_they_are_released_and_not_before() -> None:
    desk = Desk(node_offered(), job_submitted("first"), job_submitted("second"))
    assert {"first": "node"} == desk.match_all()
    attempt = desk.attempt(job_id("first"))
    for kind in (jobs.JobClaimed, jobs.JobStarted, jobs.JobSucceeded):
        desk.happen(make(kind, **attempt))
    assert {} == desk.match_all()
    desk.happen(make(jobs.GpusReleased, **attempt))
    assert {"second": "node"} == desk.match_all()


def test_cards_of_a_match_that_was_cancelled_are_free_at_once() -> None:
    desk = Desk(node_offered(), job_submitted("first"), job_submitted("second"))
    desk.match_all()
    desk.happen(make(jobs.JobCancelRequested, job_id=job_id("first")))
    assert {"second": "node"} == desk.match_all()


def test_a_paused_market_matches_nothing_and_forgets_nothing() -> None:
    desk = Desk(By(OPERATOR, make(market.MatchingPaused)), node_offered(), job_submitted())
    assert {} == desk.match_all()
    desk.happen(By(OPERATOR, make(market.MatchingResumed)))
    assert {"job": "node"} == desk.match_all()


def test_no_more_jobs_run_at_once_than_the_policy_allows() -> None:
    desk = Desk(node_offered(gpus=4), *(job_submitted(f"job{number}") for number in range(4)), policy=Policy(max_concurrent=3))
    assert 3 == len(desk.match_all())
    desk.happen(make(jobs.JobCancelRequested, job_id=job_id("job0")))
    assert {"job3": "node"} == desk.match_all()


def test_a_job_put_back_waits_for_its_time_and_passes_its_node_over_for_longer() -> None:
    desk = Desk(node_offered(), job_submitted())
    desk.match_all()
    desk.happen(make(jobs.JobDeclined, **desk.attempt(job_id("job"))))
    waits = {"not_before_ms": desk.now_ms + 2000, "avoid_node": node_of(desk.market).node_id, "avoid_until_ms": desk.now_ms + 9000}
    desk.happen(make(jobs.JobRequeued, **waits))
    assert {} == desk.match_all()
    assert START_MS + 2000 == desk.engine.next_wakeup_ms()
    desk.happen(Later(2000))
    assert {} == desk.match_all()
    assert START_MS + 9000 == desk.engine.next_wakeup_ms()
    desk.happen(Later(7000))
    assert {"job": "node"} == desk.match_all()
    assert None is desk.engine.next_wakeup_ms()


def test_a_job_put_back_goes_to_another_node_at_once_and_keeps_its_place() -> None:
    desk = Desk(node_offered(), job_submitted("first"))
    desk.match_all()
    desk.happen(job_submitted("second"), make(jobs.JobDeclined, **desk.attempt(job_id("first"))))
    again = {"job_id": job_id("first"), "avoid_node": node_of(desk.market).node_id, "avoid_until_ms": START_MS + 9000}
    desk.happen(make(jobs.JobRequeued, **again, not_before_ms=START_MS, reason=Reason.DECLINED), node_offered("other"))
    assert {"first": "other", "second": "node"} == desk.match_all()


def test_a_silent_node_gets_no_job_until_it_is_heard_again() -> None:
    desk = Desk(node_offered(), job_submitted())
    name = node_of(desk.market).node_id
    desk.engine.suspect(name, True)
    assert {} == desk.match_all()
    desk.engine.suspect(name, False)
    assert {"job": "node"} == desk.match_all()


def test_a_check_of_the_cards_that_expires_takes_the_node_from_jobs_that_need_it() -> None:
    checked = make(nodes.NodeVerified, tier=Tier.CONSISTENT, expires_ms=START_MS + 1000)
    desk = Desk(node_offered(gpus=2), checked, job_submitted("a", min_tier=Tier.CONSISTENT))
    assert {"a": "node"} == desk.match_all()
    assert START_MS + 1000 == desk.engine.next_wakeup_ms()
    desk.happen(Later(1000), job_submitted("b", min_tier=Tier.CONSISTENT))
    assert {} == desk.match_all()


def test_a_new_member_of_an_organisation_may_use_its_nodes() -> None:
    alice = wallet("alice")
    desk = Desk(
        make(identity.OrganisationCreated),
        node_offered(accept=Accept.ORGANISATION, org_id=ORG),
        By(alice, job_submitted("hers")),
    )
    assert {} == desk.match_all()
    desk.happen(make(identity.MemberAdded, wallet=alice, role=OrgRole.MEMBER))
    assert {"hers": "node"} == desk.match_all()


def test_a_job_with_a_target_runs_there_once_its_buyer_joins_the_nodes_organisation() -> None:
    alice, node = wallet("alice"), node_offered("theirs", accept=Accept.ORGANISATION, org_id=ORG)
    desk = Desk(make(identity.OrganisationCreated), node, By(alice, job_submitted("hers", target_node=node.node_id)))
    assert {} == desk.match_all()
    desk.happen(make(identity.MemberAdded, wallet=alice, role=OrgRole.MEMBER))
    assert {"hers": "theirs"} == desk.match_all()


def test_a_node_for_its_own_is_the_best_place_for_its_own_when_it_is_cheaper() -> None:
    own = node_offered("own", price=100_000, accept=Accept.OWN, accept_wallets=(BUYER,))
    desk = Desk(node_offered("open", gpus=2, price=200_000), own, By(wallet("alice"), job_submitted("hers")), job_submitted("his"))
    assert {"hers": "open", "his": "own"} == desk.match_all()


def test_jobs_already_queued_learn_of_a_node_that_names_their_buyer() -> None:
    desk = Desk(job_submitted())
    assert {} == desk.match_all()
    desk.happen(node_offered(accept=Accept.OWN, accept_wallets=(BUYER,)))
    assert {"job": "node"} == desk.match_all()


def test_exact_cards_of_a_node_are_waited_for() -> None:
    here = node_offered(gpus=2).node_id
    pinned = job_submitted("pinned", target_node=here, target_cards=(0,))
    desk = Desk(node_offered(gpus=2), node_offered("other", price=1), job_submitted("first", target_node=here), pinned)
    assert {"first": "node"} == desk.match_all()
    assert desk.market.nodes[here].taken.keys() == {card(0).uuid}
    desk.happen(make(jobs.JobCancelRequested, job_id=job_id("first")))
    assert {"pinned": "node"} == desk.match_all()


def test_a_price_lowered_between_two_decisions_counts_in_the_second() -> None:
    """The engine knows already whom the second node would take; then that job stops paying its price."""
    desk = Desk(job_submitted("a"), job_submitted("b", max_price=500_000), job_submitted("c"))
    assert {} == desk.match_all()
    desk.happen(node_offered("one", price=100_000), node_offered("two", price=400_000))
    first = desk.next_match()
    assert first is not None
    desk.fold_match(first)
    assert desk.next_match() is not None
    desk.happen(make(jobs.JobRepriced, job_id=job_id("b"), max_price_uusd_per_gpu_hour=300_000))
    assert {"c": "two"} == desk.match_all()


def test_labels_that_nobody_asks_for_any_more_do_not_split_the_nodes_for_ever() -> None:
    places = [f"rack{number}" for number in range(40)]
    desk = Desk(*(node_offered(name, gpus=0, labels={"host": name}) for name in places))
    for number in range(1200):
        ask = {"host": f"rack{number}"}
        desk.happen(job_submitted(f"job{number}", num_gpus=0, max_price=0, node_labels=ask))
        desk.match_all()
        desk.happen(make(jobs.JobCancelRequested, job_id=job_id(f"job{number}")))
    assert {} == desk.match_all()
    assert len(desk.engine._nodes.labels_asked) < 200
    assert len(desk.engine._table.shapes) < 1100


# How much is looked at, and kept: with prices and hosts that are all different.

MODELS = (("NVIDIA GeForce RTX 4090", 24_564, "RTX 4090"), ("NVIDIA A100-SXM4-80GB", 81_920, "A100"), ("NVIDIA H200", 143_771, "H200"))
PROGRAM = Program(argv=("true",))


def crowd(num_nodes: int, num_jobs: int, *, hopeless: int = 0) -> Market:
    """A market of busy buyers; the first `hopeless` jobs in order can never run."""
    chance, state, seq = Random(5), Market(), 0
    for number in range(num_nodes):
        model, vram_mib, _ = chance.choice(MODELS)
        cards = {"gpus": chance.choice((1, 2, 4, 8)), "model": model, "vram_mib": vram_mib}
        room = {"cores": chance.randrange(8, 129), "memory_mib": chance.randrange(30_000, 500_000), "labels": {"host": f"h{number}"}}
        offered = node_offered(f"node{number}", **cards, **room, price=300_000 + number)
        state.nodes[offered.node_id] = node_fold.offer(None, offered, SELLER, seq := seq + 1, START_MS)
    prices = [250_000 + number * 150_000 // (num_jobs + hopeless) for number in range(num_jobs + hopeless)]
    chance.shuffle(prices)
    for number, price in enumerate(prices):
        impossible = number < hopeless
        models = () if chance.random() < 0.3 else (chance.choice(MODELS)[2],)
        gpus = 8 if impossible else chance.choice((1, 1, 2, 4, 8))
        asked = Requirements(num_gpus=gpus, gpu_models=models, vram_mib=10**6 + number % 20 if impossible else 0)
        changes = {"requirements": asked, "program": PROGRAM, "priority": 100 if impossible else chance.choice((25, 50, 75))}
        submitted = make(jobs.JobSubmitted, job_id=job_id(str(number)), **changes, max_price_uusd_per_gpu_hour=price)
        job = job_fold.submit(submitted, BUYER, seq := seq + 1, START_MS + number)
        state.jobs[submitted.job_id] = job
        state.moved(job, None)
    state.last_seq = seq
    return state


def touched_per_decision(state: Market, decisions: int) -> float:
    """Rows looked at for each decision: half of them while nodes are free, half when cards come free one by one."""
    desk = Desk()
    desk.market = desk.history.market = state
    desk.engine = engine = Engine(state)
    state.paused = True
    engine.next_match(START_MS)
    state.paused = False
    before, held = engine.touched, []
    for _ in range(decisions):
        match = engine.next_match(START_MS)
        assert match is not None
        desk.fold_match(match)
        held.append(match)
    for match in held:
        run: Any = state.jobs[match.job_id].run
        ended = {"job_id": match.job_id, "attempt": 1, "epoch": run.epoch, "node_id": match.node_id}
        desk.happen(make(jobs.LeaseExpired, **ended), make(jobs.JobRequeued, job_id=match.job_id, not_before_ms=START_MS + HOUR_MS))
        again = engine.next_match(START_MS)
        if again is not None:
            desk.fold_match(again)
    return (engine.touched - before) / (2 * decisions)


def test_a_hundred_times_as_many_queued_jobs_are_no_more_than_twice_the_work() -> None:
    few, many = touched_per_decision(crowd(300, 1000), 100), touched_per_decision(crowd(300, 100_000), 100)
    assert many <= 2 * few, (few, many)


def test_ten_times_as_many_nodes_are_no_more_than_twice_the_work() -> None:
    few, many = touched_per_decision(crowd(1000, 3000), 300), touched_per_decision(crowd(10_000, 3000), 300)
    assert many <= 2 * few, (few, many)


def test_a_head_of_the_queue_that_can_never_run_costs_nothing() -> None:
    without, with_head = touched_per_decision(crowd(300, 1000), 100), touched_per_decision(crowd(300, 1000, hopeless=5000), 100)
    assert with_head <= 1.5 * without, (without, with_head)


@pytest.mark.parametrize("num_jobs", [20_000])
def test_a_queued_job_costs_the_engine_at_most_300_bytes(num_jobs: int) -> None:
    state = crowd(10, num_jobs)
    state.paused = True
    tracemalloc.start()
    engine = Engine(state)
    engine.next_match(START_MS)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / num_jobs <= 300
