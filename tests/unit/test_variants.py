"""Jobs that would take one thing or another: which one they get, what they pay, and what everybody is told of it."""

from __future__ import annotations

from typing import Any

import pytest
from builders import BUYER, START_MS, By, given, job_id, job_of, job_submitted, make, node_of, node_offered
from desk import Desk

from buyer_cli.spec import SpecError, flag_layer, submission, wishes
from events import jobs
from events.market import Policy
from events.reasons import Refusal
from events.values import Requirements
from events.wire import QuoteRequest
from projections.market import Market
from services.matcher.answers import sync_job
from services.matcher.checks import CHECKS
from services.matcher.quotes import quote
from services.matcher.why import Moment, why

LARGE, SMALL = 81_920, 40_960
ONE_LARGE, TWO_SMALL = Requirements(vram_mib=80_000), Requirements(num_gpus=2, vram_mib=40_000)


def asks(name: str = "job", **changes: Any) -> jobs.JobSubmitted:
    """One card of 80 GB, or two of 40 GB."""
    return job_submitted(name, requirements=ONE_LARGE, variants=(TWO_SMALL,), **changes)


def large(price: int = 1_000_000) -> Any:
    return node_offered("large", vram_mib=LARGE, price=price)


def small(price: int = 400_000) -> Any:
    return node_offered("small", gpus=2, vram_mib=SMALL, price=price)


@pytest.mark.parametrize(
    ("offered", "node"),
    [
        ((large(),), "large"),
        ((small(),), "small"),
        ((large(), small(400_000)), "small"),  # 1.00 against 0.80 an hour
        ((large(), small(600_000)), "large"),  # 1.00 against 1.20
        ((large(), small(500_000)), "large"),  # as dear: what was named first
    ],
)
def test_the_cheapest_choice_as_a_whole_is_taken_then_the_one_named_first(offered: Any, node: str) -> None:
    assert {"job": node} == Desk(*offered, asks()).match_all()


def test_a_choice_that_the_job_does_not_pay_is_no_choice() -> None:
    """The single card costs less an hour, but more than the job pays for a card."""
    assert {"job": "small"} == Desk(large(900_000), small(500_000), asks(max_price=600_000)).match_all()


def test_it_gets_pays_and_is_counted_for_what_it_was_matched_with() -> None:
    desk = Desk(small(), asks())
    desk.match_all()
    job = job_of(desk.market)
    assert (1, TWO_SMALL) == (job.run and job.run.variant, job.requirements)
    assert (2, 800_000) == (desk.market.parties[BUYER].gpus, desk.market.parties[BUYER].committed_uusd)
    attempt = desk.attempt(job_id("job"))
    desk.happen(make(jobs.JobClaimed, **attempt), make(jobs.JobStarted, **attempt))
    desk.history.now_ms += 3_600_000
    desk.happen(make(jobs.JobSucceeded, **attempt, ran_ms=3_600_000))
    assert 800_000 == job.charged_uusd


def test_its_node_is_told_of_the_one_choice_only() -> None:
    desk = Desk(small(), asks())
    desk.match_all()
    told = sync_job(job_of(desk.market), with_order=True).order
    assert told is not None
    assert (TWO_SMALL, ()) == (told.requirements, told.variants)


def test_a_variant_that_does_not_exist_is_matched_to_nothing() -> None:
    desk = Desk(small(), asks())
    free = tuple(card.uuid for card in node_of(desk.market, "small").offer.cards)
    values = {"node_id": node_of(desk.market, "small").node_id, "cards": free, "variant": 2}
    assert Refusal.ILLEGAL_IN_STATE is desk.try_event(make(jobs.JobMatched, **values))


def test_after_a_failure_it_may_get_the_other_choice() -> None:
    desk = Desk(small(), asks())
    desk.match_all()
    again = {"avoid_node": node_of(desk.market, "small").node_id, "avoid_until_ms": desk.now_ms + 9000}
    desk.happen(make(jobs.JobDeclined, **desk.attempt(job_id("job"))), make(jobs.JobRequeued, not_before_ms=START_MS, **again), large())
    assert {"job": "large"} == desk.match_all()
    assert ONE_LARGE == job_of(desk.market).requirements


def test_under_least_backlog_the_choice_is_that_of_the_idlest_node() -> None:
    desk = Desk(node_offered("large", gpus=2, vram_mib=LARGE, price=100_000), small(), policy=Policy(name="least-backlog"))
    desk.happen(job_submitted("first", vram_mib=80_000), asks("second"))
    assert {"first": "large", "second": "small"} == desk.match_all()


@pytest.mark.parametrize(
    "variants",
    [
        (ONE_LARGE,),
        (TWO_SMALL, TWO_SMALL),
        (Requirements(num_gpus=0, vram_mib=40_000),),
        (Requirements(num_gpus=2, allow_simulated=True),),
        (Requirements(node_labels={"region": "eu"}),),
    ],
)
def test_variants_that_are_the_same_or_differ_in_more_than_size_are_refused(variants: tuple[Requirements, ...]) -> None:
    refused = CHECKS[jobs.JobSubmitted](Market(), BUYER, job_submitted(requirements=ONE_LARGE, variants=variants))
    assert refused is not None and Refusal.INVALID_REQUIREMENT is refused.refusal
    assert None is CHECKS[jobs.JobSubmitted](Market(), BUYER, asks())


def test_a_quote_is_about_the_choice_that_is_nearest() -> None:
    request = QuoteRequest(requirements=ONE_LARGE, variants=(TWO_SMALL,))
    answers = [
        quote(given(*offered), request, BUYER, START_MS) for offered in ((), (small(),), (large(), small(600_000)), (large(), small()))
    ]
    assert [(0, 0), (1, 1), (1, 0), (1, 1)] == [(answer.could_run, answer.variant) for answer in answers]


def test_why_speaks_of_the_choice_that_is_nearest() -> None:
    desk = Desk(small(), By(BUYER, job_submitted("busy", num_gpus=2)), asks())
    assert ["busy"] == list(desk.match_all())
    assert "capacity" == why(desk.market, job_of(desk.market), Moment(desk.now_ms)).cause


# As a buyer writes them.


def written(*choices: str, **flags: object) -> jobs.JobSubmitted:
    (wish,) = wishes(flag_layer({"command": ("true",), "vram": "80GB", "cores": "4", "or": choices} | flags))
    return submission(wish, ("true",), job_id("job"))


def test_other_cards_are_written_as_a_number_and_what_they_must_be() -> None:
    event = written("2x40GB", "4 x RTX 4090", "2x24GB A100")
    assert [(2, 38_147, ()), (4, 0, ("RTX 4090",)), (2, 22_889, ("A100",))] == [
        (one.num_gpus, one.vram_mib, one.gpu_models) for one in event.variants
    ]
    assert {4} == {one.cores for one in (event.requirements, *event.variants)}
    assert None is CHECKS[jobs.JobSubmitted](Market(), BUYER, event)


@pytest.mark.parametrize("choice", ["40GB", "0x40GB", "9x40GB", "2x", "x", "2x40GB;rm", "1x80GB"])
def test_what_is_no_choice_is_refused_with_one_that_is(choice: str) -> None:
    with pytest.raises(SpecError) as refused:
        written(choice)
    assert refused.value.hint


def test_a_job_with_a_target_has_no_choice() -> None:
    with pytest.raises(SpecError, match="target"):
        written("2x40GB", target=("node",))
