"""Two ends of a tunnel under any interleaving: bytes stay in order, credit is never exceeded, nothing deadlocks, meddling is noticed."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events import tunnel_events
from events.tunnel_frames import STREAMS_MAX, WINDOW, Broken, Target
from events.tunnel_keys import AES, CHACHA, Keys, ciphers_here
from events.tunnel_mux import Mux

A, B = b"a" * 32, b"b" * 32


class Side:
    """One end, with a program at each of its streams that sends a pattern and passes on what it gets."""

    def __init__(self, mux: Mux, opens: bool) -> None:
        self.mux = mux
        self.opens = opens
        self.to_send: dict[int, int] = {}
        self.sent: dict[int, int] = {}
        self.got: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.got_eof: set[int] = set()
        self.said_eof: set[int] = set()

    def begin(self, number: int, amount: int) -> None:
        self.to_send[number], self.sent[number], self.got[number], self.held[number] = amount, 0, 0, 0

    def push(self, number: int) -> None:
        """Send what there is room for; then the end."""
        amount = min(self.mux.room(number), self.to_send[number])
        if amount:
            self.mux.send(number, pattern(number, self.opens, self.sent[number], amount))
            self.sent[number] += amount
            self.to_send[number] -= amount
        if not self.to_send[number] and number not in self.said_eof:
            self.said_eof.add(number)
            self.mux.eof(number)

    def pass_on(self, number: int, amount: int) -> None:
        amount = min(amount, self.held[number])
        self.held[number] -= amount
        self.mux.consumed(number, amount)

    def hear(self, message: bytes, answers: list[int]) -> None:
        for event in self.mux.receive(message):
            match event:
                case tunnel_events.Asked(number, _):
                    self.begin(number, answers[number % len(answers)])
                    self.mux.accept(number)
                case tunnel_events.Data(number, data):
                    assert pattern(number, not self.opens, self.got[number], len(data)) == bytes(data)
                    self.got[number] += len(data)
                    self.held[number] += len(data)
                    assert self.held[number] <= WINDOW, "more is held than was granted"
                case tunnel_events.Eof(number):
                    assert number not in self.got_eof
                    self.got_eof.add(number)


def pattern(number: int, from_opener: bool, offset: int, amount: int) -> bytes:
    """What a stream says: different for every stream, way and place."""
    start = offset % 251
    base = bytes((place * (2 * number + from_opener)) % 251 for place in range(251))
    return (base * (amount // 251 + 2))[start : start + amount]


def pair(cipher: str = CHACHA) -> tuple[Mux, Mux]:
    return Mux(Keys(A, B, cipher), opens=True), Mux(Keys(B, A, cipher), opens=False)


AMOUNTS = st.sampled_from([0, 1, 100, 65_536, 70_000, 300_000, 1_500_000, 2_600_000])


@given(
    amounts=st.lists(AMOUNTS, min_size=1, max_size=12),
    answers=st.lists(AMOUNTS, min_size=1, max_size=4),
    choices=st.lists(st.integers(0, 2**31), max_size=300),
    cipher=st.sampled_from(ciphers_here()),
)
def test_every_byte_arrives_once_in_order_whatever_happens_when(
    amounts: list[int], answers: list[int], choices: list[int], cipher: str
) -> None:
    first, second = pair(cipher)
    buyer, node = Side(first, True), Side(second, False)
    wires: dict[Side, deque[bytes]] = {buyer: deque(), node: deque()}
    waiting = list(amounts)

    def step(choice: int) -> None:
        side, other = (buyer, node) if choice & 1 else (node, buyer)
        what, number = choice >> 1 & 3, choice >> 3
        streams = sorted(side.to_send)
        if what == 0 and waiting:
            buyer.begin(first.open(Target(place="tcp:1")), waiting.pop())
        elif what == 1 and streams:
            side.push(streams[number % len(streams)])
        elif what == 2 and streams:
            side.pass_on(streams[number % len(streams)], number % 400_000)
        elif wires[side]:
            side.hear(wires[side].popleft(), answers)
        wires[other] += side.mux.outgoing()

    for choice in choices:
        step(choice)
    for _ in range(2000):  # from here on everybody does what he can: it must come to an end
        if not waiting and len(node.to_send) == len(amounts) and not first.streams and not second.streams:
            break
        if waiting:
            buyer.begin(first.open(Target(place="tcp:1")), waiting.pop())
        for side, other in ((buyer, node), (node, buyer)):
            for number in list(side.to_send):
                side.push(number)
                side.pass_on(number, WINDOW)
            wires[other] += side.mux.outgoing()
            while wires[side]:
                side.hear(wires[side].popleft(), answers)
    else:
        raise AssertionError("it does not come to an end")
    assert sum(amounts) == sum(node.got.values())
    assert {number: answers[number % len(answers)] for number in node.got} == buyer.got
    assert set(range(1, len(amounts) + 1)) == buyer.got_eof == node.got_eof


@given(
    data=st.binary(min_size=1, max_size=5000),
    meddling=st.sampled_from(["lose", "repeat", "swap", "flip", "cut", "forge"]),
    at=st.integers(0, 4),
    where=st.integers(0, 10**6),
)
def test_a_message_that_is_lost_repeated_swapped_or_changed_ends_the_session_and_says_what_was(
    data: bytes, meddling: str, at: int, where: int
) -> None:
    first, second = pair(ciphers_here()[0])
    number = first.open(Target(place="tcp:1"))
    messages = first.outgoing()
    for _ in range(6):
        first.send(number, data)
        messages += first.outgoing()
    match meddling:
        case "lose":
            del messages[at]
        case "repeat":
            messages.insert(at + 1, messages[at])
        case "swap":
            messages[at], messages[at + 1] = messages[at + 1], messages[at]
        case "flip":
            place = where % len(messages[at])
            messages[at] = messages[at][:place] + bytes((messages[at][place] ^ 1,)) + messages[at][place + 1 :]
        case "cut":
            messages[at] = messages[at][: where % len(messages[at])]
        case "forge":
            stranger = Mux(Keys(bytes(32), bytes(32), ciphers_here()[0]), opens=True)
            stranger.open(Target(place="tcp:1"))
            messages[at] = messages[at][:8] + stranger.outgoing()[0][8:]
    got = b""
    with pytest.raises(Broken) as broken:
        for message in messages:
            got += b"".join(bytes(event.data) for event in second.receive(message) if isinstance(event, tunnel_events.Data))
    assert str(broken.value)
    assert (data * 6).startswith(got) and len(got) < len(data * 6)
    assert [] == second.receive(first.outgoing()[0] if first.outgoing() else messages[0]), "what comes after is not heard"


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_garbage_never_raises_anything_but_broken(messages: list[bytes]) -> None:
    _, second = pair()
    for message in messages:
        if second.ended:
            break
        with pytest.raises(Broken):
            second.receive(message)


@given(plain=st.binary(min_size=1, max_size=400), opens=st.booleans())
def test_garbage_of_one_who_has_the_keys_never_raises_anything_but_broken(plain: bytes, opens: bool) -> None:
    from events.tunnel_keys import Sealer

    mux = Mux(Keys(A, B), opens=opens)
    if opens:
        mux.open(Target(place="tcp:1"))
        mux.outgoing()
    try:
        mux.receive(Sealer(B).seal(plain))
    except Broken as error:
        assert mux.ended == str(error)


def test_so_many_streams_may_be_open_and_no_more() -> None:
    first, second = pair()
    for _ in range(STREAMS_MAX):
        number = first.open(Target(place="tcp:1"))
    assert first.is_full
    for message in first.outgoing():
        second.receive(message)
    assert STREAMS_MAX == second.streams
    first.reset(number, "")
    assert first.is_full, "the other end has not said so yet"
    for message in first.outgoing():
        second.receive(message)
    for message in second.outgoing():
        first.receive(message)
    assert not first.is_full
    first.open(Target(place="tcp:1"))
    for message in first.outgoing():
        second.receive(message)


def test_both_ciphers_are_known() -> None:
    assert {AES, CHACHA} >= set(ciphers_here())
