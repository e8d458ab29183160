"""The birth of a market: its id, its root, the hot key that the root lets sign pages, and its first rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from events import delegation, ids
from events.market import MarketCreated, Policy
from events.values import Role

HOT_KEY_VALIDITY_MS = 365 * 86_400_000


def create(
    *,
    root: str,
    sign: Callable[[str], bytes],
    name: str,
    matcher_key: bytes,
    policy: Policy,
    random: bytes,
    now_ms: int,
) -> MarketCreated:
    """The first event of a new ledger. `sign` is the root wallet's signature of a text (EIP-191); `random` has 16 bytes."""
    market_id = ids.market_id(root, name, random)
    text = delegation.delegation_text(
        delegation.Delegation(
            wallet=root,
            nkey=delegation.nkey_of(matcher_key),
            market_id=market_id,
            role=Role.OPERATOR,
            issued_ms=now_ms,
            expires_ms=now_ms + HOT_KEY_VALIDITY_MS,
            nonce=random.hex(),
        )
    )
    return MarketCreated(
        market_id=market_id,
        name=name,
        root=root,
        matcher_key=matcher_key.hex(),
        delegation=text,
        root_signature=sign(text),
        operators=(root,),
        policy=policy,
    )


def save(event: MarketCreated, file: Path) -> None:
    """Keep the genesis until the matcher has written it."""
    file.write_bytes(msgspec.msgpack.encode(event))


def load(file: Path) -> MarketCreated:
    """The genesis that was kept."""
    return msgspec.msgpack.decode(file.read_bytes(), type=MarketCreated)
