"""Why a job waits: what is told of the market, of each node, of who is before it, and what would change it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import msgspec
import pytest
from builders import START_MS, History, Later, given, job_id, job_of, job_submitted, make, matched, node_offered

from events import jobs, market, nodes
from events.market import Policy
from events.reasons import Reason
from events.values import Accept, Isolation, Network, Requirements, Tier
from events.why import Cause, Interval, Nearness, Why
from projections.arbiter import apply
from projections.market import Market
from services.matcher.feasibility import CONDITIONS
from services.matcher.shortfalls import SHORTFALLS
from services.matcher.verdicts import OF_THE_OFFER
from services.matcher.waits import WaitWatch
from services.matcher.why import Moment, why

HOUR_MS = 3_600_000


def ask(state: Market, name: str = "job", *, now_ms: int = START_MS, suspects: Any = frozenset()) -> Why:
    return why(state, job_of(state, name), Moment(now_ms, suspects))


def test_every_condition_has_words_for_what_a_node_has_instead() -> None:
    assert [] == [condition.name for condition in CONDITIONS if condition.name not in SHORTFALLS]
    assert {condition.name for condition in CONDITIONS} >= OF_THE_OFFER


def test_a_node_each_says_why_not_and_the_nearest_comes_first() -> None:
    state = given(
        node_offered("small"),
        node_offered("weak", gpus=2, vram_mib=12_288),
        node_offered("dear", gpus=2, price=900_000),
        node_offered("right", gpus=2),
        node_offered("leaving", gpus=2),
        make(nodes.NodeDrained, node_id=node_offered("leaving").node_id, reason="moving house"),
        job_submitted("other", num_gpus=2),
    )
    history = History(state)
    history.happen(matched(state, "other", "right"), job_submitted(num_gpus=2, vram_mib=22_889, max_price=500_000))
    answer = ask(history.market)
    assert [
        ("right", Nearness.CAPACITY, f"0 of its 2 cards free, 1 job on it ({job_id('other')})"),
        ("leaving", Nearness.AWAY, "it takes no new jobs (draining: moving house)"),
        ("dear", Nearness.PRICE, "at most 0.50 USD asked, it asks 0.90 USD"),
        ("weak", Nearness.NEVER, "24 GB a card asked, its cards have 12.9 GB"),
        ("small", Nearness.NEVER, "2 GPUs asked, it has 1 GPU"),
    ] == [(one.name, one.tier, one.why) for one in answer.nodes]
    assert {"capacity": 1, "away": 1, "price": 1, "never": 2} == answer.tiers
    assert Cause.CAPACITY is answer.cause
    assert "It waits: 1 node could run it and is taken; the first has room in 60 min at the latest." == answer.summary


def test_the_funnel_ends_at_the_condition_that_takes_the_last_node_away() -> None:
    answer = ask(given(node_offered("one"), node_offered("two", gpus=2), job_submitted(num_gpus=2, max_price=100_000)))
    left = {step.condition: step.nodes for step in answer.steps}
    assert (2, 1, 0) == (left["online"], left["gpus"], left["price"])


@pytest.mark.parametrize(
    ("happening", "cause", "words"),
    [
        (make(market.MatchingPaused), Cause.PAUSED, "paused the market"),
        (make(market.PolicyChanged, policy=Policy(max_concurrent=1)), Cause.MARKET_FULL, "runs 1 job at once"),
    ],
)
def test_what_holds_the_whole_market_up_is_told_before_what_nodes_say(happening: Any, cause: Cause, words: str) -> None:
    history = History()
    history.happen(node_offered(), node_offered("second"), job_submitted("first"))
    history.happen(matched(history.market, "first"), happening, job_submitted())
    answer = ask(history.market)
    assert cause is answer.cause
    assert words in answer.summary


def test_without_a_node_it_says_so() -> None:
    answer = ask(given(job_submitted()))
    assert (Cause.IMPOSSIBLE, "It waits: no node is on offer.") == (answer.cause, answer.summary)
    assert answer.change is None


def test_a_card_that_is_held_and_no_longer_offered_takes_none_of_the_others() -> None:
    history = History()
    offered = node_offered(gpus=2)
    history.happen(offered, job_submitted("first"))
    history.happen(matched(history.market, "first"))
    history.happen(msgspec.structs.replace(offered, cards=offered.cards[1:]), make(market.MatchingPaused), job_submitted())
    assert [(Nearness.FREE, 1)] == [item for item in ask(history.market).tiers.items() if item[1]]


def test_a_silent_node_is_told_as_silent() -> None:
    state = given(node_offered(), job_submitted())
    answer = ask(state, suspects={node_offered().node_id})
    assert [("responding", Nearness.AWAY)] == [(one.condition, one.tier) for one in answer.nodes]


def kept_for_large() -> Market:
    """One card of two is free, and kept for a job that needs both."""
    state = given(node_offered("both", gpus=2), job_submitted("long", timeout_s=9000))
    history = History(state)
    history.happen(matched(state, "long", "both"), job_submitted("large", num_gpus=2), job_submitted("small", timeout_s=10_800))
    return history.market


def test_the_head_hears_where_and_when_its_place_is() -> None:
    answer = ask(kept_for_large(), "large")
    assert answer.place_kept is not None
    assert (job_id("large"), [node_offered("both").node_id]) == (answer.place_kept.job, answer.place_kept.nodes)
    assert START_MS < answer.place_kept.from_ms <= START_MS + 9_000_000 + 1000


def test_who_may_not_pass_hears_for_whom_the_place_is_and_what_would_let_it_pass() -> None:
    answer = ask(kept_for_large(), "small")
    assert answer.place_kept is not None and job_id("large") == answer.place_kept.job
    assert [("kept", Nearness.CAPACITY)] == [(one.condition, one.tier) for one in answer.nodes]
    assert job_id("large") in answer.nodes[0].why and "150 min" in answer.nodes[0].why
    assert "It waits: what is free for it is kept for a job ahead; 1 job is before it." == answer.summary
    assert answer.change is not None
    assert ("--timeout 2h", True) == (answer.change.flag, answer.change.at_once)


def test_who_is_before_it_and_why() -> None:
    state = given(job_submitted("early"), Later(90_000), job_submitted("urgent", priority=100), job_submitted())
    answer = ask(state)
    assert 2 == answer.queue_position
    told = {one.job: one.why for one in answer.ahead}
    assert {job_id("urgent"): "its priority is 100, this one's 50", job_id("early"): "it came 90 s earlier"} == told


@pytest.mark.parametrize(
    ("node", "asked", "flag", "at_once"),
    [
        ({"price": 450_000}, {"max_price": 400_000}, "--max-price 0.45", True),
        ({"gpus": 2}, {"num_gpus": 3}, "--gpus 2", True),
        ({}, {"vram_mib": 40_000}, "--vram 24GB", True),
        ({"gpus": 2}, {"num_gpus": 2, "total_vram_mib": 60_000}, "--total-vram 48GB", True),
        ({"simulated": True}, {}, "--allow-simulated", True),
        ({}, {"gpu_models": ("A100",)}, "--gpu-model 'NVIDIA GeForce RTX 4090' as well", True),
        ({}, {"min_cuda": 12_080}, "--min-cuda 12.4", True),
        ({"cores": 8}, {"cores": 12}, "--cores 8", True),
        ({"memory_mib": 32_768}, {"memory_mib": 65_536}, "--memory 32GB", True),
        ({"isolation": Isolation.PROCESS}, {"isolation": Isolation.CONTAINER}, "--isolation process", True),
        ({}, {"min_tier": Tier.BENCHMARKED}, "no --min-tier", True),
        ({}, {"network": Network.EGRESS}, "--network none", True),
        ({}, {"node_labels": {"region": "eu"}}, "no --node-label region", True),
    ],
)
def test_the_smallest_single_change_that_would_place_it(node: dict[str, Any], asked: dict[str, Any], flag: str, at_once: bool) -> None:
    answer = ask(given(node_offered(**node), job_submitted(**asked)))
    assert answer.change is not None
    assert (flag, at_once) == (answer.change.flag, answer.change.at_once)


def test_of_several_changes_the_smallest_is_named_with_its_price() -> None:
    state = given(
        node_offered("dear", gpus=2, price=800_000),
        node_offered("near", gpus=2, price=420_000),
        job_submitted(num_gpus=2, max_price=400_000),
    )
    change = ask(state).change
    assert change is not None
    assert ("--max-price 0.42", "near", 420_000, 840_000) == (change.flag, change.name, change.price_uusd_per_gpu_hour, change.cost_uusd)


def test_a_change_that_only_makes_it_possible_is_not_said_to_place_it() -> None:
    history = History()
    history.happen(node_offered(gpus=2, price=450_000), job_submitted("other", num_gpus=2))
    history.happen(matched(history.market, "other"), job_submitted(num_gpus=2, max_price=400_000))
    change = ask(history.market).change
    assert change is not None
    assert ("--max-price 0.45", False) == (change.flag, change.at_once)


def test_two_things_wrong_with_every_node_leave_no_single_change() -> None:
    assert ask(given(node_offered(price=900_000), job_submitted(num_gpus=2, max_price=100_000))).change is None


def test_a_job_that_does_not_wait_says_what_it_does() -> None:
    history = History()
    history.happen(node_offered(), job_submitted())
    history.happen(matched(history.market))
    assert "It has been given a place on node, which has not answered yet." == ask(history.market).summary
    run = job_of(history.market).run
    assert run is not None
    attempt = {"job_id": job_id("job"), "attempt": 1, "epoch": run.epoch}
    history.happen(make(jobs.JobClaimed, **attempt), make(jobs.JobStarted, **attempt))
    assert ("It is running on node.", None) == (ask(history.market).summary, ask(history.market).cause)
    history.happen(make(jobs.JobFailed, **attempt, reason=Reason.OUT_OF_MEMORY))
    assert ask(history.market).summary.startswith("It has ended, failed: the program used more memory")


def watch(history: History, name: str = "job") -> list[Interval]:
    """The wait of a job; what happened at one time stands on one page."""
    state = History(at_ms=START_MS).market
    watching = WaitWatch(job_id(name))
    for _, records in groupby(history.records, key=lambda record: record.time_ms):
        page = list(records)
        for record in page:
            apply(state, record)
        watching.page(state, page)
    return watching.end(history.now_ms)


def test_the_wait_of_a_job_is_told_from_its_submission_to_its_start() -> None:
    history = History(at_ms=START_MS)
    history.happen(job_submitted("other"), job_submitted(max_price=400_000), Later(1000))
    history.happen(node_offered(price=500_000), Later(2000))
    history.happen(make(nodes.NodeRepriced, node_id=node_offered().node_id, price_uusd_per_gpu_hour=400_000))
    history.happen(matched(history.market, "other"), Later(3000))
    run = job_of(history.market, "other").run
    assert run is not None
    other = {"job_id": job_id("other"), "attempt": 1, "epoch": run.epoch}
    history.happen(*(make(kind, **other) for kind in (jobs.JobClaimed, jobs.JobStarted, jobs.JobSucceeded)), Later(500))
    history.happen(make(market.MatchingPaused), make(jobs.GpusReleased, **other), Later(4000), make(market.MatchingResumed))
    history.happen(matched(history.market), Later(100))
    mine = job_of(history.market).run
    assert mine is not None
    attempt = {"job_id": job_id("job"), "attempt": 1, "epoch": mine.epoch}
    history.happen(make(jobs.JobClaimed, **attempt), Later(50), make(jobs.JobStarted, **attempt), Later(9000))
    told = [(wait.cause, wait.until_ms - wait.from_ms) for wait in watch(history)]
    assert [
        (Cause.IMPOSSIBLE, 1000),
        (Cause.PRICE, 2000),
        (Cause.CAPACITY, 3500),
        (Cause.PAUSED, 4000),
        (Cause.CLAIM, 100),
        (Cause.PREPARING, 50),
    ] == told


def test_a_pause_before_another_attempt_ends_by_time_alone() -> None:
    history = History(at_ms=START_MS)
    history.happen(node_offered(), job_submitted())
    history.happen(matched(history.market))
    run = job_of(history.market).run
    assert run is not None
    history.happen(make(jobs.JobDeclined, job_id=job_id("job"), attempt=1, epoch=run.epoch))
    times = {"not_before_ms": START_MS + 2000, "avoid_node": node_offered().node_id, "avoid_until_ms": START_MS + 60_000}
    history.happen(make(jobs.JobRequeued, **times), Later(70_000))
    told = [(wait.cause, wait.until_ms - wait.from_ms, wait.attempt) for wait in watch(history)]
    assert [(Cause.RETRY, 2000, 2), (Cause.AWAY, 58_000, 2), (Cause.SILENT, 10_000, 2)] == told


def test_who_was_placed_meanwhile_is_counted() -> None:
    history = History(at_ms=START_MS)
    history.happen(node_offered(), job_submitted("a", priority=100), job_submitted("b", priority=100))
    history.happen(matched(history.market, "a"), job_submitted(), Later(1000))
    run = job_of(history.market, "a").run
    assert run is not None
    done = {"job_id": job_id("a"), "attempt": 1, "epoch": run.epoch}
    history.happen(*(make(kind, **done) for kind in (jobs.JobClaimed, jobs.JobStarted, jobs.JobSucceeded, jobs.GpusReleased)))
    history.happen(matched(history.market, "b"), Later(1000))
    assert [1] == [wait.placed_meanwhile for wait in watch(history) if wait.cause is Cause.CAPACITY][-1:]


def test_an_offer_that_opens_to_everybody_changes_what_the_node_says() -> None:
    history = History(at_ms=START_MS)
    history.happen(node_offered(accept=Accept.OWN), job_submitted(), Later(1000), node_offered(), Later(1000))
    assert [Cause.IMPOSSIBLE, Cause.SILENT] == [wait.cause for wait in watch(history)]


def test_the_wait_of_a_job_that_would_take_several_things_goes_by_the_nearest() -> None:
    history = History(at_ms=START_MS)
    history.happen(node_offered(gpus=2), job_submitted("other", num_gpus=2))
    history.happen(matched(history.market, "other"), Later(1000))
    two = Requirements(num_gpus=2)
    history.happen(job_submitted(vram_mib=80_000, variants=(two,)), Later(1000))
    assert [(Cause.CAPACITY, 1000)] == [(wait.cause, wait.until_ms - wait.from_ms) for wait in watch(history)]


def test_a_job_whose_target_was_taken_off_the_market_waits_for_it_and_says_so() -> None:
    history = History()
    history.happen(node_offered(), node_offered("other"))
    node_id = node_offered().node_id
    history.happen(job_submitted(target_node=node_id), make(nodes.NodeWithdrawn, node_id=node_id))
    answer = ask(history.market)
    assert (Cause.AWAY, "its owner took it off the market") == (answer.cause, answer.nodes[0].why)
    assert answer.change is not None and "no --target" == answer.change.flag
