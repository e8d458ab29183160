"""A market to bytes and back, and its digest. The same events give the same bytes, on every machine and after every restart.

A snapshot is a shortcut, never a truth: it names the ledger it was taken of and the code that took it, and is thrown away on any doubt.
"""

from __future__ import annotations

import hashlib

import msgspec

from events.codec import HOSTILE_DECODE_ERRORS
from projections.market import Market

FOLD_VERSION = 3
"""Raised whenever any fold changes what it makes of the same events."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Market)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where a fold stands, in which log, by which code: it continues only if all of it is still so."""

    log_created: str
    position: int
    last_seq: int
    page_hash: bytes
    fold_version: int
    digest: bytes


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A checkpoint and the bytes of the market at that point."""

    checkpoint: Checkpoint
    state: bytes


class SnapshotRefused(Exception):
    """The snapshot cannot be used: replay the ledger instead. The text says why."""


def encode(market: Market) -> bytes:
    """The bytes of the market."""
    return _encoder.encode(market)


def decode(data: bytes) -> Market:
    """The market in these bytes. Raises SnapshotRefused."""
    try:
        return _decoder.decode(data)
    except HOSTILE_DECODE_ERRORS as error:
        raise SnapshotRefused(f"not a market: {error}") from None


def digest(market: Market) -> bytes:
    """What two folds of the same ledger agree on, byte for byte."""
    return hashlib.sha256(encode(market)).digest()


def take(market: Market, log_created: str) -> bytes:
    """A snapshot of the market after its last page."""
    state = encode(market)
    checkpoint = Checkpoint(
        log_created=log_created,
        position=market.pages,
        last_seq=market.last_seq,
        page_hash=market.page_hash,
        fold_version=FOLD_VERSION,
        digest=hashlib.sha256(state).digest(),
    )
    return msgspec.msgpack.encode(Snapshot(checkpoint, state))


def restore(data: bytes, log_created: str) -> Market:
    """The market of a snapshot of this very log, taken by this very fold. Raises SnapshotRefused. Whether the ledger still has the
    page at `pages` with `page_hash` is for the caller to read back."""
    try:
        snapshot = msgspec.msgpack.decode(data, type=Snapshot)
    except HOSTILE_DECODE_ERRORS as error:
        raise SnapshotRefused(f"not a snapshot: {error}") from None
    checkpoint = snapshot.checkpoint
    if checkpoint.fold_version != FOLD_VERSION:
        raise SnapshotRefused("taken by another version of the fold")
    if checkpoint.log_created != log_created:
        raise SnapshotRefused("taken of another log")
    if hashlib.sha256(snapshot.state).digest() != checkpoint.digest:
        raise SnapshotRefused("its digest does not fit its bytes")
    market = decode(snapshot.state)
    if (market.pages, market.last_seq, market.page_hash) != (checkpoint.position, checkpoint.last_seq, checkpoint.page_hash):
        raise SnapshotRefused("its checkpoint does not fit its market")
    return market
