"""What a run does with what it was given: warned, ended, extended, measured. Real agents and processes; limits of a few seconds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from integration.broker_env import until, world
from integration.market_env import a_market
from integration.node_env import NodeWorld, RunningAgent, some_nodes

from events.jobs import JobExtended
from events.reasons import Reason
from events.values import Program, RunUsage
from events.wire import BeatView, decode
from projections.jobs import Job
from seller_agent.node.agent import Agent

__all__ = ["a_market", "some_nodes", "world"]  # the fixtures

BUSY = "import time\nuntil = time.time() + 5\nwhile time.time() < until: pass\n"
BURNS = "import time\nuntil = time.monotonic() + 4\nwhile time.process_time() < 1.6 or time.monotonic() < until: pass\n"
"""Takes as long as it takes on a machine that others use, too, and long enough to be looked at several times."""
IDLE = ("python", "-c", "import time; time.sleep(600)")


@pytest.fixture
async def warnings(nodes: NodeWorld) -> AsyncIterator[list[str]]:
    """Every warning that the matcher passed on from heartbeats."""
    heard: list[str] = []

    def note(message: Any) -> None:
        heard.extend(lease.warning for lease in decode(message.data, BeatView).beat.leases if lease.warning)

    subscription = await nodes.market.world.services.subscribe("beats.>", note)
    yield heard
    await subscription.unsubscribe()


async def extend(nodes: NodeWorld, job_id: str, extra_s: int) -> None:
    outcome = await nodes.buyer.submit(JobExtended(job_id=job_id, extra_s=extra_s), 10.0)
    assert outcome.reason is None, outcome


def usage_of(job: Job) -> RunUsage:
    assert job.run is not None and job.run.usage is not None, job
    return job.run.usage


def told_s(running: RunningAgent) -> list[int]:
    """What the runner was told of the time of each run."""
    agent: Agent = running.agent
    assert agent._hands is not None
    return [attempt.given_s for attempt in agent._hands.attempts.values()]


async def test_an_idle_job_is_warned_and_then_ended_and_one_that_writes_now_and_then_is_not(nodes: NodeWorld, warnings: list[str]) -> None:
    await nodes.agent()
    idle = await nodes.submit(*IDLE, idle_timeout_s=4)
    writes = await nodes.submit("sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 1.3; done", idle_timeout_s=4)
    job = await nodes.state(idle, "timed_out", "failed", "succeeded")
    assert job.run is not None
    assert (Reason.IDLE, "idle for 4 s: no CPU, no GPU use and no output") == (job.reason, job.run.detail)
    assert 4000 <= job.run.ran_ms < 12_000
    assert warnings, "it was ended without a warning"
    assert all("idle for 4 s" in warning for warning in warnings)
    assert Reason.EXITED_ZERO is (await nodes.state(writes, "succeeded", "timed_out", "failed")).reason
    await nodes.free()


async def test_a_job_that_uses_its_cards_too_little_is_ended_and_a_busy_one_is_not(nodes: NodeWorld, warnings: list[str]) -> None:
    await nodes.agent()
    lazy = await nodes.submit(*IDLE, min_utilisation_percent=50, min_utilisation_window_s=3)
    busy = await nodes.submit("python", "-c", BUSY, min_utilisation_percent=5, min_utilisation_window_s=3)
    job = await nodes.state(lazy, "timed_out", "failed", "succeeded")
    assert job.run is not None
    assert (Reason.LOW_UTILISATION, True) == (job.reason, "50 % wanted" in job.run.detail)
    assert any("50 % wanted" in warning for warning in warnings)
    assert Reason.EXITED_ZERO is (await nodes.state(busy, "succeeded", "timed_out", "failed")).reason


async def test_too_much_gpu_memory_ends_the_job(nodes: NodeWorld, warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated card's memory is the main memory of its run."""
    monkeypatch.setattr("seller_agent.runs.watching.MEMORY_NOTICE_MS", 2000)
    await nodes.agent()
    hungry = "import time; held = bytearray(300 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(600)"
    job_id = await nodes.submit("python", "-c", hungry, gpu_memory_limit_mib=200)
    job = await nodes.state(job_id, "failed", "succeeded", "timed_out")
    assert Reason.GPU_MEMORY_EXCEEDED is job.reason
    assert usage_of(job).peak_gpu_memory_mib[0] >= 300
    assert any("200 MiB allowed" in warning for warning in warnings)


