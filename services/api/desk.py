"""Where questions are answered, whichever way they came: checks the query, waits for `min_seq`, asks the endpoint, makes the bytes.

Answers are kept (shelf.py), and one that is being made is made once for all who ask for it meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from hashlib import blake2b
from typing import Any
from urllib.parse import urlencode

import msgspec

from events.errors import BazaarError
from services.api import queries
from services.api.access import Viewer
from services.api.asking import Asked, Endpoint, Reply, Source
from services.api.past import moment
from services.api.problems import ProblemFound, Trouble
from services.api.shelf import Answer, Shelf

NAME_CHARACTERS_MAX = 64
_encoder = msgspec.json.Encoder()

Pairs = tuple[tuple[str, str], ...]


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Desk:
    """Answers questions about one market, once it has a source to answer from."""

    def __init__(self, endpoints: Iterable[Endpoint], now_ms: Callable[[], int] = wall_ms) -> None:
        self.endpoints = tuple(endpoints)
        self.source: Source | None = None
        """None until the ledger is read for the first time."""
        self.now_ms = now_ms
        self._paths = {endpoint.path: endpoint for endpoint in self.endpoints}
        self._shelf = Shelf()
        self._making: dict[object, asyncio.Future[Answer | None]] = {}

    def find(self, path: str) -> tuple[Endpoint, str]:
        """The endpoint of a path and the id in it. Raises ProblemFound."""
        endpoint = self._paths.get(path)
        if endpoint is not None and "{" not in path:
            return endpoint, ""
        parts = path.split("/", 4)  # ["", "v1", "jobs", the id, what of it]
        if len(parts) > 3 and 1 <= len(parts[3]) <= NAME_CHARACTERS_MAX:
            name, parts[3] = parts[3], "{name}"
            endpoint = self._paths.get("/".join(parts))
            if endpoint is not None:
                return endpoint, name
        raise ProblemFound(Trouble.NOT_FOUND)

    def ready_source(self) -> Source:
        """Where answers come from. Raises ProblemFound."""
        if self.source is None:
            raise ProblemFound(Trouble.NOT_READY)
        return self.source

    async def answer(self, endpoint: Endpoint, name: str, pairs: Pairs, viewer: Viewer) -> Answer:
        """The answer to one question. Raises ProblemFound."""
        values = queries.read(pairs, (*endpoint.parameters, queries.AS_OF) if endpoint.past else endpoint.parameters)
        source = self.ready_source()
        if not endpoint.public and viewer == Viewer():
            raise ProblemFound(Trouble.TOKEN_REQUIRED)
        await caught_up(source, values)
        if not endpoint.keep:
            return await self._make(endpoint, name, pairs, viewer, values)
        question = (endpoint.path, name, pairs, viewer)
        min_seq = values.get("min_seq", 0)
        while True:
            found = self._shelf.find(question, version=source.mirror.version, now_ms=self.now_ms(), now_s=time.monotonic())
            if found is not None and found.as_of_seq >= min_seq:
                return found
            making = self._making.get(question)
            if making is None:
                break
            made = await asyncio.shield(making)
            if made is not None:
                return made
        return await self._lead(question, self._make(endpoint, name, pairs, viewer, values))

    async def _lead(self, question: object, work: Awaitable[Answer]) -> Answer:
        """Make an answer, also for those who ask for the same meanwhile; when that fails they try for themselves."""
        making: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._making[question] = making
        made = None
        try:
            made = await work
            return made
        finally:
            del self._making[question]
            if not making.done():
                making.set_result(made)

    async def _make(self, endpoint: Endpoint, name: str, pairs: Pairs, viewer: Viewer, values: dict[str, Any]) -> Answer:
        """Ask the endpoint; keep what it answers if it may be kept. Raises ProblemFound."""
        source = self.ready_source()
        now_ms, began_s, version = self.now_ms(), time.monotonic(), source.mirror.version
        try:
            asked = Asked(source, viewer, values, name, now_ms)
            reply = await endpoint.handle(await _as_of(asked) if endpoint.past and "as_of" in values else asked)
        except BazaarError as error:
            raise ProblemFound(Trouble.NOT_READY, error.what) from error
        made = _made(reply, pairs)
        if endpoint.keep:
            key, now_s = (endpoint.path, name, pairs, viewer), time.monotonic()
            self._shelf.keep(key, made, version=version, now_ms=now_ms, now_s=now_s, took_s=now_s - began_s)
        return made


async def _as_of(asked: Asked) -> Asked:
    """The same question, asked of the market as it was. Raises ProblemFound, LogUnavailable."""
    until = moment(asked.values["as_of"], asked.as_of_seq, asked.now_ms)
    mirror = await asked.source.past.mirror(until, asked.viewer)
    source = asked.source._replace(mirror=mirror)
    return asked._replace(source=source, now_ms=max(mirror.market.time_ms, until.time_ms or 0))


async def caught_up(source: Source, values: dict[str, object]) -> None:
    """Return once the ledger is read as far as the question wants. Raises ProblemFound."""
    min_seq = values.get("min_seq")
    if min_seq is None:
        return
    assert isinstance(min_seq, int)
    wait_s = values.get("wait", queries.WAIT_S_DEFAULT)
    assert isinstance(wait_s, int)
    if not await source.mirror.reached(min_seq, min(wait_s, queries.WAIT_S_MAX)):
        last_seq = source.mirror.market.last_seq
        raise ProblemFound(Trouble.NOT_READY, f"the ledger is read up to {last_seq}, and {min_seq} was asked for")


def _made(reply: Reply, pairs: Pairs) -> Answer:
    """The bytes: `as_of_seq` goes in front of an object that is made and hashed without it."""
    plain = reply.payload if isinstance(reply.payload, bytes) else _encoder.encode(reply.payload)
    assert plain[:1] == b"{"
    body = b'{"as_of_seq":%d%s%s' % (reply.as_of_seq, b"" if plain == b"{}" else b",", plain[1:])
    next_cursor: str | None = getattr(reply.payload, "next_cursor", None)
    next_query = None
    if next_cursor is not None:
        next_query = urlencode([*((name, text) for name, text in pairs if name != "cursor"), ("cursor", next_cursor)])
    return Answer(body, f'W/"{blake2b(plain, digest_size=12).hexdigest()}"', reply.as_of_seq, next_query)
