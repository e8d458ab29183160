"""What a run does with real cards, as the driver's library tells it: a library whose cards are scripted, read by an agent of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.market_env import a_market
from integration.node_env import NodeWorld, some_nodes
from integration.test_agent_crashes import ROOT, SellerProcess
from integration.test_gpus import library

from events.reasons import Reason

__all__ = ["a_market", "library", "some_nodes", "world"]  # the fixtures

QUICK = """
import sys
from seller_agent import cli
from seller_agent.cards import machine
from seller_agent.runs import watching
machine.LOOK_S, watching.MEMORY_NOTICE_MS = 0.3, 2000
sys.argv = ["bazaar-seller", *sys.argv[1:]]
cli.main()
"""


class CardsProcess(SellerProcess):
    """An agent with the cards of the scripted library."""

    def __init__(self, nodes: NodeWorld, library: Path) -> None:
        super().__init__(nodes)
        self._library = library
        self._state = nodes.home / "cards"

    def cards(self, *lines: str) -> None:
        """What the cards do from now on."""
        new = self._state.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in ("count 2", *lines)))
        os.replace(new, self._state)

    def start(self) -> None:
        self.cards()
        command = [sys.executable, "-c", QUICK, "run", "--price", "0.40", "--name", "box", "--wallet", "seller"]
        command += ["--runner", "process", "--accept", "anyone", "--market", self.nodes.market.world.url]
        cards = {"LD_LIBRARY_PATH": str(self._library), "FAKE_NVML_STATE": str(self._state)}
        environment = {**os.environ, **cards, "BAZAAR_HOME": str(self.home)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest.fixture
async def seller(nodes: NodeWorld, library: Path) -> AsyncIterator[CardsProcess]:
    made = CardsProcess(nodes, library)
    made.start()
    try:
        await made.offered()
        yield made
    finally:
        await made.end()


async def test_a_job_that_fills_more_of_a_card_than_it_may_is_ended(nodes: NodeWorld, seller: CardsProcess) -> None:
    job_id = await nodes.submit("sleep", "600", gpus=2, gpu_memory_limit_mib=8000)
    await nodes.state(job_id, "running")
    seller.cards("used 0 7000", "used 1 9000", "load 1 97")
    job = await nodes.state(job_id, "failed", "timed_out", "succeeded", timeout_s=30)
    assert job.run is not None and job.run.usage is not None
    assert (Reason.GPU_MEMORY_EXCEEDED, "9000 MiB of a card's memory in use, 8000 MiB allowed") == (job.reason, job.run.detail)
    used = dict(zip(job.run.cards, zip(job.run.usage.max_gpu_percent, job.run.usage.peak_gpu_memory_mib, strict=True), strict=True))
    assert {"GPU-00000000-aaaa-bbbb-cccc-000000000000": (0, 7000), "GPU-00000001-aaaa-bbbb-cccc-000000000000": (97, 9000)} == used


async def test_a_card_that_computes_keeps_its_job_alive_until_it_rests(nodes: NodeWorld, seller: CardsProcess) -> None:
    seller.cards("load 0 50", "load 1 50")
    job_id = await nodes.submit("sleep", "600", idle_timeout_s=2)
    await nodes.state(job_id, "running")
    begun_ms = nodes.market.matcher.market.time_ms
    await until(lambda: nodes.market.matcher._now_ms() - begun_ms > 5000, "more than twice its limit")
    assert "running" == nodes.job(job_id).state.value
    seller.cards()
    assert Reason.IDLE is (await nodes.state(job_id, "timed_out", "failed", "succeeded", timeout_s=30)).reason
