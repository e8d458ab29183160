"""Simulated cards: what may be written, and what they look like."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.values import Card
from seller_agent.cards.card import DetectedCard
from seller_agent.cards.models import KNOWN_CARDS, find_card
from seller_agent.cards.nvidia import telemetry
from seller_agent.cards.simulated import simulate

NODE = "nabcdefghijklmno"


@pytest.mark.parametrize(
    ("text", "count", "model", "vram_mib"),
    [
        ("2xRTX 4090", 2, "NVIDIA GeForce RTX 4090", 24564),
        ("RTX 4090", 1, "NVIDIA GeForce RTX 4090", 24564),
        ("rtx4090", 1, "NVIDIA GeForce RTX 4090", 24564),
        ("RTX 4090 D", 1, "NVIDIA GeForce RTX 4090 D", 24564),
        ("NVIDIA GeForce RTX 4090", 1, "NVIDIA GeForce RTX 4090", 24564),
        ("8xH100", 8, "NVIDIA H100 80GB HBM3", 81559),
        ("2xRTX 4090:24GB", 2, "NVIDIA GeForce RTX 4090", 24564),
        ("1xA100 80GB", 1, "NVIDIA A100-SXM4-80GB", 81920),
        ("1 x A100 40GB", 1, "NVIDIA A100-SXM4-40GB", 40960),
        ("RTX 3080:12GB", 1, "NVIDIA GeForce RTX 3080", 12288),
        ("RTX 4090:48GB", 1, "NVIDIA GeForce RTX 4090", 45776),
        ("3xMy Card:12GB", 3, "My Card", 11444),
        ("My Card:8GiB", 1, "My Card", 8192),
    ],
)
def test_a_description_becomes_cards_that_look_real(text: str, count: int, model: str, vram_mib: int) -> None:
    cards = simulate(text, NODE)
    assert [(model, vram_mib, True, True)] * count == [(card.model, card.vram_mib, card.simulated, card.healthy) for card in cards]
    assert list(range(count)) == [card.index for card in cards]


@pytest.mark.parametrize("text", ["", "2x", "0xH100", "65xH100", "My Card", "Card:0GB", "\x1b[31m:8GB", "a" * 65 + ":8GB", "x:999999999GB"])
def test_what_names_no_card_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"as in '"):
        simulate(text, NODE)


def test_uuids_are_the_same_after_a_restart_and_differ_between_nodes_and_cards() -> None:
    first, again = simulate("2xH100", NODE), simulate("2xH100", NODE)
    assert first == again
    uuids = {card.uuid for card in (*first, *simulate("2xH100", "nother"), *simulate("2xH100", NODE, first_index=2))}
    assert 6 == len(uuids)
    assert all(uuid.startswith("SIM-") for uuid in uuids)


@given(st.text(max_size=40))
def test_any_text_is_cards_that_the_market_accepts_or_a_readable_refusal(text: str) -> None:
    try:
        cards = simulate(text, NODE)
    except ValueError as error:
        assert str(error).isprintable()
        return
    for card in cards:
        assert card == msgspec.structs.replace(card, **msgspec.to_builtins(as_declared(card)))


def as_declared(card: DetectedCard) -> Card:
    """The card as an offer would carry it; raises when the market's bounds refuse it."""
    fields = {name: getattr(card, name) for name in Card.__struct_fields__}
    return msgspec.convert(fields, Card)


def test_every_known_card_is_found_by_its_own_name_and_accepted_by_the_market() -> None:
    for known in KNOWN_CARDS:
        [card] = simulate(f"{known.name}:{known.size_gb}GB", NODE)
        assert (known.name, known.vram_mib) == (card.model, card.vram_mib)
        as_declared(card)


def test_a_known_name_with_an_unknown_size_is_not_the_known_card() -> None:
    assert find_card("RTX 4090", 48) is None


def test_simulated_cards_are_idle_and_ask_no_driver() -> None:
    pulse = telemetry(simulate("2xH100", NODE))
    assert [(0, 0, True, ())] * 2 == [(card.utilisation_percent, card.memory_used_mib, card.healthy, card.pids) for card in pulse]
