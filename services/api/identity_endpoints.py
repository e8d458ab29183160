"""Organisations and read tokens, for those whom they concern: members see their organisation, a wallet its own tokens, never their text."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from events.reasons import Refusal
from projections.identity import Organisation, ReadToken
from services.api.asking import Asked, Endpoint, Reply
from services.api.problems import ProblemFound

TOKEN_ID_CHARACTERS = 12


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A member of an organisation."""

    wallet: str
    role: str
    alias: str | None


class OrgView(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation."""

    id: str
    name: str
    created_ms: int
    members: list[MemberView]


class OrgPage(msgspec.Struct, frozen=True, kw_only=True):
    """Organisations, by name."""

    items: list[OrgView]
    next_cursor: str | None = None


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A read token, known by the beginning of its hash."""

    id: str
    name: str
    wallet: str
    org: str | None
    issued_ms: int
    expires_ms: int
    state: str
    """`valid`, `expired` or `revoked`."""
    sha256: str


class TokenPage(msgspec.Struct, frozen=True, kw_only=True):
    """Read tokens, the newest first."""

    items: list[TokenView]
    next_cursor: str | None = None


def org_view(org_id: str, org: Organisation) -> OrgView:
    """The JSON of an organisation."""
    members = [
        MemberView(wallet=wallet, role=role.value, alias=org.aliases.get(wallet))
        for wallet, role in sorted(org.members.items(), key=lambda item: (item[1], item[0]))
    ]
    return OrgView(id=org_id, name=org.name, created_ms=org.created_ms, members=members)


def token_view(digest: str, token: ReadToken, now_ms: int) -> TokenView:
    """The JSON of a token."""
    state = "revoked" if token.revoked else "expired" if token.expires_ms <= now_ms else "valid"
    return TokenView(
        id=digest[:TOKEN_ID_CHARACTERS],
        name=token.name,
        wallet=token.wallet,
        org=token.org_id,
        issued_ms=token.issued_ms,
        expires_ms=token.expires_ms,
        state=state,
        sha256=digest,
    )


async def orgs(asked: Asked) -> Reply:
    """The organisations that the reader belongs to; on the market's own machine, all."""
    found = ((org_id, org) for org_id, org in asked.mirror.market.identity.orgs.items() if _may_see(asked, org_id))
    items = sorted((org_view(org_id, org) for org_id, org in found), key=lambda view: (view.name, view.id))
    return Reply(asked.as_of_seq, OrgPage(items=items))


def _may_see(asked: Asked, org_id: str) -> bool:
    return asked.viewer.sees_all or org_id in asked.viewer.orgs


async def org(asked: Asked) -> Reply:
    """One organisation."""
    found = asked.mirror.market.identity.orgs.get(asked.name)
    if found is None or not _may_see(asked, asked.name):
        raise ProblemFound(Refusal.NOT_A_MEMBER)
    return Reply(asked.as_of_seq, org_view(asked.name, found))


async def tokens(asked: Asked) -> Reply:
    """The reader's own read tokens; on the market's own machine, all."""
    viewer = asked.viewer
    own = ((digest, token) for digest, token in _tokens(asked) if viewer.sees_all or token.wallet == viewer.wallet)
    items = sorted((token_view(digest, token, asked.now_ms) for digest, token in own), key=lambda view: (-view.issued_ms, view.id))
    return Reply(asked.as_of_seq, TokenPage(items=items))


def _tokens(asked: Asked) -> Iterable[tuple[str, ReadToken]]:
    return asked.mirror.market.identity.tokens.items()


IDENTITY_ENDPOINTS = (
    Endpoint("/v1/orgs", orgs, OrgPage, "The reader's organisations.", past=True),
    Endpoint("/v1/orgs/{name}", org, OrgView, "One organisation, for its members.", past=True),
    Endpoint("/v1/tokens", tokens, TokenPage, "The reader's own read tokens, never their text.", past=True),
)
