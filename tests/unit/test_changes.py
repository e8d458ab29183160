"""What one thing to change would place a job or a gang: said by quotes and by answers to why, and tried on the matcher itself."""

from __future__ import annotations

from typing import Any

import pytest
from builders import BUYER, OPERATOR, ORG, START_MS, By, Happening, History, given, job_id, job_submitted, make, node_offered, wallet

from events import identity, jobs, market
from events.jobs import JobSubmitted
from events.nodes import NodeOffered
from events.values import Network, Requirements, Tier
from events.why import Change
from events.wire import QuoteAnswer, QuoteRequest
from projections.market import Market
from services.matcher.changes import as_changed
from services.matcher.engine import Engine
from services.matcher.feasibility import ask_of
from services.matcher.quotes import quote
from services.matcher.why import Moment, why

PLACE = "10.0.0.1"
ALICE = wallet("alice")
DEAR = [node_offered(name, address="10.0.0.1", price=price) for name, price in (("c", 450_000), ("d", 900_000))]


def gang(number: int, **changes: Any) -> list[JobSubmitted]:
    """All ranks of a gang of so many nodes."""
    return [job_submitted(f"rank{rank}", group_id="g" + "a" * 19, num_nodes=number, rank=rank, **changes) for rank in range(number)]


def node(name: str, **changes: Any) -> NodeOffered:
    """A node that takes ranks."""
    return node_offered(name, address=PLACE, **changes)


def advised(state: Market, rank: int = 0) -> Change | None:
    return why(state, state.jobs[job_id(f"rank{rank}")], Moment(START_MS)).change


def asked(state: Market, num_nodes: int = 1, max_price: int | None = None, org_id: str | None = None, **what: Any) -> QuoteAnswer:
    """A quote for an hour."""
    requirements = Requirements(**what)
    request = QuoteRequest(requirements=requirements, num_nodes=num_nodes, max_price_uusd_per_gpu_hour=max_price, org_id=org_id)
    return quote(state, request, BUYER, START_MS)


WORLDS: list[tuple[list[Happening], dict[str, Any], str, int]] = [
    ([node("a"), node("b")], {}, "--nodes 2", 400_000),
    (
        [node("a"), node("b"), *DEAR],
        {"max_price": 400_000},
        "--max-price 0.45",
        450_000,
    ),
    ([node("a", gpus=4), node("b", gpus=2), node("c", gpus=2), node("d", gpus=1)], {"num_gpus": 3}, "--gpus 2", 400_000),
    ([node("a"), node("b"), node("c")], {"vram_mib": 40_000}, "--vram 24GB", 400_000),
    ([node("a"), node("b"), node("c", cores=8)], {"cores": 12}, "--cores 8", 400_000),
    ([node("a"), node("b"), node("c", simulated=True)], {}, "--nodes 2", 400_000),
    ([node("a", simulated=True), node("b", simulated=True), node("c", simulated=True)], {}, "--allow-simulated", 400_000),
    ([node("a"), node("b"), node("c")], {"min_tier": Tier.BENCHMARKED}, "no --min-tier", 400_000),
    ([node("a"), node("b"), node("c")], {"network": Network.EGRESS}, "--network none", 400_000),
    ([node(name, min_gpus=2, gpus=4) for name in "abc"], {"vram_mib": 1}, "--gpus 2", 400_000),
]


@pytest.mark.parametrize(("nodes", "what", "flag", "price"), WORLDS)
def test_a_gang_is_told_the_smallest_change_and_the_matcher_places_it_with_that(
    nodes: list[Happening], what: dict[str, Any], flag: str, price: int
) -> None:
    state = given(*nodes, *gang(3, **what))
    for rank in range(3):
        change = advised(state, rank)
        assert change is not None
        assert (flag, price, True) == (change.flag, change.price_uusd_per_gpu_hour, change.at_once)


