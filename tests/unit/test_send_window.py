"""Go-back-N, without a network: which events fly, under which numbers, and what every answer means for the rest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.codec import BATCH_MAX
from events.envelope import event_hash
from events.reasons import Refusal
from events.send_window import BATCH_BYTES_MAX, WINDOW, Entry, SendWindow
from events.wire import Outcome

KEY = b"k" * 32


def window_with(count: int, last_number: int = 0) -> tuple[SendWindow, list[Entry]]:
    window = SendWindow(KEY, last_number)
    entries = [Entry(f"id {place}".encode(), f"event {place}".encode()) for place in range(count)]
    for entry in entries:
        window.add(entry)
    return window, entries


def accepted(entry: Entry, seq: int = 7) -> Outcome:
    return Outcome(entry.number, entry.digest, seq)


def refused(entry: Entry, reason: Refusal, *, seq: int = 0, expected: int = 0) -> Outcome:
    return Outcome(entry.number, entry.digest, seq, reason, expected)


def take_all(window: SendWindow) -> list[Entry]:
    taken = []
    while batch := window.take():
        taken += batch
    return taken


def test_events_fly_in_order_with_contiguous_numbers() -> None:
    window, entries = window_with(3, last_number=41)
    assert entries == window.take()
    assert [42, 43, 44] == [entry.number for entry in entries]


def test_no_more_fly_than_the_window_allows_and_no_more_together_than_a_batch_holds() -> None:
    window, entries = window_with(300)
    sizes = []
    while batch := window.take():
        sizes.append(len(batch))
    assert [BATCH_MAX, WINDOW - BATCH_MAX] == sizes
    for entry in entries[:10]:
        assert window.answered(accepted(entry)) is not None
    assert 10 == len(window.take())


def test_large_events_do_not_share_an_envelope_beyond_its_size() -> None:
    window = SendWindow(KEY, 0)
    for _ in range(5):
        window.add(Entry(b"", b"x" * (BATCH_BYTES_MAX // 3)))
    assert [2, 2, 1] == [len(window.take()) for _ in range(3)]
    window.add(Entry(b"", b"x" * BATCH_BYTES_MAX))
    assert 1 == len(window.take())


def test_an_accepted_event_is_settled() -> None:
    window, [entry] = window_with(1)
    window.take()
    settled = window.answered(accepted(entry))
    assert settled is not None
    assert (entry, 7) == (settled.entry, settled.outcome.seq)
    assert 0 == window.unanswered
    assert 2 == window.next_number


def test_a_recorded_refusal_uses_the_number_up_and_the_rest_flies_on() -> None:
    window, [first, second] = window_with(2)
    window.take()
    settled = window.answered(refused(first, Refusal.UNKNOWN_JOB, seq=9, expected=2))
    assert settled is not None and Refusal.UNKNOWN_JOB == settled.outcome.reason
    assert window.answered(accepted(second)) is not None
    assert 3 == window.next_number


def test_a_refusal_that_is_not_recorded_leaves_its_number_to_the_next_event() -> None:
    window, [first, second] = window_with(2)
    window.take()
    assert window.answered(refused(first, Refusal.UNKNOWN_JOB, expected=1)) is not None
    assert window.answered(refused(second, Refusal.OUT_OF_SEQUENCE, expected=1)) is None
    assert [second] == window.take()
    assert 1 == second.number


def test_a_refusal_that_is_not_recorded_with_nothing_behind_it_is_followed_by_the_same_number() -> None:
    window, [first] = window_with(1)
    window.take()
    window.answered(refused(first, Refusal.QUEUE_FULL, expected=1))
    assert 1 == window.next_number


def test_everything_behind_a_lost_message_flies_again_once() -> None:
    window, entries = window_with(5)
    take_all(window)
    for late in entries[1:]:
        assert window.answered(Outcome(late.number or 0, late.digest, 0, Refusal.OUT_OF_SEQUENCE, 1)) is None
        again = take_all(window)
        assert (entries if late is entries[1] else []) == again
    assert not window.wants_sync


def test_rate_limited_events_wait_and_fly_again() -> None:
    window, entries = window_with(3)
    for _ in range(4):
        take_all(window)
        assert window.answered(refused(entries[0], Refusal.RATE_LIMITED, expected=1)) is None
        assert window.rate_limited
        window.rate_limited = False
        assert 0 == len(window.flying)
    assert entries == take_all(window)


def test_a_number_that_somebody_else_used_makes_the_market_be_asked() -> None:
    window, entries = window_with(2)
    take_all(window)
    assert window.answered(refused(entries[0], Refusal.OUT_OF_SEQUENCE, expected=7)) is None
    assert window.wants_sync
    assert [] == window.synced(6, ())
    assert not window.wants_sync
    assert entries == take_all(window)
    assert [7, 8] == [entry.number for entry in entries]


def test_a_sync_settles_what_was_accepted_while_nobody_listened() -> None:
    window, [first, second, third] = window_with(3)
    take_all(window)
    kept = tuple(Outcome(entry.number, entry.digest[:16], 5) for entry in (first, second))
    assert [first, second] == [settled.entry for settled in window.synced(2, kept)]
    assert [third] == take_all(window)
    assert 3 == third.number


def test_events_of_a_dead_process_are_recognised_by_their_hash_alone() -> None:
    window, [sent, unsent] = window_with(2)
    kept = (Outcome(8, event_hash(KEY, 8, sent.body)[:16], 55), Outcome(9, b"z" * 16, 56))
    assert [sent] == [settled.entry for settled in window.synced(9, kept)]
    assert [unsent] == take_all(window)
    assert 10 == unsent.number


def test_two_equal_events_are_settled_one_by_one() -> None:
    window = SendWindow(KEY, 0)
    twins = [Entry(b"1", b"same"), Entry(b"2", b"same")]
    for entry in twins:
        window.add(entry)
    kept = (Outcome(1, event_hash(KEY, 1, b"same")[:16], 55),)
    assert [twins[0]] == [settled.entry for settled in window.synced(1, kept)]
    assert [twins[1]] == take_all(window)


def test_an_answer_that_overtook_the_sync_is_not_taken_back() -> None:
    window, [first, second] = window_with(2)
    window.take()
    window.answered(accepted(first))
    window.answered(accepted(second))
    window.synced(1, ())
    assert 3 == window.next_number


def test_a_market_that_has_forgotten_numbers_is_followed_back() -> None:
    """An operator restored an older ledger."""
    window, [entry] = window_with(1, last_number=50)
    window.take()
    window.answered(refused(entry, Refusal.OUT_OF_SEQUENCE, expected=21))
    assert [entry] == window.take()
    assert 21 == entry.number


def test_answers_about_other_processes_of_the_key_move_the_next_number() -> None:
    window, [mine] = window_with(1)
    assert window.answered(Outcome(4, b"x" * 32, 77)) is None
    assert 5 == window.next_number
    found = window.answered(Outcome(5, event_hash(KEY, 5, mine.body), 78))
    assert found is not None and found.entry is mine, "another process sent it for us"
    assert 6 == window.next_number


def test_an_answer_heard_twice_changes_nothing() -> None:
    window, [first, second] = window_with(2)
    window.take()
    once = accepted(first)
    assert window.answered(once) is not None
    assert window.answered(once) is None
    assert not window.wants_sync
    assert [second] == list(window.flying.values())


def test_an_unknown_key_is_said_and_nothing_is_given_up() -> None:
    window, [entry] = window_with(1)
    window.take()
    assert window.answered(refused(entry, Refusal.UNKNOWN_KEY, expected=1)) is None
    assert window.key_unknown
    assert 1 == window.unanswered


@pytest.mark.parametrize("renewable", [True, False])
def test_an_expired_key_is_fatal_to_an_event_only_when_no_other_can_be_had(renewable: bool) -> None:
    window, [entry] = window_with(1)
    window.renewable = renewable
    window.take()
    settled = window.answered(refused(entry, Refusal.KEY_EXPIRED, expected=1))
    assert renewable == (settled is None) == window.key_expired


def test_only_what_was_never_sent_can_be_withdrawn() -> None:
    window, [first, second] = window_with(2)
    assert window.withdraw(second.id)
    window.grounded(window.take())
    assert (1, 0) == (window.next_number, first.flights)
    window.take()
    assert not window.withdraw(first.id)
    window.restart(0)
    assert not window.withdraw(first.id), "it was sent once, and may have arrived"


def test_what_is_drained_keeps_its_order() -> None:
    window, entries = window_with(150)
    take_all(window)
    assert entries == window.drain()
    assert 0 == window.unanswered


class Intake:
    """What the matcher does with the numbers of one key, on a road that loses and repeats messages and answers."""

    def __init__(self, chance: random.Random, loss: float) -> None:
        self.chance = chance
        self.loss = loss
        self.last = 0
        self.taken: list[bytes] = []
        self.outcomes: dict[int, Outcome] = {}

    def send(self, batch: list[Entry]) -> list[Outcome]:
        if self.chance.random() < self.loss:
            return []
        answers = [self._one(entry.number, entry.digest, entry.body) for entry in batch]
        return [] if self.chance.random() < self.loss else answers

    def _one(self, number: int, digest: bytes, body: bytes) -> Outcome:
        if number <= self.last:
            kept = self.outcomes.get(number)
            if kept is not None and kept.hash == digest[:16]:
                return Outcome(number, digest, kept.seq, kept.reason)
            return Outcome(number, digest, 0, Refusal.OUT_OF_SEQUENCE, self.last + 1)
        if number != self.last + 1:
            return Outcome(number, digest, 0, Refusal.OUT_OF_SEQUENCE, self.last + 1)
        if self.chance.random() < 0.05:
            return Outcome(number, digest, 0, Refusal.RATE_LIMITED, number)
        reason = Refusal.UNKNOWN_JOB if self.chance.random() < 0.1 else None
        if reason is not None and self.chance.random() < 0.5:
            return Outcome(number, digest, 0, reason, number)  # not recorded: the number stays free
        self.last = number
        self.taken.append(body)
        self.outcomes[number] = Outcome(number, digest[:16], 1000 + number, reason)
        self.outcomes.pop(number - 256, None)
        return Outcome(number, digest, 1000 + number, reason)


@given(st.integers(0, 2**32), st.integers(1, 400), st.sampled_from([0.0, 0.05, 0.3]))
def test_whatever_the_road_loses_every_event_is_answered_once_and_taken_in_order(seed: int, count: int, loss: float) -> None:
    chance = random.Random(seed)
    market, (window, entries) = Intake(chance, loss), window_with(count)
    answered: list[bytes] = []
    for _ in range(20_000):
        if not window.unanswered:
            break
        answers: list[Outcome] = []
        while batch := window.take():
            answers += market.send(batch)
        for outcome in answers:
            settled = window.answered(outcome)
            if settled is not None:
                answered.append(settled.entry.body)
        if window.wants_sync or not answers:
            answered += [settled.entry.body for settled in window.synced(market.last, tuple(market.outcomes.values()))]
    assert sorted(entry.body for entry in entries) == sorted(answered)
    assert len(market.taken) == len(set(market.taken)), "an event was taken twice"
    order = {entry.body: place for place, entry in enumerate(entries)}
    assert market.taken == sorted(market.taken, key=order.__getitem__), "events were taken out of order"
