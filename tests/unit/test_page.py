"""A page continues the one before, holds the events that were signed, or is refused."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from builders import BUYER, job_submitted, make
from nacl.signing import SigningKey

from events.codec import encode_batch, encode_event
from events.envelope import DECISION_KEY, event_hash, seal
from events.jobs import JobExpired
from events.page import GENESIS_HASH, BrokenPage, Page, check_page, decode_page, encode_page, make_page, page_hash, records_of

MARKET = bytes(range(32))
MARKET_KEY = SigningKey(bytes([9] * 32))
BUYER_KEY = SigningKey(bytes([1] * 32))


def a_page(prev_hash: bytes = GENESIS_HASH) -> Page:
    """Two events of one message, then a decision."""
    bodies = [encode_event(job_submitted("a")), encode_event(job_submitted("b"))]
    data = seal(BUYER_KEY, market_id=MARKET, subject=f"intake.{BUYER}", seq=4, ts_ms=1, body=encode_batch(bodies))
    decision = encode_event(make(JobExpired))
    key = bytes(BUYER_KEY.verify_key)
    return make_page(
        market_id=MARKET,
        first_seq=10,
        prev_hash=prev_hash,
        time_ms=1000,
        envelopes=((BUYER, data),),
        entries=((0, 0), (0, 1), decision),
        hashes=[event_hash(key, 4, bodies[0]), event_hash(key, 5, bodies[1]), event_hash(DECISION_KEY, 12, decision)],
        signing_key=MARKET_KEY,
    )


def check(page: Page, prev_hash: bytes = GENESIS_HASH) -> bytes:
    return check_page(page, market_id=MARKET, first_seq=10, prev_hash=prev_hash, verify_key=MARKET_KEY.verify_key)


def test_a_page_comes_back_from_its_bytes_with_its_events_in_place() -> None:
    page = decode_page(encode_page(a_page()))
    records = records_of(page)
    assert [(10, BUYER, 4), (11, BUYER, 5), (12, "", 0)] == [(record.seq, record.sender, record.number) for record in records]
    assert [job_submitted("a"), job_submitted("b"), make(JobExpired)] == [record.event for record in records]
    assert page_hash(a_page()) == check(page)


@pytest.mark.parametrize(
    "change",
    [
        lambda page: msgspec.structs.replace(page, first_seq=11),
        lambda page: msgspec.structs.replace(page, market_id=bytes(32)),
        lambda page: msgspec.structs.replace(page, time_ms=1001),
        lambda page: msgspec.structs.replace(page, prev_hash=bytes([1] * 32)),
        lambda page: msgspec.structs.replace(page, signature=bytes(64)),
        lambda page: msgspec.structs.replace(page, root=bytes(32)),
    ],
)
def test_a_changed_head_is_noticed(change: Callable[[Page], Page]) -> None:
    with pytest.raises(BrokenPage):
        check(change(a_page()))


@pytest.mark.parametrize(
    "change",
    [
        lambda page: msgspec.structs.replace(page, entries=page.entries[:2]),
        lambda page: msgspec.structs.replace(page, entries=(page.entries[1], page.entries[0], page.entries[2])),
        lambda page: msgspec.structs.replace(page, entries=(*page.entries[:2], encode_event(make(JobExpired, job_id="j" + "b" * 19)))),
        lambda page: msgspec.structs.replace(page, entries=((0, 2), *page.entries[1:])),
        lambda page: msgspec.structs.replace(page, entries=((1, 0), *page.entries[1:])),
        lambda page: msgspec.structs.replace(page, envelopes=((BUYER, b"\x00"),)),
    ],
)
def test_changed_events_are_noticed(change: Callable[[Page], Page]) -> None:
    with pytest.raises(BrokenPage):
        records_of(change(a_page()))


def test_pages_of_another_order_do_not_chain() -> None:
    first = a_page()
    with pytest.raises(BrokenPage):
        check(a_page(prev_hash=page_hash(first)))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x93\x01\x02\x03", b"\x91" * 100_000])
def test_bytes_that_are_no_page_are_refused(data: bytes) -> None:
    with pytest.raises(BrokenPage):
        decode_page(data)
