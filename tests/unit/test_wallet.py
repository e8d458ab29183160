"""Wallets at rest, cross-checked with another program, and the session keys that they let speak for them."""

from __future__ import annotations

import json
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct

from events import delegation, session
from events.errors import IdentityError
from events.session import Session, SessionStore, make_session
from events.values import Role
from events.wallet import KeySigner, Keystore, Passphrases

sys.setrecursionlimit(1000)  # what eth_account imports lifts it, and deeply nested bytes would crash the process
MARKET = "ab" * 32
NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
SECRET = b"\x11" * 32
# A keystore costs time by design; the cost itself is checked once.
CHEAP = 1 << 10


def keystore(home: Path) -> Keystore:
    return Keystore(home, scrypt_n=CHEAP)


def said(answer: str) -> Passphrases:
    return Passphrases(ask=lambda _question: answer)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_wallet_can_be_opened_again_and_signs_as_its_address(tmp_path: Path) -> None:
    created = keystore(tmp_path).create("default", said("correct horse"))
    signer = keystore(tmp_path).unlock("default", said("correct horse"))
    assert created.wallet.address == signer.address == delegation.recover(delegation.text_digest("hi"), signer.sign_text("hi"))
    assert "" == created.notice
    assert 0o600 == mode_of(tmp_path / "keystore" / "default.json")
    assert not (tmp_path / "keystore" / "default.passphrase").exists()


def test_other_programs_can_open_our_keystore_and_its_cost_is_as_documented(tmp_path: Path) -> None:
    created = Keystore(tmp_path).create("default", said("pass word é"))
    document = json.loads(Keystore(tmp_path).export_file("default"))
    assert {"n": 1 << 17, "r": 8, "p": 1, "dklen": 32, "salt": document["crypto"]["kdfparams"]["salt"]} == document["crypto"]["kdfparams"]
    assert created.wallet.address == Account.from_key(Account.decrypt(document, "pass word é")).address.lower()


def test_a_keystore_of_another_program_can_be_taken_in(tmp_path: Path) -> None:
    theirs = Account.encrypt(SECRET, "their passphrase", kdf="pbkdf2", iterations=1000)
    keystore(tmp_path).import_file("taken", json.dumps(theirs), "their passphrase", said("ours"))
    assert "0x" + SECRET.hex() == keystore(tmp_path).export_key("taken", said("ours"))


def test_our_signature_is_byte_for_byte_that_of_other_programs(tmp_path: Path) -> None:
    for text in ("", "hello", "é☃" * 100):
        theirs = bytes(Account.from_key(SECRET).sign_message(encode_defunct(text=text)).signature)
        assert theirs == KeySigner(SECRET).sign_text(text)


def test_a_wrong_passphrase_is_said_to_be_wrong(tmp_path: Path) -> None:
    keystore(tmp_path).create("default", said("right"))
    with pytest.raises(IdentityError, match="passphrase is wrong"):
        keystore(tmp_path).unlock("default", said("wrong"))


def test_without_a_passphrase_a_random_one_is_kept_beside_and_said_so(tmp_path: Path) -> None:
    created = keystore(tmp_path).create("default", Passphrases())
    beside = tmp_path / "keystore" / "default.passphrase"
    assert str(beside) in created.notice
    assert 0o600 == mode_of(beside)
    assert created.wallet.address == keystore(tmp_path).unlock("default", Passphrases()).address


def test_two_processes_that_make_the_same_wallet_leave_one_that_opens(tmp_path: Path) -> None:
    def make(_: int) -> str | None:
        try:
            return keystore(tmp_path).create("default", Passphrases()).wallet.address
        except IdentityError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [address for address in pool.map(make, range(16)) if address is not None]
    assert [keystore(tmp_path).unlock("default", Passphrases()).address] == made


