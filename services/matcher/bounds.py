"""How many keys, nodes, organisations, members and tokens there may be: the market remembers each of them, most of them for ever. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events.fact import Event
from events.identity import MemberAdded, OrganisationCreated, ReadTokenIssued, SessionKeyAuthorised
from events.nodes import NodeOffered
from events.values import OrgRole
from projections.identity import (
    KEYS_MAX,
    MEMBERS_MAX,
    NODES_MAX,
    ORGS_MAX,
    TOKENS_MAX,
    holdings_of,
    may_have_another_key,
    may_have_another_token,
)
from projections.market import Market


def too_many(market: Market, wallet: str, event: Event) -> str:
    """Why this would be one too many, for a person to read; empty when it would not, and when the event is refused for something else."""
    bound = BOUNDS.get(type(event))
    return "" if bound is None else bound(market, wallet, event)


def _key(market: Market, wallet: str, event: SessionKeyAuthorised) -> str:
    if may_have_another_key(market.identity, wallet, market.time_ms):
        return ""
    return f"this wallet has {KEYS_MAX} session keys; use one of them until another has been over for a month"


def _node(market: Market, wallet: str, event: NodeOffered) -> str:
    if event.node_id in market.nodes or holdings_of(market.identity, wallet).nodes < NODES_MAX:
        return ""
    return f"this wallet has offered {NODES_MAX} nodes; offer one of them again, under its name"


def _organisation(market: Market, wallet: str, event: OrganisationCreated) -> str:
    if event.org_id in market.identity.orgs or holdings_of(market.identity, wallet).orgs < ORGS_MAX:
        return ""
    return f"this wallet has founded {ORGS_MAX} organisations, and may found no more"


def _member(market: Market, wallet: str, event: MemberAdded) -> str:
    org = market.identity.orgs.get(event.org_id)
    if org is None or org.members.get(wallet) is not OrgRole.OWNER or event.wallet in org.members or len(org.members) < MEMBERS_MAX:
        return ""
    return f"the organisation has {MEMBERS_MAX} members; remove one first"


def _token(market: Market, wallet: str, event: ReadTokenIssued) -> str:
    if event.token_sha256 in market.identity.tokens or may_have_another_token(market.identity, wallet, market.time_ms):
        return ""
    return f"this wallet has {TOKENS_MAX} read tokens; revoke one first"


BOUNDS: dict[type[Event], Callable[[Market, str, Any], str]] = {
    SessionKeyAuthorised: _key,
    NodeOffered: _node,
    OrganisationCreated: _organisation,
    MemberAdded: _member,
    ReadTokenIssued: _token,
}
