"""A seller's node in the tests' own process, on the market of `market_env` with a real gateway: agents that can be killed and started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration.broker_env import until
from integration.market_env import MarketWorld, session_of

from events import ids
from events.jobs import JobSubmitted
from events.market_client import MarketClient
from events.nodes import NodeOffered
from events.session import Session
from events.values import Isolation, Program, Requirements, Role
from projections.jobs import Job
from seller_agent.cards.machine import CardWatch, boot_id, offered_card, simulated_cards
from seller_agent.node.agent import Agent
from seller_agent.node.beats import NodeIdentity
from seller_agent.owner.offers import Terms, make_offer
from seller_agent.runners.process.runner import ProcessRunner
from seller_agent.runners.runner import Runner
from services import gateway
from services.market_keys import load_sealing_key

BUYER, SELLER = 1, 2


class NodeWorld:
    """A market, its gateway, a buyer, and one node whose agent comes and goes."""

    def __init__(self, market: MarketWorld, home: Path) -> None:
        self.market = market
        self.home = home
        self.session: Session = session_of(SELLER, Role.SELLER)
        self.buyer: MarketClient
        self.said: list[str] = []
        self._gateway_stop = asyncio.Event()
        self._gateway: asyncio.Task[None] | None = None
        self.agents: list[RunningAgent] = []

    async def start(self) -> NodeWorld:
        await self.start_gateway()
        self.buyer = await self.market.client(session_of(BUYER), self.home / "buyer")
        return self

    async def start_gateway(self) -> None:
        self._gateway_stop = asyncio.Event()
        keys, url = self.market.world.keys, self.market.world.url
        opens = load_sealing_key(self.market.world.place.folder / "keys")
        self._gateway = asyncio.create_task(
            gateway.serve(url, keys, snapshot_file=self.home / "gateway.snapshot", until=self._gateway_stop, sealing_key=opens)
        )

    async def stop_gateway(self) -> None:
        assert self._gateway is not None
        self._gateway_stop.set()
        await self._gateway
        self._gateway = None

    async def agent(self, name: str = "node", *, gpus: str = "2xRTX 4090", price: int = 400_000) -> RunningAgent:
        """An agent that has made its offer."""
        return await self.add(RunningAgent(self, name, gpus, price)).start()

    def add(self, running: RunningAgent) -> RunningAgent:
        """An agent that ends with this world."""
        self.agents.append(running)
        return running

    async def twin(self, first: RunningAgent, session: Session | None = None) -> RunningAgent:
        """Another agent for the same node, in a folder and a home of its own: as on another machine."""
        running = RunningAgent(self, first.name, "2xRTX 4090", 400_000)
        running.folder = self.home / "twin"
        running.home = self.home / "twin home"
        running.session = session or session_of(SELLER, Role.SELLER)
        self.agents.append(running)
        return await running.start(ready=False, boot="another boot")

    async def submit(self, *argv: str, **changes: Any) -> str:
        """A job of the buyer, in the ledger."""
        needs = Requirements(num_gpus=changes.pop("gpus", 1), allow_simulated=True)
        program = Program(argv=argv, env=changes.pop("env", {}), inputs=changes.pop("inputs", None))
        usual = {"job_id": ids.job_id(os.urandom(12)), "name": "job", "requirements": needs, "program": program, "timeout_s": 60}
        job = JobSubmitted(**(usual | changes))
        outcome = await self.buyer.submit(job, 10.0)
        assert outcome.reason is None, outcome
        return job.job_id

    def job(self, job_id: str) -> Job:
        """The job as the matcher has it."""
        return self.market.matcher.market.jobs[job_id]

    async def state(self, job_id: str, *states: str, timeout_s: float = 20.0) -> Job:
        """Return once the job is in one of these states."""

        def reached() -> bool:
            return self.job(job_id).state.value in states

        try:
            await until(reached, f"{job_id} in {states}", timeout_s)
        except AssertionError:
            raise AssertionError(f"{job_id} is {self.job(job_id)}, not {states}") from None
        return self.job(job_id)

    async def free(self, timeout_s: float = 20.0) -> None:
        """Return once no card of any node is held."""
        await until(lambda: not self.market.matcher.market.leases, "all cards free", timeout_s)

    async def output(self, job_id: str) -> tuple[bytes, bytes]:
        """What the gateway has recorded of stdout and stderr."""
        from events.wire import FilesRequest

        parts: dict[int, bytes] = {1: b"", 2: b""}
        cursor = 0
        while True:
            answer = await self.buyer.ask_files(FilesRequest(op="output", job_id=job_id, cursor=cursor))
            assert answer.failure is None, answer
            if not answer.chunks:
                return parts[1], parts[2]
            for chunk in answer.chunks:
                assert len(parts[chunk.channel]) == chunk.offset
                parts[chunk.channel] += chunk.data
            cursor = answer.cursor

    async def stop(self) -> None:
        for agent in self.agents:
            await agent.stop()
        if self._gateway is not None:
            await self.stop_gateway()


class RunningAgent:
    """An agent on the process runner; `kill` leaves everything as `kill -9` would, `start` begins again in the same folder."""

    def __init__(self, world: NodeWorld, name: str, gpus: str, price: int) -> None:
        self.world = world
        self.name = name
        self.terms = Terms(name=name, price_uusd_per_gpu_hour=price, accept=None)
        self.node_id = ids.node_id(world.session.wallet, name)
        self.folder = world.home / "seller" / name
        self.inventory = simulated_cards((gpus,), self.node_id)
        self.agent: Agent
        self.client: MarketClient
        self.runner: Runner
        self.task: asyncio.Task[None] | None = None
        self.session = world.session
        self.home = world.home
        self.own_wallets = [world.buyer.wallet]
        self.isolation = Isolation.PROCESS
        self.default_image: str | None = None

    def folder_of(self, job_id: str) -> Path:
        """The folder of the job's run, while there is one."""
        run = self.world.job(job_id).run
        assert run is not None
        return self.folder / "runs" / f"{job_id}-{run.attempt}-{run.epoch}"

    def running_output(self, job_id: str) -> bytes:
        """What a running job has written to stdout so far."""
        return (self.folder_of(job_id) / "log" / "stdout").read_bytes()

    def offer(self) -> NodeOffered:
        made = make_offer(
            self.terms,
            wallet=self.world.session.wallet,
            cards=tuple(offered_card(card) for card in self.inventory.cards),
            isolation=self.isolation,
            default_image=self.default_image,
            machine={"cores": 4, "memory_mib": 4096},
            own_wallets=self.own_wallets,
        )
        return msgspec.structs.replace(made)

    def make_runner(self) -> Runner:
        """A fresh one, as after every start."""
        return ProcessRunner(self.folder / "runs", idle_s=1.0)

    async def start(self, *, ready: bool = True, boot: str = "boot", **options: Any) -> RunningAgent:
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        self.runner = self.make_runner()
        identity = NodeIdentity(self.node_id, boot, boot_id(), "test")
        self.agent = Agent(
            identity,
            self.folder,
            self.runner,
            offer=self.offer,
            watch=CardWatch(self.inventory.cards),
            say=self.world.said.append,
            **options,
        )
        self.client = await self.world.market.client(self.session, self.home, lane=self.node_id)
        self.client.node_id = self.node_id
        self.client.on_event(self.agent.on_event)
        self.client.on_resync(self.agent.on_resync)
        self.task = asyncio.create_task(self.agent.run(self.client))
        if ready:
            await self.ready()
        return self

    async def ready(self) -> None:
        assert self.task is not None
        waiting = asyncio.create_task(self.agent.ready.wait())
        await asyncio.wait([waiting, self.task], timeout=20, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            await self.task
        assert waiting.done(), "the agent did not offer"

    async def kill(self) -> None:
        """Nothing is said to anybody; what the agent had in memory is gone."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.task = None
        await self.client.close()

    async def forget(self) -> None:
        """It has ended by itself."""
        self.task = None
        await self.client.close()

    async def leave(self) -> None:
        """As on the first signal; returns when the agent has ended."""
        assert self.task is not None
        self.agent.leave()
        task, self.task = self.task, None
        await asyncio.wait_for(task, 30)
        await self.client.close()

    async def stop(self) -> None:
        if self.task is not None and not self.task.done():
            await self.leave()


@pytest.fixture(name="nodes")
async def some_nodes(market: MarketWorld, tmp_path: Path) -> AsyncIterator[NodeWorld]:
    made = NodeWorld(market, tmp_path / "home")
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
