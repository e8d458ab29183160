"""The callout's two tokens: what a broker signs is read, what anybody else signs is not, and what is granted stands in the answer."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from services import jwt
from services.callout import Login, guest_grant, wallet_grant
from services.seats import CONNECTING_S, FAILURES_IN_A_BURST, Buckets, Seats, network_of

SERVER = SigningKey(b"\x01" * 32)
ISSUER = SigningKey(b"\x02" * 32)
USER = SigningKey(b"\x03" * 32)
WALLET = "0x" + "ab" * 20


def nkey(prefix: int, key: SigningKey) -> str:
    return jwt.encode_nkey(prefix, bytes(key.verify_key))


def question(**changes: Any) -> dict[str, Any]:
    return {
        "aud": "nats-authorization-request",
        "nats": {
            "server_id": {"id": nkey(jwt.SERVER_PREFIX, SERVER), "name": "broker", "host": "0.0.0.0"},
            "user_nkey": nkey(jwt.USER_PREFIX, USER),
            "client_info": {"host": "127.0.0.1", "id": 7, "nonce": "abc", "kind": "Client"},
            "connect_opts": {"nkey": "U", "sig": "S", "auth_token": "T", "protocol": 1},
            "type": "authorization_request",
            "version": 2,
            **changes,
        },
    }


def signed(claims: dict[str, Any], key: SigningKey = SERVER, prefix: int = jwt.SERVER_PREFIX) -> bytes:
    return jwt.encode_token(claims, key, prefix=prefix).encode()


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    return json.loads(urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def test_a_brokers_question_is_read() -> None:
    request = jwt.decode_request(signed(question()))
    assert jwt.ClientInfo("127.0.0.1", 7, "abc") == request.client_info
    assert ("U", "S", "T") == (request.connect_opts.nkey, request.connect_opts.sig, request.connect_opts.auth_token)
    assert nkey(jwt.SERVER_PREFIX, SERVER) == request.server_id.id


@pytest.mark.parametrize("prefix", [jwt.USER_PREFIX, jwt.ACCOUNT_PREFIX])
def test_a_question_that_no_broker_signed_is_none(prefix: int) -> None:
    with pytest.raises(jwt.BadToken):
        jwt.decode_request(signed(question(), prefix=prefix))


def test_a_question_that_was_changed_is_none() -> None:
    header, body, signature = signed(question()).decode().split(".")
    other = signed(question(user_nkey="UX")).decode().split(".")[1]
    with pytest.raises(jwt.BadToken, match="not signed"):
        jwt.decode_request(f"{header}.{other}.{signature}".encode())
    none = urlsafe_b64encode(b'{"typ":"JWT","alg":"none"}').decode().rstrip("=")
    with pytest.raises(jwt.BadToken):
        jwt.decode_request(f"{none}.{body}.".encode())


def test_another_kind_of_token_is_no_question() -> None:
    with pytest.raises(jwt.BadToken, match="not a question"):
        jwt.decode_request(signed(question(type="user")))


@given(st.binary(max_size=300))
def test_no_bytes_make_reading_a_question_fail_otherwise(data: bytes) -> None:
    with pytest.raises(jwt.BadToken):
        jwt.decode_request(data)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_no_damage_to_a_question_goes_unnoticed(place: int, damage: bytes) -> None:
    token = signed(question())
    place %= len(token)
    damaged = token[:place] + damage + token[place + len(damage) :]
    try:
        read = jwt.decode_request(damaged)
    except jwt.BadToken:
        return
    assert jwt.decode_request(token) == read  # the last letter of base64 has bits that mean nothing


def test_a_grant_says_who_where_what_and_how_long() -> None:
    request = jwt.decode_request(signed(question()))
    permissions = jwt.Permissions(("a.b",), ("c.>",))
    answer = jwt.granted(request, ISSUER, account="USERS", name=WALLET, permissions=permissions, now_s=100, expires_s=200)
    outer = claims_of(answer.decode())
    assert (request.server_id.id, request.user_nkey, nkey(jwt.ACCOUNT_PREFIX, ISSUER)) == (outer["aud"], outer["sub"], outer["iss"])
    user = claims_of(outer["nats"]["jwt"])
    assert ("USERS", WALLET, 200) == (user["aud"], user["name"], user["exp"])
    assert (request.user_nkey, nkey(jwt.ACCOUNT_PREFIX, ISSUER)) == (user["sub"], user["iss"])
    assert (["a.b"], ["c.>"]) == (user["nats"]["pub"]["allow"], user["nats"]["sub"]["allow"])


def test_a_denial_holds_no_login() -> None:
    request = jwt.decode_request(signed(question()))
    claims = claims_of(jwt.denied(request, ISSUER, why="key_expired", now_s=100).decode())
    assert "jwt" not in claims["nats"]
    assert "key_expired" == claims["nats"]["error"]


def test_a_key_is_proven_by_signing_the_nonce_and_by_nothing_else() -> None:
    name = nkey(jwt.USER_PREFIX, USER)
    good = urlsafe_b64encode(USER.sign(b"nonce").signature).decode()
    assert jwt.proves_key(name, "nonce", good)
    assert jwt.proves_key(name, "nonce", good.rstrip("="))
    assert not jwt.proves_key(name, "other", good)
    assert not jwt.proves_key(nkey(jwt.USER_PREFIX, ISSUER), "nonce", good)
    assert not jwt.proves_key(nkey(jwt.ACCOUNT_PREFIX, USER), "nonce", good)
    for signature in ("", "x", "é", good[:-4], "A" * 86):
        assert not jwt.proves_key(name, "nonce", signature)


def test_names_of_keys_are_those_of_the_nkeys_library() -> None:
    for prefix in (jwt.ACCOUNT_PREFIX, jwt.USER_PREFIX, jwt.SERVER_PREFIX):
        seed = nkeys.encode_seed(bytes(USER), prefix)
        assert nkeys.from_seed(bytearray(seed)).public_key.decode() == nkey(prefix, USER)
        assert bytes(USER.verify_key) == jwt.decode_nkey(nkey(prefix, USER), prefix)


# --- what the callout counts ---


def test_a_login_ends_with_its_delegation_and_after_a_day_at_the_latest() -> None:
    assert 500 == wallet_grant(Login(WALLET, 500_999), 100).expires_s
    assert 100 + 86_400 == wallet_grant(Login(WALLET, 10**12), 100).expires_s


def test_a_wallet_is_granted_only_subjects_with_its_own_name() -> None:
    permissions = wallet_grant(Login(WALLET, 10**12), 100).permissions
    assert [] == [subject for subject in permissions.publish if WALLET != subject.split(".")[2 if subject.startswith("rpc.") else 1]]
    foreign = [subject for subject in permissions.subscribe if WALLET not in subject]
    assert ["live.market.>"] == foreign


def test_a_guest_is_granted_one_question() -> None:
    grant = guest_grant(100)
    assert (("rpc.hello.guest",), ("_INBOX_guest.>",)) == grant.permissions


def test_a_host_may_fail_so_often_and_again_after_a_while() -> None:
    buckets = Buckets()
    for _ in range(FAILURES_IN_A_BURST):
        assert not buckets.is_empty("h", 100.0)
        buckets.take("h", 100.0)
    assert buckets.is_empty("h", 100.0)
    assert not buckets.is_empty("another", 100.0)
    assert not buckets.is_empty("h", 101.0)


def test_a_name_not_seen_before_is_asked_about() -> None:
    seats = Seats()
    assert seats.must_ask("broker", "w", 2)
    seats.correct("broker", "w", set(), 0.0)
    assert not seats.must_ask("broker", "w", 2)
    assert seats.must_ask("another broker", "w", 2)


def test_seats_are_taken_up_to_the_limit_and_given_back() -> None:
    seats = Seats()
    assert [True, True, False] == [seats.take("broker", "w", seat, 2, 0.0) for seat in (1, 2, 3)]
    seats.leave("broker", "w", 1)
    seats.leave("broker", "w", 99)
    seats.leave("broker", "nobody", 1)
    assert seats.take("broker", "w", 3, 2, 0.0)


def test_the_brokers_list_counts_more_than_memory_but_for_who_is_only_just_coming_in() -> None:
    seats = Seats()
    for seat in (1, 2):
        seats.take("broker", "w", seat, 2, 0.0)
    seats.correct("broker", "w", {7}, 1.0)
    assert seats.must_ask("broker", "w", 2), "1 and 2 were let in a second ago"
    seats.correct("broker", "w", {7}, CONNECTING_S + 1)
    assert seats.take("broker", "w", 8, 2, CONNECTING_S + 1), "they never came"
    assert not seats.take("broker", "w", 9, 2, CONNECTING_S + 1)


def test_the_brokers_whole_list_corrects_every_name_and_empties_those_that_are_not_in_it() -> None:
    seats = Seats()
    for name in ("a", "b"):
        assert seats.take("broker", name, 1, 1, 0.0)
    assert seats.take("elsewhere", "b", 1, 1, 0.0)
    seats.correct_all("broker", {"a": {5}, "c": {6, 7}}, CONNECTING_S + 1)
    assert [True, False, True] == [seats.is_full("broker", name, 1) for name in "abc"]
    assert seats.is_full("elsewhere", "b", 1)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("::ffff:127.0.0.1", ""),
        ("", ""),
        ("no address", "no address"),
    ],
)
def test_connections_are_counted_by_what_one_customer_gets(host: str, network: str) -> None:
    assert network == network_of(host)
