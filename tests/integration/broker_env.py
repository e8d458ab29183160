"""A broker of the tests' own, with the callout in front and wallets that log in as real ones do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from events.connection import Connection, Guest, Identity, ServiceKey, WalletKey
from events.nats_client import Message
from events.session import Session, make_session
from events.streams import api, ensure_streams
from events.values import Role
from events.wallet import KeySigner
from services import broker, market_keys
from services.broker import Broker, Place
from services.callout import LOGIN_S_MAX, Callout, verifier

MARKET_ID = "ab" * 32
OTHER_MARKET_ID = "cd" * 32
HOUR_MS = 3_600_000
SETTLE_S = 0.15
"""How long something that must not arrive is waited for, after the broker has answered a ping behind it."""


def now_ms() -> int:
    return int(time.time() * 1000)


async def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Poll until a condition holds and return its value; says what was waited for when it never does."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for: {what}"
        await asyncio.sleep(0.01)
    return value


def a_session(number: int, *, market_id: str = MARKET_ID, validity_ms: int = HOUR_MS, issued_ms: int | None = None) -> Session:
    """A fresh session key of wallet `number`."""
    signer = KeySigner(number.to_bytes(32, "big"))
    return make_session(signer, market_id, Role.BUYER, now_ms=now_ms() if issued_ms is None else issued_ms, validity_ms=validity_ms)


def login(session: Session) -> WalletKey:
    return WalletKey(session.seed, session.token, session.wallet)


class World:
    """One market's broker, callout and streams, and whoever connects to it."""

    def __init__(self, folder: Path) -> None:
        self.place = Place(folder)
        self.keys = market_keys.load_or_make(folder / "keys")
        self.broker: Broker
        self.connections: list[Connection] = []
        self.callout: list[Connection] = []
        self._background: set[asyncio.Future[None]] = set()
        self.services: Connection

    async def start(self, *, login_s_max: int = LOGIN_S_MAX) -> World:
        self.broker = await broker.start_async(self.place, self.keys)
        self.callout = await self.start_callout(login_s_max=login_s_max)
        self.services = await self.connect(ServiceKey(self.keys.market), "services")
        self.services.on_up(self._streams)
        await ensure_streams(self.services)
        return self

    async def start_callout(self, *, login_s_max: int = LOGIN_S_MAX) -> list[Connection]:
        """A callout, as the connections whose end is its end."""
        system = await self.connect(ServiceKey(self.keys.sys), "callout-system")
        auth = await self.connect(ServiceKey(self.keys.callout), "callout")
        await Callout(auth, system, self.keys, verifier(MARKET_ID), login_s_max=login_s_max).start()
        return [auth, system]

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this in the background; for subscriptions that are plain functions."""
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _streams(self) -> None:
        await ensure_streams(self.services)

    @property
    def url(self) -> str:
        return self.broker.url

    async def connect(self, identity: Identity, name: str, *, wait_s: float | None = 0.0, hasty: bool = False) -> Connection:
        """A connection, open; `hasty` ones come back sooner than wallets do."""
        connection = Connection(self.url, identity, name, reconnect_wait_s=0.05 if hasty else None, jitter_s=0.05 if hasty else None)
        self.connections.append(connection)
        return await connection.open(wait_s=wait_s)

    async def wallet(self, number: int) -> Connection:
        """Wallet `number`, connected with a fresh session key."""
        return await self.connect(login(a_session(number)), f"wallet {number}")

    async def guest(self) -> Connection:
        return await self.connect(Guest(market_keys.make_seed()), "guest")

    async def restart_broker(self) -> None:
        """kill -9, then another one on the same port and store."""
        port = int(self.broker.url.rpartition(":")[2])
        self.broker.process.kill()
        await asyncio.to_thread(self.broker.process.wait)
        self.place = Place(self.place.folder, port=port)
        self.broker = await broker.start_async(self.place, self.keys)

    async def stored(self, stream: str) -> int:
        """The last sequence of a stream."""
        return int((await api(self.services, f"STREAM.INFO.{stream}"))["state"]["last_seq"])

    async def settled(self, stream: str, last_seq: int, timeout_s: float = 20.0) -> None:
        """Return when the stream ends there: what was published is stored a little after a ping is answered."""
        deadline = time.monotonic() + timeout_s
        while (found := await self.stored(stream)) != last_seq:
            assert time.monotonic() < deadline, f"{stream} ends at {found}, not at {last_seq}"

    async def stop(self) -> None:
        for connection in reversed(self.connections):
            await connection.close()
        await self.broker.stop_async()


class Ear:
    """Everything that arrives on the subjects it listens to."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.heard: list[Message] = []

    async def on(self, *subjects: str) -> Ear:
        for subject in subjects:
            await self.connection.subscribe(subject, self.heard.append)
        await self.connection.flush()
        return self

    async def silence(self) -> list[Message]:
        """What arrived, once enough time has passed for anything that might."""
        await self.connection.flush()
        await asyncio.sleep(SETTLE_S)
        await self.connection.flush()
        return self.heard


class Complaints:
    """What the broker did not permit a connection."""

    def __init__(self, connection: Connection) -> None:
        self.texts: list[str] = []
        connection.on_violation = self.texts.append

    def about(self, subject: str) -> bool:
        return any(f'"{subject.lower()}"' in text.lower() for text in self.texts)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "market")
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


class RawLogin:
    """A connection below the library, for logins that no honest client would send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: str) -> None:
        self.reader, self.writer, self.nonce = reader, writer, nonce

    @classmethod
    async def open(cls, url: str) -> RawLogin:
        host, _, port = url.removeprefix("nats://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        greeting = await reader.readline()
        return cls(reader, writer, json.loads(greeting.removeprefix(b"INFO "))["nonce"])

    async def say(self, **options: Any) -> str:
        """The broker's answer to a CONNECT with these options: `PONG`, or its complaint."""
        self.writer.write(b"CONNECT " + json.dumps({"verbose": False, "protocol": 1, **options}).encode() + b"\r\nPING\r\n")
        try:
            await self.writer.drain()
            answer = (await asyncio.wait_for(self.reader.readline(), 10)).decode().strip()
            return answer or "hung up"
        except ConnectionError:
            return "hung up"
        finally:
            self.writer.close()
            with suppress(ConnectionError):
                await self.writer.wait_closed()