def test_a_change_of_a_gang_costs_what_all_of_its_ranks_cost() -> None:
    change = advised(given(node("a", price=100_000), node("b", price=200_000), node("c", price=380_000), *gang(3, max_price=300_000)))
    assert change is not None
    assert (680_000, "3 nodes") == (change.cost_uusd, change.name)
    assert "with --max-price 0.38, 3 nodes at 0.38 USD: the matcher would place it at once" == change.why


def test_a_gang_for_which_nodes_fit_that_are_busy_is_told_how_many_are_free() -> None:
    history = History()
    history.happen(node("a"), node("b"), node("c"), job_submitted("other"))
    first = history.market.nodes[node_offered("a").node_id]
    match = {"job_id": job_id("other"), "attempt": 1, "node_id": first.node_id, "cards": (first.offer.cards[0].uuid,)}
    history.happen(make(jobs.JobMatched, **match), *gang(3))
    change = advised(history.market)
    assert change is not None
    assert ("--nodes 2", True) == (change.flag, change.at_once)


def test_two_things_wrong_with_too_many_nodes_leave_a_gang_fewer_nodes_or_nothing() -> None:
    assert advised(given(node("a", price=900_000), node("b", price=900_000), *gang(2, max_price=100_000, num_gpus=2))) is None


def test_a_market_as_it_would_be_with_fewer_ranks_knows_of_no_more() -> None:
    state = given(node("a"), node("b"), *gang(3))
    first = state.jobs[job_id("rank0")]
    match = Engine(as_changed(state, first, ask_of(first)._replace(num_nodes=2))).next_match(START_MS)
    assert match is not None
    assert (job_id("rank0"), [job_id("rank1")]) == (match.job_id, [other.job_id for other in match.others])


def test_quote_and_why_name_the_same_change() -> None:
    for nodes, what, flag, _ in WORLDS:
        price = what.get("max_price")
        answer = asked(given(*nodes), 3, price, **{name: value for name, value in what.items() if name != "max_price"})
        assert answer.change.startswith(f"{flag}: then"), answer.change


def test_who_asks_for_less_than_a_seller_lets_is_told_how_much_to_take() -> None:
    state = given(node_offered("big", gpus=8, min_gpus=2, vram_mib=81_920, price=1_200_000), node_offered("small"))
    answer = asked(state, vram_mib=76_000)
    assert ("vram", "--gpus 2: then big at 1.20 USD per GPU-hour") == (answer.failing, answer.change)


def test_a_quote_that_somebody_could_run_needs_no_change() -> None:
    assert "" == asked(given(node_offered())).change


def test_a_limit_is_told_in_a_quote_with_what_it_is_and_how_far_it_is_used() -> None:
    state = given(node_offered(gpus=8), By(OPERATOR, make(market.LimitChanged, party=BUYER, gpus=2)))
    step = next(step for step in asked(state, num_gpus=3).steps if step.condition == "limit")
    assert ("your wallet may have 2 GPUs at once, and this job asks for 3: ask for fewer, or ask the operator for more", 0) == (
        step.asked,
        step.nodes,
    )


def test_who_wants_a_card_that_is_taken_is_told_of_the_others_of_that_node() -> None:
    history = History()
    history.happen(node_offered(gpus=2), job_submitted("other"))
    [node] = history.market.nodes.values()
    match = {"job_id": job_id("other"), "attempt": 1, "node_id": node.node_id, "cards": (node.offer.cards[0].uuid,)}
    history.happen(make(jobs.JobMatched, **match), job_submitted(target_node=node.node_id, target_cards=(0,)))
    change = why(history.market, history.market.jobs[job_id("job")], Moment(START_MS)).change
    assert change is not None
    assert ("--target node without cards", True) == (change.flag, change.at_once)


def test_who_is_no_member_is_told_nothing_of_an_organisations_limits() -> None:
    no_card = By(OPERATOR, make(market.LimitChanged, party=ORG, gpus=0))
    state = given(node_offered(gpus=8), make(identity.OrganisationCreated), no_card)
    assert 0 == asked(state, org_id=ORG).free_now
    assert 1 == quote(state, QuoteRequest(org_id=ORG), ALICE, START_MS).free_now
