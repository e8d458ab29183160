"""Who may wait for answers over NATS at once: a wallet that asks for what is long in coming keeps no other from its answers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from projections.market import Market
from services.api.rpc import CONCURRENCY, PER_WALLET, ReadRequest, Rpc
from services.api.shelf import Answer


class SlowDesk:
    """One whose answers come when they are let."""

    def __init__(self) -> None:
        self.may_go = asyncio.Event()

    def find(self, path: str) -> tuple[None, str]:
        return None, ""

    def ready_source(self) -> Any:
        return SimpleNamespace(mirror=SimpleNamespace(market=Market()))

    async def answer(self, *_: object) -> Answer:
        await self.may_go.wait()
        return Answer(b"{}", "", 0)


async def test_a_wallet_has_few_questions_waiting_and_another_still_gets_its_answer() -> None:
    assert PER_WALLET < CONCURRENCY
    desk: Any = SlowDesk()
    connection: Any = None
    rpc = Rpc(connection, desk)
    question = msgspec.msgpack.encode(ReadRequest(path="/v1/events", query={"min_seq": "999999", "wait": "20s"}))
    waiting = [asyncio.create_task(rpc._read("0x" + "1" * 40, question)) for _ in range(PER_WALLET)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert b"rate_limited" in await rpc._read("0x" + "1" * 40, question)
    other = asyncio.create_task(rpc._read("0x" + "2" * 40, question))
    desk.may_go.set()
    async with asyncio.timeout(5):
        assert [b"{}"] * (PER_WALLET + 1) == await asyncio.gather(*waiting, other)
        assert b"{}" == await rpc._read("0x" + "1" * 40, question), "then there is room again"
