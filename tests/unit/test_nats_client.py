"""What the library behind a connection is made to do otherwise, seen from the other end of the wire."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from events.connection import Connection, ServiceKey
from services import market_keys

INFO = {"server_id": "S", "version": "2.12.0", "max_payload": 1 << 20, "headers": True, "nonce": "once", "auth_required": True, "proto": 1}


class Recorder:
    """A broker that answers pings, and writes down in which order it hears what."""

    def __init__(self) -> None:
        self.heard: list[str] = []
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
                    writer.write(b"PONG\r\n")
            writer.close()
            await writer.wait_closed()
        self._ended.set()

    async def end(self) -> None:
        async with asyncio.timeout(10):
            await self._ended.wait()


async def test_a_flush_returns_when_the_broker_has_heard_all_that_was_said_before() -> None:
    """Else a message that is sent right after it, by somebody else, can come before the subscription."""
    recorder = Recorder()
    server = await asyncio.start_server(recorder, "127.0.0.1", 0)
    connection = Connection(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", ServiceKey(market_keys.make_seed()), "test")
    await connection.open()
    recorder.heard.clear()
    await connection.subscribe("subject.a", lambda message: None)
    await connection.publish("subject.b", b"said before")
    await connection.flush()
    assert ["SUB subject.a", "PUB subject.b", "PING"] == recorder.heard
    await connection.close()
    await recorder.end()
    server.close()
