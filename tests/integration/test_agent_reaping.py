"""Whoever dies, `reap` ends what is past its time; and an agent that is replaced leaves what has its time alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.docker_engine import Engine, engine
from integration.market_env import a_market
from integration.node_env import NodeWorld, RunningAgent, some_nodes
from integration.test_agent_crashes import end_supervisor
from integration.test_agent_docker import ContainerAgent

from events.reasons import Reason
from seller_agent.runners.docker_engine.daemon.clocks import boot_ms, process_start_ticks
from seller_agent.runners.docker_engine.guard.files import read_json, write_json
from seller_agent.runs.reaping import reap_node

__all__ = ["a_market", "engine", "some_nodes", "world"]  # the fixtures

SLEEPER = ("sh", "-c", "echo $$; exec sleep 600")
LINES = ("sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; sleep 0.1; done")
ALL_LINES = "".join(f"line {number}\n" for number in range(1, 11)).encode()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def test_processes_that_nobody_guards_any_more_are_ended(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit(*SLEEPER)
    await nodes.state(job_id, "running")
    await until(lambda: agent.running_output(job_id).endswith(b"\n"), "the program runs")
    pid = int(agent.running_output(job_id))
    assert () == (await asyncio.to_thread(reap_node, agent.folder, dry_run=False)).late, "its guard lives"
    await agent.kill()
    assert 2 == end_supervisor(agent.folder / "runs")
    await until(lambda: reap_node(agent.folder, dry_run=True).late, "nobody guards it")
    [late] = reap_node(agent.folder, dry_run=True).late
    assert ("process", "unguarded", False, True) == (late.kind, late.reason, late.gone, lives(pid))
    [late] = (await asyncio.to_thread(reap_node, agent.folder, dry_run=False)).late
    assert (True, False) == (late.gone, lives(pid))
    assert () == (await asyncio.to_thread(reap_node, agent.folder, dry_run=False)).late
    await agent.start()
    assert Reason.RUNTIME_RESTARTED is (await nodes.state(job_id, "queued")).reason


async def test_an_agent_that_hands_over_leaves_its_processes_to_the_next(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    await handed_over(nodes, agent)


async def handed_over(nodes: NodeWorld, agent: RunningAgent) -> None:
    job_id = await nodes.submit(*LINES)
    await nodes.state(job_id, "running", timeout_s=60)
    agent.agent.hand_over()
    assert agent.task is not None
    await asyncio.wait_for(agent.task, 20)
    await agent.forget()
    await agent.start()
    job = await nodes.state(job_id, "succeeded", "failed", "queued", timeout_s=60)
    assert ("succeeded", 1) == (job.state.value, job.attempts)
    assert ALL_LINES == (await nodes.output(job_id))[0]


# With containers.


@pytest.mark.timeout(180)
async def test_an_agent_that_hands_over_leaves_its_containers_to_the_next(nodes: NodeWorld, engine: Engine) -> None:
    await handed_over(nodes, await nodes.add(ContainerAgent(nodes, engine)).start())


@pytest.mark.timeout(180)
async def test_containers_past_their_time_are_ended_although_agent_and_guard_are_dead(nodes: NodeWorld, engine: Engine) -> None:
    agent = await nodes.add(ContainerAgent(nodes, engine)).start()
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running", timeout_s=60)
    await agent.kill()
    end_guard(agent.folder / "guard")
    assert () == (await asyncio.to_thread(reap_node, agent.folder, dry_run=False)).late, "it has its time"
    [path] = (agent.folder / "guard").glob(f"{job_id}*.json")
    watch = read_json(path)
    assert watch is not None
    write_json(path, {**watch, "lease_until_boot_ms": boot_ms() - 1000})
    [late] = (await asyncio.to_thread(reap_node, agent.folder, dry_run=True)).late
    assert ("container", "lease", False) == (late.kind, late.reason, late.gone)
    assert [name for name in engine.names() if job_id in name]
    [late] = (await asyncio.to_thread(reap_node, agent.folder, dry_run=False)).late
    assert late.gone
    await agent.start()
    assert Reason.LEASE_EXPIRED is (await nodes.state(job_id, "queued", timeout_s=60)).reason


def end_guard(directory: Path) -> None:
    """Kill the guard of this folder: its lock's file names it."""
    pid = int((directory / "guard.lock").read_text().split()[0])
    assert process_start_ticks(pid) is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def test_a_home_without_anything_is_reaped_without_a_word(tmp_path: Path) -> None:
    found = reap_node(tmp_path, dry_run=False)
    assert ((), "") == (found.late, found.trouble)


@pytest.mark.timeout(180)
async def test_a_second_signal_leaves_a_container_that_does_not_end_to_the_next_agent(nodes: NodeWorld, engine: Engine) -> None:
    agent = await nodes.add(ContainerAgent(nodes, engine)).start()
    job_id = await nodes.submit("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    await nodes.state(job_id, "running", timeout_s=60)
    agent.agent.leave()
    await until(lambda: any(said.startswith("Leaving") for said in nodes.said), "it says so")
    agent.agent.leave()
    assert agent.task is not None
    await asyncio.wait_for(agent.task, 20)
    assert [name for name in engine.names() if job_id in name], "it was not waited for"
    await agent.forget()
    await agent.start()
    job = await nodes.state(job_id, "queued", "failed", "succeeded", timeout_s=60)
    assert (Reason.EVICTED, 1) == (job.reason, job.attempts), "the reason was written down before the signal"
