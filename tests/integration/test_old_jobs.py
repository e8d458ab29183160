"""What a job left behind is its buyer's for as long as it is stored, also when the fold has long let go of the job."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.broker_env import World, world
from integration.test_gateway import SmallMarket, Stage

from events.errors import Refused
from events.files import LocalFile, get_files, put_files
from events.jobs import GpusReleased, JobSucceeded
from events.reasons import Refusal
from events.wire import FilesRequest
from services import gateway
from services.api import app

__all__ = ["world"]  # the fixture


class Inside(Stage):
    """A stage whose gateway and API run in this process, where memory can be made short."""

    def start_gateway(self) -> None:
        world = self.market.world
        self.until = asyncio.Event()
        listening = socket.create_server(("127.0.0.1", 0))
        self.serving = [
            asyncio.create_task(gateway.serve(world.url, world.keys, snapshot_file=self.home / "none", until=self.until)),
            asyncio.create_task(
                app.serve(
                    world.url,
                    world.keys,
                    listening=listening,
                    database=self.home / "rows" / "read_model.db",
                    snapshot_file=self.home / "none",
                    until=self.until,
                )
            ),
        ]

    async def stop(self) -> None:
        self.until.set()
        await asyncio.gather(*self.serving)


@pytest.fixture
async def forgetful(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Inside]:
    monkeypatch.setattr("projections.market.FINISHED_KEPT", 0)
    market = SmallMarket(world, tmp_path)
    await market.start_matcher()
    stage = Inside(market, tmp_path)
    try:
        yield stage
    finally:
        await stage.stop()
        await market.stop()


async def test_results_and_output_of_a_job_that_memory_has_dropped_are_still_its_buyers(forgetful: Inside, tmp_path: Path) -> None:
    stage = await forgetful.start()
    assert isinstance(stage, Inside)
    held = await stage.claimed()
    await stage.write(held, (1, 0, b"the last words"))
    (tmp_path / "model").write_bytes(os.urandom(1000))
    results, _ = await put_files(stage.seller.ask_files, [LocalFile("model", tmp_path / "model")], job_id=held.job_id)
    await stage.seller.submit(JobSucceeded(**held.names, exit_code=0, results=results), 10)
    await stage.seller.submit(GpusReleased(**held.names), 10)
    later = await stage.claimed()  # its end pushes the first one out of memory
    await stage.seller.submit(JobSucceeded(**later.names, exit_code=0), 10)
    await stage.seller.submit(GpusReleased(**later.names), 10)
    async with asyncio.timeout(20):
        while held.job_id in stage.market.matcher.market.jobs:
            await asyncio.sleep(0.02)
    async with asyncio.timeout(20):
        while True:
            try:
                await get_files(stage.buyer.ask_files, results, tmp_path / "fetched", job_id=held.job_id, limit_bytes=1 << 20)
                break
            except Refused:  # the rows of the read model come a moment later
                await asyncio.sleep(0.05)
    assert (tmp_path / "model").read_bytes() == (tmp_path / "fetched/model").read_bytes()
    assert (b"the last words", b"") == await stage.written(held)
    refused = await stage.stranger.ask_files(FilesRequest(op="output", job_id=held.job_id))
    assert refused.failure is not None
    assert Refusal.NOT_YOURS == refused.failure.code
