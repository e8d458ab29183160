"""What a container uses, how it is given more time, and how its limits of use end it: on a real engine, with a real guard."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import msgspec
import pytest
from integration.broker_env import until, world
from integration.docker_engine import Engine, engine
from integration.docker_home import Home, home, kill, output, quiet, runner
from integration.market_env import a_market
from integration.node_env import NodeWorld, some_nodes
from integration.test_agent_docker import ContainerAgent

from events.jobs import JobExtended
from events.reasons import Reason
from seller_agent.runners.docker_engine import use as docker_use
from seller_agent.runners.docker_engine.guard.files import read_watch
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.runner import RunSpec, RunState, RunUse, StopReason

__all__ = ["a_market", "engine", "home", "runner", "some_nodes", "world"]  # the fixtures

pytestmark = pytest.mark.timeout(180)

BURNS = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/shm/held bs=1M count=40 2>/dev/null; echo up; sleep 600"


async def said(spec: RunSpec, word: str) -> None:
    end = time.monotonic() + 60
    while word not in output(spec):
        assert time.monotonic() < end, f"it never said {word}"
        await asyncio.sleep(0.02)


def is_right(use: RunUse | None) -> bool:
    return use is not None and use.cpu_ms > 0 and 40 <= use.memory_mib <= 64


async def test_the_use_of_a_container_comes_from_its_control_group_or_from_docker(home: Home, runner: DockerRunner) -> None:
    spec = home.spec(BURNS, shm_mib=50)
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await said(spec, "up")
    use = await runner.use(spec.key)
    assert is_right(use), use
    watch = read_watch(home.folder / "guard" / f"{spec.key.name}.json")
    assert watch is not None and use is not None and watch.pid in use.pids and len(use.pids) >= 2
    told = docker_use.use_of(dataclasses.replace(watch, pid=None))
    assert is_right(told), told
    await runner.stop(spec.key, StopReason.ASKED, 0)
    await runner.wait(spec.key)
    assert None is await runner.use(spec.key)


async def test_an_extended_container_outlives_its_first_deadline_and_its_agent(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("echo up; sleep 5; echo done", timeout_s=4, grace_s=0)
    agent = home.agent(spec, "running")
    kill(agent)
    [status] = await runner.adopt()
    assert RunState.RUNNING is status.state
    await runner.extend(spec.key, 60)
    await runner.close()  # only the guard is left
    again = home.runner()
    end = await again.wait(spec.key)
    await again.close()
    assert (0, None, "up\ndone\n") == (end.exit_code, end.stop_reason, output(spec))


async def test_what_was_extended_before_its_start_has_the_longer_time(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("sleep 2; echo done", timeout_s=1, grace_s=0)
    await runner.prepare(spec, quiet)
    await runner.start(msgspec.structs.replace(spec, timeout_s=60))
    end = await runner.wait(spec.key)
    assert (0, None, "done\n") == (end.exit_code, end.stop_reason, output(spec))


async def test_the_extended_end_is_enforced(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("sleep 600", timeout_s=600, grace_s=0)
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await runner.extend(spec.key, 1)
    end = await runner.wait(spec.key)
    assert StopReason.DEADLINE is end.stop_reason
    await runner.extend(spec.key, 60)  # of what is over: no error


async def test_an_idle_container_is_warned_and_ended_and_a_busy_one_is_not(nodes: NodeWorld, engine: Engine) -> None:
    agent = ContainerAgent(nodes, engine)
    await nodes.add(agent).start()
    idle = await nodes.submit("sleep", "600", idle_timeout_s=5)
    busy = await nodes.submit("sh", "-c", "i=0; while [ $i -lt 5000000 ]; do i=$((i+1)); done", idle_timeout_s=5)
    await nodes.state(idle, "running", timeout_s=60)
    await until(lambda: any("idle for 5 s" in warning for warning in warnings_of(agent)), "it is warned")
    job = await nodes.state(idle, "timed_out", "failed", timeout_s=60)
    assert Reason.IDLE is job.reason
    assert job.run is not None and job.run.usage is not None and job.run.usage.peak_memory_mib < 50
    job = await nodes.state(busy, "running", "succeeded")
    assert job.reason in (None, Reason.EXITED_ZERO)


def warnings_of(agent: ContainerAgent) -> list[str]:
    hands = agent.agent._hands
    assert hands is not None
    return [hands.watcher.look(epoch).warning for epoch in hands.attempts]


async def test_an_extension_while_no_agent_lives_counts_at_its_return(nodes: NodeWorld, engine: Engine) -> None:
    agent = ContainerAgent(nodes, engine)
    await nodes.add(agent).start()
    job_id = await nodes.submit("sh", "-c", "sleep 7; echo done", timeout_s=6)
    await nodes.state(job_id, "running", timeout_s=60)
    await agent.kill()
    outcome = await nodes.buyer.submit(JobExtended(job_id=job_id, extra_s=60), 10.0)
    assert outcome.reason is None
    await agent.start()
    assert Reason.EXITED_ZERO is (await nodes.state(job_id, "succeeded", "timed_out", "failed", timeout_s=60)).reason
