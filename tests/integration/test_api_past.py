"""The market as it was, and why jobs waited: the API folds the ledger again up to a moment, over HTTP and over NATS."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import msgspec
import pytest
from integration.broker_env import login, world
from integration.test_api import ApiProcess, Party, Scribe, a_job, api, scribe

from events import subjects, wire
from events.identity import ReadTokenIssued
from events.jobs import JobRepriced
from events.market import MatchingPaused, MatchingResumed
from events.nodes import NodeRepriced
from events.values import Role
from events.why import WhyAnswer, WhyRequest
from services.api import past

__all__ = ["api", "scribe", "world"]


async def test_every_view_can_be_asked_for_a_past_moment(scribe: Scribe, api: ApiProcess) -> None:
    node = await scribe.offer(price=400_000)
    first = await scribe.submit("first", gpus=2)
    waiting = await scribe.submit("second")
    then = scribe.market.last_seq
    await scribe.finish(first)
    await scribe.say(scribe.seller, NodeRepriced(node_id=node, price_uusd_per_gpu_hour=300_000))
    later = await scribe.submit("third")
    now = scribe.market.last_seq

    async def at(path: str, moment: int = then) -> Any:
        return (await api.at(f"{path}{'&' if '?' in path else '?'}as_of={moment}", now)).json

    assert ["matched", "queued"] == [(await at(f"/v1/jobs/{name}"))["state"] for name in (first, waiting)]
    assert ["second", "first"] == [job["name"] for job in (await at("/v1/jobs"))["items"]]
    past_node, past_stats = await at(f"/v1/nodes/{node}"), await at("/v1/stats")
    assert (0, 400_000) == (past_node["gpus_free"], past_node["price_uusd_per_gpu_hour"])
    assert [waiting] == [job["id"] for job in (await at("/v1/queue"))["queued"]]
    assert (1, 1) == (past_stats["waiting"], past_stats["running"])
    assert then == (await at("/v1/market"))["seq"] == (await at("/v1/market"))["as_of_seq"]
    assert 404 == (await api.get(f"/v1/jobs/{later}?as_of={then}")).status, "it had not been submitted"
    assert ["succeeded", "matched"] == [(await at(f"/v1/jobs/{name}", now))["state"] for name in (first, later)]


async def test_a_moment_is_a_sequence_or_a_time_and_never_lies_ahead(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    ms = scribe.now_ms
    await asyncio.sleep(0.01)
    await scribe.submit()
    seq = scribe.market.last_seq
    assert 0 == (await api.at(f"/v1/stats?as_of={ms}", seq)).json["running"]
    for moment, status in ((seq + 1, 400), (time.time_ns() // 1_000_000 + 3_600_000, 400), ("2026-02-30", 400), ("2026-01-01T00:00Z", 200)):
        assert status == (await api.get(f"/v1/stats?as_of={moment}")).status, moment
    assert 400 == (await api.get("/v1/events?as_of=1")).status, "events have no moment"


async def test_why_tells_what_a_job_waits_for_and_what_would_place_it(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer("small")
    await scribe.offer("dear", gpus=4, price=900_000)
    job = await scribe.submit("large", gpus=3)
    assert scribe.market.jobs[job].state == "matched"
    waiting = await scribe.submit("larger", gpus=8)
    told = (await api.at(f"/v1/jobs/{waiting}/why", scribe.market.last_seq)).json
    assert ("impossible", {"never": 2}, 0) == (told["cause"], told["tiers"], told["queue_position"])
    assert {"dear", "small"} == {node["name"] for node in told["nodes"]}
    assert ("--gpus 2", True) == (told["change"]["flag"], told["change"]["at_once"]), "only the small one is free"
    assert [] == told["waits"]


async def test_the_whole_wait_adds_up_and_its_past_can_be_asked_for(scribe: Scribe, api: ApiProcess) -> None:
    job = await scribe.submit()
    unplaced = scribe.market.last_seq
    await scribe.say(scribe.operator, MatchingPaused())
    await scribe.offer()
    paused = scribe.market.last_seq
    await asyncio.sleep(0.02)
    await scribe.say(scribe.operator, MatchingResumed())
    await asyncio.sleep(0.02)
    await scribe.finish(job)
    seq = scribe.market.last_seq
    told = (await api.at(f"/v1/jobs/{job}/why?waits=true", seq)).json
    run = scribe.market.jobs[job].run
    assert run is not None
    assert run.started_ms - scribe.market.jobs[job].submitted_ms == told["wait_ms"]
    assert told["wait_ms"] == sum(wait["until_ms"] - wait["from_ms"] for wait in told["waits"])
    assert {"paused", "claim"} <= {wait["cause"] for wait in told["waits"]}
    assert "impossible" == (await api.get(f"/v1/jobs/{job}/why?as_of={unplaced}")).json["cause"]
    then = (await api.get(f"/v1/jobs/{job}/why?as_of={paused}&waits=true")).json
    assert ("paused", paused) == (then["cause"], then["as_of_seq"])
    assert 400 == (await api.get(f"/v1/jobs/{job}/why?as_of=1")).status, "the job did not exist then"


async def test_a_job_that_memory_has_forgotten_still_tells_why_it_waited(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    job = await scribe.submit()
    await scribe.finish(job)
    await api.at("/v1/market", scribe.market.last_seq)
    await api.stop()
    await api.start()
    told = (await api.get(f"/v1/jobs/{job}/why?waits=true")).json
    assert ("succeeded", "It has ended, succeeded: the program ended with exit code 0.") == (told["state"], told["summary"])
    assert told["wait_ms"] is not None


async def test_why_is_told_to_who_may_see_the_job_and_to_nobody_else(scribe: Scribe, api: ApiProcess) -> None:
    job, token, stranger = await scribe.submit(), "t" * 43, Party(7, Role.BUYER)
    digest = hashlib.sha256(token.encode()).hexdigest()
    await scribe.say(stranger, ReadTokenIssued(token_sha256=digest, name="mine", expires_ms=scribe.now_ms + 3_600_000))
    await api.at("/v1/market", scribe.market.last_seq)
    headers = {"Authorization": f"Bearer {token}"}
    for query in ("", "?waits=true", f"?as_of={scribe.market.last_seq}"):
        assert 404 == (await api.get(f"/v1/jobs/{job}/why{query}", headers=headers)).status
    for party, code in ((scribe.buyer, None), (scribe.other, "unknown_job")):
        connection = await scribe.world.connect(login(party.session), "wallet")
        question = wire.encode(WhyRequest(job_id=job, waits=True))
        answer = wire.decode(await connection.request(subjects.rpc("why", party.wallet), question, 10.0), WhyAnswer)
        assert code == (answer.failure and answer.failure.code)
        assert (code is None) is (answer.why is not None)


async def test_a_price_that_was_raised_shows_in_the_wait(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer(price=500_000)
    poor = msgspec.structs.replace(a_job("poor"), max_price_uusd_per_gpu_hour=100_000)
    await scribe.say(scribe.buyer, poor)
    await asyncio.sleep(0.01)
    told = (await api.at(f"/v1/jobs/{poor.job_id}/why", scribe.market.last_seq)).json
    assert ("price", "--max-price 0.50", True) == (told["cause"], told["change"]["flag"], told["change"]["at_once"])
    await scribe.say(scribe.buyer, JobRepriced(job_id=poor.job_id, max_price_uusd_per_gpu_hour=500_000))
    told = (await api.at(f"/v1/jobs/{poor.job_id}/why?waits=true", scribe.market.last_seq)).json
    assert ("matched", "price") == (told["state"], told["waits"][0]["cause"])


async def test_the_present_as_a_past_moment_is_the_present(scribe: Scribe, api: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes that are made a few jobs at a time are those that were kept in step."""
    monkeypatch.setattr(past, "JOBS_AT_ONCE", 2)
    await scribe.offer()
    for number, priority in enumerate((50, 75, 25, 75, 50)):
        await scribe.say(scribe.buyer, msgspec.structs.replace(a_job(f"job {number}", gpus=2), priority=priority))
    seq = scribe.market.last_seq
    for path in ("/v1/queue", "/v1/jobs", "/v1/stats", "/v1/jobs?state=queued"):
        live = (await api.at(path, seq)).json
        assert live == (await api.get(f"{path}{'&' if '?' in path else '?'}as_of={seq}")).json, path
    assert ["job 1", "job 3", "job 4", "job 2"] == [job["name"] for job in (await api.get(f"/v1/queue?as_of={seq}")).json["queued"]]
