"""Which of a key's events may be sent now, under which numbers, and what an answer means for the rest: go-back-N, pure.

The market takes the numbers of a key without a gap. So events fly in order, at most WINDOW unanswered; when one is not taken, all
after it are void and fly again. Sending, time and storage are the market client's.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

from events.codec import BATCH_MAX, EVENT_BYTES_MAX
from events.envelope import event_hash
from events.gangs import ranks_from
from events.reasons import Refusal
from events.wire import Outcome

WINDOW = 120
"""Unanswered numbers of one key: less than half of what the intake holds of one wallet."""
BATCH_BYTES_MAX = EVENT_BYTES_MAX
SETTLED_KEPT = 256
"""Outcomes that the market's fold keeps of a key, and that are remembered here."""
HASH_KEPT = 16
"""As much of an event's hash as the market's fold keeps."""

RETRIED = frozenset({Refusal.OUT_OF_SEQUENCE, Refusal.RATE_LIMITED, Refusal.UNKNOWN_KEY})
"""Refusals that are about how an event came, not about what it says: it is sent again. So is KEY_EXPIRED while a new key can be had."""


class Entry:
    """An event that wants an answer. `id` is the outbox's; `number` is 0 while it waits."""

    __slots__ = ("body", "digest", "flights", "id", "number", "together")

    def __init__(self, id: bytes, body: bytes) -> None:
        self.id = id
        self.body = body
        self.number = 0
        self.digest = b""
        self.flights = 0
        """How often it was sent: from the first time on the market may have taken it."""
        self.together = ranks_from(body)
        """So many events, from this one on, fly in one envelope: the market takes all ranks of a gang, or none."""

    def __repr__(self) -> str:
        return f"Entry({self.id.hex()[:8]}, number {self.number})"


class Settled(NamedTuple):
    """An entry with its final answer."""

    entry: Entry
    outcome: Outcome


