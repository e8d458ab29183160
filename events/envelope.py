"""A signed message on its way in: `[version, key, seq, ts_ms, body, signature]`, the signature over the exact bytes carried.

The verifier never re-encodes: msgpack is not canonical. `body` is one event, or an array of up to 64 that count as numbers
`seq`, `seq + 1`, ... (ADR 0008). The subject is signed, so that nobody can move a message to another wallet.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from events.codec import HOSTILE_DECODE_ERRORS, Malformed

ENVELOPE_VERSION = 1
ENVELOPE_BYTES_MAX = 17 * 1024
DECISION_KEY = bytes(32)
"""Stands for the key in the hash of an event that the matcher itself wrote; its number is its ledger sequence."""

_DOMAIN = b"gpu-bazaar/1\0"


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """One signed message."""

    version: Annotated[int, Meta(ge=1, le=255)]
    key: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """The ed25519 public key of the session."""
    seq: Annotated[int, Meta(ge=1, le=1 << 62)]
    """The number of the first event in `body`; contiguous per key, from 1."""
    ts_ms: Annotated[int, Meta(ge=0, le=10**14)]
    """The sender's clock; advisory."""
    body: Annotated[bytes, Meta(min_length=1, max_length=ENVELOPE_BYTES_MAX)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)


def signed_bytes(market_id: bytes, subject: str, seq: int, ts_ms: int, body: bytes) -> bytes:
    """What is signed. `market_id` has 32 bytes."""
    name = subject.encode()
    return b"".join((_DOMAIN, market_id, len(name).to_bytes(2, "big"), name, seq.to_bytes(8, "big"), ts_ms.to_bytes(8, "big"), body))


def seal(signing_key: SigningKey, *, market_id: bytes, subject: str, seq: int, ts_ms: int, body: bytes) -> bytes:
    """The wire bytes of a signed message."""
    signature = signing_key.sign(signed_bytes(market_id, subject, seq, ts_ms, body)).signature
    return _encoder.encode(Envelope(ENVELOPE_VERSION, bytes(signing_key.verify_key), seq, ts_ms, body, signature))


def open_envelope(data: bytes) -> Envelope:
    """The envelope in `data`, its signature not yet checked. Raises Malformed."""
    try:
        envelope = _decoder.decode(data)
    except HOSTILE_DECODE_ERRORS as error:
        raise Malformed(str(error)[:200]) from None
    if envelope.version != ENVELOPE_VERSION:
        raise Malformed(f"version {envelope.version} of the envelope is not known")
    return envelope


def signature_is_good(envelope: Envelope, verify_key: VerifyKey, market_id: bytes, subject: str) -> bool:
    """Whether the key that the envelope names signed these very bytes for this market and subject."""
    message = signed_bytes(market_id, subject, envelope.seq, envelope.ts_ms, envelope.body)
    try:
        verify_key.verify(message, envelope.signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def event_hash(key: bytes, number: int, body: bytes) -> bytes:
    """What identifies an event for ever: who said it, as which number, in which bytes."""
    return hashlib.sha256(b"".join((key, number.to_bytes(8, "big"), body))).digest()
