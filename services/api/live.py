"""`/v1/events`: the ledger's events as JSON pages, and as server-sent events that go on as it grows.

The id of an event is its sequence in the ledger, so a reader who comes back with the last one it saw goes on there, whatever happened to
this process meanwhile. Frames are made once and shared; a reader that does not read holds one chunk, nothing more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec
from fastapi import Request
from fastapi.responses import Response
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from events.errors import BazaarError
from services.api import queries
from services.api.access import Viewer
from services.api.asking import Asked, Endpoint, Reply, Source
from services.api.event_feed import EventView
from services.api.history import History, json_for
from services.api.paging import LIMIT_DEFAULT, BySeq
from services.api.paging import read as read_cursor
from services.api.paging import write as write_cursor
from services.api.problems import ProblemFound, Trouble, bad_query
from services.api.pulse import EVENTS_PER_CHUNK, Pulse, framed
from services.api.rights import Rights

STREAMS_MAX, STREAMS_PER_READER = 500, 50
"""Open at once, of all readers and of one; the owner of the machine may have all."""
RESUMED_EVENTS_MAX = 100_000
"""Who comes back later than this is told to begin with a snapshot."""
PING_S = 15
SEND_TIMEOUT_S = 30.0
RETRY_MS = 1000


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first."""

    items: list[msgspec.Raw]
    next_cursor: str | None


