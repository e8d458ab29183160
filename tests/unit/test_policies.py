"""Each policy in cases a person can follow, the example of docs/policies.md, and how little a decision looks at under any of them."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from builders import BUYER, ORG, SELLER, By, Later, given, job_id, job_of, job_submitted, make, node_offered, wallet
from desk import Desk
from example_market import ALREADY, QUEUE, Start, run
from unit.test_engine import crowd, touched_per_decision

from events import identity, jobs
from events.market import Policy
from events.values import OrgRole
from projections.market import Market
from services.matcher.policies import POLICIES, order_key, row_of

ALICE, BOB, CAROL = wallet("alice"), wallet("bob"), wallet("carol")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"
MINUTE_MS = 60_000


def by(who: str, name: str, **changes: object) -> By:
    return By(who, job_submitted(name, **changes))


# The documented example.


def line_of(policy: str, starts: list[Start]) -> str:
    """A row of the page's table."""
    return f"| `{policy}` | " + ", ".join(f"{start.name} ({start.minute}, {start.node})" for start in starts) + " |"


def test_five_policies_make_five_orders_of_the_same_jobs() -> None:
    orders = {policy: [start.name for start in run(policy)] for policy in POLICIES}
    assert 5 == len(orders)
    for one, other in combinations(orders, 2):
        assert orders[one] != orders[other], (one, other)
    assert all(sorted(order) == sorted(asked.name for asked in QUEUE) for order in orders.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_the_page_says_what_the_matcher_does(policy: str) -> None:
    assert line_of(policy, run(policy)) in PAGE.read_text().splitlines()
    assert f"`{policy}`: {POLICIES[policy].sentence}" in " ".join(PAGE.read_text().split())


def test_the_page_lists_the_jobs_of_the_example() -> None:
    rows = re.findall(r"^\| ([a-z]\w*) \| (\w+) \| (\d+) \| (yes|no) \| (\d+) \| (0\.\d\d) \|$", PAGE.read_text(), re.MULTILINE)
    asked = [
        (one.name, one.who, str(one.minutes), "yes" if one.estimated else "no", str(one.priority), f"{one.max_price_uusd / 1e6:.2f}")
        for one in (ALREADY, *QUEUE)
    ]
    assert asked == rows


# Shortest estimate first.


def test_the_shortest_estimate_goes_first_and_no_estimate_last() -> None:
    asked = (
        by(ALICE, "none"),
        by(ALICE, "year", estimate_s=365 * 86_400),
        by(BOB, "hour", estimate_s=3600),
        by(BOB, "second", estimate_s=1),
    )
    desk = Desk(*asked, node_offered(gpus=4), policy=Policy(name="sjf"))
    assert ["second", "hour", "year", "none"] == list(desk.match_all())


def test_equal_estimates_and_none_at_all_are_first_come_first_served() -> None:
    asked = (by(ALICE, "x"), by(BOB, "y"), by(ALICE, "a", estimate_s=60), by(BOB, "b", estimate_s=60, priority=100))
    assert ["a", "b", "x", "y"] == list(Desk(*asked, node_offered(gpus=4), policy=Policy(name="sjf")).match_all())


# Fair shares.


def fair(*happenings: By) -> Desk:
    return Desk(*happenings, policy=Policy(name="fair-share"))


def test_who_has_used_nothing_goes_before_who_has() -> None:
    desk = fair(by(ALICE, "a1"), by(ALICE, "a2"), by(BOB, "b1"))
    desk.happen(node_offered())
    assert {"a1": "node"} == desk.match_all()
    desk.happen(node_offered("other"))
    assert {"b1": "other"} == desk.match_all()


def test_of_those_who_have_used_alike_the_one_who_has_waited_longest_for_a_turn_goes_first() -> None:
    desk = fair(*(by(who, f"{who[-1]}{number}") for number in range(3) for who in (ALICE, BOB, CAROL)))
    desk.happen(node_offered(gpus=8))
    turns = [name[0] for name in desk.match_all()]
    assert [who[-1] for who in (ALICE, BOB, CAROL)] * 2 == turns[:6]


def test_a_thousand_jobs_of_one_wallet_do_not_hold_up_another_one() -> None:
    desk = fair(*(by(ALICE, f"a{number}") for number in range(1000)), by(BOB, "b"))
    desk.happen(node_offered(gpus=3))
    assert ["a0", "b", "a1"] == list(desk.match_all())


def test_what_was_used_counts_less_as_time_goes_by() -> None:
    """Alice ran for an hour, two half-lives ago; Bob for half an hour just now."""
    desk = Desk(node_offered(), by(ALICE, "old", estimate_s=3600), policy=Policy(name="fair-share", half_life_s=3600))
    for name, minutes in (("old", 60), ("young", 30)):
        desk.match_all()
        attempt = desk.attempt(job_id(name))
        desk.happen(*(By(SELLER, make(kind, **attempt)) for kind in (jobs.JobClaimed, jobs.JobStarted)), Later(minutes * MINUTE_MS))
        ended = make(jobs.JobSucceeded, **attempt, ran_ms=minutes * MINUTE_MS)
        desk.happen(By(SELLER, ended), By(SELLER, make(jobs.GpusReleased, **attempt)))
        if name == "old":
            desk.happen(Later(90 * MINUTE_MS), by(BOB, "young", estimate_s=1800))
    desk.happen(by(BOB, "b"), by(ALICE, "a"))
    assert ["a"] == list(desk.match_all())


def test_of_wallets_that_have_used_alike_the_organisation_that_has_used_less_goes_first() -> None:
    desk = Desk(
        make(identity.OrganisationCreated),
        make(identity.MemberAdded, wallet=ALICE, role=OrgRole.MEMBER),
        by(BUYER, "colleague", org_id=ORG),
        node_offered(),
        policy=Policy(name="fair-share"),
    )
    assert {"colleague": "node"} == desk.match_all()
    desk.happen(by(ALICE, "hers", org_id=ORG), by(BOB, "his"), node_offered("other"))
    assert {"his": "other"} == desk.match_all()


def test_a_party_keeps_its_place_however_many_jobs_move_with_it() -> None:
    """A match moves all jobs of its wallet; how much is looked at does not hang on how many these are."""

    def touched(of_alice: int) -> int:
        desk = fair(*(by(ALICE, f"a{number}", max_price=400_000 + number) for number in range(of_alice)))
        desk.happen(*(by(BOB, f"b{number}") for number in range(50)))
        assert {} == desk.match_all()
        desk.happen(node_offered(gpus=8))
        before = desk.engine.touched
        desk.match_all()
        return desk.engine.touched - before

    assert touched(2000) <= 2 * touched(100)


# Least backlog.


def test_the_node_that_expects_the_least_work_gets_the_job_whatever_it_costs() -> None:
    policy = Policy(name="least-backlog")
    desk = Desk(node_offered("cheap", gpus=2, price=100_000), by(ALICE, "first", estimate_s=600), policy=policy)
    assert {"first": "cheap"} == desk.match_all()
    desk.happen(node_offered("dear", gpus=2, price=400_000), by(ALICE, "second", estimate_s=300), by(ALICE, "third"))
    assert {"second": "dear", "third": "dear"} == desk.match_all()


def test_work_that_takes_longer_than_was_expected_counts_no_more() -> None:
    desk = Desk(node_offered("one", gpus=2, price=100_000), by(ALICE, "first", estimate_s=60), policy=Policy(name="least-backlog"))
    desk.match_all()
    desk.happen(Later(61_000), node_offered("two", price=400_000), by(ALICE, "second"))
    assert {"second": "one"} == desk.match_all()


def test_a_job_goes_to_no_node_that_it_does_not_pay() -> None:
    desk = Desk(node_offered("cheap", gpus=2, price=100_000), by(ALICE, "first"), policy=Policy(name="least-backlog"))
    desk.match_all()
    desk.happen(node_offered("dear", price=400_000), by(ALICE, "second", max_price=200_000))
    assert {"second": "cheap"} == desk.match_all()


# What holds for all.


def test_an_unknown_policy_is_priority() -> None:
    state: Market = given(job_submitted("a", priority=25), job_submitted("b", priority=75))
    unknown = Policy(name="astrology")
    assert row_of(unknown) is POLICIES["priority"]
    assert order_key(job_of(state, "b"), unknown, state) < order_key(job_of(state, "a"), unknown, state)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "priority"])
def test_under_no_policy_does_a_hundred_times_the_queue_make_twice_the_work(policy: str) -> None:
    def touched(num_jobs: int) -> float:
        state = crowd(300, num_jobs)
        state.policy = Policy(name=policy)
        return touched_per_decision(state, 100)

    few, many = touched(1000), touched(100_000 if policy == "fair-share" else 30_000)
    assert many <= 2 * few, (few, many)


@pytest.mark.parametrize("policy", ["fair-share", "least-backlog"])
def test_under_no_policy_do_ten_times_the_nodes_make_twice_the_work(policy: str) -> None:
    def touched(num_nodes: int) -> float:
        state = crowd(num_nodes, 3000)
        state.policy = Policy(name=policy)
        return touched_per_decision(state, 200)

    few, many = touched(600), touched(6000)
    assert many <= 2 * few, (few, many)
