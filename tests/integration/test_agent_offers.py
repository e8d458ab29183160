"""What an owner says, and the offer that is made of it."""

from __future__ import annotations

import pytest
from builders import BUYER, SELLER, card, wallet

from events import ids
from events.codec import decode_event, encode_event
from events.values import Accept, Isolation
from seller_agent.owner.offers import (
    OfferError,
    Terms,
    cards_offered,
    in_words,
    make_offer,
    node_name,
    parse_indices,
    parse_labels,
    parse_price,
    price_text,
)

MACHINE = {"cores": 8, "memory_mib": 32_000}


@pytest.mark.parametrize(
    ("text", "uusd"), [("0.35", 350_000), ("0", 0), ("2", 2_000_000), ("0.000001", 1), ("0.3", 300_000), (" 1.10 ", 1_100_000)]
)
def test_prices_are_exact(text: str, uusd: int) -> None:
    assert uusd == parse_price(text)


@pytest.mark.parametrize("text", ["", "-1", "NaN", "1e3", "0.3500001", "1,5", "9" * 30, "٣", "0x10", "1000001", ".5", "inf"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(OfferError):
        parse_price(text)


@pytest.mark.parametrize(("uusd", "text"), [(350_000, "0.35"), (0, "0.00"), (1, "0.000001"), (2_000_000, "2.00"), (300_000, "0.30")])
def test_prices_are_said_as_they_are_given(uusd: int, text: str) -> None:
    assert text == price_text(uusd)
    assert uusd == parse_price(text)


@pytest.mark.parametrize(
    ("given", "host", "expected"),
    [
        (None, "gpu-7.example.org", "gpu-7"),
        (None, "mein_rechner", "mein_rechner"),
        (None, "---", "node"),
        (None, "été", "t-"),
        ("my box", "x", "my box"),
    ],
)
def test_the_name_of_a_node(given: str | None, host: str, expected: str) -> None:
    assert expected == node_name(given, host)


@pytest.mark.parametrize("given", ["", "../up", "a/b", "new\nline", "x" * 65, "é"])
def test_a_name_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(OfferError):
        node_name(given, "host")


def test_labels_and_cards_are_checked() -> None:
    assert {"rack": "b2", "zone": ""} == parse_labels(["rack=b2", "zone="])
    assert (0, 2) == parse_indices("0,2")
    for bad in ("Rack=b", "rack", "=x", "rack=\x1b"):
        with pytest.raises(OfferError):
            parse_labels([bad])
    for bad in ("", "0,0", "-1", "a", "64"):
        with pytest.raises(OfferError):
            parse_indices(bad)


def test_only_the_chosen_cards_are_offered() -> None:
    cards = [card(index) for index in range(3)]
    terms = Terms(name="node", price_uusd_per_gpu_hour=1, gpus=(2, 0))
    assert [0, 2] == [one.index for one in cards_offered(cards, terms)]
    with pytest.raises(OfferError, match="no card 5"):
        cards_offered(cards, Terms(name="node", price_uusd_per_gpu_hour=1, gpus=(5,)))


def test_plain_processes_are_offered_to_the_wallets_of_this_home_only() -> None:
    terms = Terms(name="node", price_uusd_per_gpu_hour=350_000, labels={"rack": "b2"})
    offer = make_offer(
        terms, wallet=SELLER, cards=(card(),), isolation=Isolation.PROCESS, machine=MACHINE, own_wallets=[SELLER, BUYER], version="1"
    )
    assert (Accept.OWN, (BUYER,)) == (offer.accept, offer.accept_wallets)
    assert (ids.node_id(SELLER, "node"), 8, 32_000, None) == (offer.node_id, offer.cores, offer.memory_mib, offer.default_image)
    assert offer == decode_event(encode_event(offer))
    assert "node: 1x NVIDIA RTX 4090 (24.0 GiB), 0.35 USD per GPU-hour, own jobs and those of 1 more wallets of this home" in in_words(
        offer
    )


def test_containers_are_offered_to_anyone() -> None:
    offer = make_offer(
        Terms(name="node", price_uusd_per_gpu_hour=1),
        wallet=SELLER,
        cards=(),
        isolation=Isolation.CONTAINER,
        machine=MACHINE,
        own_wallets=[BUYER],
        default_image="python:3.12-slim",
    )
    assert (Accept.ANYONE, (), "python:3.12-slim") == (offer.accept, offer.accept_wallets, offer.default_image)
    assert "no cards (CPU only, 8 cores)" in in_words(offer)


def test_an_owner_may_say_otherwise() -> None:
    terms = Terms(name="node", price_uusd_per_gpu_hour=1, accept=Accept.ANYONE)
    offer = make_offer(terms, wallet=SELLER, cards=(), isolation=Isolation.PROCESS, machine=MACHINE, own_wallets=[wallet("x")])
    assert (Accept.ANYONE, ()) == (offer.accept, offer.accept_wallets)