class EventPageShape(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first."""

    items: list[EventView]
    next_cursor: str | None


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """The data of an SSE event `reset`: read the snapshot; the events after `as_of_seq` follow."""

    snapshot: str
    as_of_seq: int


async def events(asked: Asked) -> Reply:
    """Events from a place on, oldest first; without a place, the latest ones."""
    as_of_seq, limit = asked.as_of_seq, asked.value("limit", LIMIT_DEFAULT)
    cursor = read_cursor(asked.value("cursor"), BySeq)
    after_seq = cursor.seq if cursor is not None else asked.value("from_seq", as_of_seq - limit + 1) - 1
    entries = await History(asked.source).after(max(0, after_seq), limit, asked.viewer)
    shown = [entry for entry in entries if entry.record.seq <= as_of_seq]
    more = bool(shown) and shown[-1].record.seq < as_of_seq
    page = EventPage(
        items=[msgspec.Raw(json_for(entry, asked.viewer)) for entry in shown],
        next_cursor=write_cursor(BySeq(shown[-1].record.seq)) if more else None,
    )
    return Reply(as_of_seq, page)


EVENTS = Endpoint("/v1/events", events, EventPageShape, "What happened, in order; also as a stream.", queries.EVENTS)


def wants_stream(request: Request) -> bool:
    """Whether a reader of `/v1/events` gets the stream: unless it asks for JSON and not for a stream."""
    accepted = request.headers.get("accept", "")
    return "text/event-stream" in accepted or "json" not in accepted


class Place(NamedTuple):
    """Where a stream begins. `is_reset`: the reader's place is too far back; it is told to look at the whole anew."""

    after_seq: int
    is_reset: bool = False


class Streams:
    """Every open stream of this process."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._open = 0
        self._readers: Counter[Viewer] = Counter()
        self._closing = False
        self._pulse: Pulse | None = None

    def __len__(self) -> int:
        return self._open

    def close(self) -> None:
        """End all of them, so that the server can end."""
        self._closing = True
        if self._pulse is not None:
            self._pulse.ring()

    def respond(self, request: Request, source: Source, rights: Rights) -> Response:
        """A stream from where the reader wants it, which ends with its `rights`. Raises ProblemFound."""
        viewer = rights.grant.viewer
        values = queries.read(request.query_params.multi_items(), queries.STREAM)
        if viewer == Viewer():
            raise ProblemFound(Trouble.TOKEN_REQUIRED)
        place = _begin(request, values.get("from_seq"), source.mirror.market.last_seq)
        if self._open >= STREAMS_MAX or (self._readers[viewer] >= STREAMS_PER_READER and not viewer.sees_all):
            raise ProblemFound(Trouble.TOO_MANY_STREAMS)
        if request.scope.get("bazaar.head"):
            return Response(headers={"cache-control": "no-store"}, media_type="text/event-stream")
        if self._pulse is None or self._pulse.mirror is not source.mirror:
            self._pulse = Pulse(source.mirror)
        frames = self._frames(source, self._pulse, rights, place, telemetry=values.get("telemetry", False))
        return _Stream(frames, ping=PING_S, sep="\n", send_timeout=SEND_TIMEOUT_S)

    def _may_go_on(self, pulse: Pulse, rights: Rights) -> bool:
        """Whether a stream may show what is folded by now."""
        return not self._closing and rights.hold(pulse.mirror.rights, self._now_ms())

    async def _frames(self, source: Source, pulse: Pulse, rights: Rights, place: Place, *, telemetry: bool) -> AsyncIterator[bytes]:
        viewer = rights.grant.viewer
        self._open += 1
        self._readers[viewer] += 1
        pulse.enter(telemetry=telemetry)
        after_seq, readings = place.after_seq, pulse.telemetry_number
        try:
            yield b"retry: %d\n\n" % RETRY_MS + (_reset(after_seq) if place.is_reset else b"")
            while self._may_go_on(pulse, rights):
                rings, before_seq = pulse.rings, after_seq
                try:
                    at_hand = pulse.frame(after_seq, viewer)
                    chunk, after_seq = at_hand or await _from_ledger(source, after_seq, viewer)
                except BazaarError:
                    return  # the reader comes back, with the last event it saw
                if at_hand is None and not self._may_go_on(pulse, rights):
                    return  # they ended while the ledger was read
                if telemetry and readings != pulse.telemetry_number:
                    readings, chunk = pulse.telemetry_number, chunk + pulse.telemetry
                if chunk:
                    yield chunk
                if at_hand is not None and after_seq - before_seq < EVENTS_PER_CHUNK:
                    await pulse.after(rings, rights.left_ms(self._now_ms()))
        finally:
            pulse.leave(telemetry=telemetry)
            self._open -= 1
            self._readers[viewer] -= 1
            if not self._readers[viewer]:
                del self._readers[viewer]


async def _from_ledger(source: Source, after_seq: int, viewer: Viewer) -> tuple[bytes, int]:
    """Events that memory no longer holds. Raises LogUnavailable."""
    entries = await History(source).after(after_seq, EVENTS_PER_CHUNK, viewer)
    return (framed(entries, viewer), entries[-1].record.seq) if entries else (b"", after_seq)


def _reset(as_of_seq: int) -> bytes:
    """Tells a reader to read the snapshot, as new as this at least, and that events follow from there on."""
    told = Reset(snapshot=f"/v1/state?min_seq={as_of_seq}", as_of_seq=as_of_seq)
    return b"event: reset\nid: %d\ndata: %s\n\n" % (as_of_seq, msgspec.json.encode(told))


class _Stream(EventSourceResponse):
    """A stream whose reader may stop reading: that ends it, and is no fault of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """As the library does, at a third of its cost: this happens thousands of times a second."""
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)
        except TimeoutError:
            raise SendTimeoutError from None


def _begin(request: Request, from_seq: int | None, last_seq: int) -> Place:
    """After which event a stream begins. What a browser saw last counts before what its address says.

    Who names a place in the address gets everything from there on; who only comes back, and late, does better with a snapshot.
    """
    seen = request.headers.get("last-event-id")
    if not seen:
        return Place(last_seq if from_seq is None else max(0, from_seq - 1))
    if not seen.isascii() or not seen.isdigit() or len(seen) > 19:
        raise bad_query("Last-Event-ID", "it is no place in the ledger")
    if from_seq is None and int(seen) < last_seq - RESUMED_EVENTS_MAX:
        return Place(last_seq, is_reset=True)
    return Place(int(seen))
