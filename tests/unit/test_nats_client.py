"""What the library behind a connection is made to do otherwise, seen from the other end of the wire."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from events.connection import Connection, ServiceKey
from events.errors import MarketUnreachable
from services import market_keys

INFO = {"server_id": "S", "version": "2.12.0", "max_payload": 1 << 20, "headers": True, "nonce": "once", "auth_required": True, "proto": 1}


class Recorder:
    """A broker that answers pings, and writes down in which order it hears what."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self._ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(INFO).encode() + b"\r\n")
        with suppress(ConnectionError):
            while line := (await reader.readline()).decode().strip():
                words = line.split()
                self.heard.append(" ".join(words[:2]))
                if words[0] == "PUB":
                    await reader.readexactly(int(words[-1]) + 2)
                elif words[0] == "PING":
                    await self.answers.wait()
                    writer.write(b"PONG\r\n")
            writer.close()
            await writer.wait_closed()
        self._ended.set()

    async def end(self) -> None:
        async with asyncio.timeout(10):
            await self._ended.wait()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, Recorder]]:
    recorder = Recorder()
    server = await asyncio.start_server(recorder, "127.0.0.1", 0)
    connection = Connection(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", ServiceKey(market_keys.make_seed()), "test")
    try:
        yield await connection.open(), recorder
    finally:
        recorder.answers.set()
        await connection.close()
        await recorder.end()
        server.close()


async def test_a_flush_returns_when_the_broker_has_heard_all_that_was_said_before() -> None:
    """Else a message that is sent right after it, by somebody else, can come before the subscription."""
    async with connected() as (connection, recorder):
        recorder.heard.clear()
        await connection.subscribe("subject.a", lambda message: None)
        await connection.publish("subject.b", b"said before")
        await connection.flush()
        assert ["SUB subject.a", "PUB subject.b", "PING"] == recorder.heard


async def test_an_answer_that_comes_too_late_ends_no_connection() -> None:
    async with connected() as (connection, recorder):
        recorder.answers.clear()
        with pytest.raises(MarketUnreachable):
            await connection.flush(0.05)
        recorder.answers.set()
        await connection.flush()
        await connection.flush()
        assert (True, 1) == (connection.is_up, connection.generation)
