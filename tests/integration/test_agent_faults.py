"""What goes wrong under a running agent: a card is lost, the disk is full, another agent has its name. And what systemd hears."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.market_env import a_market
from integration.node_env import NodeWorld, some_nodes
from integration.test_agent_crashes import ROOT, SellerProcess
from integration.test_gpus import library

from events.files import LocalFile, put_files
from events.jobs import JobCancelRequested
from events.reasons import Reason
from events.values import Requirements

__all__ = ["a_market", "library", "some_nodes", "world"]  # the fixtures

LOST = "15"
"""What NVML answers about a card that has fallen off the bus."""
DISK_MIB = 8


class Seller(SellerProcess):
    """`bazaar-seller run` as a process, with more around it: variables, and a program that starts it."""

    def __init__(self, nodes: NodeWorld) -> None:
        super().__init__(nodes)
        self.variables: dict[str, str] = {}
        self.within: tuple[str, ...] = ()
        self.cards: tuple[str, ...] = ("--simulate-gpus", "2xRTX 4090")

    def start(self) -> None:
        command = [*self.within, sys.executable, "-m", "seller_agent", "run", "--price", "0.40", "--name", "box", "--wallet", "seller"]
        command += ["--runner", "process", "--accept", "anyone", *self.cards, "--market", self.nodes.market.world.url]
        environment = {**os.environ, "BAZAAR_HOME": str(self.home), **self.variables}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@pytest.fixture
async def seller(nodes: NodeWorld) -> AsyncIterator[Seller]:
    made = Seller(nodes)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            await made.end()


async def test_a_card_that_is_lost_ends_its_job_which_runs_elsewhere(
    nodes: NodeWorld, seller: Seller, library: Path, tmp_path: Path
) -> None:
    state = tmp_path / "cards"
    state.write_text("count 2\n")
    seller.variables = {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state)}
    seller.cards = ()
    seller.start()
    await seller.offered()
    job_id = await nodes.submit("sleep", "600")
    run = (await nodes.state(job_id, "running")).run
    assert run is not None
    other = await nodes.agent("other")
    lost = int(run.cards[0].rpartition("-")[2], 16)
    state.write_text(f"count 2\nfails {lost} {LOST}\n")
    await until(lambda: Reason.GPU_LOST is nodes.job(job_id).reason or nodes.job(job_id).attempts == 2, "the card is missed", 40)
    job = await nodes.state(job_id, "running")
    assert job.run is not None
    assert (2, other.node_id, 0) == (job.attempts, job.run.node_id, job.charged_uusd)
    offered = nodes.market.matcher.market.nodes[seller.node_id].offer.cards
    assert {lost: False, 1 - lost: True} == {card.index: card.healthy for card in offered}
    assert 1 == nodes.market.matcher.market.nodes[seller.node_id].ended.get(Reason.GPU_LOST)
    await nodes.buyer.submit(JobCancelRequested(job_id=job_id), 5.0)
    await nodes.state(job_id, "cancelled")


def small_disk(folder: Path) -> tuple[str, ...]:
    """Start a program so that only it, and what it starts, sees a small disk there."""
    folder.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={DISK_MIB}m tmpfs "{folder}" && exec "$@"'
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh")
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("may not mount here; a small disk needs root")
    return command


async def test_inputs_that_the_disk_does_not_hold_send_the_job_elsewhere(nodes: NodeWorld, seller: Seller, tmp_path: Path) -> None:
    seller.within = small_disk(seller.home / "seller" / "box")
    seller.start()
    await seller.offered()
    (tmp_path / "large").write_bytes(os.urandom((DISK_MIB + 1) << 20))
    manifest, _ = await put_files(nodes.buyer.ask_files, [LocalFile("large", tmp_path / "large")])
    job_id = await nodes.submit("sh", "-c", "wc -c < large", inputs=manifest)
    await until(lambda: nodes.job(job_id).reason is Reason.DISK_FULL, "the disk is full", 30)
    assert ("queued", 0) == (nodes.job(job_id).state.value, nodes.job(job_id).charged_uusd)
    await nodes.agent("other")
    await nodes.state(job_id, "succeeded", timeout_s=40)
    assert f"{(DISK_MIB + 1) << 20}\n".encode() == (await nodes.output(job_id))[0]
    small = await nodes.submit("true", requirements=Requirements(num_gpus=1, allow_simulated=True, target_node=seller.node_id))
    assert seller.process is not None and seller.process.poll() is None, "the agent has survived it"
    await nodes.state(small, "succeeded", timeout_s=40)


async def test_a_second_agent_with_the_same_delegation_on_another_machine_gives_way(
    nodes: NodeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller_agent.node.agent.OTHER_AGENT_S", 0.0)
    first = await nodes.agent()
    running = await nodes.submit("sleep", "600")
    await nodes.state(running, "running")
    second = await nodes.twin(first, first.session)
    assert second.task is not None
    [failure] = await asyncio.wait_for(asyncio.gather(second.task, return_exceptions=True), 20)
    assert "Another agent answers for this node" in str(failure)
    assert "--name" in getattr(failure, "hint", "")
    await second.forget()
    assert ("running", 1) == (nodes.job(running).state.value, nodes.job(running).attempts)
    await nodes.state(await nodes.submit("true"), "succeeded")
    await nodes.buyer.submit(JobCancelRequested(job_id=running), 5.0)
    await nodes.state(running, "cancelled")


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Callable[[], set[str]]]:
    """What a supervisor has been told so far."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.setblocking(False)
    told: set[str] = set()

    def hear() -> set[str]:
        try:
            while True:
                told.add(listener.recv(1000).decode().partition("\n")[0])
        except BlockingIOError:
            return told

    yield hear
    listener.close()


async def test_systemd_hears_when_the_node_is_offered_that_it_lives_and_that_it_goes(
    nodes: NodeWorld, seller: Seller, tmp_path: Path, systemd: Callable[[], set[str]]
) -> None:
    seller.variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"}
    seller.start()
    await seller.offered()
    await until(lambda: {"READY=1", "WATCHDOG=1"} <= systemd(), "ready and alive")
    job_id = await nodes.submit("sh", "-c", "while [ ! -e ../go ]; do sleep 0.02; done")
    run = (await nodes.state(job_id, "running")).run
    assert run is not None and seller.process is not None
    seller.process.send_signal(signal.SIGHUP)
    assert 0 == await asyncio.to_thread(seller.process.wait, 20)
    assert "STOPPING=1" in systemd()
    assert "running" == nodes.job(job_id).state.value, "it was left to the next start"
    seller.start()
    await seller.offered()
    (seller.home / "seller" / "box" / "runs" / f"{job_id}-{run.attempt}-{run.epoch}" / "go").touch()
    assert 1 == (await nodes.state(job_id, "succeeded")).attempts
