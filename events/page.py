"""A page of the ledger: everything that happened in one turn, chained to the page before and signed once by the market.

`page_hash` covers the header and the root of the event hashes, so one event can be proven by showing the other hashes only.
Building and checking pages is pure; who appends them is `services/matcher/service.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from events.codec import HOSTILE_DECODE_ERRORS, Malformed, decode_written, split_batch
from events.envelope import DECISION_KEY, event_hash, open_envelope
from events.fact import Event

PAGE_VERSION = 1
PAGE_EVENTS_MAX = 2048
PAGE_BYTES_MAX = 1 << 20
"""Where a page is closed; a page may be larger by one turn's last event."""
GENESIS_HASH = bytes(32)

Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Origin = tuple[int, int]
"""(number of the envelope in the page, index of the event in it)."""


class Page(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One turn. An entry is the body of the market's own decision, or says where in `envelopes` the admitted event stands."""

    version: int
    market_id: Hash
    first_seq: Annotated[int, Meta(ge=1)]
    prev_hash: Hash
    time_ms: Annotated[int, Meta(ge=0)]
    envelopes: tuple[tuple[str, bytes], ...]
    """(wallet, the signed message as it came in)."""
    entries: tuple[bytes | Origin, ...]
    root: Hash
    signature: bytes


class Record(NamedTuple):
    """One event in its place. `sender`, `key` and `number` are empty for the market's own decisions."""

    seq: int
    time_ms: int
    event: Event
    sender: str
    key: bytes
    number: int
    hash: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Page)


class BrokenPage(Exception):
    """A page does not continue the ledger, or its bytes are not what was signed: the log is not to be trusted from here on."""


def root_of(hashes: list[bytes]) -> bytes:
    """One hash over the events of a page, in order."""
    return hashlib.sha256(b"".join(hashes)).digest()


def page_hash(page: Page) -> bytes:
    """The hash that the next page names, and that the market signs."""
    head = (page.version, page.market_id, page.first_seq, page.prev_hash, page.time_ms, len(page.entries), page.root)
    return hashlib.sha256(b"gpu-bazaar page\0" + _encoder.encode(head)).digest()


def make_page(
    *,
    market_id: bytes,
    first_seq: int,
    prev_hash: bytes,
    time_ms: int,
    envelopes: tuple[tuple[str, bytes], ...],
    entries: tuple[bytes | Origin, ...],
    hashes: list[bytes],
    signing_key: SigningKey,
) -> Page:
    """The signed page of these entries; `hashes` are their event hashes in order."""
    assert len(entries) == len(hashes) > 0
    unsigned = Page(PAGE_VERSION, market_id, first_seq, prev_hash, time_ms, envelopes, entries, root_of(hashes), b"")
    signature = signing_key.sign(page_hash(unsigned)).signature
    return msgspec.structs.replace(unsigned, signature=signature)


def encode_page(page: Page) -> bytes:
    """The bytes that lie in the ledger."""
    return _encoder.encode(page)


def decode_page(data: bytes) -> Page:
    """The page in `data`, nothing checked yet. Raises BrokenPage."""
    try:
        return _decoder.decode(data)
    except HOSTILE_DECODE_ERRORS as error:
        raise BrokenPage(f"not a page: {error}") from None


def records_of(page: Page) -> list[Record]:
    """The events of a page in order. Raises BrokenPage when they are not the ones its root names."""
    try:
        records = list(_records(page))
    except (Malformed, IndexError) as error:
        raise BrokenPage(f"page at {page.first_seq}: {error}") from None
    if root_of([record.hash for record in records]) != page.root:
        raise BrokenPage(f"page at {page.first_seq}: its events are not the ones that were signed")
    return records


def _records(page: Page) -> Iterator[Record]:
    opened: dict[int, tuple[str, bytes, int, list[bytes]]] = {}
    seq = page.first_seq
    for entry in page.entries:
        if isinstance(entry, bytes):
            yield Record(seq, page.time_ms, decode_written(entry), "", b"", 0, event_hash(DECISION_KEY, seq, entry))
        else:
            number, index = entry
            if number not in opened:
                wallet, data = page.envelopes[number]
                envelope = open_envelope(data)
                opened[number] = (wallet, envelope.key, envelope.seq, split_batch(envelope.body))
            wallet, key, first, bodies = opened[number]
            body = bodies[index]
            digest = event_hash(key, first + index, body)
            yield Record(seq, page.time_ms, decode_written(body), wallet, key, first + index, digest)
        seq += 1


def check_page(page: Page, *, market_id: bytes, first_seq: int, prev_hash: bytes, verify_key: VerifyKey | None) -> bytes:
    """The page's hash, once it continues the ledger; its signature is checked when a key is given. Raises BrokenPage."""
    if page.market_id != market_id:
        raise BrokenPage("the page belongs to another market")
    if page.first_seq != first_seq:
        raise BrokenPage(f"the page starts at {page.first_seq}, expected {first_seq}")
    if page.prev_hash != prev_hash:
        raise BrokenPage(f"the page at {page.first_seq} does not follow the page before it")
    digest = page_hash(page)
    if verify_key is not None:
        try:
            verify_key.verify(digest, page.signature)
        except (BadSignatureError, ValueError):
            raise BrokenPage(f"the page at {page.first_seq} is not signed by the market") from None
    return digest
