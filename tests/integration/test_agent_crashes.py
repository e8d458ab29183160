"""Whatever dies while jobs run, and whenever: each job ends once, ran once, and its output is complete."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.market_env import a_market
from integration.node_env import NodeWorld, some_nodes

from events import ids
from events.home import known_wallets
from events.jobs import JobCancelRequested
from events.reasons import Reason
from projections.job_states import TERMINAL

__all__ = ["a_market", "some_nodes", "world"]  # the fixtures

ROOT = Path(__file__).resolve().parents[2]
LINES = 40
SCRIPT = 'echo $BAZAAR_JOB_ID >> "$MARK"; i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; sleep %s; done'


class SellerProcess:
    """`bazaar-seller run` as a process, to be killed and started again."""

    def __init__(self, nodes: NodeWorld) -> None:
        self.nodes = nodes
        self.home = nodes.home / "process home"
        self.log = nodes.home / "seller.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "seller_agent", "run", "--price", "0.40", "--name", "box", "--wallet", "seller"]
        command += ["--runner", "process", "--accept", "anyone", "--simulate-gpus", "2xRTX 4090", "--market", self.nodes.market.world.url]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "BAZAAR_HOME": str(self.home)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    async def end(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, 30)

    @property
    def node_id(self) -> str:
        [wallet] = known_wallets(self.home)
        return ids.node_id(wallet.address, "box")

    async def offered(self) -> None:
        """Return once this very process has offered the node."""
        [size] = [self.log.stat().st_size if self.log.exists() else 0]
        await until(lambda: b"Offered" in self.log.read_bytes()[size:], f"offered; {self.log.read_text()[-2000:]}", 30)


@pytest.fixture
async def seller(nodes: NodeWorld) -> AsyncIterator[SellerProcess]:
    made = SellerProcess(nodes)
    made.start()
    try:
        await made.offered()
        yield made
    finally:
        assert made.process is not None
        if made.process.poll() is None:
            await made.end()


def marked(mark: Path) -> list[str]:
    return mark.read_text().split() if mark.exists() else []


async def ended_once(nodes: NodeWorld, job_ids: list[str], mark: Path) -> None:
    for job_id in job_ids:
        job = await nodes.state(job_id, *(state.value for state in TERMINAL), timeout_s=60)
        assert ("succeeded", 1) == (job.state.value, job.attempts), job
        assert "".join(f"line {number}\n" for number in range(1, LINES + 1)).encode() == (await nodes.output(job_id))[0]
    assert sorted(job_ids) == sorted(marked(mark)), "each ran once"
    await nodes.free()


@pytest.mark.parametrize("moment", ["queued", "matched", "claimed", "running", "later", "ended"])
async def test_an_agent_that_is_killed_goes_on_where_it_was(nodes: NodeWorld, seller: SellerProcess, tmp_path: Path, moment: str) -> None:
    mark = tmp_path / "mark"
    if moment == "queued":
        seller.kill()
    job_id = await nodes.submit("sh", "-c", SCRIPT % (LINES, 0.02), env={"MARK": str(mark)})
    if moment == "ended":
        await nodes.state(job_id, "succeeded")
    elif moment == "later":
        await until(lambda: marked(mark), "the program runs")
        await asyncio.sleep(0.2)
    elif moment != "queued":
        await nodes.state(job_id, moment, "running", "succeeded")
    seller.kill()
    seller.start()
    await ended_once(nodes, [job_id], mark)


async def test_an_agent_that_is_killed_again_and_again_runs_every_job_once(nodes: NodeWorld, seller: SellerProcess, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    job_ids = [await nodes.submit("sh", "-c", SCRIPT % (LINES, pause), env={"MARK": str(mark)}) for pause in ("0.01", "0.05", "0") * 3]
    dice = random.Random(7)
    for _ in range(5):
        await asyncio.sleep(dice.uniform(0.05, 1.5))
        seller.kill()
        seller.start()
    await ended_once(nodes, job_ids, mark)


async def test_a_run_whose_supervisor_dies_too_is_given_back(nodes: NodeWorld, seller: SellerProcess) -> None:
    job_id = await nodes.submit("sleep", "600")
    await nodes.state(job_id, "running")
    seller.kill()
    assert 2 == end_supervisor(seller.home / "seller" / "box" / "runs"), "the worker and its keeper"
    seller.start()
    job = await nodes.state(job_id, "queued", timeout_s=40)
    assert (Reason.RUNTIME_RESTARTED, 1, 0) == (job.reason, job.attempts, job.charged_uusd)
    await nodes.free()
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)


def end_supervisor(runs: Path) -> int:
    """Kill the daemon that guards this folder's processes; how many processes it was."""
    ended = 0
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if str(runs).encode() in words and any(b"supervisor" in word for word in words):
            os.kill(int(entry.name), signal.SIGKILL)
            ended += 1
    return ended


async def test_a_broker_that_restarts_during_a_run_is_not_noticed_by_the_job(
    nodes: NodeWorld, seller: SellerProcess, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    job_id = await nodes.submit("sh", "-c", SCRIPT % (LINES, 0.05), env={"MARK": str(mark)})
    await nodes.state(job_id, "running")
    await nodes.market.world.restart_broker()
    await ended_once(nodes, [job_id], mark)


async def test_a_matcher_that_restarts_during_a_run_is_not_noticed_by_the_job(
    nodes: NodeWorld, seller: SellerProcess, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    job_id = await nodes.submit("sh", "-c", SCRIPT % (LINES, 0.02), env={"MARK": str(mark)})
    await nodes.state(job_id, "running")
    await nodes.market.stop_matcher()
    await asyncio.sleep(1.0)
    await nodes.market.start_matcher()
    await ended_once(nodes, [job_id], mark)


async def test_the_first_signal_leaves_in_order_and_the_second_at_once(nodes: NodeWorld, seller: SellerProcess, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    job_id = await nodes.submit("sh", "-c", 'trap "" TERM; ' + SCRIPT % (100_000, 0.05), env={"MARK": str(mark)})
    await until(lambda: marked(mark), "the program runs")
    assert seller.process is not None
    seller.process.send_signal(signal.SIGTERM)
    await until(lambda: b"Leaving" in seller.log.read_bytes(), "it says so")
    seller.process.send_signal(signal.SIGTERM)
    assert 0 == await asyncio.to_thread(seller.process.wait, 20), seller.log.read_text()
    seller.start()
    job = await nodes.state(job_id, "queued", "failed", "succeeded", timeout_s=30)
    assert (Reason.EVICTED, 1) == (job.reason, job.attempts), "the reason was written down before the signal"
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)


async def test_two_agents_of_one_home_do_not_share_a_node(nodes: NodeWorld, seller: SellerProcess) -> None:
    second = SellerProcess(nodes)
    second.log = nodes.home / "second.log"
    second.start()
    assert second.process is not None
    assert 1 == await asyncio.to_thread(second.process.wait, 20)
    assert "An agent for this node runs here already" in second.log.read_text()
