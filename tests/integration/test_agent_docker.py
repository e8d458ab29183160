"""The agent with the Docker runner, on a real market and a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.docker_engine import IMAGE, Engine, engine
from integration.market_env import a_market
from integration.node_env import NodeWorld, RunningAgent, some_nodes

from events.files import LocalFile, get_files, put_files
from events.jobs import JobCancelRequested
from events.reasons import Reason
from events.values import Isolation
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.runner import Runner

__all__ = ["a_market", "engine", "some_nodes", "world"]  # the fixtures

pytestmark = pytest.mark.timeout(180)


class ContainerAgent(RunningAgent):
    """An agent whose jobs run in containers."""

    def __init__(self, nodes: NodeWorld, engine: Engine) -> None:
        super().__init__(nodes, "box", "2xRTX 4090", 400_000)
        self.isolation = Isolation.CONTAINER
        self.default_image = IMAGE
        self.socket = engine.socket

    def make_runner(self) -> Runner:
        return DockerRunner(self.folder, self.node_id, socket_path=self.socket)


@pytest.fixture
async def agent(nodes: NodeWorld, engine: Engine) -> RunningAgent:
    return await nodes.add(ContainerAgent(nodes, engine)).start()


async def test_a_job_in_a_container_gets_its_inputs_and_gives_its_results(nodes: NodeWorld, agent: RunningAgent, tmp_path: Path) -> None:
    (tmp_path / "script.sh").write_text("pwd; cat data; id -u; env | grep BAZAAR_OUT; tr a-z A-Z < data > $BAZAAR_OUT/result\n")
    (tmp_path / "data").write_text("hello\n")
    manifest, _ = await put_files(nodes.buyer.ask_files, [LocalFile(name, tmp_path / name) for name in ("script.sh", "data")])
    job_id = await nodes.submit("sh", "script.sh", inputs=manifest)
    job = await nodes.state(job_id, "succeeded", "failed", timeout_s=60)
    assert job.run is not None and job.run.results is not None, job
    assert b"/job\nhello\n65534\nBAZAAR_OUT=/out\n" == (await nodes.output(job_id))[0]
    await get_files(nodes.buyer.ask_files, job.run.results, tmp_path / "results", job_id=job_id, limit_bytes=10**6)
    assert "HELLO\n" == (tmp_path / "results" / "result").read_text()
    await nodes.free()
    await until(lambda: not [name for name in (agent.folder / "runs").iterdir() if name.name.startswith("j")], "no folder left")


async def test_a_container_outlives_its_agent_and_is_taken_up_again(nodes: NodeWorld, agent: RunningAgent) -> None:
    job_id = await nodes.submit("sh", "-c", "for i in $(seq 20); do echo line $i; usleep 100000; done")
    await nodes.state(job_id, "running", timeout_s=60)
    await agent.kill()
    await agent.start()
    job = await nodes.state(job_id, "succeeded", "failed", "queued", timeout_s=60)
    assert ("succeeded", 1) == (job.state.value, job.attempts)
    assert "".join(f"line {number}\n" for number in range(1, 21)).encode() == (await nodes.output(job_id))[0]


async def test_a_container_that_is_cancelled_is_gone(nodes: NodeWorld, agent: RunningAgent, engine: Engine) -> None:
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running", timeout_s=60)
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    job = await nodes.state(job_id, "cancelled", timeout_s=60)
    await nodes.free()
    assert Reason.CANCELLED_BY_BUYER is job.reason
    await until(lambda: not [name for name in engine.names() if job_id in name], "the container is removed")


async def test_an_image_that_does_not_exist_costs_nothing(nodes: NodeWorld, agent: RunningAgent) -> None:
    from events.values import Program

    job_id = await nodes.submit("true", program=Program(argv=("true",), image="127.0.0.1:9/none:1"))
    job = await nodes.state(job_id, "failed", "queued", timeout_s=60)
    await nodes.free(60)
    assert (0, 1) == (job.charged_uusd, job.attempts)
    assert job.reason in (Reason.IMAGE_NOT_FOUND, Reason.IMAGE_PULL_TIMEOUT, Reason.CONTAINER_ERROR)
