"""Who may open a tunnel, and what an end makes of one who has the keys and says what cannot be."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from events import tunnel_events, tunnel_frames, tunnel_keys
from events.session import Session, make_session
from events.tunnel_frames import CHUNK_MAX, EARLY_WINDOW, SIZE, STREAMS_MAX, U32, WINDOW, Broken, Kind, Target, encode_target, header
from events.tunnel_keys import Facts, Identity, Keys, NotMet, Sealer, Signed
from events.tunnel_mux import MISSED_MAX, Mux
from events.values import Role
from events.wallet import KeySigner

MARKET = "ab" * 32
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
SESSION = "0" * 32
A, B = b"a" * 32, b"b" * 32


def party(number: int, role: Role, market: str = MARKET) -> Session:
    return make_session(KeySigner(number.to_bytes(32, "big")), market, role, now_ms=NOW_MS, validity_ms=HOUR_MS)


BUYER, SELLER, OTHER = party(1, Role.BUYER), party(2, Role.SELLER), party(3, Role.BUYER)
FACTS = Facts(market_id=MARKET, job_id="j" + "a" * 19, attempt=1, epoch=7, buyer=BUYER.wallet, seller=SELLER.wallet)


def who(session: Session) -> Identity:
    return Identity(session.signing_key, session.signed)


def said(session: Session = BUYER, facts: Facts = FACTS) -> bytes:
    return tunnel_keys.hello(facts, who(session), session=SESSION, ephemeral_secret=b"x" * 32)


def met(hello: bytes, session: Session = SELLER) -> tuple[bytes, Keys]:
    read = tunnel_keys.read_hello(hello, FACTS, now_ms=NOW_MS)
    return tunnel_keys.welcome(hello, read, who(session), ephemeral_secret=b"y" * 32)


def answered(answer: bytes, hello: bytes, *, now_ms: int = NOW_MS) -> Keys:
    return tunnel_keys.read_welcome(answer, hello, FACTS, ephemeral_secret=b"x" * 32, now_ms=now_ms)


# --- meeting ---


def test_buyer_and_node_come_to_the_same_keys_one_for_each_way() -> None:
    hello = said()
    answer, node = met(hello)
    buyer = answered(answer, hello)
    assert (buyer.sending, buyer.receiving, buyer.cipher) == (node.receiving, node.sending, node.cipher)
    assert buyer.sending != buyer.receiving
    assert b"" not in (buyer.sending, buyer.receiving)


@pytest.mark.parametrize(
    "change",
    [{"job_id": "j" + "b" * 19}, {"attempt": 2}, {"epoch": 8}, {"buyer": OTHER.wallet}, {"seller": OTHER.wallet}, {"market_id": "cd" * 32}],
)
def test_an_opening_for_anything_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(NotMet) as refused:
        tunnel_keys.read_hello(said(facts=msgspec.structs.replace(FACTS, **change)), FACTS, now_ms=NOW_MS)
    assert "other_job" == refused.value.reason


def test_only_the_buyers_own_key_as_a_buyer_and_in_its_time_opens() -> None:
    for session in (OTHER, party(1, Role.SELLER), party(1, Role.BUYER, "cd" * 32)):
        with pytest.raises(NotMet) as refused:
            tunnel_keys.read_hello(said(session), FACTS, now_ms=NOW_MS)
        assert "not_yours" == refused.value.reason
    with pytest.raises(NotMet):
        tunnel_keys.read_hello(said(), FACTS, now_ms=NOW_MS + HOUR_MS)


def test_only_the_node_of_the_job_answers() -> None:
    hello = said()
    for session in (party(4, Role.SELLER), party(2, Role.BUYER), BUYER):
        answer, _ = met(hello, session)
        with pytest.raises(NotMet):
            answered(answer, hello)


def test_an_answer_to_another_opening_is_none() -> None:
    hello = said()
    other = tunnel_keys.hello(FACTS, who(BUYER), session="1" * 32, ephemeral_secret=b"x" * 32)
    answer, _ = met(other)
    with pytest.raises(NotMet) as refused:
        answered(answer, hello)
    assert "other_hello" == refused.value.reason


def test_a_changed_byte_anywhere_is_no_opening() -> None:
    hello = said()
    for place in range(0, len(hello), 7):
        changed = hello[:place] + bytes((hello[place] ^ 1,)) + hello[place + 1 :]
        with pytest.raises(NotMet):
            tunnel_keys.read_hello(changed, FACTS, now_ms=NOW_MS)


def test_a_nodes_no_is_told_in_harmless_words() -> None:
    with pytest.raises(NotMet) as refused:
        answered(tunnel_keys.refusal("too_many", "8 tunnels\x1b[2J"), said())
    assert ("too_many", "8 tunnels?[2J") == (refused.value.reason, str(refused.value))


def test_a_key_of_no_order_and_a_cipher_that_nobody_offered_are_refused() -> None:
    hello = said()
    body = msgspec.msgpack.decode(msgspec.msgpack.decode(hello, type=Signed).body)
    weak = tunnel_keys._signed(b"hello", msgspec.msgpack.encode({**body, "ephemeral": bytes(32)}), BUYER.signing_key)
    with pytest.raises(NotMet):
        met(weak)
    strange = tunnel_keys._signed(b"hello", msgspec.msgpack.encode({**body, "ciphers": ["rot13"]}), BUYER.signing_key)
    with pytest.raises(NotMet) as refused:
        met(strange)
    assert "cipher" == refused.value.reason


def test_the_subject_of_an_opening_differs_by_job_epoch_and_token() -> None:
    tokens = {tunnel_keys.opening_token(job, epoch, token) for job in ("j1", "j2") for epoch in (1, 2) for token in ("t1", "t2")}
    assert 8 == len(tokens)
    assert all(len(token) == 32 and set(token) <= set("0123456789abcdef") for token in tokens)


# --- what cannot be ---


class Hostile:
    """Somebody who has the keys of one end, and says what he likes."""

    def __init__(self, *, node: bool) -> None:
        self.mux = Mux(Keys(A, B), opens=not node)
        self._sealer = Sealer(B)

    def says(self, *records: tuple[Kind, int, bytes]) -> list[tunnel_events.Event]:
        plain = b"".join(header(kind, stream, len(content)) + content for kind, stream, content in records)
        return self.mux.receive(self._sealer.seal(plain))

    def seals(self, plain: bytes) -> list[tunnel_events.Event]:
        return self.mux.receive(self._sealer.seal(plain))


OPEN = U32.pack(WINDOW) + encode_target(Target(place="tcp:80"))


@pytest.mark.parametrize(
    "records",
    [
        [(Kind.DATA, 1, b"x")],
        [(Kind.OPEN, 2, OPEN)],
        [(Kind.OPEN, 0, OPEN)],
        [(Kind.OPEN, 1, OPEN), (Kind.OPEN, 1, OPEN)],
        [(Kind.OPEN, 1, U32.pack(0) + OPEN[4:])],
        [(Kind.OPEN, 1, U32.pack(WINDOW + 1) + OPEN[4:])],
        [(Kind.OPEN, 1, b"\0")],
        [(Kind.OPEN, 1, U32.pack(WINDOW) + b"nonsense")],
        [(Kind.OPEN, 1, U32.pack(WINDOW) + encode_target(Target(place="/etc/passwd")))],
        [(Kind.OPEN, 1, U32.pack(WINDOW) + encode_target(Target(place="unix:../../x")))],
        [(Kind.OPEN, 1, U32.pack(WINDOW) + encode_target(Target(place="tcp:70000")))],
        [(Kind.OPEN, 1, U32.pack(WINDOW) + encode_target(Target(argv=("a\0b",))))],
        [(Kind.OPEN, 1, U32.pack(WINDOW) + encode_target(Target(columns=-1, rows=5)))],
        [(Kind.OPEN, 1, OPEN), (Kind.DATA, 1, b"")],
        [(Kind.OPEN, 1, OPEN), (Kind.DATA, 1, bytes(EARLY_WINDOW + 1))],
        [(Kind.OPEN, 1, OPEN), (Kind.EOF, 1, b""), (Kind.DATA, 1, b"x")],
        [(Kind.OPEN, 1, OPEN), (Kind.EOF, 1, b""), (Kind.EOF, 1, b"")],
        [(Kind.OPEN, 1, OPEN), (Kind.CREDIT, 1, U32.pack(0))],
        [(Kind.OPEN, 1, OPEN), (Kind.CREDIT, 1, U32.pack(1))],
        [(Kind.OPEN, 1, OPEN), (Kind.CREDIT, 1, b"12")],
        [(Kind.OPEN, 1, OPEN), (Kind.OPENED, 1, U32.pack(1))],
        [(Kind.OPEN, 1, OPEN), (Kind.EXIT, 1, b"\0")],
        [(Kind.OPEN, 1, OPEN), (Kind.RESIZE, 1, SIZE.pack(0, 1))],
        [(Kind.OPEN, 1, OPEN), (Kind.RESET, 1, b""), (Kind.DATA, 1, b"x")],
        [(Kind.PING, 1, b"")],
        [(Kind.PONG, 0, b"x")],
        [(Kind.OPEN, number, OPEN) for number in range(1, STREAMS_MAX + 2)],
    ],
)
def test_what_an_honest_buyer_never_says_ends_the_session(records: list[tuple[Kind, int, bytes]]) -> None:
    hostile = Hostile(node=True)
    with pytest.raises(Broken):
        hostile.says(*records)
    assert hostile.mux.ended
    assert [] == hostile.says((Kind.PING, 0, b""))


def test_what_an_honest_node_never_says_ends_the_session() -> None:
    cases: list[list[tuple[Kind, int, bytes]]] = [
        [(Kind.OPEN, 2, OPEN)],
        [(Kind.OPENED, 1, U32.pack(WINDOW))],
        [(Kind.OPENED, 1, U32.pack(1)), (Kind.OPENED, 1, U32.pack(1))],
        [(Kind.DATA, 1, bytes(CHUNK_MAX))] * 9,
        [(Kind.RESIZE, 1, SIZE.pack(80, 24))],
        [(Kind.EXIT, 1, b"12")],
        [(Kind.DATA, 2, b"x")],
    ]
    for records in cases:
        hostile = Hostile(node=False)
        hostile.mux.open(Target(place="tcp:1"))
        with pytest.raises(Broken):
            for record in records:
                hostile.says(record)


@pytest.mark.parametrize(
    "plain", [b"", b"\x03", b"\xff" * 9, header(Kind.PING, 0, 1), header(Kind.DATA, 1, CHUNK_MAX + 1) + bytes(CHUNK_MAX + 1)]
)
def test_records_that_are_none_end_the_session(plain: bytes) -> None:
    with pytest.raises(Broken):
        Hostile(node=True).seals(plain)


def test_a_message_beyond_the_bound_is_not_even_opened() -> None:
    hostile = Hostile(node=True)
    with pytest.raises(Broken, match="bytes"):
        hostile.mux.receive(bytes(tunnel_frames.PLAIN_MAX + 100))


def test_reasons_are_made_harmless() -> None:
    hostile = Hostile(node=True)
    hostile.says((Kind.OPEN, 1, OPEN))
    [event] = hostile.says((Kind.RESET, 1, b"bad\x1b]0;title\x07\xff"))
    assert isinstance(event, tunnel_events.Reset)
    assert event.reason.isprintable()


# --- time and ends ---


def test_an_end_that_hears_nothing_asks_and_then_gives_up() -> None:
    mux = Mux(Keys(A, B), opens=True)
    mux.tick()
    for _ in range(MISSED_MAX - 1):
        mux.tick()
        assert mux.outgoing(), "it asks"
    with pytest.raises(Broken, match="silent"):
        mux.tick()


def test_two_idle_ends_keep_each_other_alive() -> None:
    first, second = Mux(Keys(A, B), opens=True), Mux(Keys(B, A), opens=False)
    for _ in range(20):
        for one, other in ((first, second), (second, first)):
            one.tick()
            for message in one.outgoing():
                other.receive(message)
            for message in other.outgoing():
                one.receive(message)
    assert 20 == first.idle_ticks == second.idle_ticks


def test_a_goodbye_ends_both_ends_with_its_reason() -> None:
    first, second = Mux(Keys(A, B), opens=True), Mux(Keys(B, A), opens=False)
    first.bye("enough")
    [message] = first.outgoing()
    assert [tunnel_events.Ended("enough")] == second.receive(message)
    assert ("enough", "enough") == (first.ended, second.ended)


def test_what_is_under_way_when_a_stream_is_reset_is_passed_over() -> None:
    first, second = Mux(Keys(A, B), opens=True), Mux(Keys(B, A), opens=False)
    number = first.open(Target(place="tcp:1"))
    [message] = first.outgoing()
    second.receive(message)
    second.accept(number)
    first.send(number, b"under way")
    [late] = first.outgoing()
    second.reset(number, "no more")
    assert [] == second.receive(late)
    [message] = second.outgoing()
    assert [tunnel_events.Opened(number), tunnel_events.Reset(number, "no more")] == first.receive(message)
    for message in first.outgoing():
        assert [] == second.receive(message)
    assert 0 == first.streams == second.streams
