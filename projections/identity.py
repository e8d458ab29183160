"""Who is who: session keys with their numbers, organisations, read tokens. Nothing outside this file changes them.

The last 256 outcomes of a key are kept, so that a message sent twice is answered twice alike; that bounds a client's window. What a wallet
may have of each is bounded where its events are admitted (`services/matcher/admission.py`); what is long over is forgotten here, by the
time of the ledger, once a wallet has that many.
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
ORGS_MAX = 32
"""Organisations that one wallet may found. None ever ends."""
MEMBERS_MAX = 1_000
"""Members of one organisation."""
NODES_MAX = 10_000
"""Nodes that one wallet may offer, under names of its own; a withdrawn one is remembered."""
TOKENS_MAX = 100
"""Read tokens of one wallet that are good; as many are remembered."""
KEYS_MAX = 1_000
"""Session keys of one wallet that are remembered."""
KEY_KEPT_MS = 30 * 86_400_000
"""A key is remembered for so long after it expired: the end of a run that it claimed is still taken from it."""

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


class Holdings(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is remembered of one wallet, oldest first."""

    keys: list[bytes] = []
    tokens: list[str] = []
    orgs: int = 0
    """Organisations that it has founded."""
    nodes: int = 0
    """Nodes that it has ever offered, by name."""


class Identity(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everybody the market knows."""

    keys: dict[bytes, SessionKey] = {}
    orgs: dict[str, Organisation] = {}
    tokens: dict[str, ReadToken] = {}
    held: dict[str, Holdings] = {}
    """Wallet -> what is remembered of it."""


def holdings_of(identity: Identity, wallet: str) -> Holdings:
    """What is remembered of a wallet; nothing, when it is not known."""
    return identity.held.get(wallet) or Holdings()


def _held(identity: Identity, wallet: str) -> Holdings:
    return identity.held.setdefault(wallet, Holdings())


def may_have_another_key(identity: Identity, wallet: str, now_ms: int) -> bool:
    """Whether one more session key of the wallet is remembered, be it in the place of one that is past."""
    keys = holdings_of(identity, wallet).keys
    return len(keys) < KEYS_MAX or any(_is_past(identity.keys[key], now_ms) for key in keys)


def may_have_another_token(identity: Identity, wallet: str, now_ms: int) -> bool:
    """The same for a read token."""
    tokens = holdings_of(identity, wallet).tokens
    return len(tokens) < TOKENS_MAX or not all(_is_good(identity.tokens[token], now_ms) for token in tokens)


def _is_past(key: SessionKey, now_ms: int) -> bool:
    """A revoked key stays until it expires: who has its delegation could bring it again."""
    return key.expires_ms + KEY_KEPT_MS <= now_ms


def _is_good(token: ReadToken, now_ms: int) -> bool:
    return not token.revoked and token.expires_ms > now_ms


def authorise(identity: Identity, event: SessionKeyAuthorised, wallet: str, now_ms: int) -> Refusal | None:
    """A new key. A known one is never authorised again."""
    key = bytes.fromhex(event.key)
    if key in identity.keys:
        return Refusal.ILLEGAL_IN_STATE
    held = _held(identity, wallet)
    if len(held.keys) >= KEYS_MAX:
        for past in [old for old in held.keys if _is_past(identity.keys[old], now_ms)]:
            del identity.keys[past]
        held.keys = [old for old in held.keys if old in identity.keys]
    held.keys.append(key)
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
    _held(identity, sender).orgs += 1
    identity.orgs[event.org_id] = Organisation(name=event.name, created_ms=now_ms, members={sender: OrgRole.OWNER})
    return None


def count_node(identity: Identity, wallet: str) -> None:
    """The wallet offers a node that was not there before."""
    _held(identity, wallet).nodes += 1


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
    held = _held(identity, sender)
    if len(held.tokens) >= TOKENS_MAX:
        for over in [old for old in held.tokens if not _is_good(identity.tokens[old], now_ms)]:
            del identity.tokens[over]
        held.tokens = [old for old in held.tokens if old in identity.tokens]
    held.tokens.append(event.token_sha256)
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