def test_without_a_terminal_the_passphrase_of_a_chosen_kind_must_come_from_a_file(tmp_path: Path) -> None:
    keystore(tmp_path).create("default", said("right"))
    with pytest.raises(IdentityError) as caught:
        keystore(tmp_path).unlock("default", Passphrases())
    assert "BAZAAR_PASSPHRASE_FILE" in caught.value.hint
    file = tmp_path / "pass"
    file.write_text("right\n")
    file.chmod(0o600)
    assert keystore(tmp_path).unlock("default", Passphrases(file))
    file.chmod(0o644)
    with pytest.raises(IdentityError, match="can be read by others"):
        keystore(tmp_path).unlock("default", Passphrases(file))


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_an_empty_passphrase_file_is_no_passphrase(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "pass"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(IdentityError, match="empty or no text"):
        Passphrases(file).given()


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "a\n", "a" * 33, "é", "a.b"])
def test_a_name_that_is_not_fit_for_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError, match="is no name for a wallet"):
        keystore(tmp_path).create(name, said("x"))
    assert not (tmp_path / "keystore").exists()


def test_a_taken_name_is_refused_and_the_wallet_is_kept(tmp_path: Path) -> None:
    first = keystore(tmp_path).create("default", Passphrases())
    with pytest.raises(IdentityError, match="is here already"):
        keystore(tmp_path).create("default", said("other"))
    assert first.wallet.address == keystore(tmp_path).unlock("default", Passphrases()).address


@pytest.mark.parametrize("secret", ["", "zz" * 32, "11" * 31, "00" * 32, "ff" * 32, "0x"])
def test_what_is_no_private_key_is_refused(tmp_path: Path, secret: str) -> None:
    with pytest.raises(IdentityError, match="no private key"):
        keystore(tmp_path).import_key("x", secret, said("x"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 3, "crypto": {}}',
        '{"version": 3, "crypto": {"kdf": "scrypt", "kdfparams": {"n": 1073741824, "r": 8, "p": 1}}}',
        '{"version": 3, "crypto": {"kdf": "pbkdf2", "kdfparams": {"c": 99999999999}}}',
        '{"version": 3, "crypto": {"kdf": "rot13", "kdfparams": {}}}',
    ],
)
def test_a_file_that_is_no_keystore_or_would_eat_the_machine_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(IdentityError, match="no keystore file"):
        keystore(tmp_path).import_file("x", text, "pass", said("x"))


def test_a_keystore_that_names_another_address_is_not_used(tmp_path: Path) -> None:
    keystore(tmp_path).import_key("a", SECRET.hex(), said("x"))
    path = tmp_path / "keystore" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"address": "12" * 20}))
    with pytest.raises(IdentityError, match="another address"):
        keystore(tmp_path).unlock("a", said("x"))


