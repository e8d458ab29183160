"""A market that never rests, for measuring who reads it: a real broker and ledger, pages made by the matcher's own turns, heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from events import ids, wire
from events.codec import encode_batch, encode_event
from events.connection import Connection, ServiceKey
from events.envelope import seal
from events.fact import Event
from events.jobs import JobCancelRequested, JobSubmitted
from events.market import Policy
from events.nats_log import NatsLog
from events.nodes import NodeOffered
from events.page import encode_page
from events.session import make_session
from events.streams import ensure_streams
from events.subjects import intake
from events.values import Card, Program, Requirements, Role
from events.wallet import KeySigner
from projections.market import Market
from services import broker, genesis, market_keys
from services.matcher.admission import Arrival
from services.matcher.draft import Closed, Draft
from services.matcher.memory import Memory
from services.matcher.turn import turn

BEAT_S = 5
TURN_S = 0.02
BATCH = 24
MODELS = (
    ("NVIDIA GeForce RTX 3090", 24_576, 200_000),
    ("NVIDIA GeForce RTX 4090", 24_564, 400_000),
    ("NVIDIA A100-SXM4-80GB", 81_920, 1_500_000),
    ("NVIDIA H100 80GB HBM3", 81_559, 2_400_000),
)


class Party:
    """A wallet with a session key."""

    def __init__(self, number: int, role: Role, market_id: str) -> None:
        signer = KeySigner(number.to_bytes(32, "big"))
        self.session = make_session(signer, market_id, role, now_ms=time.time_ns() // 1_000_000, validity_ms=86_400_000)
        self.market_id = bytes.fromhex(market_id)
        self.number = 1

    def say(self, *events: Event) -> Arrival:
        """The next message of this wallet."""
        wallet = self.session.wallet
        said = (self.session.authorisation(), *events) if self.number == 1 else events
        body = encode_batch([encode_event(event) for event in said])
        data = seal(self.session.signing_key, market_id=self.market_id, subject=intake(wallet), seq=self.number, ts_ms=0, body=body)
        self.number += len(said)
        return Arrival(wallet, data)


class Writer:
    """Writes the ledger as the matcher does: turns, signed pages, appended to the broker."""

    def __init__(self, services: Connection, keys: market_keys.MarketKeys) -> None:
        self.services, self.keys = services, keys
        self.ledger, self.market = NatsLog(services), Market()
        self.now_ms = time.time_ns() // 1_000_000 - 600_000
        self.memory = Memory(self.market, keys.page_key, self.now_ms)
        self.memory.patient_until_ms = self.now_ms + 10**9  # nodes answer to nobody here, and are not lost for it
        self.buyer: Party
        self.seller: Party
        self.queued: list[str] = []
        self.jobs = 0

    async def begin(self) -> None:
        """The first event."""
        root = KeySigner((999).to_bytes(32, "big"))
        made = genesis.create(
            root=root.address,
            sign=root.sign_text,
            name="bench",
            matcher_key=bytes(self.keys.page_key.verify_key),
            policy=Policy(max_queue=10_000_000),
            random=bytes(16),
            now_ms=self.now_ms,
        )
        self.memory.market_id = bytes.fromhex(made.market_id)
        self.buyer, self.seller = Party(1, Role.BUYER, made.market_id), Party(3, Role.SELLER, made.market_id)
        draft = Draft(self.market, self.memory, self.now_ms)
        assert draft.decide(made) is None
        draft.close()
        await self._append(draft.closed)

    async def say(self, party: Party, *events: Event, pace_ms: int = 0) -> None:
        """All of it in one turn."""
        self.now_ms = self.now_ms + pace_ms if pace_ms else max(self.now_ms + 1, time.time_ns() // 1_000_000)
        before = self.market.last_seq
        closed, _ = turn(self.market, [party.say(*events)], [], self.now_ms, self.memory)
        assert self.market.last_seq >= before + len(events), "something was refused"
        await self._append(closed)

    async def _append(self, closed: list[Closed]) -> None:
        position = self.market.pages - len(closed)
        for page in closed:
            position = await self.ledger.append(encode_page(page.page), position)

    async def fill(self, nodes: int, jobs: int) -> None:
        """Nodes that nobody can pay, and jobs that wait for cheaper ones."""
        for first in range(0, nodes, BATCH):
            await self.say(self.seller, *(self.a_node(number) for number in range(first, min(nodes, first + BATCH))), pace_ms=5)
        for first in range(0, jobs, BATCH):
            await self.say(self.buyer, *(self.a_job() for _ in range(min(BATCH, jobs - first))), pace_ms=5)

    def a_node(self, number: int) -> NodeOffered:
        model, vram_mib, price = MODELS[number % len(MODELS)]
        name = f"node-{number}"
        count = (1, 2, 4, 8)[number // 4 % 4]
        cards = tuple(
            Card(index=index, uuid=f"GPU-{number}-{index}", model=model, vram_mib=vram_mib, cuda=12_040) for index in range(count)
        )
        node_id = ids.node_id(self.seller.session.wallet, name)
        price += number
        return NodeOffered(node_id=node_id, name=name, cards=cards, cores=64, memory_mib=262_144, price_uusd_per_gpu_hour=price)

    def a_job(self) -> JobSubmitted:
        self.jobs += 1
        job = JobSubmitted(
            job_id=ids.job_id(os.urandom(12)),
            name=f"train-{self.jobs}",
            requirements=Requirements(num_gpus=(1, 1, 2, 4)[self.jobs % 4], vram_mib=22_889),
            program=Program(argv=("python", "train.py")),
            timeout_s=3600,
            max_price_uusd_per_gpu_hour=100_000,
            labels={"team": "vision"},
        )
        self.queued.append(job.job_id)
        return job

    async def go_on(self, per_s: int) -> None:
        """So many events a second, for ever: jobs come and others are cancelled (two events each)."""
        began, said = time.monotonic(), 0
        place = 0
        while True:
            due = int((time.monotonic() - began) * per_s / 2)
            fresh = max(0, min(BATCH // 2, due - said))
            if fresh:
                gone = [JobCancelRequested(job_id=name) for name in self.queued[place : place + fresh]]
                place, said = place + fresh, said + fresh
                await self.say(self.buyer, *(self.a_job() for _ in range(fresh)), *gone)
            await asyncio.sleep(TURN_S)

    async def beat(self) -> None:
        """Every node's heartbeat, as the matcher passes it on, spread over the seconds between two of them."""
        nodes = list(self.market.nodes.values())
        views = [
            wire.BeatView(
                beat=wire.Beat(
                    node_id=node.node_id,
                    boot="b",
                    cards=tuple(
                        wire.BeatCard(uuid=card.uuid, gpu_percent=50, memory_used_mib=1000, temperature_c=60, power_w=200)
                        for card in node.offer.cards
                    ),
                ),
                wallet=node.wallet,
                time_ms=self.now_ms,
            )
            for node in nodes
        ]
        began, said = time.monotonic(), 0
        while views:
            due = int((time.monotonic() - began) * len(views) / BEAT_S)
            for number in range(said, due):
                view = views[number % len(views)]
                await self.services.publish(f"beats.{view.beat.node_id}", wire.encode(view))
            said = max(said, due)
            await asyncio.sleep(TURN_S)


@contextlib.asynccontextmanager
async def busy_market(folder: Path) -> AsyncIterator[tuple[Writer, str]]:
    keys = market_keys.load_or_make(folder / "keys")
    running = await broker.start_async(broker.Place(folder), keys)
    services = await Connection(running.url, ServiceKey(keys.market), "bench").open(wait_s=10.0)
    try:
        await ensure_streams(services)
        writer = Writer(services, keys)
        await writer.begin()
        yield writer, running.url
    finally:
        await services.close()
        await running.stop_async()
