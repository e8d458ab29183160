"""One agent on a real market: broker, callout, matcher and gateway, jobs as real processes."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.market_env import a_market
from integration.node_env import NodeWorld, some_nodes

from events.files import LocalFile, get_files, put_files
from events.jobs import JobCancelRequested
from events.reasons import Reason
from projections.nodes import NodeState
from seller_agent.runs import saving

__all__ = ["a_market", "some_nodes", "world"]  # the fixtures


def left_over(nodes: NodeWorld, name: str = "node") -> list[str]:
    """Folders of runs that are still there."""
    return [entry for entry in os.listdir(nodes.home / "seller" / name / "runs") if not entry.startswith(".")]


async def test_a_job_runs_to_its_end_and_its_cards_are_free_again(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "echo hello; echo oops >&2")
    job = await nodes.state(job_id, "succeeded")
    await nodes.free()
    assert job.run is not None
    assert (0, 6, 5) == (job.run.exit_code, job.run.stdout_bytes, job.run.stderr_bytes)
    assert (b"hello\n", b"oops\n") == await nodes.output(job_id)
    await until(lambda: not left_over(nodes), "no folder left")


@pytest.mark.parametrize(
    ("command", "reason", "exit_code"),
    [
        (("sh", "-c", "exit 7"), Reason.EXITED_NONZERO, 7),
        (("sh", "-c", "kill -SEGV $$"), Reason.KILLED_BY_SIGNAL, 139),
        (("no-such-program",), Reason.PROGRAM_NOT_FOUND, 127),
    ],
)
async def test_a_job_that_fails_says_why(nodes: NodeWorld, command: tuple[str, ...], reason: Reason, exit_code: int) -> None:
    await nodes.agent()
    job_id = await nodes.submit(*command)
    job = await nodes.state(job_id, "failed")
    await nodes.free()
    assert job.run is not None
    assert (reason, exit_code, 1) == (job.reason, job.run.exit_code, job.attempts)


REPORT = """
import json, os, sys
names = ("BAZAAR_JOB_ID", "BAZAAR_ATTEMPT", "BAZAAR_EPOCH", "BAZAAR_GPU_UUIDS", "PYTHONUNBUFFERED", "GREETING")
os.makedirs(os.environ["BAZAAR_OUT"] + "/deep")
with open(os.environ["BAZAAR_OUT"] + "/deep/report.json", "w") as file:
    json.dump({"data": open("data/in.txt").read(), "files": sorted(os.listdir(".")), **{name: os.environ[name] for name in names}}, file)
