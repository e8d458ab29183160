"""What a quote tells: how many nodes pass each condition, who is cheapest, when something is free, and what stands in the way."""

from __future__ import annotations

from typing import Any

from builders import (
    BUYER,
    OPERATOR,
    SELLER,
    START_MS,
    By,
    History,
    Later,
    given,
    job_id,
    job_submitted,
    make,
    matched,
    node_of,
    node_offered,
)

from buyer_cli.render_quote import places_sentence
from events import jobs, market
from events.values import Accept, Requirements
from events.wire import QuoteAnswer, QuoteRequest
from projections.market import Market
from services.matcher.quotes import Known, quote

HOUR_S = 3600


def ask(state: Market, *, max_price: int | None = None, now_ms: int = START_MS, suspects: Any = frozenset(), **asked: Any) -> QuoteAnswer:
    """A quote for a job of one hour."""
    request = QuoteRequest(requirements=Requirements(**asked), max_price_uusd_per_gpu_hour=max_price, timeout_s=HOUR_S)
    return quote(state, request, BUYER, now_ms, suspects)


def running(history: History, name: str = "job", node: str = "node") -> None:
    """The queued job runs on the node from now on."""
    history.happen(matched(history.market, name, node))
    run = history.market.jobs[job_id(name)].run
    assert run is not None
    attempt = {"job_id": job_id(name), "attempt": run.attempt, "epoch": run.epoch}
    history.happen(make(jobs.JobClaimed, **attempt), make(jobs.JobStarted, **attempt))


def test_offers_come_cheapest_first_with_what_the_whole_timeout_would_cost() -> None:
    answer = ask(given(node_offered("dear", price=500_000, gpus=2), node_offered("cheap", price=300_000, gpus=2)), num_gpus=2)
    assert ["cheap", "dear"] == [offer.name for offer in answer.offers]
    assert 2 * 300_000 == answer.price_from_uusd
    assert (2, 2, None, None) == (answer.could_run, answer.free_now, answer.failing, answer.free_in_s)


def test_the_funnel_counts_who_is_left_after_each_condition() -> None:
    state = given(node_offered("one"), node_offered("two", gpus=2), node_offered("large", gpus=2, vram_mib=81_920, price=2_000_000))
    answer = ask(state, num_gpus=2, vram_mib=22_889, max_price=500_000)
    assert [
        ("online", 3),
        ("accepts you", 3),
        ("simulated", 3),
        ("gpus", 2),
        ("min_gpus", 2),
        ("vram", 2),
        ("price", 1),
        ("responding", 1),
        ("free", 1),
    ] == [(step.condition, step.nodes) for step in answer.steps]
    assert "at most 0.50 USD" == answer.steps[6].asked


def test_the_condition_that_leaves_nobody_is_named() -> None:
    state = given(node_offered("a", gpus=2), node_offered("b", gpus=2))
    assert "gpus" == ask(state, num_gpus=3).failing
    assert "vram" == ask(state, vram_mib=38_147).failing
    assert "price" == ask(state, max_price=1).failing
    assert "online" == ask(given()).failing
    assert None is ask(state, num_gpus=2, total_vram_mib=38_147).failing


def test_nobody_left_means_no_offer_and_no_price() -> None:
    answer = ask(given(node_offered()), num_gpus=8)
    assert ((), 0, None, None) == (answer.offers, answer.could_run, answer.price_from_uusd, answer.free_in_s)


def test_that_only_simulated_cards_would_do_is_said() -> None:
    state = given(node_offered(simulated=True))
    assert ("simulated", True) == (ask(state).failing, ask(state).only_simulated)
    assert (None, False) == (ask(state, allow_simulated=True).failing, ask(state, allow_simulated=True).only_simulated)
    assert not ask(state, vram_mib=81_920).only_simulated


def test_a_busy_node_is_free_when_the_timeout_of_what_runs_there_is_over() -> None:
    history = History()
    history.happen(node_offered(), job_submitted(timeout_s=600))
    running(history)
    answer = ask(history.market, now_ms=START_MS + 100_000)
    assert (1, 0, 500, None) == (answer.could_run, answer.free_now, answer.free_in_s, answer.failing)
    assert [False] == [offer.free_now for offer in answer.offers]
    assert 0 == ask(history.market, now_ms=START_MS + 10**9).free_in_s


