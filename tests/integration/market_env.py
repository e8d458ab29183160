"""A whole market in one process, but for its broker: callout and matcher on a real nats-server, and clients that log in to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration.broker_env import MARKET_ID, World, now_ms

from events import ids
from events.connection import Connection, ServiceKey
from events.jobs import JobSubmitted
from events.market import MarketCreated, Policy
from events.market_client import MarketClient
from events.nats_log import NatsLog
from events.session import Session, make_session
from events.values import JobKind, Program, Role
from events.wallet import KeySigner
from services import genesis
from services.matcher.service import Matcher, MatcherKeys


def signer(number: int) -> KeySigner:
    return KeySigner(number.to_bytes(32, "big"))


def session_of(number: int, role: Role = Role.BUYER, *, validity_ms: int = 3_600_000) -> Session:
    return make_session(signer(number), MARKET_ID, role, now_ms=now_ms(), validity_ms=validity_ms)


def a_job(**changes: Any) -> JobSubmitted:
    usual = JobSubmitted(job_id=ids.job_id(os.urandom(12)), name="job", kind=JobKind.BATCH, program=Program(argv=("true",)), timeout_s=60)
    return msgspec.structs.replace(usual, **changes)


class MarketWorld:
    """The broker of `World` with a matcher that can be stopped and started."""

    def __init__(self, world: World, home: Path) -> None:
        self.world = world
        self.home = home
        self.matcher: Matcher
        self.connection: Connection
        self._running: asyncio.Task[None] | None = None
        self._clients: list[MarketClient] = []

    def genesis(self) -> MarketCreated:
        root = signer(999)
        made = genesis.create(
            root=root.address,
            sign=root.sign_text,
            name="tests",
            matcher_key=bytes(self.world.keys.page_key.verify_key),
            policy=Policy(max_queue=100_000),
            random=bytes(16),
            now_ms=now_ms(),
        )
        return msgspec.structs.replace(made, market_id=MARKET_ID)

    async def start_matcher(self) -> None:
        keys = self.world.keys
        self.connection = Connection(self.world.url, ServiceKey(keys.market), "matcher")
        self.matcher = Matcher(
            self.connection,
            NatsLog(self.connection),
            MatcherKeys(keys.page_key, keys.live_secret, keys.sealing_public),
            genesis=self.genesis(),
            snapshot_file=None,
            version="test",
        )
        self._running = asyncio.create_task(self.matcher.run())
        async with asyncio.timeout(20):
            await self.matcher.ready.wait()

    async def stop_matcher(self) -> None:
        """As if it were killed: nothing is said to anybody."""
        assert self._running is not None
        while not self._running.done():  # one cancellation may be swallowed by a wait that ends at the same moment
            self._running.cancel()
            await asyncio.sleep(0.005)
        await self.connection.close()

    async def client(self, session: Session, home: Path | None = None, *, wait_s: float = 5.0, **options: Any) -> MarketClient:
        client = MarketClient(self.world.url, session, home or self.home, name=f"client {len(self._clients)}", **options)
        self._clients.append(client)
        return await client.start(wait_s=wait_s)

    async def stop(self) -> None:
        for client in self._clients:
            await client.close()
        await self.stop_matcher()


@pytest.fixture(name="market")
async def a_market(world: World, tmp_path: Path) -> AsyncIterator[MarketWorld]:
    made = MarketWorld(world, tmp_path / "home")
    await made.start_matcher()
    try:
        yield made
    finally:
        await made.stop()