class SendWindow:
    """The events of one session key. Its owner reads the flags after every answer and clears them."""

    def __init__(self, key: bytes, last_number: int) -> None:
        self.key = key
        self.next_number = last_number + 1
        self.waiting: deque[Entry] = deque()
        self.flying: dict[int, Entry] = {}
        self.wants_sync = False
        """What the market has of this key is not what we believed: ask it."""
        self.rate_limited = False
        self.key_unknown = False
        self.key_expired = False
        self.renewable = True
        """Whether another key can follow this one."""
        self._gone_back_to = 0
        self._settled: dict[int, bytes] = {}

    @property
    def unanswered(self) -> int:
        """Entries without a final answer."""
        return len(self.waiting) + len(self.flying)

    @property
    def last_number(self) -> int:
        """The last number that the market has used, as far as we know when nothing flies."""
        return self.next_number - 1

    def add(self, entry: Entry) -> None:
        """Queue an event behind all others."""
        entry.number = 0
        self.waiting.append(entry)

    def add_first(self, entry: Entry) -> None:
        """Queue an event before all others; nothing may fly."""
        assert not self.flying
        entry.number = 0
        self.waiting.appendleft(entry)

    def take(self) -> list[Entry]:
        """The next envelope: events that fly from now on, numbered without a gap; empty when nothing may be sent."""
        room = min(WINDOW - len(self.flying), BATCH_MAX)
        taken: list[Entry] = []
        size = 0
        while self.waiting and len(taken) < room:
            entry = self.waiting[0]
            size += len(entry.body)
            if taken and size > BATCH_BYTES_MAX - BATCH_MAX:
                break
            if entry.together > 1 and (taken or self.flying) and not self._fits(entry.together, room - len(taken), size - len(entry.body)):
                break
            del self.waiting[0]
            entry.number = self.next_number
            entry.flights += 1
            entry.digest = event_hash(self.key, entry.number, entry.body)
            self.flying[entry.number] = entry
            self.next_number += 1
            taken.append(entry)
        return taken

    def _fits(self, number: int, room: int, size: int) -> bool:
        """Whether the next so many events fit into this envelope."""
        return number <= room and size + sum(len(entry.body) for entry in islice(self.waiting, number)) <= BATCH_BYTES_MAX - BATCH_MAX

    def grounded(self, taken: list[Entry]) -> None:
        """What `take` gave could not be sent after all."""
        for entry in taken:
            entry.flights -= 1
        self.restart(taken[0].number - 1)

    def answered(self, outcome: Outcome) -> Settled | None:
        """What one answer to a message of this key settles; it may also set a flag."""
        entry = self.flying.get(outcome.number)
        if entry is None or not _same(entry.digest, outcome.hash):
            return self._stray(outcome)
        if outcome.reason in RETRIED or (outcome.reason is Refusal.KEY_EXPIRED and self.renewable):
            self._retry(outcome)
            return None
        self._gone_back_to = 0
        if not _used(outcome):
            self._free(outcome.number)
        return self._settle(entry, outcome)

    def synced(self, last_number: int, outcomes: tuple[Outcome, ...]) -> list[Settled]:
        """What the market itself says about the key: the last number it used, and how the latest ended. The rest flies again."""
        settled = []
        for outcome in outcomes:
            found = self._by_hash(outcome)
            if found is not None:
                settled.append(self._settle(found, outcome))
        self.restart(max(last_number, max(self._settled, default=0)))  # an answer may have overtaken the sync
        return settled

    def restart(self, last_number: int) -> None:
        """Everything unsettled waits again, in order; the next number follows this one."""
        back = [self.flying[number] for number in sorted(self.flying)]
        for entry in back:
            entry.number = 0
        self.flying.clear()
        self.waiting.extendleft(reversed(back))
        self.next_number = last_number + 1
        self._gone_back_to = 0
        self.wants_sync = False

    def withdraw(self, id: bytes) -> bool:
        """Take back an event that was never sent. Whether it was possible."""
        for entry in self.waiting:
            if entry.id == id and not entry.flights:
                self.waiting.remove(entry)
                return True
        return False

    def drain(self) -> list[Entry]:
        """Every unsettled event in order, taken out: they go on under another key."""
        self.restart(self.last_number)
        drained = list(self.waiting)
        self.waiting.clear()
        return drained

    def _retry(self, outcome: Outcome) -> None:
        if outcome.reason is Refusal.UNKNOWN_KEY:
            self.key_unknown = True
        elif outcome.reason is Refusal.KEY_EXPIRED:
            self.key_expired = True
        else:
            self._go_back(outcome)

    def _go_back(self, outcome: Outcome) -> None:
        """Everything in flight behind the first refused message is refused as well: of those answers only the first one counts."""
        expected = outcome.expected or outcome.number
        limited = outcome.reason is Refusal.RATE_LIMITED
        if expected == self._gone_back_to and not limited:
            return
        if expected > min(self.flying):
            self.wants_sync = True  # an answer was lost, or somebody else uses this key
            return
        self.rate_limited = self.rate_limited or limited
        self.restart(expected - 1)
        self._gone_back_to = expected

    def _settle(self, entry: Entry, outcome: Outcome) -> Settled:
        if self.flying.get(entry.number) is entry:
            del self.flying[entry.number]
        else:
            self.waiting.remove(entry)
        if _used(outcome):
            self._settled[outcome.number] = outcome.hash[:HASH_KEPT]
            self._settled.pop(outcome.number - SETTLED_KEPT, None)
        return Settled(entry, outcome)

    def _free(self, number: int) -> None:
        """This number was refused without being used up: when nothing flies after it, the next event gets it."""
        if self.next_number == number + 1:
            self.next_number = number

    def _stray(self, outcome: Outcome) -> Settled | None:
        """An answer to something that does not fly as that: an earlier sending of ours, or another process of this home."""
        if not _used(outcome) or self._settled.get(outcome.number) == outcome.hash[:HASH_KEPT]:
            return None
        if self.flying:
            self.wants_sync = True
        elif outcome.number >= self.next_number:
            self.next_number = outcome.number + 1
        found = self._by_hash(outcome)
        return None if found is None else self._settle(found, outcome)

    def _by_hash(self, outcome: Outcome) -> Entry | None:
        """The entry that this used number is about, whatever number it has here. What was sent once stands at the front."""
        if not _used(outcome) or self._settled.get(outcome.number) == outcome.hash[:HASH_KEPT]:
            return None
        for entry in (*self.flying.values(), *islice(self.waiting, SETTLED_KEPT)):
            if _same(event_hash(self.key, outcome.number, entry.body), outcome.hash):
                return entry
        return None


def _same(ours: bytes, theirs: bytes) -> bool:
    return len(theirs) >= HASH_KEPT and ours[: len(theirs)] == theirs


def _used(outcome: Outcome) -> bool:
    """Whether the number is used up: the event, or its refusal, stands in the ledger."""
    return outcome.reason is None or outcome.seq > 0
