"""A wallet's live feed: frames in, its events in order out, and whether one is missing. Pure.

Each frame says which event concerned the wallet before it, so a lost frame is seen at the next one. Then frames are held until the
market has said where the wallet stands; what it said covers everything that was told before it was asked.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from events.codec import Malformed, decode_written
from events.fact import Event
from events.jobs import JobSubmitted
from events.wire import LiveFrame

log = logging.getLogger("bazaar.client")

HELD_MAX = 10_000


class Received(NamedTuple):
    """An event that concerns this wallet, at its place in the ledger. `order` and `buyer` come with a match for our node."""

    seq: int
    time_ms: int
    sender: str
    event: Event
    order: JobSubmitted | None
    buyer: str


class Feed:
    """Where a wallet's feed stands. It starts with a gap: nothing is known before the first answer."""

    def __init__(self) -> None:
        self.last_seen = 0
        """The last event that concerned the wallet, as far as we know."""
        self.gap = True
        """Whether the market must say where we stand before events are passed on."""
        self._held: list[LiveFrame] = []

    def hear(self, frame: LiveFrame) -> list[Received]:
        """The new events of a frame; none while there is a gap."""
        if frame.prev > self.last_seen:
            self.gap = True
        if self.gap:
            if frame.events and len(self._held) < HELD_MAX:
                self._held.append(frame)
            return []
        return self._unpack(frame)

    def asking(self) -> None:
        """The market is asked now: its answer covers all that was held so far."""
        self._held.clear()

    def covers(self, prev: int) -> bool:
        """Whether an answer with this last event tells more than the feed did."""
        return self.gap or prev > self.last_seen

    def resume(self, prev: int) -> list[Received]:
        """The market has said where we stand; the events that it told of since then."""
        self.gap, self.last_seen = False, prev
        held, self._held = self._held, []
        return [received for frame in held for received in self.hear(frame)]

    def _unpack(self, frame: LiveFrame) -> list[Received]:
        found = []
        for told in frame.events:
            if told.seq <= self.last_seen:
                continue
            self.last_seen = told.seq
            try:
                event = decode_written(told.body)
            except Malformed as error:
                log.warning("event %d cannot be read, a newer market? %.100s", told.seq, error)
                continue
            found.append(Received(told.seq, frame.time_ms, told.sender, event, told.order, told.buyer))
        return found
