"""Every condition on its own: who passes, who does not, and what a person is told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from builders import BUYER, ORG, SELLER, START_MS, By, card, job_submitted, make, matched, node_of, node_offered, wallet
from builders import given as given_events

from events import identity, jobs, market, nodes
from events.values import Accept, Isolation, Network, OrgRole, Requirements, Tier
from projections.market import Market
from services.matcher.feasibility import CONDITIONS, STATIC, Ask, Scene, choose, choose_cards, could_run, gigabytes, obstacle, usd
from services.matcher.model_names import model_matches

STRANGER = wallet("stranger")


def failing(
    state: Market, *, buyer: str | None = STRANGER, max_price: int | None = None, now_ms: int = START_MS, **asked: Any
) -> str | None:
    """The condition that the only node fails, or None when the job could run there now."""
    ask = Ask(Requirements(**asked), buyer, max_price)
    found = obstacle(ask, node_of(state), Scene(state, now_ms))
    return None if found is None else found.name


def test_an_idle_node_runs_a_job_that_asks_for_one_card() -> None:
    assert None is failing(given_events(node_offered()))


@pytest.mark.parametrize("event", [nodes.NodeDrained, nodes.NodeWithdrawn, nodes.NodeLost, market.NodeBanned])
def test_a_node_that_takes_nothing_new_is_not_online(event: type[Any]) -> None:
    assert "online" == failing(given_events(node_offered(), make(event)))


def test_a_node_for_its_own_takes_its_owner_and_those_it_names() -> None:
    state = given_events(node_offered(accept=Accept.OWN, accept_wallets=(BUYER,)))
    assert [None, None, "accepts you", "accepts you"] == [failing(state, buyer=who) for who in (SELLER, BUYER, STRANGER, None)]


def test_a_node_for_an_organisation_takes_its_members_only() -> None:
    state = given_events(
        node_offered(accept=Accept.ORGANISATION, org_id=ORG),
        make(identity.OrganisationCreated),
        make(identity.MemberAdded, wallet=STRANGER, role=OrgRole.MEMBER),
    )
    assert [None, None, "accepts you"] == [failing(state, buyer=who) for who in (BUYER, STRANGER, SELLER)]


def test_a_node_for_an_organisation_that_does_not_exist_takes_nobody() -> None:
    assert "accepts you" == failing(given_events(node_offered(accept=Accept.ORGANISATION)), buyer=SELLER)


def test_simulated_cards_go_only_to_jobs_that_allow_them_and_to_jobs_without_cards() -> None:
    state = given_events(node_offered(simulated=True))
    assert ["simulated", None, None] == [failing(state), failing(state, allow_simulated=True), failing(state, num_gpus=0)]


def test_one_simulated_card_keeps_the_whole_node_from_jobs_that_do_not_allow_it() -> None:
    state = given_events(node_offered(cards=(card(0), card(1, simulated=True))))
    assert "simulated" == failing(state)


def test_a_job_may_ask_for_as_many_cards_as_the_node_has_healthy_ones() -> None:
    state = given_events(node_offered(cards=(card(0), card(1), card(2, healthy=False))))
    assert [None, "gpus"] == [failing(state, num_gpus=2), failing(state, num_gpus=3)]


def test_each_card_must_be_large_enough() -> None:
    state = given_events(node_offered(cards=(card(0, vram_mib=12_288), card(1))))
    assert [None, "vram"] == [failing(state, vram_mib=20_000), failing(state, vram_mib=20_000, num_gpus=2)]


def test_a_card_sold_as_24_gb_passes_24_gb_and_not_24_gib() -> None:
    state = given_events(node_offered(vram_mib=24_564))
    assert [None, "vram"] == [failing(state, vram_mib=22_889), failing(state, vram_mib=24_576)]


def test_the_total_is_that_of_as_many_cards_as_are_asked_for() -> None:
    state = given_events(node_offered(gpus=3))
    assert [None, "total_vram"] == [failing(state, num_gpus=2, total_vram_mib=mib) for mib in (2 * 24_564, 2 * 24_564 + 1)]
    assert None is failing(state, num_gpus=3, total_vram_mib=2 * 24_564 + 1)


@pytest.mark.parametrize(
    ("asked", "device", "matches"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("rtx 4090", "NVIDIA GeForce RTX 4090", True),
        ("GeForce RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("NVIDIA RTX 4090", "RTX 4090", True),
        ("4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 D", False),
        ("RTX 4090 D", "NVIDIA GeForce RTX 4090", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("RTX 4090 Laptop", "NVIDIA GeForce RTX 4090 Laptop GPU", True),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti SUPER", False),
        ("RTX 4070", "NVIDIA GeForce RTX 4070 Ti", False),
        ("GTX 4090", "NVIDIA GeForce RTX 4090", False),
        ("A100", "NVIDIA A100-SXM4-80GB", True),
        ("A100", "NVIDIA A100-PCIE-40GB", True),
        ("A100 80GB", "NVIDIA A100-SXM4-80GB", True),
        ("A100 80GB", "NVIDIA A100-SXM4-40GB", False),
        ("A100", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", False),
        ("A10", "NVIDIA A100-SXM4-80GB", False),
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("H100", "NVIDIA H100 NVL", True),
        ("V100", "Tesla V100-SXM2-16GB", True),
        ("RTX 6000", "Quadro RTX 6000", True),
        ("RTX 6000", "NVIDIA RTX 6000 Ada Generation", False),
        ("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation", True),
        ("MI250X", "AMD Instinct MI250X", True),
        ("NVIDIA", "NVIDIA GeForce RTX 4090", True),
        ("AMD", "NVIDIA GeForce RTX 4090", False),
    ],
)
def test_a_model_is_matched_word_by_word(asked: str, device: str, matches: bool) -> None:
    assert matches == model_matches(asked, device)


def test_any_of_several_models_will_do() -> None:
    state = given_events(node_offered())
    assert [None, "model"] == [failing(state, gpu_models=("H100", "RTX 4090")), failing(state, gpu_models=("H100", "A100"))]


@pytest.mark.parametrize(
    ("condition", "offered", "fits", "does_not"),
    [
        ("cuda", {"cuda": 12_040}, {"min_cuda": 12_040}, {"min_cuda": 12_050}),
        ("cores", {"cores": 8}, {"cores": 8}, {"cores": 9}),
        ("memory", {"memory_mib": 8000}, {"memory_mib": 8000}, {"memory_mib": 8001}),
        ("isolation", {"isolation": Isolation.CONTAINER}, {"isolation": Isolation.PROCESS}, {"isolation": Isolation.GVISOR}),
        ("network", {"egress": False}, {"network": Network.NONE}, {"network": Network.EGRESS}),
        ("network", {"egress": True}, {"network": Network.EGRESS}, None),
        ("labels", {"labels": {"region": "eu", "disk": "ssd"}}, {"node_labels": {"region": "eu"}}, {"node_labels": {"region": "us"}}),
        ("min_gpus", {"min_gpus": 2, "gpus": 4}, {"num_gpus": 2}, {"num_gpus": 1}),
    ],
)
def test_a_node_must_offer_what_is_asked(condition: str, offered: Any, fits: Any, does_not: Any) -> None:
    state = given_events(node_offered(**offered))
    assert None is failing(state, **fits)
    if does_not is not None:
        assert condition == failing(state, **does_not)


def test_a_check_of_the_cards_counts_until_it_expires() -> None:
    state = given_events(node_offered(), make(nodes.NodeVerified, tier=Tier.CONSISTENT, expires_ms=START_MS + 1000))
    assert None is failing(state, min_tier=Tier.CONSISTENT)
    assert "tier" == failing(state, min_tier=Tier.BENCHMARKED)
    assert "tier" == failing(state, min_tier=Tier.CONSISTENT, now_ms=START_MS + 1000)
    assert None is failing(state, min_tier=Tier.CLAIMED, now_ms=START_MS + 1000)


def test_a_target_is_that_node_and_those_cards() -> None:
    state = given_events(node_offered(gpus=3), node_offered("other"))
    here, other = node_of(state).node_id, node_of(state, "other").node_id
    assert [None, "target"] == [failing(state, target_node=here), failing(state, target_node=other)]
    assert "cards" == failing(state, target_node=here, target_cards=(1, 3), num_gpus=2)
    chosen = choose_cards(node_of(state), Requirements(num_gpus=2, target_node=here, target_cards=(2, 0)))
    assert (card(0).uuid, card(2).uuid) == chosen


def test_indices_without_a_node_or_not_as_many_as_the_cards_fit_nothing() -> None:
    state = given_events(node_offered(gpus=2))
    here = node_of(state).node_id
    assert "cards" == failing(state, target_cards=(0,))
    assert "cards" == failing(state, target_node=here, target_cards=(0, 1))


def test_the_price_may_be_met_exactly_and_no_maximum_is_any_price() -> None:
    state = given_events(node_offered(price=400_000))
    assert [None, None, "price"] == [failing(state, max_price=most) for most in (None, 400_000, 399_999)]


def test_a_node_is_passed_over_until_the_time_is_over() -> None:
    state = given_events(node_offered())
    ask = Ask(Requirements(), BUYER, None, {node_of(state).node_id: START_MS + 1000})
    found = obstacle(ask, node_of(state), Scene(state, START_MS))
    assert found is not None
    assert ("not avoided", False) == (found.name, found.static)
    assert None is obstacle(ask, node_of(state), Scene(state, START_MS + 1000))


def test_a_silent_node_gets_nothing_but_could_run_it() -> None:
    state = given_events(node_offered())
    ask, scene = Ask(Requirements(), BUYER), Scene(state, START_MS, {node_of(state).node_id})
    found = obstacle(ask, node_of(state), scene)
    assert found is not None
    assert "responding" == found.name
    assert could_run(ask, node_of(state), scene)


def test_taken_cards_cores_and_memory_are_not_free() -> None:
    state = given_events(node_offered(gpus=2, cores=4, memory_mib=8000), job_submitted(cores=3, memory_mib=6000))
    made = matched(state)
    state = given_events(node_offered(gpus=2, cores=4, memory_mib=8000), job_submitted(cores=3, memory_mib=6000), made)
    assert [None, "free"] == [failing(state), failing(state, num_gpus=2)]
    assert [None, "free"] == [failing(state, cores=1), failing(state, cores=2)]
    assert [None, "free"] == [failing(state, memory_mib=2000), failing(state, memory_mib=2001)]


def test_jobs_without_cards_take_a_core_each() -> None:
    state = given_events(node_offered(gpus=0, cores=1), job_submitted(num_gpus=0))
    assert None is failing(state, num_gpus=0)
    state = given_events(node_offered(gpus=0, cores=1), job_submitted(num_gpus=0), matched(state))
    assert "free" == failing(state, num_gpus=0)


def test_the_smallest_cards_that_suffice_are_taken_then_the_lowest_index() -> None:
    cards = [card(0, vram_mib=80_000), card(1, vram_mib=24_000), card(2, vram_mib=40_000), card(3, vram_mib=24_000)]
    chosen = choose(cards, Requirements(num_gpus=2))
    larger = choose(cards, Requirements(num_gpus=2, vram_mib=30_000))
    assert chosen is not None and larger is not None
    assert [1, 3] == [one.index for one in chosen]
    assert [2, 0] == [one.index for one in larger]


def test_for_a_total_larger_cards_are_taken_only_as_far_as_needed() -> None:
    cards = [card(index, vram_mib=mib) for index, mib in enumerate((12_000, 24_000, 40_000, 80_000))]
    chosen = choose(cards, Requirements(num_gpus=2, total_vram_mib=60_000))
    assert chosen is not None
    assert [1, 2] == [one.index for one in chosen]
    assert None is choose(cards, Requirements(num_gpus=2, total_vram_mib=120_001))


def test_conditions_of_the_offer_come_before_those_of_the_moment_and_names_are_unique() -> None:
    assert STATIC == CONDITIONS[: len(STATIC)]
    assert len(CONDITIONS) == len({condition.name for condition in CONDITIONS})


def test_what_is_not_asked_for_is_not_spoken_of_and_stops_nobody() -> None:
    state = given_events(node_offered())
    ask = Ask(Requirements(), BUYER)
    spoken = [condition.name for condition in CONDITIONS if condition.asked(ask)]
    assert ["online", "accepts you", "simulated", "gpus", "min_gpus", "responding", "maintenance", "limit", "free", "kept"] == spoken
    for condition in CONDITIONS:
        assert condition.passes(ask, node_of(state), Scene(state, START_MS))


def test_every_condition_has_words_for_what_is_asked() -> None:
    asked = Requirements(
        num_gpus=2,
        vram_mib=22_889,
        total_vram_mib=45_777,
        gpu_models=("RTX 4090", "A100"),
        min_cuda=12_040,
        cores=4,
        memory_mib=15_259,
        isolation=Isolation.CONTAINER,
        min_tier=Tier.CONSISTENT,
        network=Network.EGRESS,
        target_node=node_offered().node_id,
        target_cards=(0, 2),
        node_labels={"region": "eu"},
        sessions=True,
        image="python:3.12",
    )
    ask = Ask(asked, BUYER, 400_000, {"n": 1}, num_nodes=2)
    words = {condition.name: condition.asked(ask) for condition in CONDITIONS}
    assert all(words.values())
    assert "2 GPUs" == words["gpus"]
    assert "24 GB a card" == words["vram"]
    assert "48 GB together" == words["total_vram"]
    assert "RTX 4090 or A100" == words["model"]
    assert "CUDA 12.4 or newer" == words["cuda"]
    assert "at most 0.40 USD" == words["price"]
    assert "region=eu" == words["labels"]


@pytest.mark.parametrize(("mib", "words"), [(22_889, "24 GB"), (24_564, "25.8 GB"), (954, "1 GB"), (1431, "1.5 GB")])
def test_sizes_read_as_cards_are_sold(mib: int, words: str) -> None:
    assert words == gigabytes(mib)


@pytest.mark.parametrize(("uusd", "words"), [(400_000, "0.40 USD"), (1, "0.000001 USD"), (12_345_000, "12.345 USD"), (0, "0.00 USD")])
def test_money_reads_with_at_least_two_decimals(uusd: int, words: str) -> None:
    assert words == usd(uusd)


def test_an_offer_made_again_with_a_broken_card_no_longer_runs_what_needs_it() -> None:
    broken = node_offered(cards=(card(0), msgspec.structs.replace(card(1), healthy=False)))
    state = given_events(node_offered(gpus=2), By(SELLER, broken), make(jobs.JobSubmitted))
    assert "gpus" == failing(state, num_gpus=2)