async def test_what_was_used_stands_in_the_end_with_the_card_that_was_not(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("python", "-c", BURNS, gpus=2, idle_timeout_s=8)
    usage = usage_of(await nodes.state(job_id, "succeeded", "failed", "timed_out"))
    assert usage.samples >= 3
    assert usage.cpu_ms >= 800
    assert usage.max_gpu_percent[0] >= 10 and 0 == usage.max_gpu_percent[1], usage
    assert 1 <= usage.peak_memory_mib < 500


async def test_a_job_is_warned_before_its_time_is_over(nodes: NodeWorld, warnings: list[str]) -> None:
    await nodes.agent()
    job_id = await nodes.submit(*IDLE, timeout_s=5)
    job = await nodes.state(job_id, "timed_out", "failed", "succeeded")
    assert Reason.RUN_TIMEOUT is job.reason
    assert {"run timeout; bazaar extend JOB 1h"} == {warning.partition(": ")[2] for warning in warnings}


async def test_an_extended_job_runs_past_its_first_timeout(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "sleep 4; echo done", timeout_s=3)
    await nodes.state(job_id, "running")
    await extend(nodes, job_id, 60)
    await until(lambda: told_s(agent) == [63], "the guard is told")
    assert Reason.EXITED_ZERO is (await nodes.state(job_id, "succeeded", "timed_out", "failed")).reason


async def test_an_extension_that_the_agent_missed_counts_after_its_restart(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "sleep 6; echo done", timeout_s=5)
    await nodes.state(job_id, "running")
    await agent.kill()
    await extend(nodes, job_id, 60)
    await agent.start()
    assert Reason.EXITED_ZERO is (await nodes.state(job_id, "succeeded", "timed_out", "failed")).reason


async def test_a_job_extended_while_it_waited_starts_with_the_longer_time(nodes: NodeWorld) -> None:
    job_id = await nodes.submit("sh", "-c", "sleep 2; echo done", timeout_s=1)
    await extend(nodes, job_id, 60)
    agent = await nodes.agent()
    await nodes.state(job_id, "running")
    assert [61] == told_s(agent)
    assert Reason.EXITED_ZERO is (await nodes.state(job_id, "succeeded", "timed_out", "failed")).reason


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        pytest.param({"estimate_s": 1, "estimate_limit": 2}, Reason.ESTIMATE_EXCEEDED, id="its estimate"),
        pytest.param({"max_total_uusd": 223}, Reason.BUDGET_EXHAUSTED, id="its budget"),
    ],
)
async def test_no_extension_moves(nodes: NodeWorld, limits: dict[str, int], reason: Reason) -> None:
    """223 micro-USD are two seconds of a card at 0.40 USD."""
    await nodes.agent()
    job_id = await nodes.submit(*IDLE, timeout_s=60, **limits)
    await nodes.state(job_id, "running")
    await extend(nodes, job_id, 600)
    job = await nodes.state(job_id, "timed_out", "failed", "succeeded")
    assert reason is job.reason
    assert job.charged_uusd <= 300


async def test_a_program_whose_last_words_are_known_fails_with_advice(nodes: NodeWorld) -> None:
    await nodes.agent()
    said = "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory"
    job_id = await nodes.submit(sys.executable, "-c", f"import sys; sys.exit({said!r})")
    job = await nodes.state(job_id, "failed", "succeeded")
    assert job.run is not None
    assert (Reason.EXITED_NONZERO, True) == (job.reason, "a CUDA library is missing" in job.run.detail)


async def test_a_fault_of_the_node_is_tried_again_elsewhere_under_an_epoch_of_its_own(nodes: NodeWorld) -> None:
    script = "echo $BAZAAR_ATTEMPT $BAZAAR_EPOCH; [ $BAZAAR_ATTEMPT = 2 ] || sleep 600"
    near, far = await nodes.agent("near", price=100_000), await nodes.agent("far", price=900_000)
    job_id = await nodes.submit("sh", "-c", script)
    first = (await nodes.state(job_id, "running")).run
    assert first is not None and near.node_id == first.node_id
    await until(lambda: near.running_output(job_id).endswith(b"\n"), "it says who it is")
    assert f"1 {first.epoch}\n".encode() == near.running_output(job_id)
    await near.leave()
    second = (await nodes.state(job_id, "succeeded", "failed")).run
    assert second is not None and far.node_id == second.node_id
    assert second.epoch > first.epoch
    assert f"2 {second.epoch}\n".encode() == (await nodes.output(job_id))[0]


async def test_a_fault_of_the_job_is_not_tried_again(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "exit 3", retries=3, program=Program(argv=("sh", "-c", "exit 3")))
    job = await nodes.state(job_id, "failed", "succeeded")
    assert (Reason.EXITED_NONZERO, 1) == (job.reason, job.attempts)
