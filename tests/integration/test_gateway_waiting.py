"""The gateway lets a question wait for its fold, and nobody else waits with it, however many wallets ask about jobs that will never be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from integration.broker_env import world
from integration.market_env import MarketWorld, a_job, a_market, session_of

from events import ids
from events.files import get_bytes, put_bytes
from events.market_client import MarketClient
from events.wire import FilesAnswer, FilesRequest
from services import gateway

__all__ = ["a_market", "world"]  # the fixtures

STRANGERS, QUESTIONS = 17, 10
"""More questions than there are places, and few of each wallet."""


class Serving:
    """A gateway in this process, whose questions wait for ever."""

    def __init__(self, market: MarketWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gateway, "LAG_S", 3600.0)
        self.stop = asyncio.Event()
        snapshot = market.home / "no snapshot"
        self.task = asyncio.create_task(gateway.serve(market.world.url, market.world.keys, snapshot_file=snapshot, until=self.stop))

    async def __aenter__(self) -> Serving:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        async with asyncio.timeout(20):
            await self.task


def about(job_id: str) -> FilesRequest:
    return FilesRequest(op="output", job_id=job_id)


async def ask_about_nothing(client: MarketClient) -> list[asyncio.Task[FilesAnswer]]:
    jobs = [ids.job_id(os.urandom(12)) for _ in range(QUESTIONS)]
    asking = [asyncio.create_task(client.ask("files", about(job), FilesAnswer, 3600)) for job in jobs]
    await asyncio.sleep(0)
    await client.connection.flush()
    return asking


async def test_wallets_that_ask_about_unknown_jobs_take_no_place_from_others(
    market: MarketWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Serving(market, monkeypatch):
        honest = await market.client(session_of(1))
        await put_bytes(honest.ask_files, b"is the gateway there?")
        strangers = [await market.client(session_of(100 + number), tmp_path / f"stranger-{number}") for number in range(STRANGERS)]
        asking = [task for stranger in strangers for task in await ask_about_nothing(stranger)]
        ref = await put_bytes(honest.ask_files, b"mine")
        assert b"mine" == await get_bytes(honest.ask_files, ref)
        assert STRANGERS * QUESTIONS > gateway.PLACES and not any(task.done() for task in asking)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_a_question_that_came_before_its_job_is_answered_when_the_job_is_there(
    market: MarketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Serving(market, monkeypatch):
        buyer = await market.client(session_of(1))
        await put_bytes(buyer.ask_files, b"is the gateway there?")
        job = a_job()
        early = asyncio.create_task(buyer.ask("files", about(job.job_id), FilesAnswer, 60))
        await asyncio.sleep(0)
        await buyer.connection.flush()
        assert (await buyer.submit(job, 10)).reason is None
        answer = await early
        assert (None, 0) == (answer.failure, answer.attempt)
