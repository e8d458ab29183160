"""Facts about who is who: session keys, organisations, read tokens."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from events.fact import Event
from events.values import KeyHex, Name, OrgId, OrgRole, Role, Sha256, TimeMs, Wallet


class SessionKeyAuthorised(Event, frozen=True, kw_only=True):
    """A wallet let an ed25519 key speak for it. The first event of every key, signed by the key itself."""

    key: KeyHex
    role: Role
    expires_ms: TimeMs
    text: Annotated[str, Meta(max_length=2000)]
    """The delegation as the wallet signed it (EIP-4361 field order): anyone can check it again."""
    wallet_signature: Annotated[bytes, Meta(min_length=65, max_length=65)]


class SessionKeyRevoked(Event, frozen=True, kw_only=True):
    """The wallet, or the key itself, ended a key before its time."""

    key: KeyHex


class OrganisationCreated(Event, frozen=True, kw_only=True):
    """A wallet founded an organisation and owns it."""

    org_id: OrgId
    name: Name


class MemberAdded(Event, frozen=True, kw_only=True):
    """An owner took a wallet into the organisation."""

    org_id: OrgId
    wallet: Wallet
    role: OrgRole
    alias: Name | None = None


class MemberRoleChanged(Event, frozen=True, kw_only=True):
    """An owner changed what a member may do."""

    org_id: OrgId
    wallet: Wallet
    role: OrgRole


class MemberRemoved(Event, frozen=True, kw_only=True):
    """An owner removed a member, or a member left."""

    org_id: OrgId
    wallet: Wallet


class ReadTokenIssued(Event, frozen=True, kw_only=True):
    """A token for reading the HTTP API exists; only its hash is known."""

    token_sha256: Sha256
    name: Name
    expires_ms: TimeMs
    org_id: OrgId | None = None


class ReadTokenRevoked(Event, frozen=True, kw_only=True):
    """A read token is void."""

    token_sha256: Sha256
