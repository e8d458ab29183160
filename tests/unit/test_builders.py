"""The builders of the other tests: every event has defaults, and what they make is within the bounds of the wire."""

from __future__ import annotations

import pytest
from builders import DEFAULTS, SELLER, By, Later, given, job_of, job_submitted, make, matched, node_of, node_offered, wallet

from events.codec import EVENT_CLASSES, decode_written, encode_event
from events.fact import Event
from events.jobs import JobCancelRequested
from events.values import Requirements
from projections.job_states import JobState


def test_every_kind_of_event_has_defaults() -> None:
    assert set(EVENT_CLASSES) == set(DEFAULTS)


@pytest.mark.parametrize("kind", EVENT_CLASSES, ids=lambda kind: kind.__name__)
def test_what_the_defaults_make_is_within_the_bounds_of_the_wire(kind: type[Event]) -> None:
    event = make(kind)
    assert event == decode_written(encode_event(event))


def test_a_market_is_what_has_happened() -> None:
    market = given(node_offered(gpus=2), job_submitted(num_gpus=2), Later(1000), make(JobCancelRequested))
    assert JobState.CANCELLED == job_of(market).state
    assert Requirements(num_gpus=2) == job_of(market).submitted.requirements
    assert 2 == len(node_of(market).offer.cards)


def test_anybody_may_be_named_as_the_sender() -> None:
    market = given(By(wallet("alice"), job_submitted("hers")), By(SELLER, node_offered()))
    assert wallet("alice") == job_of(market, "hers").buyer


def test_a_match_takes_the_first_free_cards() -> None:
    market = given(node_offered(gpus=3), job_submitted("a"), job_submitted("b", num_gpus=2))
    from_a = matched(market, "a")
    assert (node_of(market).offer.cards[0].uuid,) == from_a.cards
