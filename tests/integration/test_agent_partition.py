"""Hours without a market, told in seconds: jobs end meanwhile, everything is delivered later and counts once."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from integration.broker_env import World, until, world
from integration.market_env import MarketWorld
from integration.node_env import NodeWorld

from events.market import MarketCreated, Policy
from events.reasons import Reason
from projections.nodes import NodeState
from services import broker
from services.broker import Place

__all__ = ["world"]  # the fixture

LEASE_S = 6
JOBS = 3
UNTIL_TOLD = "while [ ! -e ../go ]; do sleep 0.02; done; for i in 1 2 3 4 5; do echo line $i; done; echo data > $BAZAAR_OUT/file"
LINES = "".join(f"line {number}\n" for number in range(1, 6)).encode()


class ShortLeases(MarketWorld):
    """A market whose leases are over in seconds."""

    lease_s = LEASE_S

    def genesis(self) -> MarketCreated:
        return msgspec.structs.replace(super().genesis(), policy=Policy(max_queue=100_000, lease_s=self.lease_s))


@pytest.fixture
async def nodes(request: pytest.FixtureRequest, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeWorld]:
    monkeypatch.setattr("seller_agent.node.beats.PERIOD_S", 0.5)
    monkeypatch.setattr("seller_agent.runs.preparing.GRACE_S", 1)
    monkeypatch.setattr("seller_agent.runs.saving.SAVE_BEFORE_END_S", 0.3)
    market = ShortLeases(world, tmp_path / "home")
    market.lease_s = getattr(request, "param", LEASE_S)
    await market.start_matcher()
    made = NodeWorld(market, tmp_path / "home")
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        await market.stop()


class Away:
    """The broker is gone for as long as the block lasts; then another one comes, on the same port and store."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __aenter__(self) -> None:
        self._port = int(self._world.broker.url.rpartition(":")[2])
        self._world.broker.process.kill()
        await asyncio.to_thread(self._world.broker.process.wait)

    async def __aexit__(self, *_: object) -> None:
        self._world.place = Place(self._world.place.folder, port=self._port)
        self._world.broker = await broker.start_async(self._world.place, self._world.keys)


async def running_jobs(nodes: NodeWorld, home: Path) -> list[str]:
    job_ids = [await nodes.submit("sh", "-c", UNTIL_TOLD, gpus=0) for _ in range(JOBS)]
    for job_id in job_ids:
        await nodes.state(job_id, "running")
    await until(lambda: waiting(home) == 0, "all that was said so far is answered")
    return job_ids


def waiting(home: Path) -> int:
    """Events that lie in the outbox of this home."""
    with closing(sqlite3.connect(home / "outbox.db")) as database:
        return int(database.execute("SELECT count(*) FROM entries").fetchone()[0])


async def test_what_ended_while_the_market_was_away_is_told_when_it_is_back_and_counts_once(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_ids = await running_jobs(nodes, agent.home)
    folders = [agent.folder_of(job_id) for job_id in job_ids]
    began_s = time.monotonic()
    async with Away(nodes.market.world):
        for folder in folders:
            (folder / "go").touch()
        await until(
            lambda: all(attempt.reported for attempt in agent.agent._hands.attempts.values()), "the ends are told to the outbox", 20
        )
        await until(lambda: waiting(agent.home) == 2 * JOBS, "an end and a release for each, and nothing else, wait on the disk")
        await agent.kill()  # and whoever knew of it dies, too
        await asyncio.sleep(max(0.0, LEASE_S + 1 - (time.monotonic() - began_s)))  # longer than any lease
    await agent.start()
    for job_id in job_ids:
        job = await nodes.state(job_id, "succeeded", timeout_s=40)
        assert 1 == job.attempts
        assert LINES == (await nodes.output(job_id))[0]
    await nodes.free()
    node = nodes.market.matcher.market.nodes[agent.node_id]
    assert (NodeState.OFFERED, JOBS) == (node.state, node.ended.get(Reason.EXITED_ZERO)), node.ended
    await until(lambda: waiting(agent.home) == 0 and agent.client.unanswered == 0, "nothing waits any more")


async def test_a_partition_longer_than_the_lease_gives_the_jobs_away_and_old_reports_change_nothing(nodes: NodeWorld) -> None:
    """The node alone is cut off: the market goes on, and gives its jobs to another."""
    agent = await nodes.agent()
    job_ids = await running_jobs(nodes, agent.home)
    folders = [agent.folder_of(job_id) for job_id in job_ids]
    await agent.client.connection.close()  # nothing reaches the market from here any more
    for folder in folders:
        (folder / "go").touch()
    await until(lambda: all(attempt.reported for attempt in agent.agent._hands.attempts.values()), "the ends are told to the outbox", 20)
    matcher = nodes.market.matcher
    assert matcher.memory is not None
    matcher.memory.patient_until_ms = 0  # it has heard of everybody
    await until(lambda: matcher.market.nodes[agent.node_id].state is NodeState.LOST, "the node is lost", 3 * LEASE_S)
    other = await nodes.agent("other")
    for job_id in job_ids:
        job = await nodes.state(job_id, "running", timeout_s=20)
        assert (2, other.node_id) == (job.attempts, job.run.node_id if job.run else None)
    await agent.kill()
    await agent.start()
    await until(lambda: waiting(agent.home) == 0, "the old reports are answered")
    for job_id in job_ids:
        assert ("running", 2) == (nodes.job(job_id).state.value, nodes.job(job_id).attempts)
        (other.folder_of(job_id) / "go").touch()
        assert "succeeded" == (await nodes.state(job_id, "succeeded", "failed")).state.value
    assert JOBS == matcher.market.nodes[other.node_id].ended.get(Reason.EXITED_ZERO)
    assert 0 == matcher.market.nodes[agent.node_id].ended.get(Reason.EXITED_ZERO, 0)


@pytest.mark.parametrize("nodes", [180], indirect=True)
async def test_a_long_silence_fills_neither_journal_nor_outbox(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_ids = await running_jobs(nodes, agent.home)
    sizes = []
    async with Away(nodes.market.world):
        for _ in range(2):
            await asyncio.sleep(1.0)  # some of the silence, with beats that nobody answers
            sizes.append((waiting(agent.home), os.path.getsize(agent.folder / "journal.db"), len(agent.agent._hands.attempts)))
    assert (sizes[0], 0, JOBS) == (sizes[1], sizes[0][0], sizes[0][2]), "beats are not kept"
    for job_id in job_ids:
        (agent.folder_of(job_id) / "go").touch()
        assert 1 == (await nodes.state(job_id, "succeeded", timeout_s=40)).attempts
