"""The wallet's word for a session key: the same bytes as other wallets sign, and nothing but them accepted."""

from __future__ import annotations

import os
import sys

import msgspec
import nkeys
import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from events import delegation
from events.delegation import Delegation, DelegationRefused, SignedDelegation
from events.reasons import Refusal
from events.values import Role

sys.setrecursionlimit(1000)  # what eth_account imports lifts it, and deeply nested bytes would crash the process
WALLET_KEY = Account.from_key(b"\x11" * 32)
WALLET = WALLET_KEY.address.lower()
SEED = b"\x22" * 32
KEY = bytes(SigningKey(SEED).verify_key)
MARKET = "ab" * 32
NOW_MS = 1_790_000_000_123
DAY_MS = 86_400_000
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def a_delegation(**changes: object) -> Delegation:
    usual = Delegation(
        wallet=WALLET,
        nkey=delegation.nkey_of(KEY),
        market_id=MARKET,
        role=Role.BUYER,
        issued_ms=NOW_MS,
        expires_ms=NOW_MS + DAY_MS,
        nonce="abcDEF123456",
    )
    return msgspec.structs.replace(usual, **changes)


def signed_elsewhere(text: str) -> SignedDelegation:
    """As another wallet program signs it."""
    return SignedDelegation(text, bytes(WALLET_KEY.sign_message(encode_defunct(text=text)).signature))


def refusal_of(signed: SignedDelegation, **changes: object) -> Refusal:
    asked: dict[str, object] = {"market_id": MARKET, "key_hex": KEY.hex(), "now_ms": NOW_MS + 1, "wallet": WALLET} | changes
    with pytest.raises(DelegationRefused) as caught:
        delegation.check(signed, **asked)  # type: ignore[arg-type]
    return caught.value.refusal


def test_the_text_has_the_field_order_of_eip_4361() -> None:
    assert delegation.delegation_text(a_delegation()) == "\n".join(
        (
            "gpubazaar wants you to sign in with your Ethereum account:",
            to_checksum_address(WALLET),
            "",
            "Let this session key act for you as buyer on this GPU Bazaar market until it expires.",
            "",
            f"URI: urn:nkey:{delegation.nkey_of(KEY)}",
            "Version: 1",
            "Chain ID: 1",
            "Nonce: abcDEF123456",
            "Issued At: 2026-09-21T14:13:20.123Z",
            "Expiration Time: 2026-09-22T14:13:20.123Z",
            "Resources:",
            f"- urn:market:{MARKET}",
            f"- urn:nkey:{delegation.nkey_of(KEY)}",
            "- urn:role:buyer",
        )
    )


@given(
    st.sampled_from(Role),
    st.integers(0, 10**14 - delegation.VALIDITY_MS_MAX),
    st.integers(1, delegation.VALIDITY_MS_MAX),
    st.from_regex(r"\A[A-Za-z0-9]{8,64}\Z"),
    st.from_regex(r"\A[a-z0-9][a-z0-9.:-]{0,99}\Z"),
)
def test_what_is_written_is_read_back(role: Role, issued_ms: int, validity_ms: int, nonce: str, domain: str) -> None:
    written = a_delegation(role=role, issued_ms=issued_ms, expires_ms=issued_ms + validity_ms, nonce=nonce, domain=domain)
    assert written == delegation.parse(delegation.delegation_text(written))


def test_a_delegation_signed_by_another_wallet_program_is_accepted() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation()))
    assert a_delegation() == delegation.check(signed, market_id=MARKET, key_hex=KEY.hex(), now_ms=NOW_MS, wallet=WALLET)


@pytest.mark.parametrize("text", ["", "hello", "größer ☃", "x" * 3000])
def test_the_digest_of_a_text_is_that_of_other_wallet_programs(text: str) -> None:
    signature = bytes(WALLET_KEY.sign_message(encode_defunct(text=text)).signature)
    assert WALLET == delegation.recover(delegation.text_digest(text), signature)


def test_the_recovery_byte_may_start_at_0_or_27_and_nowhere_else() -> None:
    text = delegation.delegation_text(a_delegation())
    signature = signed_elsewhere(text).signature
    accepted = [v for v in range(256) if WALLET == delegation.recover(delegation.text_digest(text), signature[:64] + bytes((v,)))]
    assert [signature[64] - 27, signature[64]] == accepted


def test_the_other_form_of_the_same_signature_is_refused() -> None:
    text = delegation.delegation_text(a_delegation())
    signature = signed_elsewhere(text).signature
    high_s = CURVE_ORDER - int.from_bytes(signature[32:64], "big")
    malleated = signature[:32] + high_s.to_bytes(32, "big") + bytes((27 + (signature[64] - 27 ^ 1),))
    assert Refusal.BAD_SIGNATURE == refusal_of(SignedDelegation(text, malleated))


@pytest.mark.parametrize("length", [0, 64, 66])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    text = delegation.delegation_text(a_delegation())
    assert Refusal.BAD_SIGNATURE == refusal_of(SignedDelegation(text, (signed_elsewhere(text).signature * 2)[:length]))


@given(st.binary(min_size=65, max_size=65))
def test_no_bytes_make_recovery_raise(signature: bytes) -> None:
    assert WALLET != delegation.recover(delegation.text_digest("x"), signature)


def test_a_changed_bit_anywhere_is_refused() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation()))
    for place in range(65):
        flipped = bytearray(signed.signature)
        flipped[place] ^= 1
        assert Refusal.BAD_SIGNATURE == refusal_of(SignedDelegation(signed.text, bytes(flipped))), place