def test_the_first_of_several_to_have_enough_free_counts() -> None:
    history = History()
    history.happen(node_offered("a", gpus=2), node_offered("b", gpus=2))
    for name, node, timeout_s in (("1", "a", 100), ("2", "a", 900), ("3", "b", 500), ("4", "b", 700)):
        history.happen(job_submitted(name, timeout_s=timeout_s))
        running(history, name, node)
    assert 100 == ask(history.market).free_in_s
    assert 700 == ask(history.market, num_gpus=2).free_in_s


def test_an_attempt_that_has_not_started_may_take_its_whole_timeout() -> None:
    state = given(node_offered(), job_submitted(timeout_s=600))
    history = History(state)
    history.happen(matched(state))
    assert 600 == ask(state, now_ms=START_MS + 5000).free_in_s


def test_a_silent_node_could_run_it_but_not_now() -> None:
    state = given(node_offered())
    answer = ask(state, suspects={node_of(state).node_id})
    assert (1, 0, 0) == (answer.could_run, answer.free_now, answer.free_in_s)


def test_a_node_for_others_does_not_count() -> None:
    assert "accepts you" == ask(given(node_offered(accept=Accept.OWN))).failing
    assert None is ask(given(node_offered(accept=Accept.OWN, accept_wallets=(BUYER,)))).failing


def test_at_most_twenty_offers_are_listed_and_all_are_counted() -> None:
    answer = ask(given(*(node_offered(f"node{number}") for number in range(25))))
    assert (20, 25) == (len(answer.offers), answer.could_run)


def test_an_offer_shows_the_cards_that_the_job_would_get() -> None:
    state = given(node_offered(gpus=2, default_image="python:3.12"), By(SELLER, job_submitted()))
    History(state).happen(matched(state))
    offer = ask(state).offers[0]
    assert (2, 1, "NVIDIA GeForce RTX 4090", 24_564) == (offer.gpus, offer.gpus_free, offer.model, offer.vram_mib)
    assert ("container", False, "python:3.12", True) == (offer.isolation, offer.simulated, offer.default_image, offer.free_now)


def test_the_place_of_a_queued_job_is_how_many_the_policy_would_place_first() -> None:
    state = given(job_submitted("a"), job_submitted("b"), job_submitted("urgent", priority=100), Later(1), job_submitted("c"))
    places = [quote(state, QuoteRequest(job_id=job_id(name)), BUYER, START_MS).queue_position for name in ("urgent", "a", "b", "c", "none")]
    assert [0, 1, 2, 3, None] == places


def test_a_paused_market_says_so() -> None:
    assert ask(given(node_offered(), By(OPERATOR, make(market.MatchingPaused)))).paused


def test_a_place_that_is_kept_for_a_job_ahead_is_not_promised_and_a_shorter_run_is() -> None:
    history = History()
    history.happen(node_offered(gpus=2), job_submitted("short", timeout_s=3600))
    running(history, "short")
    history.happen(job_submitted("head", num_gpus=2))
    state, head = history.market, job_id("head")

    def told(timeout_s: int, priority: int = 50) -> QuoteAnswer:
        request = QuoteRequest(timeout_s=timeout_s, priority=priority)
        return quote(state, request, BUYER, START_MS, known=Known(first=[state.jobs[head]]))

    answer = told(7200)
    assert (1, 0, None, None, "kept") == (answer.could_run, answer.free_now, answer.failing, answer.free_in_s, answer.steps[-1].condition)
    assert answer.change.startswith("--timeout"), answer.change
    assert 1 == told(600).free_now
    assert 1 == told(7200, priority=100).free_now, "nothing is kept from who goes first"
    assert "kept for a job ahead of it" in places_sentence(answer)


def test_whoever_never_had_a_job_gets_a_quote_under_every_policy() -> None:
    for name in ("priority", "fcfs", "sjf", "fair-share", "least-backlog"):
        state = given(node_offered(), job_submitted("head", num_gpus=2), policy=market.Policy(name=name))
        answer = quote(state, QuoteRequest(), OPERATOR, START_MS, known=Known(first=state.jobs.values()))
        assert 1 == answer.free_now
