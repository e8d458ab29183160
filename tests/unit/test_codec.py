"""Hostile bytes end in one place, and a batch is the events that were signed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from builders import BUYER, job_submitted, make
from nacl.signing import SigningKey

from events import codec, envelope
from events.codec import UPCASTS, Malformed, decode_event, decode_written, encode_batch, encode_event, split_batch
from events.jobs import JobCancelRequested, JobSubmitted

MARKET = bytes(range(32))
SUBJECT = f"intake.{BUYER}"


def submitted_with(**changes: Any) -> bytes:
    value = {**msgspec.to_builtins(job_submitted()), **changes}
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"not msgpack",
        b"\x91" * 100_000,
        b"\x81\xa4type\xa3\xff\xfe\xfd",
        msgspec.msgpack.encode({"type": "NoSuchEvent"}),
        msgspec.msgpack.encode([1, 2, 3]),
        submitted_with(timeout_s=0),
        submitted_with(timeout_s=1.0),
        submitted_with(timeout_s=10**30 % 2**63),
        submitted_with(job_id="j.*.>"),
        submitted_with(job_id="j" + "a" * 19 + "\n"),
        submitted_with(name="two\nlines"),
        submitted_with(name="\u202egnp.exe"),
        submitted_with(name=""),
        submitted_with(requirements={"num_gpus": -1}),
        submitted_with(requirements={"num_gpus": 9}),
        submitted_with(requirements={"num_gpus": "two"}),
        submitted_with(requirements={"vram_mib": -1}),
        submitted_with(requirements={"vram_mib": float("inf")}),
        submitted_with(max_price_uusd_per_gpu_hour=float("nan")),
        submitted_with(max_price_uusd_per_gpu_hour=-1),
        submitted_with(max_price_uusd_per_gpu_hour=2**64 - 1),
        submitted_with(labels={"Bad Key": "x"}),
        submitted_with(program={"argv": ["x"] * 300}),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_bad_bytes_are_malformed_and_nothing_else(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode_event(body)


def test_a_field_of_tomorrow_is_ignored() -> None:
    assert job_submitted() == decode_event(submitted_with(colour="blue"))


def test_a_batch_splits_into_the_very_bytes_that_were_signed() -> None:
    bodies = [encode_event(job_submitted("a")), encode_event(make(JobCancelRequested)), encode_event(job_submitted("b"))]
    assert bodies == split_batch(encode_batch(bodies))
    assert bodies[:1] == split_batch(encode_batch(bodies[:1]))


@pytest.mark.parametrize("body", [b"\x90", b"\x91\xc0", b"\xdd\xff\xff\xff\xff", b"\xdc\x00\x41" + b"\xc0" * 65])
def test_a_batch_of_a_wrong_size_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        split_batch(body)


def test_a_signature_holds_for_these_bytes_this_subject_and_this_market_only() -> None:
    key = SigningKey(bytes(32))
    data = envelope.seal(key, market_id=MARKET, subject=SUBJECT, seq=7, ts_ms=5, body=b"\x80")
    opened = envelope.open_envelope(data)
    assert envelope.signature_is_good(opened, key.verify_key, MARKET, SUBJECT)
    assert not envelope.signature_is_good(opened, key.verify_key, bytes(32), SUBJECT)
    assert not envelope.signature_is_good(opened, key.verify_key, MARKET, "intake.0x" + "0" * 40)
    assert not envelope.signature_is_good(opened, SigningKey(bytes([1] * 32)).verify_key, MARKET, SUBJECT)


@pytest.mark.parametrize("bit", range(0, 8 * 130, 7))
def test_no_flipped_bit_of_an_envelope_passes(bit: int) -> None:
    key = SigningKey(bytes(32))
    data = bytearray(envelope.seal(key, market_id=MARKET, subject=SUBJECT, seq=7, ts_ms=5, body=b"\x81\xa1a\x01"))
    if bit // 8 >= len(data):
        bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    try:
        opened = envelope.open_envelope(bytes(data))
    except Malformed:
        return
    good = envelope.signature_is_good(opened, key.verify_key, MARKET, SUBJECT)
    assert not good or opened.key != bytes(key.verify_key), "another key is looked up by its own name"


def test_an_old_type_is_lifted_to_todays_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(UPCASTS, "JobAsked", lambda shape: {**shape, "type": "JobSubmitted", "timeout_s": shape["seconds"]})
    value = {**msgspec.to_builtins(job_submitted()), "type": "JobAsked", "seconds": 60}
    del value["timeout_s"]
    event = decode_written(msgspec.msgpack.encode(value))
    assert isinstance(event, JobSubmitted)
    assert event.timeout_s == 60
    with pytest.raises(Malformed):
        decode_event(msgspec.msgpack.encode(value))


def test_every_class_is_in_the_union_once() -> None:
    assert len(codec.EVENT_CLASSES) == len(set(codec.EVENT_CLASSES))