def test_parties_can_be_given_names(tmp_path: Path) -> None:
    wallet = keystore(tmp_path).import_key("a", SECRET.hex(), said("x")).wallet
    keystore(tmp_path).alias("me", wallet.address.upper().replace("0X", "0x"))
    keystore(tmp_path).alias("peer", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed")
    assert {"me": wallet.address, "peer": "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"} == keystore(tmp_path).aliases()
    assert wallet == keystore(tmp_path).find("me")
    keystore(tmp_path).alias("me", None)
    with pytest.raises(IdentityError):
        keystore(tmp_path).find("me")
    with pytest.raises(IdentityError, match="is no address"):
        keystore(tmp_path).alias("wrong", "0x5aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed")


def test_a_session_is_made_when_missing_and_kept(tmp_path: Path) -> None:
    signer, store = KeySigner(SECRET), SessionStore(tmp_path, MARKET)
    first = store.ensure(signer.address, Role.BUYER, lambda: signer, now_ms=NOW_MS)
    again = store.ensure(signer.address, Role.BUYER, _nobody, now_ms=NOW_MS + 23 * HOUR_MS)
    assert first.key == again.key
    assert first.expires_ms == NOW_MS + 24 * HOUR_MS
    assert 0o600 == mode_of(store.path(signer.address, Role.BUYER))
    assert tmp_path / "sessions" / MARKET[:16] / f"{signer.address}.buyer.json" == store.path(signer.address, Role.BUYER)


def _nobody() -> KeySigner:
    raise AssertionError("the wallet is not needed")


def test_a_session_that_is_about_to_end_is_made_anew(tmp_path: Path) -> None:
    signer, store = KeySigner(SECRET), SessionStore(tmp_path, MARKET)
    first = store.ensure(signer.address, Role.BUYER, lambda: signer, now_ms=NOW_MS)
    kept = store.ensure(signer.address, Role.BUYER, lambda: signer, now_ms=first.expires_ms - 60_001)
    renewed = store.ensure(signer.address, Role.BUYER, lambda: signer, now_ms=first.expires_ms - 60_000)
    assert first.key == kept.key
    assert first.key != renewed.key


def test_a_seller_session_lasts_30_days_and_warns_from_a_seventh_before_its_end(tmp_path: Path) -> None:
    made = make_session(KeySigner(SECRET), MARKET, Role.SELLER, now_ms=NOW_MS)
    assert NOW_MS + 30 * 24 * HOUR_MS == made.expires_ms
    assert made.expires_ms - 30 * 24 * HOUR_MS // 7 == made.warn_from_ms()


def test_processes_that_come_at_once_make_one_session(tmp_path: Path) -> None:
    signer, store = KeySigner(SECRET), SessionStore(tmp_path, MARKET)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: store.ensure(signer.address, Role.BUYER, lambda: signer, now_ms=NOW_MS).key, range(16)))
    assert 1 == len(keys)


def test_a_session_travels_to_a_machine_without_keystore(tmp_path: Path) -> None:
    made = make_session(KeySigner(SECRET), MARKET, Role.SELLER, now_ms=NOW_MS)
    session.write_session(made, tmp_path / "carried.json")
    there = SessionStore(tmp_path / "there", MARKET)
    there.save(session.read_session(tmp_path / "carried.json"))
    assert [made.wallet] == there.delegated(Role.SELLER)
    assert [] == there.delegated(Role.BUYER)
    found = there.ensure(made.wallet, Role.SELLER, _nobody, now_ms=NOW_MS)
    assert (made.key, made.signed, made.seed) == (found.key, found.signed, found.seed)


def test_the_first_event_of_a_key_carries_its_delegation() -> None:
    made = make_session(KeySigner(SECRET), MARKET, Role.SELLER, now_ms=NOW_MS)
    event = made.authorisation()
    stated = delegation.check(
        delegation.SignedDelegation(event.text, event.wallet_signature), market_id=MARKET, key_hex=event.key, now_ms=NOW_MS
    )
    assert (event.role, event.expires_ms, made.wallet) == (stated.role, stated.expires_ms, stated.wallet)


def test_a_session_never_shows_its_secret() -> None:
    made = make_session(KeySigner(SECRET), MARKET, Role.BUYER, now_ms=NOW_MS)
    assert made.seed not in repr(made)
    assert made.seed.startswith("SU")


def test_a_delegation_for_another_key_makes_no_session() -> None:
    made = make_session(KeySigner(SECRET), MARKET, Role.BUYER, now_ms=NOW_MS)
    with pytest.raises(delegation.DelegationRefused):
        Session(b"\x01" * 32, made.signed)


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-20], lambda text: text.replace("buyer", "seller", 1), lambda text: "[]", lambda _: "[" * 100000]
)
def test_a_damaged_delegation_file_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "file.json"
    session.write_session(make_session(KeySigner(SECRET), MARKET, Role.BUYER, now_ms=NOW_MS), path)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(IdentityError):
        session.read_session(path)


def test_a_delegation_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    session.write_session(make_session(KeySigner(SECRET), MARKET, Role.BUYER, now_ms=NOW_MS), path)
    path.chmod(0o644)
    with pytest.raises(IdentityError, match="can be read by others"):
        session.read_session(path)
