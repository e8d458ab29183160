"""One look at the market, and prices over time, from memory and from disk alike."""

from __future__ import annotations

import asyncio
from typing import Any

from integration.broker_env import world
from integration.test_api import ApiProcess, Scribe, api, scribe

from events.nodes import NodeRepriced

__all__ = ["api", "scribe", "world"]
MODEL = "NVIDIA GeForce RTX 4090"


async def test_one_answer_tells_the_whole_market(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer("b", gpus=2, price=300_000)
    await scribe.offer("a", gpus=4, price=900_000)
    first = await scribe.submit("first")
    waiting = await scribe.submit("waiting", gpus=8)
    told = (await api.at("/v1/state", scribe.market.last_seq)).json
    assert [{"model": MODEL, "nodes": 2, "gpus": 6, "gpus_free": 5, "low_uusd": 300_000, "high_uusd": 900_000}] == told["models"]
    assert (["a", "b"], 2) == ([node["name"] for node in told["nodes"]], told["nodes_total"])
    assert ([waiting], [first]) == ([job["id"] for job in told["queued"]], [job["id"] for job in told["running"]])
    assert (1, 1, 5) == (told["stats"]["waiting"], told["stats"]["running"], told["stats"]["available_gpus"])


async def paid(api: ApiProcess, seq: int, query: str = "") -> Any:
    return (await api.at(f"/v1/prices{query}", seq)).json["items"]


async def test_prices_over_time_are_those_of_the_matches_whatever_was_written_when(scribe: Scribe, api: ApiProcess) -> None:
    node = await scribe.offer(gpus=8, price=400_000)
    await scribe.submit("one")
    await scribe.say(scribe.seller, NodeRepriced(node_id=node, price_uusd_per_gpu_hour=100_000))
    await scribe.submit("two", gpus=2)
    seq = scribe.market.last_seq
    for _ in range(20):  # while the rows go from memory to disk
        [found] = await paid(api, seq)
        assert (MODEL, 2) == (found["model"], sum(point[4] for point in found["points"]))
        await asyncio.sleep(0.1)
    low, mean, high = (found["points"][0][place] for place in (1, 2, 3))
    assert len(found["points"]) > 1 or (100_000, 200_000, 400_000) == (low, mean, high)
    await api.stop()
    await api.start()
    assert [found] == await paid(api, seq)
    await scribe.submit("three")
    [more] = await paid(api, scribe.market.last_seq)
    assert 3 == sum(point[4] for point in more["points"])
    assert [] == await paid(api, seq, "?model=A100")
    assert [] == await paid(api, seq, f"?until_ms={scribe.now_ms - 3_600_000}")


async def test_a_job_without_a_card_has_a_series_of_its_own(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    await scribe.submit("thinks", gpus=0)
    assert ["CPU only"] == [found["model"] for found in await paid(api, scribe.market.last_seq)]
