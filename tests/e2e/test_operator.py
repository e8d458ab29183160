"""The operator's day, and a buyer who changes their mind: every command against a running market."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.market_env import MarketEnv, opened_market

SLEEP = ("-c", "import time; time.sleep(60)")


@pytest.fixture(scope="module", name="market")
def a_market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarketEnv]:
    folder: Path = tmp_path_factory.mktemp("operated")
    yield from opened_market(folder, "--simulate-gpus", "1xRTX 4090", "--policy", "sjf")


def policy(market: MarketEnv) -> dict[str, Any]:
    told: dict[str, Any] = market.command("bazaar-market", "policy", "show", "--json").json
    return told


def operate(market: MarketEnv, *arguments: str, **how: Any) -> str:
    return market.command("bazaar-market", *arguments, **how).stderr


def wallet(market: MarketEnv) -> str:
    return str(market.bazaar("wallet", "show").stdout.strip().splitlines()[-1].split()[-1])


def test_the_policy_is_shown_set_and_dated(market: MarketEnv) -> None:
    before = policy(market)
    assert ("sjf", 1) == (before["policy"]["name"], before["since_seq"])
    assert "The policy is fair-share" in operate(market, "policy", "set", "fair_share", "--max-queue", "3", "--auto-retry", "off")
    after = policy(market)
    assert ("fair-share", 3, False, None) == tuple(after["policy"][key] for key in ("name", "max_queue", "auto_retry", "max_concurrent"))
    assert after["since_seq"] > before["since_seq"] and after["since_ms"] > before["since_ms"]
    assert "fair-share" == market.get("/v1/policy")["policy"]["name"]
    operate(market, "policy", "set", "--max-queue", "100", "--auto-retry", "on")
    assert "fair-share" == policy(market)["policy"]["name"], "what is not named stays"


def test_what_cannot_be_meant_is_refused_with_what_can(market: MarketEnv) -> None:
    assert "fair-share, least-backlog" in operate(market, "policy", "set", "astrology", code=2)
    operate(market, "policy", "set", code=2)
    operate(market, "policy", "set", "--max-queue", "0", code=2)
    operate(market, "policy", "set", "--timeout-batch", "forever", code=2)
    operate(market, "limit", "set", "nobody", "--gpus", "1", code=3)
    operate(market, "node", "drain", "nowhere", code=3)
    operate(market, "cancel", "jzzzz", code=3)


def test_a_new_market_takes_its_policy_from_the_environment_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    env = MarketEnv(tmp_path)
    try:
        told = env.command("bazaar-market", "up", "--port", "0", code=2, BAZAAR_POLICY="astrology")
        assert "least-backlog" in told.stderr
        told = env.command("bazaar-market", "up", "--port", "0", code=2, BAZAAR_MAX_QUEUE="many")
        assert "BAZAAR_MAX_QUEUE" in told.stderr
    finally:
        env.close()


def test_a_limit_keeps_a_job_waiting_and_says_so_until_it_is_lifted(market: MarketEnv) -> None:
    me = wallet(market)
    operate(market, "limit", "set", me, "--gpus", "0", "--priority-max", "high")
    [use] = market.command("bazaar-market", "limit", "show", "--json").json
    assert (me, 0, 75) == (use["party"], use["limit"]["gpus"], use["limit"]["priority_max"])
    job = market.submit(*SLEEP)
    assert "queued" == market.job(job)["state"]
    assert "limit" == market.bazaar("why", job, "--json").json["cause"]
    told = market.bazaar("priority", job, "critical", "--json", code=5).problem
    assert ("quota_exceeded", True) == (told["code"], "75" in told["detail"])
    operate(market, "limit", "set", me, "--gpus", "none")
    market.wait_for_job(job, "running")
    operate(market, "cancel", job[:12])
    market.wait_for_job(job, "cancelled")
    assert "cancelled_by_operator" == market.job(job)["reason"]
    operate(market, "limit", "set", me, "--priority-max", "none")
    assert [] == market.command("bazaar-market", "limit", "show", "--json").json


def test_a_paused_market_takes_jobs_and_starts_none(market: MarketEnv) -> None:
    operate(market, "pause")
    job = market.submit("-c", "print(1)")
    assert "paused" == market.bazaar("why", job, "--json").json["cause"]
    operate(market, "resume")
    market.wait_for_job(job, "succeeded")


def test_a_node_is_drained_banned_and_let_again(market: MarketEnv) -> None:
    [node] = market.get("/v1/nodes")["items"]
    for order, state in (("drain", "draining"), ("resume", "offered"), ("ban", "banned"), ("resume", "offered")):
        operate(market, "node", order, node["name"])
        market.wait_until(lambda state=state: state == market.get(f"/v1/nodes/{node['id']}")["state"], f"the node is {state}")
    assert "letters" in operate(market, "node", "ban", node["name"], "--reason", 'b"ad', code=2)


def test_a_queued_job_changes_its_priority_and_price_and_a_running_one_does_not(market: MarketEnv) -> None:
    operate(market, "policy", "set", "priority")
    running = market.submit(*SLEEP)
    market.wait_for_job(running, "running")
    first, second = market.submit(*SLEEP, "--max-price", "0.50"), market.submit(*SLEEP)
    assert 1 == market.job(second)["queue_position"]
    told = market.bazaar("priority", second, "high", "--json").json
    assert (75, 0) == (told["priority"], told["queue_position"])
    assert "pays at most 0.10 USD" in market.bazaar("reprice", first, "0.10").stdout
    assert 100_000 == market.job(first)["max_price_uusd_per_gpu_hour"]
    assert "pays any price" in market.bazaar("reprice", first, "any").stdout
    for command in (("priority", running, "low"), ("reprice", running, "1")):
        told = market.bazaar(*command, "--json", code=1).problem
        assert ("illegal_in_state", True) == (told["code"], "running" in told["detail"])
    market.bazaar("priority", first, "urgent", code=2)
    market.bazaar("reprice", first, "-1", code=2)
    market.bazaar("cancel", running, first, second)
