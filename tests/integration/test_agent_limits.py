"""Limits of the market that a node keeps by itself: leases that nobody renews, results and output beyond their caps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from integration.broker_env import World, until, world
from integration.market_env import MarketWorld
from integration.node_env import NodeWorld
from integration.session_env import close, fetched, open_session

from events.market import MarketCreated, Policy
from events.reasons import Reason
from events.values import JobKind
from seller_agent.sessions.keeping import SAVE_EVERY_VARIABLE

__all__ = ["world"]  # the fixture

LEASE_S = 9


class StrictMarket(MarketWorld):
    """A market with short leases and small caps."""

    def genesis(self) -> MarketCreated:
        policy = Policy(max_queue=100_000, lease_s=LEASE_S, results_bytes_max=1000, output_bytes_max=200_000)
        return msgspec.structs.replace(super().genesis(), policy=policy)


@pytest.fixture
async def nodes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NodeWorld]:
    monkeypatch.setattr("seller_agent.node.beats.PERIOD_S", 0.5)
    monkeypatch.setattr("seller_agent.runs.preparing.GRACE_S", 1)
    monkeypatch.setattr("seller_agent.runs.hands.GRACE_S", 1)
    market = StrictMarket(world, tmp_path / "home")
    await market.start_matcher()
    made = NodeWorld(market, tmp_path / "home")
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        await market.stop()


async def test_a_run_is_gone_before_its_lease_is(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "echo $$; trap '' TERM; while :; do sleep 0.1; done")
    await nodes.state(job_id, "running")
    await until(lambda: agent.running_output(job_id).endswith(b"\n"), "the program runs")
    pid, renewed_ms = int(agent.running_output(job_id)), nodes.market.matcher.market.time_ms
    await nodes.market.stop_matcher()
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the program is gone although it ignores TERM", LEASE_S)
    await nodes.market.start_matcher()
    job = await nodes.state(job_id, "queued", "failed")
    assert Reason.LEASE_EXPIRED is job.reason
    assert job.run is not None and job.run.ended_ms >= renewed_ms


async def test_a_killed_agents_run_is_ended_by_its_guard(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "echo $$; exec sleep 600")
    await nodes.state(job_id, "running")
    await until(lambda: agent.running_output(job_id).endswith(b"\n"), "the program runs")
    pid = int(agent.running_output(job_id))
    await agent.kill()
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the guard ended it", LEASE_S + 1)
    await agent.start()
    job = await nodes.state(job_id, "queued", "failed")
    assert Reason.LEASE_EXPIRED is job.reason


async def test_an_agent_whose_leases_are_renewed_runs_on(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sleep", str(LEASE_S + 1))
    job = await nodes.state(job_id, "succeeded", "failed", timeout_s=LEASE_S + 20)
    assert Reason.EXITED_ZERO is job.reason


async def test_results_beyond_the_cap_are_kept_up_to_it(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "head -c 900 /dev/zero > $BAZAAR_OUT/a; head -c 900 /dev/zero > $BAZAAR_OUT/b")
    job = await nodes.state(job_id, "failed")
    assert job.run is not None and job.run.results is not None
    assert (Reason.OUTPUT_TOO_LARGE, 0, 900) == (job.reason, job.run.exit_code, job.run.results_bytes)


async def test_output_is_recorded_up_to_the_quota(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "head -c 1000000 /dev/zero")
    await nodes.state(job_id, "failed", "succeeded")
    await nodes.free()
    assert 200_000 == len((await nodes.output(job_id))[0])


async def test_a_node_that_was_lost_reconciles_and_offers_again(nodes: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await nodes.agent()
    matcher = nodes.market.matcher
    assert matcher.memory is not None
    matcher.memory.patient_until_ms = 0  # it has heard of everybody
    before = matcher.market.nodes[agent.node_id].offered_seq
    monkeypatch.setattr("seller_agent.node.beats.PERIOD_S", 600.0)
    await until(lambda: matcher.market.nodes[agent.node_id].offered_seq > before, "lost, and offered again", 3 * LEASE_S)
    job_id = await nodes.submit("true")
    await nodes.state(job_id, "succeeded")


async def test_of_more_work_than_the_cap_a_session_leaves_the_newest_and_says_so(nodes: NodeWorld) -> None:
    await nodes.agent()
    makes = "head -c 900 /dev/zero > older; touch -d '1 hour ago' older; head -c 900 /dev/zero > newer; touch done; exec sleep 60"
    job_id = await open_session(nodes, "sh", "-c", makes, kind=JobKind.CONTAINER)
    await nodes.state(job_id, "running")
    await until(lambda: (nodes.agents[0].folder_of(job_id) / "job" / "done").exists(), "the work is done")
    await close(nodes, job_id)
    job = await nodes.state(job_id, "succeeded")
    assert job.run is not None
    assert (Reason.SESSION_CLOSED, 900) == (job.reason, job.run.results_bytes)
    assert "the newest 2 files were saved, 1 left out" in job.run.detail


async def test_a_lost_node_leaves_the_work_that_was_saved_last(nodes: NodeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SAVE_EVERY_VARIABLE, "1")
    matcher = nodes.market.matcher
    assert matcher.memory is not None
    matcher.memory.patient_until_ms = 0  # it has heard of everybody
    agent = await nodes.agent()
    job_id = await open_session(nodes, "sh", "-c", "echo hours of work > notes; exec sleep 60", kind=JobKind.CONTAINER)
    await until(lambda: (run := nodes.job(job_id).run) is not None and run.results is not None, "the work is saved")
    await agent.kill()
    job = await nodes.state(job_id, "failed", timeout_s=4 * LEASE_S)
    assert job.reason in (Reason.NODE_LOST, Reason.LEASE_EXPIRED)
    assert {"notes": "hours of work\n"} == await fetched(nodes, job_id, tmp_path / "saved")
