"""Secrets in sealed boxes: for one key, one job and one buyer, and whatever else arrives is refused without being repeated."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import SealedBox
from nacl.signing import SigningKey

from events.codec import Malformed
from events.sealing import BOX_BYTES_MAX, SECRET_BYTES_MAX, SECRETS_MAX, Secrets, reseal, seal, unseal

MARKET, NODE, THIEF = SigningKey(b"m" * 32), SigningKey(b"n" * 32), SigningKey(b"t" * 32)
JOB, BUYER = "j" + "a" * 19, "0x" + "b" * 40
VALUES = {"HF_TOKEN": b"hunter2", "ssh.key": bytes(range(256))}


def a_box(key: SigningKey = MARKET, **changes: object) -> bytes:
    return seal(msgspec.structs.replace(Secrets(job_id=JOB, buyer=BUYER, values=VALUES), **changes), bytes(key.verify_key))


def raw_box(content: object) -> bytes:
    """A box with anything in it, as a forger makes it."""
    return bytes(SealedBox(MARKET.verify_key.to_curve25519_public_key()).encrypt(msgspec.msgpack.encode(content)))


def test_what_was_sealed_to_the_market_reaches_the_node_and_nobody_else() -> None:
    box = a_box()
    for_node = reseal(box, MARKET, VALUES, job_id=JOB, buyer=BUYER, to=bytes(NODE.verify_key))
    assert VALUES == unseal(for_node, NODE, job_id=JOB, buyer=BUYER).values
    for sealed, key in ((box, NODE), (box, THIEF), (for_node, MARKET), (for_node, THIEF)):
        with pytest.raises(Malformed, match="not sealed to this key"):
            unseal(sealed, key, job_id=JOB, buyer=BUYER)


def test_one_secret_at_a_time_can_be_passed_on() -> None:
    for_node = reseal(a_box(), MARKET, ["HF_TOKEN"], job_id=JOB, buyer=BUYER, to=bytes(NODE.verify_key))
    assert {"HF_TOKEN": b"hunter2"} == unseal(for_node, NODE, job_id=JOB, buyer=BUYER).values
    with pytest.raises(Malformed, match="not in its box"):
        reseal(a_box(), MARKET, ["OTHER"], job_id=JOB, buyer=BUYER, to=bytes(NODE.verify_key))


@pytest.mark.parametrize(("job", "buyer"), [("j" + "z" * 19, BUYER), (JOB, "0x" + "c" * 40)])
def test_a_box_replayed_in_another_job_or_by_another_buyer_is_refused(job: str, buyer: str) -> None:
    with pytest.raises(Malformed, match="another job"):
        reseal(a_box(), MARKET, VALUES, job_id=job, buyer=buyer, to=bytes(NODE.verify_key))


@pytest.mark.parametrize(
    "values",
    [
        {f"K{number}": b"" for number in range(SECRETS_MAX + 1)},
        {"K": b"x" * (SECRET_BYTES_MAX + 1)},
        {"../K": b"x"},
        {"": b"x"},
        {"K\n": b"x"},
        {"K": "text" * 3, 4: b"x"},
    ],
    ids=["too many", "too large", "a path", "no name", "a line break", "no bytes"],
)
def test_what_is_out_of_bounds_is_neither_sealed_nor_opened(values: dict[str, bytes]) -> None:
    with pytest.raises(Malformed, match="out of bounds"):
        a_box(values=values)
    with pytest.raises(Malformed, match="out of bounds"):
        unseal(raw_box({"job_id": JOB, "buyer": BUYER, "values": values}), MARKET, job_id=JOB, buyer=BUYER)


def test_the_largest_box_that_is_allowed_fits() -> None:
    box = a_box(values={f"{'K' * 62}{number:02}": b"x" * SECRET_BYTES_MAX for number in range(SECRETS_MAX)})
    assert len(box) <= BOX_BYTES_MAX
    assert SECRETS_MAX == len(unseal(box, MARKET, job_id=JOB, buyer=BUYER).values)
    with pytest.raises(Malformed, match="too large"):
        unseal(b"x" * (BOX_BYTES_MAX + 1), MARKET, job_id=JOB, buyer=BUYER)


@given(st.binary(max_size=300))
def test_hostile_bytes_end_in_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        unseal(data, MARKET, job_id=JOB, buyer=BUYER)


@given(
    st.recursive(
        st.none() | st.binary() | st.text() | st.integers(-(2**63), 2**63 - 1),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_hostile_content_ends_in_malformed(content: object) -> None:
    with pytest.raises(Malformed):
        unseal(raw_box(content), MARKET, job_id=JOB, buyer=BUYER)


@pytest.mark.parametrize("key", [b"", bytes(32), b"\xff" * 32, bytes(31), b"\x01" + bytes(31)])
def test_what_is_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(Malformed, match="no key"):
        seal(Secrets(job_id=JOB, buyer=BUYER, values=VALUES), key)


def test_one_changed_bit_spoils_a_box() -> None:
    box = bytearray(a_box())
    for place in (0, 31, 40, len(box) - 1):
        box[place] ^= 1
        with pytest.raises(Malformed):
            unseal(bytes(box), MARKET, job_id=JOB, buyer=BUYER)
        box[place] ^= 1


def test_neither_the_content_nor_a_refusal_shows_a_value() -> None:
    assert "hunter2" not in repr(Secrets(job_id=JOB, buyer=BUYER, values=VALUES))
    with pytest.raises(Malformed) as caught:
        unseal(raw_box({"job_id": JOB, "buyer": BUYER, "values": {"K": "hunter2"}}), MARKET, job_id="j" + "z" * 19, buyer=BUYER)
    assert "hunter2" not in str(caught.value)
