"""Where questions are answered, whichever way they came: checks the query, waits for `min_seq`, asks the endpoint, makes the bytes.

An answer is kept as long as nothing it is made of has changed, so that whoever polls costs next to nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from events.errors import BazaarError
from services.api import queries
from services.api.access import Viewer
from services.api.asking import Asked, Endpoint, Reply, Source
from services.api.past import moment
from services.api.problems import ProblemFound, Trouble

KEPT_BYTES = 16 << 20
_encoder = msgspec.json.Encoder()

Pairs = tuple[tuple[str, str], ...]


class Answer(NamedTuple):
    """The bytes of an answer. `etag`: the same as long as nothing but `as_of_seq` differs."""

    body: bytes
    etag: str
    as_of_seq: int
    next_query: str | None = None
    """The query of the next page."""


class _Kept(NamedTuple):
    version: int
    second: int
    answer: Answer


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
        self._patterns = [(re.compile(endpoint.path.replace("{name}", "([^/]{1,64})")), endpoint) for endpoint in self.endpoints]
        self._kept: dict[object, _Kept] = {}
        self._kept_bytes = 0

    def find(self, path: str) -> tuple[Endpoint, str]:
        """The endpoint of a path and the id in it. Raises ProblemFound."""
        for pattern, endpoint in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return endpoint, match[1] if match.groups() else ""
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
        now_ms = self.now_ms()
        key = (endpoint.path, name, pairs, viewer)
        kept = self._kept.get(key)
        version = source.mirror.version
        if kept is not None and kept.version == version and kept.second == now_ms // 1000:
            return kept.answer
        try:
            asked = Asked(source, viewer, values, name, now_ms)
            reply = await endpoint.handle(await _as_of(asked) if endpoint.past and "as_of" in values else asked)
        except BazaarError as error:
            raise ProblemFound(Trouble.NOT_READY, error.what) from error
        made = _made(reply, pairs)
        if endpoint.keep and version == source.mirror.version:
            self._keep(key, _Kept(version, now_ms // 1000, made))
        return made

    def _keep(self, key: object, kept: _Kept) -> None:
        before = self._kept.pop(key, None)
        self._kept_bytes += len(kept.answer.body) - (0 if before is None else len(before.answer.body))
        if self._kept_bytes > KEPT_BYTES:
            self._kept.clear()
            self._kept_bytes = len(kept.answer.body)
        self._kept[key] = kept


async def _as_of(asked: Asked) -> Asked:
    """The same question, asked of the market as it was. Raises ProblemFound, LogUnavailable."""
    until = moment(asked.values["as_of"], asked.as_of_seq, asked.now_ms)
    mirror = await asked.source.past.mirror(until)
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
