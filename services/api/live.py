"""`/v1/events`: the ledger's events as JSON pages, and as server-sent events that go on as it grows.

The id of an event is its sequence in the ledger, so a reader who comes back with the last one it saw goes on there, whatever happened to
this process meanwhile. Frames are made once and shared; a reader that does not read holds one chunk, nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from fastapi import Request
from fastapi.responses import Response
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.types import Receive, Scope, Send

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

STREAMS_MAX = 500
EVENTS_PER_CHUNK = 500
COALESCE_S = 0.1
"""A stream gets at most ten chunks a second, whatever happens."""
PING_S = 15
IDLE_S = 60.0
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


class Streams:
    """Every open stream of this process."""

    def __init__(self) -> None:
        self._open = 0
        self._closing = False
        self._source: Source | None = None

    def __len__(self) -> int:
        return self._open

    def close(self) -> None:
        """End all of them, so that the server can end."""
        self._closing = True
        if self._source is not None:
            self._source.mirror.feed.wake()

    def respond(self, request: Request, source: Source, viewer: Viewer) -> Response:
        """A stream from where the reader wants it. Raises ProblemFound."""
        values = queries.read(request.query_params.multi_items(), (queries.FROM_SEQ,))
        if viewer == Viewer():
            raise ProblemFound(Trouble.TOKEN_REQUIRED)
        after_seq = _begin(request, values.get("from_seq"), source.mirror.market.last_seq)
        if self._open >= STREAMS_MAX:
            raise ProblemFound(Trouble.TOO_MANY_STREAMS)
        if request.scope.get("bazaar.head"):
            return Response(headers={"cache-control": "no-store"}, media_type="text/event-stream")
        self._source = source
        return _Stream(self._frames(source, viewer, after_seq), ping=PING_S, sep="\n", send_timeout=SEND_TIMEOUT_S)

    async def _frames(self, source: Source, viewer: Viewer, after_seq: int) -> AsyncIterator[bytes]:
        self._open += 1
        history, feed = History(source), source.mirror.feed
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            while not self._closing:
                try:
                    entries = await history.after(after_seq, EVENTS_PER_CHUNK, viewer)
                except BazaarError:
                    return  # the reader comes back, with the last event it saw
                if entries:
                    after_seq = entries[-1].record.seq
                    yield b"".join(b"id: %d\ndata: %s\n\n" % (entry.record.seq, json_for(entry, viewer)) for entry in entries)
                    await asyncio.sleep(COALESCE_S if len(entries) < EVENTS_PER_CHUNK else 0)
                else:
                    await feed.more(IDLE_S)
        finally:
            self._open -= 1


class _Stream(EventSourceResponse):
    """A stream whose reader may stop reading: that ends it, and is no fault of ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return


def _begin(request: Request, from_seq: int | None, last_seq: int) -> int:
    """After which event a stream begins. What a browser saw last counts before what its address says."""
    seen = request.headers.get("last-event-id")
    if seen:
        if not seen.isascii() or not seen.isdigit() or len(seen) > 19:
            raise bad_query("Last-Event-ID", "it is no place in the ledger")
        return int(seen)
    return last_seq if from_seq is None else max(0, from_seq - 1)