"""


async def test_inputs_go_in_and_results_come_out(nodes: NodeWorld, tmp_path: Path) -> None:
    await nodes.agent()
    (tmp_path / "report.py").write_text(REPORT)
    (tmp_path / "in.txt").write_text("42\n")
    files = [LocalFile("report.py", tmp_path / "report.py"), LocalFile("data/in.txt", tmp_path / "in.txt")]
    manifest, _ = await put_files(nodes.buyer.ask_files, files)
    job_id = await nodes.submit("python3", "report.py", inputs=manifest, env={"GREETING": "hello", "BAZAAR_EPOCH": "forged"})
    job = await nodes.state(job_id, "succeeded")
    assert job.run is not None and job.run.results is not None
    await get_files(nodes.buyer.ask_files, job.run.results, tmp_path / "results", job_id=job_id, limit_bytes=10**6)
    assert {
        "data": "42\n",
        "files": ["data", "report.py"],
        "BAZAAR_JOB_ID": job_id,
        "BAZAAR_ATTEMPT": "1",
        "BAZAAR_EPOCH": str(job.run.epoch),
        "BAZAAR_GPU_UUIDS": ",".join(job.run.cards),
        "PYTHONUNBUFFERED": "1",
        "GREETING": "hello",
    } == json.loads((tmp_path / "results" / "deep" / "report.json").read_text())
    await nodes.free()
    await until(lambda: not left_over(nodes), "no folder left")


async def test_a_running_job_that_is_cancelled_is_stopped_and_its_output_kept(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "trap 'echo saved; exit 3' TERM; echo begun; while :; do sleep 0.05; done")
    await nodes.state(job_id, "running")
    await until(lambda: nodes.agents[0].running_output(job_id) == b"begun\n", "the program has begun")
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    job = await nodes.state(job_id, "cancelled")
    await nodes.free()
    assert job.run is not None
    assert (Reason.CANCELLED_BY_BUYER, 3) == (job.reason, job.run.exit_code)
    assert b"begun\nsaved\n" == (await nodes.output(job_id))[0]


async def test_a_job_that_takes_too_long_is_ended(nodes: NodeWorld) -> None:
    await nodes.agent()
    job_id = await nodes.submit("sleep", "60", timeout_s=1)
    job = await nodes.state(job_id, "timed_out")
    await nodes.free()
    assert job.run is not None
    assert Reason.RUN_TIMEOUT is job.reason
    assert 1000 <= job.run.ran_ms < 10_000


async def test_jobs_wait_for_cards_and_none_is_used_twice(nodes: NodeWorld) -> None:
    await nodes.agent(gpus="2xRTX 4090")
    script = "mkdir /tmp/$MARK-$BAZAAR_GPU_UUIDS || exit 9; sleep 0.1; rmdir /tmp/$MARK-$BAZAAR_GPU_UUIDS"
    env = {"MARK": f"bazaar-{os.getpid()}"}
    job_ids = [await nodes.submit("sh", "-c", script, env=env) for _ in range(8)]
    for job_id in job_ids:
        await nodes.state(job_id, "succeeded", timeout_s=40)
    await nodes.free()


async def test_an_agent_that_leaves_gives_its_jobs_back(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await nodes.submit("sleep", "60")
    await nodes.state(job_id, "running")
    await agent.leave()
    job = nodes.job(job_id)
    assert ("queued", Reason.EVICTED) == (job.state.value, job.reason)
    node = nodes.market.matcher.market.nodes[agent.node_id]
    assert NodeState.WITHDRAWN is node.state
    assert {} == node.allocations
    await nodes.agent("other")
    assert 2 == (await nodes.state(job_id, "running")).attempts
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    await nodes.state(job_id, "cancelled")


async def test_a_second_agent_for_the_same_node_gives_way(nodes: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seller_agent.node.agent.OTHER_AGENT_S", 0.0)
    first = await nodes.agent()
    second = await nodes.twin(first)
    assert second.task is not None
    failure = await asyncio.wait_for(asyncio.gather(second.task, return_exceptions=True), 20)
    assert "Another agent answers for this node" in str(failure[0])
    await second.forget()
    job_id = await nodes.submit("true")
    await nodes.state(job_id, "succeeded")


async def test_the_end_does_not_wait_for_ever_for_the_gateway(nodes: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "SAVE_BEFORE_END_S", 0.3)
    await nodes.agent()
    await nodes.stop_gateway()
    job_id = await nodes.submit("sh", "-c", "echo hello; echo data > $BAZAAR_OUT/file")
    job = await nodes.state(job_id, "succeeded")
    await nodes.free()
    assert job.run is not None and job.run.results is not None
    assert 6 == job.run.stdout_bytes
    await nodes.start_gateway()
    await until(lambda: not left_over(nodes), "everything is shipped", 30)
    assert (b"hello\n", b"") == await nodes.output(job_id)
    await get_files(nodes.buyer.ask_files, job.run.results, nodes.home / "results", job_id=job_id, limit_bytes=10**6)
    assert "data\n" == (nodes.home / "results" / "file").read_text()


async def test_an_input_that_is_gone_fails_the_job_for_nobodys_money(nodes: NodeWorld) -> None:
    from events.values import BlobRef

    await nodes.agent()
    job_id = await nodes.submit("true", inputs=BlobRef(sha256="00" * 32, size=3))
    job = await nodes.state(job_id, "failed")
    await nodes.free()
    assert (Reason.INPUT_MISSING, 0, 1) == (job.reason, job.charged_uusd, job.attempts)


async def test_a_wallet_that_is_made_later_is_taken_too(nodes: NodeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seller_agent.node.agent.WALLETS_LOOK_S", 0.05)
    agent = await nodes.agent()
    later = "0x" + "ab" * 20
    agent.own_wallets.append(later)
    node = nodes.market.matcher.market.nodes[agent.node_id]
    await until(lambda: later in node.offer.accept_wallets, "offered again")


async def test_a_withdrawn_node_finishes_its_job_and_its_agent_ends(nodes: NodeWorld) -> None:
    from events.nodes import NodeWithdrawn

    agent = await nodes.agent()
    job_id = await nodes.submit("sh", "-c", "while [ ! -e ../go ]; do sleep 0.02; done")
    await nodes.state(job_id, "running")
    await agent.client.submit(NodeWithdrawn(node_id=agent.node_id), 5.0)
    await until(lambda: "withdrawn" in " ".join(nodes.said), "the agent heard")
    (agent.folder_of(job_id) / "go").touch()
    await nodes.state(job_id, "succeeded")
    assert agent.task is not None
    await asyncio.wait_for(agent.task, 20)
