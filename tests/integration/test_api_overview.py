"""One look at the market, and prices over time, from memory and from disk alike."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from integration.broker_env import World, world
from integration.test_api import ApiProcess, Scribe, api, scribe

from events import wire
from events.identity import ReadTokenIssued
from events.nodes import NodeRepriced
from events.wire import Beat, BeatCard, BeatView
from services.api.rates import BURST

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


async def test_metrics_tell_figures_and_readings_under_either_set_of_names(scribe: Scribe, api: ApiProcess) -> None:
    node = await scribe.offer("metered", gpus=2)
    await scribe.submit()
    beat = Beat(
        node_id=node, boot="b", cards=(BeatCard("GPU-metered-0", gpu_percent=97, memory_used_mib=512, temperature_c=70, power_w=300),)
    )
    view = BeatView(beat=beat, wallet=scribe.seller.wallet, time_ms=scribe.now_ms)
    await scribe.world.services.publish(f"beats.{node}", wire.encode(view))
    await api.at("/v1/market", scribe.market.last_seq)
    async with asyncio.timeout(10):
        while b"gpu_utilization_percent{" not in (got := await api.get("/metrics")).body:
            await asyncio.sleep(0.02)
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    told = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in got.body.decode().splitlines() if not line.startswith("#")}
    labels = f'{{gpu="0",model="{MODEL}",node="{node}",node_name="metered",uuid="GPU-metered-0"}}'
    assert 97 == told[f"gpubazaar_gpu_utilization_percent{labels}"]
    assert (1, 1, 1) == (
        told['gpubazaar_gpus{state="free"}'],
        told['gpubazaar_gpus{state="taken"}'],
        told['gpubazaar_jobs{state="matched"}'],
    )
    assert 1 == told["gpubazaar_job_wait_seconds_count"] == told['gpubazaar_job_wait_seconds_bucket{le="+Inf"}']
    theirs = (await api.get("/metrics?dcgm=1")).body.decode()
    assert f'DCGM_FI_DEV_GPU_UTIL{{Hostname="metered",UUID="GPU-metered-0",gpu="0",modelName="{MODEL}"}} 97.0' in theirs
    assert 400 == (await api.get("/metrics?name=x")).status


async def test_who_asks_too_often_is_told_when_to_come_back(scribe: Scribe, world: World, tmp_path: Path) -> None:
    token = "bzr_busy"
    digest = hashlib.sha256(token.encode()).hexdigest()
    await scribe.say(scribe.buyer, ReadTokenIssued(token_sha256=digest, name="busy", expires_ms=scribe.now_ms + 3_600_000))
    api = ApiProcess(world, tmp_path)
    api.bind = "0.0.0.0"
    await api.start()
    try:
        headers = {"Authorization": f"Bearer {token}"}
        answers = await asyncio.gather(*(api.get("/v1/stats", headers=headers) for _ in range(3 * BURST)))
        refused = [got for got in answers if got.status == 429]
        assert refused and {200, 429} == {got.status for got in answers}
        assert ("rate_limited", True) == (refused[0].json["code"], int(refused[0].headers["retry-after"]) >= 1)
        assert 200 == (await api.get("/v1/stats")).status, "another reader is not held up"
        guesses = [await api.get("/v1/stats", headers={"Authorization": f"Bearer guess{number}"}) for number in range(4 * BURST)]
        assert 429 in {got.status for got in guesses}, "nobody can try many tokens"
    finally:
        await api.stop()