def test_a_delegation_for_another_market_is_refused() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation(market_id="cd" * 32)))
    assert Refusal.WRONG_MARKET == refusal_of(signed)


def test_a_delegation_shown_by_another_key_is_refused() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation()))
    assert Refusal.NOT_YOURS == refusal_of(signed, key_hex="00" * 32)


def test_a_delegation_of_another_wallet_is_refused() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation()))
    assert Refusal.NOT_YOURS == refusal_of(signed, wallet="0x" + "0" * 40)


def test_a_delegation_ends_at_its_last_millisecond() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation()))
    assert delegation.check(signed, market_id=MARKET, key_hex=KEY.hex(), now_ms=NOW_MS + DAY_MS - 1)
    assert Refusal.KEY_EXPIRED == refusal_of(signed, now_ms=NOW_MS + DAY_MS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("as buyer on", "as owner of everything on"),
        ("\nVersion: 1", "\nVersion: 2"),
        ("Chain ID: 1", "Chain ID: 10"),
        ("- urn:role:buyer", "- urn:role:seller"),
        ("- urn:role:buyer", "- urn:role:king"),
        ("- urn:role:buyer", "- urn:role:buyer\n"),
        ("- urn:role:buyer", "- urn:role:buyer\n- urn:role:operator"),
        ("Issued At: 2026-09-21T14:13:20.123Z", "Issued At: 2026-09-21T14:13:20.123+00:00"),
        ("Issued At: 2026-09-21", "Issued At: 2026-13-21"),
        ("Issued At: 2026-09-21", "Issued At: 2026-09-23"),
        ("Expiration Time: 2026", "Expiration Time: 2028"),
        ("URI: urn:nkey:U", "URI: urn:nkey:V"),
        ("Nonce: abcDEF123456", "Nonce: abc"),
        (to_checksum_address(WALLET), WALLET),
        ("gpubazaar wants", "GPUBAZAAR wants"),
    ],
)
def test_a_text_that_says_anything_else_is_refused_though_the_wallet_signed_it(old: str, new: str) -> None:
    text = delegation.delegation_text(a_delegation())
    assert old in text
    assert Refusal.MALFORMED == refusal_of(signed_elsewhere(text.replace(old, new)))


def test_a_text_without_end_is_refused_before_it_is_read() -> None:
    assert Refusal.MALFORMED == refusal_of(signed_elsewhere("x" * 10_000_000))


def test_a_token_carries_the_delegation_and_its_signature() -> None:
    signed = signed_elsewhere(delegation.delegation_text(a_delegation()))
    token = delegation.encode_token(signed)
    assert signed == delegation.decode_token(token)
    assert len(token) < 1000


@given(st.one_of(st.text(max_size=50), st.binary(max_size=200).map(lambda data: delegation.urlsafe_b64encode(data).decode())))
def test_a_hostile_token_is_refused_and_nothing_else_happens(token: str) -> None:
    with pytest.raises(DelegationRefused) as caught:
        delegation.decode_token(token)
    assert Refusal.MALFORMED == caught.value.refusal


def test_a_token_that_is_too_long_or_nested_deep_is_refused() -> None:
    nested = delegation.urlsafe_b64encode(b"\x91" * 3000).decode()
    for token in ("A" * 100_000, nested):
        with pytest.raises(DelegationRefused):
            delegation.decode_token(token)


@given(st.binary(min_size=32, max_size=32))
def test_nkeys_are_written_as_nats_writes_them(seed: bytes) -> None:
    theirs = nkeys.encode_seed(seed, nkeys.PREFIX_BYTE_USER)
    key = bytes(SigningKey(seed).verify_key)
    assert theirs.decode() == delegation.seed_text(seed)
    assert nkeys.from_seed(bytearray(theirs)).public_key.decode() == delegation.nkey_of(key)
    assert seed == delegation.raw_seed(delegation.seed_text(seed))
    assert key == delegation.raw_key(delegation.nkey_of(key))


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: "A" + text[1:], lambda text: text.lower(), lambda text: "é" * 56])
def test_an_nkey_with_a_typing_error_is_no_key(change: object) -> None:
    with pytest.raises(ValueError):
        delegation.raw_key(change(delegation.nkey_of(KEY)))  # type: ignore[operator]


@given(st.binary(min_size=20, max_size=20))
def test_addresses_are_shown_as_other_wallet_programs_show_them(data: bytes) -> None:
    wallet = "0x" + data.hex()
    shown = to_checksum_address(wallet)
    assert shown == delegation.checksum_address(wallet)
    assert [wallet] * 3 == [delegation.parse_address(form) for form in (wallet, shown, "0x" + wallet[2:].upper())]


def test_an_address_with_a_wrong_letter_case_is_a_typing_error() -> None:
    shown = to_checksum_address("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed")
    assert "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed" == shown
    assert delegation.parse_address(shown.replace("aAeb", "aaeb")) is None
    assert delegation.parse_address(shown + "\n") is None
    assert delegation.parse_address(shown[:-1]) is None


def test_any_wallet_of_another_program_is_recovered() -> None:
    for _ in range(5):
        secret = os.urandom(32)
        account = Account.from_key(secret)
        text = delegation.delegation_text(a_delegation(wallet=account.address.lower()))
        theirs = bytes(account.sign_message(encode_defunct(text=text)).signature)
        assert account.address.lower() == delegation.recover(delegation.text_digest(text), theirs)
