"""What an agent does when its owner drains, prices or plans, and that a restart of the agent undoes none of it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from integration.broker_env import MARKET_ID, until, world
from integration.market_env import a_market, signer
from integration.node_env import SELLER, NodeWorld, RunningAgent, some_nodes

from events.fact import Event
from events.jobs import JobCancelRequested
from events.nodes import NodeDrained, NodeMaintenancePlanned, NodeRepriced, NodeResumed
from events.reasons import Reason
from events.session import make_session
from events.values import Role
from projections.nodes import Node, NodeState

__all__ = ["a_market", "some_nodes", "world"]  # the fixtures


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def order(agent: RunningAgent, kind: type[Event], **values: Any) -> None:
    """As the owner's command does it, beside the agent."""
    outcome = await agent.client.submit(kind(node_id=agent.node_id, **values), 10.0)
    assert outcome.reason is None, outcome


def node_of(nodes: NodeWorld, agent: RunningAgent) -> Node:
    return nodes.market.matcher.market.nodes[agent.node_id]


async def test_a_drained_node_lets_its_job_finish_and_takes_no_other(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    running = await nodes.submit("sh", "-c", "while [ ! -e ../go ]; do sleep 0.02; done")
    await nodes.state(running, "running")
    await order(agent, NodeDrained, reason="dust")
    waiting = await nodes.submit("true")
    (agent.folder_of(running) / "go").touch()
    await nodes.state(running, "succeeded")
    await nodes.free()
    assert "queued" == nodes.job(waiting).state.value
    await order(agent, NodeResumed)
    await nodes.state(waiting, "succeeded")
    assert ["Draining (dust)", "New jobs are taken again."] == [said.partition(":")[0] for said in nodes.said]


async def test_what_still_runs_at_the_deadline_of_a_drain_is_evicted(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running")
    await order(agent, NodeDrained, deadline_ms=now_ms() + 500)
    job = await nodes.state(job_id, "queued")
    assert (Reason.EVICTED, 1, 0) == (job.reason, job.attempts, job.charged_uusd)
    await nodes.free()
    await nodes.agent("other")
    assert 2 == (await nodes.state(job_id, "running")).attempts
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    await nodes.state(job_id, "cancelled")


async def test_a_drain_is_kept_by_an_agent_that_was_killed_and_came_back(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    await order(agent, NodeDrained, reason="dust")
    await agent.kill()
    await agent.start()
    assert NodeState.DRAINING is node_of(nodes, agent).state
    await agent.kill()
    await agent.start(resume=True)
    await until(lambda: node_of(nodes, agent).state is NodeState.OFFERED, "resumed")
    await nodes.state(await nodes.submit("true"), "succeeded")


async def test_maintenance_evicts_when_it_begins_and_the_node_goes_on_by_itself(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running")
    begins_ms = now_ms() + 300
    await order(agent, NodeMaintenancePlanned, from_ms=begins_ms, until_ms=begins_ms + 2000, reason="new fan")
    assert Reason.EVICTED is (await nodes.state(job_id, "queued")).reason
    await until(lambda: "New jobs are taken again." in nodes.said, "it is over")
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    await nodes.state(await nodes.submit("true"), "succeeded")


async def test_a_price_that_was_set_outlives_the_agents_next_offers(nodes: NodeWorld) -> None:
    agent = await nodes.agent(price=400_000)
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running")
    await order(agent, NodeRepriced, price_uusd_per_gpu_hour=500_000)
    before = node_of(nodes, agent).offered_seq
    agent.own_wallets.append("0x" + "ab" * 20)  # what the agent answers with another offer
    await until(lambda: node_of(nodes, agent).offered_seq > before, "offered again")
    run = nodes.job(job_id).run
    assert run is not None
    assert (500_000, 400_000) == (node_of(nodes, agent).price_uusd_per_gpu_hour, run.price_uusd_per_gpu_hour)
    await agent.kill()
    await agent.start(keep_price=True)
    assert 500_000 == node_of(nodes, agent).price_uusd_per_gpu_hour
    await agent.kill()
    await agent.start()  # with another --price than the last time
    assert 400_000 == node_of(nodes, agent).price_uusd_per_gpu_hour
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    await nodes.state(job_id, "cancelled")


@pytest.mark.parametrize("ahead_ms", [3_600_000, -3_600_000])
async def test_an_owner_whose_clock_is_an_hour_wrong_is_served_all_the_same(
    nodes: NodeWorld, monkeypatch: pytest.MonkeyPatch, ahead_ms: int
) -> None:
    """Drains and windows are kept by the market's clock, leases and limits by durations."""
    wrong = SimpleNamespace(time=lambda: time.time() + ahead_ms / 1000)
    for module in ("events.sender", "events.market_client", "seller_agent.node.steering"):
        monkeypatch.setattr(f"{module}.time", wrong)
    nodes.session = make_session(signer(SELLER), MARKET_ID, Role.SELLER, now_ms=now_ms() + ahead_ms)
    agent = await nodes.agent()
    await nodes.state(await nodes.submit("true"), "succeeded")
    job_id = await nodes.submit("sleep", "600", timeout_s=1)
    assert Reason.RUN_TIMEOUT is (await nodes.state(job_id, "timed_out")).reason
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running")
    await order(agent, NodeDrained, reason="late", deadline_ms=now_ms() + 600_000)
    await until(lambda: any("(late)" in said for said in nodes.said), "the agent has heard")
    agent.agent._obey()  # as at every tick: by our own clock the deadline may be long over
    assert (False, False) == (agent.agent._node.accepting, agent.agent._node.evicting)
    await order(agent, NodeDrained, reason="now", deadline_ms=now_ms())
    assert Reason.EVICTED is (await nodes.state(job_id, "queued")).reason
