"""How ids are made: from random bytes that the caller brings, or from what they name."""

from __future__ import annotations

import hashlib
from base64 import b32encode


def _base32(data: bytes, length: int) -> str:
    return b32encode(data).decode().lower()[:length]


def job_id(random: bytes) -> str:
    """A job id from 12 random bytes."""
    assert len(random) >= 12
    return "j" + _base32(random, 19)


def group_id(random: bytes) -> str:
    """A group id from 12 random bytes."""
    assert len(random) >= 12
    return "g" + _base32(random, 19)


def node_id(wallet: str, name: str) -> str:
    """The id of the node that `wallet` calls `name`; the same for life."""
    return "n" + _base32(hashlib.sha256(f"node\0{wallet}\0{name}".encode()).digest(), 15)


def org_id(wallet: str, name: str) -> str:
    """The id of the organisation that `wallet` founded as `name`."""
    return "o" + _base32(hashlib.sha256(f"org\0{wallet}\0{name}".encode()).digest(), 15)


def market_id(root: str, name: str, random: bytes) -> str:
    """The id of a new market; every signature is bound to it."""
    return hashlib.sha256(b"gpu-bazaar market\0" + root.encode() + b"\0" + name.encode() + b"\0" + random).hexdigest()
