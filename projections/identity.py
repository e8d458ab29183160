"""Who is who: session keys with their numbers, organisations, read tokens. Nothing outside this file changes them.

The last 256 outcomes of a key are kept, so that a message sent twice is answered twice alike; that bounds a client's window.
"""

from __future__ import annotations

import msgspec

from events.identity import (
    MemberAdded,
    MemberRemoved,
    MemberRoleChanged,
    OrganisationCreated,
    ReadTokenIssued,
    SessionKeyAuthorised,
)
from events.reasons import Refusal
from events.values import OrgRole, Role

OUTCOMES_KEPT = 256

KeptOutcome = tuple[bytes, int, Refusal | None]
"""(event hash, ledger sequence or 0, refusal or None)."""


class SessionKey(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A key that speaks for a wallet for a while."""

    wallet: str
    role: Role
    authorised_ms: int
    expires_ms: int
    revoked: bool = False
    last_number: int = 0
    outcomes: dict[int, KeptOutcome] = {}


class Organisation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A set of wallets with roles."""

    name: str
    created_ms: int
    members: dict[str, OrgRole] = {}
    aliases: dict[str, str] = {}


class ReadToken(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A token for the HTTP API, known by its hash."""

    wallet: str
    name: str
    issued_ms: int
    expires_ms: int
    org_id: str | None = None
    revoked: bool = False


class Identity(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everybody the market knows."""

    keys: dict[bytes, SessionKey] = {}
    orgs: dict[str, Organisation] = {}
    tokens: dict[str, ReadToken] = {}


def authorise(identity: Identity, event: SessionKeyAuthorised, wallet: str, now_ms: int) -> Refusal | None:
    """A new key. A known one is never authorised again."""
    key = bytes.fromhex(event.key)
    if key in identity.keys:
        return Refusal.ILLEGAL_IN_STATE
    identity.keys[key] = SessionKey(wallet=wallet, role=event.role, authorised_ms=now_ms, expires_ms=event.expires_ms)
    return None


def note(identity: Identity, key: bytes, number: int, outcome: KeptOutcome) -> None:
    """Remember how this number of this key ended."""
    session = identity.keys.get(key)
    if session is None:
        return
    outcomes = session.outcomes
    outcomes[number] = outcome
    session.last_number = number
    if number > OUTCOMES_KEPT:
        outcomes.pop(number - OUTCOMES_KEPT, None)


def revoke(identity: Identity, key: bytes, sender: str) -> Refusal | None:
    """End a key; its own wallet may."""
    session = identity.keys.get(key)
    if session is None:
        return Refusal.UNKNOWN_KEY
    if session.wallet != sender:
        return Refusal.NOT_YOURS
    session.revoked = True
    return None


def found(identity: Identity, event: OrganisationCreated, sender: str, now_ms: int) -> Refusal | None:
    """A new organisation, owned by who founded it."""
    if event.org_id in identity.orgs:
        return Refusal.ILLEGAL_IN_STATE
    identity.orgs[event.org_id] = Organisation(name=event.name, created_ms=now_ms, members={sender: OrgRole.OWNER})
    return None


def change_member(identity: Identity, event: MemberAdded | MemberRoleChanged | MemberRemoved, sender: str) -> Refusal | None:
    """Add, change or remove a member. Owners may; a member may remove itself; the last owner stays."""
    org = identity.orgs.get(event.org_id)
    if org is None:
        return Refusal.NOT_A_MEMBER
    leaving = isinstance(event, MemberRemoved) and event.wallet == sender
    if org.members.get(sender) is not OrgRole.OWNER and not (leaving and sender in org.members):
        return Refusal.NOT_A_MEMBER
    owners = [wallet for wallet, role in org.members.items() if role is OrgRole.OWNER]
    demoted = isinstance(event, MemberRemoved) or event.role is not OrgRole.OWNER
    if owners == [event.wallet] and demoted:
        return Refusal.ILLEGAL_IN_STATE
    if isinstance(event, MemberRemoved):
        if org.members.pop(event.wallet, None) is None:
            return Refusal.ILLEGAL_IN_STATE
        org.aliases.pop(event.wallet, None)
        return None
    if isinstance(event, MemberRoleChanged) and event.wallet not in org.members:
        return Refusal.ILLEGAL_IN_STATE
    org.members[event.wallet] = event.role
    if isinstance(event, MemberAdded) and event.alias is not None:
        org.aliases[event.wallet] = event.alias
    return None


def issue_token(identity: Identity, event: ReadTokenIssued, sender: str, now_ms: int) -> Refusal | None:
    """A read token for a wallet's, or its organisation's, jobs."""
    if event.token_sha256 in identity.tokens:
        return Refusal.ILLEGAL_IN_STATE
    if event.org_id is not None and sender not in identity.orgs.get(event.org_id, Organisation(name="", created_ms=0)).members:
        return Refusal.NOT_A_MEMBER
    identity.tokens[event.token_sha256] = ReadToken(
        wallet=sender, name=event.name, issued_ms=now_ms, expires_ms=event.expires_ms, org_id=event.org_id
    )
    return None


def revoke_token(identity: Identity, token_sha256: str, sender: str) -> Refusal | None:
    """A read token is void from now on."""
    token = identity.tokens.get(token_sha256)
    if token is None:
        return Refusal.ILLEGAL_IN_STATE
    if token.wallet != sender:
        return Refusal.NOT_YOURS
    token.revoked = True
    return None
