"""A node that takes the jobs of one organisation: how its owner says so, and what the market makes of it."""

from __future__ import annotations

import pytest
from builders import BUYER, ORG, SELLER, given, make, node_offered
from desk import Desk

from events.identity import OrganisationCreated
from events.reasons import Refusal
from events.values import Accept, Requirements
from projections.market import Market
from seller_agent.owner.offers import OfferError, parse_org
from services.matcher.checks import CHECKS
from services.matcher.feasibility import Ask, Scene, obstacle


def test_an_organisation_alone_says_whose_jobs_are_taken() -> None:
    assert (Accept.ORGANISATION, ORG) == parse_org(None, ORG) == parse_org(Accept.ORGANISATION, ORG)
    assert (Accept.OWN, None) == parse_org(Accept.OWN, None)
    assert (None, None) == parse_org(None, None)


@pytest.mark.parametrize(
    ("accept", "org", "hint"),
    [
        (Accept.ORGANISATION, None, "--org ID; `bazaar org list` shows the ids."),
        (Accept.ANYONE, ORG, "Leave one of them out."),
        (None, "vision", "Look with `bazaar org list`."),
    ],
)
def test_what_names_no_organisation_is_refused_with_what_would(accept: Accept | None, org: str | None, hint: str) -> None:
    with pytest.raises(OfferError) as refused:
        parse_org(accept, org)
    assert hint == refused.value.hint


def test_a_node_for_an_organisation_that_does_not_exist_is_not_taken() -> None:
    offer = node_offered(accept=Accept.ORGANISATION, org_id=ORG)
    refused = CHECKS[type(offer)](Market(), SELLER, offer)
    assert refused is not None
    assert (Refusal.NOT_A_MEMBER, f"there is no organisation {ORG}") == (refused.refusal, refused.detail)
    assert CHECKS[type(offer)](given(make(OrganisationCreated)), SELLER, offer) is None


def test_only_members_reach_it() -> None:
    desk = Desk(make(OrganisationCreated), node_offered(accept=Accept.ORGANISATION, org_id=ORG))
    [node] = desk.market.nodes.values()
    scene = Scene(desk.market, desk.now_ms)
    assert None is obstacle(Ask(Requirements(), BUYER), node, scene)
    stranger = obstacle(Ask(Requirements(), SELLER), node, scene)
    assert stranger is not None and "accepts you" == stranger.name
