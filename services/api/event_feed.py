"""The newest events in memory, with whom they concern, and their JSON made once for all readers.

Older ones are read back from the ledger; what a stranger may read of another's job is decided here, by leaving fields out.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import Any, NamedTuple

import msgspec

from events.page import Record

KEPT = 10_000

NEVER_SHOWN = ("output_token", "token_sha256", "wallet_signature", "text", "alias")
"""Names of live subjects, tokens and logins, and what members call each other: nobody needs them to know what happened."""
PRIVATE = ("name", "labels", "program", "detail", "requirements", "variants", "image_digest")
"""Of another party's job: that it is there, not what it is called, runs or says."""


class Owner(NamedTuple):
    """Whose job an event speaks of."""

    buyer: str
    org: str | None


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """One event of the ledger."""

    seq: int
    time_ms: int
    type: str
    sender: str | None
    """`None`: the market itself."""
    number: int | None
    """Of the sender's session key."""
    hash: str
    event: dict[str, Any]


def event_view(record: Record, *, private: bool) -> EventView:
    """The JSON of an event. `private`: also what only its owner may read."""
    fields = msgspec.to_builtins(record.event)
    hidden = NEVER_SHOWN if private else NEVER_SHOWN + PRIVATE
    return EventView(
        seq=record.seq,
        time_ms=record.time_ms,
        type=fields.pop("type"),
        sender=record.sender or None,
        number=record.number or None,
        hash=record.hash.hex(),
        event={name: value for name, value in fields.items() if name not in hidden},
    )


class Entry:
    """An event with its JSON, made when somebody first wants it."""

    __slots__ = ("_open", "_private", "owner", "record")

    def __init__(self, record: Record, owner: Owner | None) -> None:
        self.record = record
        self.owner = owner
        self._open: bytes | None = None
        self._private: bytes | None = None

    def json(self, *, private: bool) -> bytes:
        """For its owner, or for a stranger. Events that speak of no job are the same for all."""
        private = private or not hasattr(self.record.event, "job_id")
        known = self._private if private else self._open
        if known is None:
            known = msgspec.json.encode(event_view(self.record, private=private))
            if private:
                self._private = known
            else:
                self._open = known
        return known


class EventFeed:
    """The newest events, the oldest dropped, and a bell that rings when more have come."""

    def __init__(self, after_seq: int) -> None:
        self.complete_after = after_seq
        """Every event after this one is here."""
        self._entries: list[Entry] = []
        self._bell = asyncio.Event()

    def add(self, record: Record, owner: Owner | None) -> None:
        """The next event."""
        self._entries.append(Entry(record, owner))
        if len(self._entries) > 2 * KEPT:
            self.complete_after = self._entries[KEPT - 1].record.seq
            del self._entries[:KEPT]

    def after(self, seq: int, most: int) -> list[Entry]:
        """Events after this one, in order. Only for places that it is complete after."""
        assert seq >= self.complete_after
        start = bisect_right(self._entries, seq, key=lambda entry: entry.record.seq)
        return self._entries[start : start + most]

    def wake(self) -> None:
        """More have come."""
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def more(self, timeout_s: float) -> None:
        """Return when more have come, or after that time."""
        bell = self._bell
        try:
            async with asyncio.timeout(timeout_s):
                await bell.wait()
        except TimeoutError:
            return
