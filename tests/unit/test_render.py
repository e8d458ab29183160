"""What people read, from plain values."""

from __future__ import annotations

from typing import Any

import pytest

from buyer_cli import render, render_quote
from buyer_cli.job_news import news
from events.wire import QuoteAnswer, QuoteOffer, QuoteStep, SyncJob

NOW = 1_800_000_000_000


def offer(price_uusd: int, name: str = "rig", **changes: Any) -> QuoteOffer:
    return QuoteOffer(
        node_id="n" + "a" * 15,
        name=name,
        price_uusd_per_gpu_hour=price_uusd,
        gpus=2,
        gpus_free=1,
        model="NVIDIA GeForce RTX 4090",
        vram_mib=24564,
        isolation="container",
        simulated=False,
        **changes,
    )


@pytest.mark.parametrize(
    ("amount", "text"), [(400_000, "0.40 USD"), (0, "0.00 USD"), (1, "0.000001 USD"), (1_234_567_890_000, "1,234,567.89 USD"), (None, "-")]
)
def test_money_has_two_decimals_or_as_many_as_it_needs(amount: int | None, text: str) -> None:
    assert text == render.usd(amount)


@pytest.mark.parametrize(
    ("mib", "text"), [(24564, "24 GB"), (24576, "24 GB"), (81920, "80 GB"), (11264, "11 GB"), (6141, "6 GB"), (512, "512 MiB")]
)
def test_a_cards_memory_is_shown_as_it_is_sold(mib: int, text: str) -> None:
    assert text == render.size(mib)


def test_asking_for_the_memory_that_is_shown_finds_the_card() -> None:
    from events.quantities import size_mib

    for mib in range(512, 200_000, 37):
        assert size_mib(render.size(mib)) <= mib


def test_durations_have_their_two_largest_units() -> None:
    assert ["0 s", "45 s", "1 h", "1 h 30 min", "2 d 1 h"] == [render.duration(seconds) for seconds in (0, 45, 3600, 5400, 176_461)]


def test_times_are_told_from_now_and_a_clock_ahead_does_no_harm() -> None:
    assert ["12 s ago", "3 min ago", "now", "now", "-"] == [
        render.ago(then, NOW) for then in (NOW - 12_000, NOW - 200_000, NOW, NOW + 99_000, None)
    ]


def test_a_waiting_job_has_no_cards_to_name() -> None:
    assert "N/A" == render.cards({"state": "queued", "num_gpus": 1})
    assert "2x RTX 4090 [0,1]" == render.cards(
        {"state": "running", "gpus": [{"index": 0, "model": "RTX 4090"}, {"index": 1, "model": "RTX 4090"}]}
    )
    assert "none" == render.cards({"state": "running", "num_gpus": 0, "gpus": []})


def test_a_row_shows_what_goes_on_and_nothing_hostile() -> None:
    job = {"id": "j1", "name": "a\x1b[2J", "state": "claimed", "phase": "pulling 43%", "node_name": "rig\u202e", "updated_ms": NOW - 1000}
    assert ("j1", r"a\x1b[2J", "claimed (pulling 43%)", "-", r"rig\u202e", "1 s ago") == render.job_row(job, NOW)


def test_an_end_is_told_with_its_reason_its_time_and_its_bill() -> None:
    job = {
        "state": "failed",
        "reason": "exited_nonzero",
        "exit_code": 7,
        "started_ms": NOW,
        "ended_ms": NOW + 4000,
        "attempt": 1,
        "charged_uusd": 1234,
    }
    assert "failed: the program ended with an exit code other than 0 (exit code 7), ran 4.0 s, bill 0.001234 USD" == render.ended_sentence(
        job
    )
    assert "succeeded" == render.ended_sentence({"state": "succeeded", "reason": "exited_zero", "exit_code": 0})


def test_a_reason_that_this_version_does_not_know_is_shown_as_it_is() -> None:
    assert r"new\x07" == render.reason_sentence("new\x07")


def test_showing_a_job_leaves_out_what_is_absent() -> None:
    labels = [label for label, _ in render.job_lines({"id": "j1", "state": "queued", "num_gpus": 1}, NOW)]
    assert "node" not in labels
    assert "charged" not in labels


FAILING = QuoteAnswer(
    as_of_seq=1, steps=(QuoteStep("online", "", 3), QuoteStep("gpus", "2 GPUs", 2), QuoteStep("vram", "40 GB a card", 0)), failing="vram"
)


def test_the_condition_that_fails_is_marked() -> None:
    assert ["", "", "  <- nobody"] == [row[2][-11:] if "<-" in row[2] else "" for row in render_quote.funnel_rows(FAILING)]
    assert "no node passes: vram (40 GB a card)" == render_quote.failing_sentence(FAILING)


def test_a_wait_says_how_many_stand_before_it_and_when_a_node_is_free() -> None:
    busy = QuoteAnswer(as_of_seq=1, offers=(offer(400_000),), could_run=2, free_in_s=700, queue_position=1)
    assert "1 job before it, 2 nodes could run it, all are busy, free in at most 12 min" == render_quote.waiting_sentence(busy)
    assert "the market is paused" == render_quote.waiting_sentence(QuoteAnswer(as_of_seq=1, paused=True))
    assert "only simulated cards would do" in render_quote.waiting_sentence(
        QuoteAnswer(as_of_seq=1, failing="simulated", only_simulated=True)
    )


def test_the_most_that_a_job_can_cost_is_said_in_money() -> None:
    quote = QuoteAnswer(as_of_seq=1, offers=(offer(200_000), offer(400_000)), could_run=2)
    capped = render_quote.cost_sentence(quote, 2, 1800, 300_000, None)
    assert "at most 0.30 USD (30 min on 2 GPUs at 0.30 USD per GPU-hour)" == capped
    assert render_quote.cost_sentence(quote, 2, 1800, None, None).startswith(
        "at most 0.20 to 0.40 USD (30 min on 2 GPUs at 0.40 USD per GPU-hour, as offered now"
    )
    assert "at most 0.05 USD (--max-total)" == render_quote.cost_sentence(quote, 2, 1800, 300_000, 50_000)


def test_tables_for_pipes_are_aligned_and_whole() -> None:
    assert ["ID  NAME", "1   a", "22  bbb"] == render.columns(("ID", "NAME"), [("1", "a"), ("22", "bbb")])


def seen(state: str, attempt: int = 0, **changes: Any) -> SyncJob:
    return SyncJob(job_id="j" + "a" * 19, state=state, attempt=attempt, epoch=attempt * 10, price_uusd_per_gpu_hour=400_000, **changes)


def test_a_job_that_moves_on_is_told_once() -> None:
    matched, running = seen("matched", 1), seen("running", 1)
    assert [] == news(None, seen("queued"), "")
    assert ["matched: rig at 0.40 USD per GPU-hour"] == news(seen("queued"), matched, "rig")
    assert ["running"] == news(matched, running, "rig")
    assert [] == news(running, running, "rig")
    assert ["matched: rig at 0.40 USD per GPU-hour", "running"] == news(None, running, "rig")


def test_an_attempt_that_was_lost_is_told_with_its_reason() -> None:
    lost = seen("queued", 1, reason="node_lost")
    assert ["attempt 1 ended: the node was not heard of for a whole lease; queued again"] == news(seen("running", 1), lost, "rig")
    assert ["matched: rig at 0.40 USD per GPU-hour, attempt 2", "running"] == news(lost, seen("running", 2), "rig")
