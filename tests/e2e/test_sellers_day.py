"""A GPU owner's day, with the owner's own commands beside a running agent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from e2e.market_env import MarketEnv, market

from events.home import resolve
from events.login import open_client
from events.reading import ReadRefused, read, read_items
from events.values import Role
from events.wallet import Passphrases

__all__ = ["market"]  # the fixture: one market for all, so that the last test may leave a second node behind


def seller(env: MarketEnv, *arguments: str, **how: Any) -> Any:
    """One of the owner's commands."""
    return env.command("bazaar-seller", *arguments, **how)


def status(env: MarketEnv) -> dict[str, Any]:
    return dict(seller(env, "status", "--json").json)


def node_price(env: MarketEnv) -> int:
    return int(status(env)["price_uusd_per_gpu_hour"])


def test_an_owner_looks_prices_drains_plans_and_counts(market: MarketEnv) -> None:
    seen = status(market)
    assert ("offered", 2, 0, None, False) == (
        seen["state"],
        len(seen["cards"]),
        seen["unanswered_events"],
        seen["market_error"],
        seen["orders"]["draining"],
    )
    assert seen["agent_pid"] > 0

    first = market.submit("-c", "print('hello')")
    market.wait_for_job(first, "succeeded")
    told = seller(market, "price", "0.55")
    assert ("", True) == (told.stdout, "asks 0.55 USD" in told.stderr)
    assert 550_000 == node_price(market)
    second = market.submit("-c", "import time; time.sleep(0.3)")
    assert 550_000 == market.wait_for_job(second, "succeeded")["price_uusd_per_gpu_hour"]

    listed = seller(market, "jobs", "--json").json
    assert [second, first] == [job["id"] for job in listed]
    charged = sum(market.job(job_id)["charged_uusd"] for job_id in (first, second))
    earned = seller(market, "earnings", "--json").json
    assert (2, charged) == (earned["total"]["jobs"], earned["total"]["charged_uusd"])
    assert [charged] == [day["charged_uusd"] for day in earned["days"]], "unless midnight came in between"
    assert "total" in seller(market, "earnings", "--since", "1h").stdout

    running = market.submit("-c", "import time; time.sleep(600)")
    market.wait_for_job(running, "running")
    [job] = status(market)["jobs"]
    assert (running, True) == (job["id"], 3500_000 < job["left_ms"] <= 3600_000)
    seller(market, "drain", "--reason", "dust", "--deadline", "1s")
    market.wait_until(lambda: market.job(running).get("reason") == "evicted", "what ran at the deadline is evicted")
    assert ("draining", "dust") == (status(market)["state"], status(market)["orders"]["drain_reason"])
    assert "drained (dust)" in seller(market, "status").stdout
    seller(market, "resume")
    market.wait_for_job(running, "queued", "running", "claimed", "starting", "matched")
    market.bazaar("cancel", running)

    seller(market, "maintenance", "--from", "2h", "--for", "90m", "--reason", "new fan")
    plan = status(market)["orders"]["maintenance"]
    assert ("new fan", 90 * 60_000) == (plan["reason"], plan["until_ms"] - plan["from_ms"])
    seller(market, "maintenance", "--cancel")
    assert None is status(market)["orders"]["maintenance"]


def test_orders_that_make_no_sense_are_refused_before_anything_is_written(market: MarketEnv) -> None:
    for arguments in (
        ("price", "cheap"),
        ("price", "-1"),
        ("drain", "--deadline", "soon"),
        ("drain", "--reason", "a\nb"),
        ("maintenance",),
        ("maintenance", "--from", "2h"),
        ("maintenance", "--from", "2h", "--for", "1h", "--cancel"),
        ("status", "--name", "../up"),
        ("earnings", "--since", "yesterday"),
    ):
        assert "Traceback" not in seller(market, *arguments, code=2).stderr, arguments
    refused = seller(market, "resume", "--json", code=1).problem
    assert "illegal_in_state" == refused["code"], "a node that was never drained"
    assert "is not drained" in refused["title"] and "maintenance --cancel" in refused["hint"]


def test_the_state_of_a_node_is_told_also_without_a_market(market: MarketEnv) -> None:
    told = seller(market, "status", "--json", "--market", "nats://127.0.0.1:1", code=6)
    state = json.loads(told.stdout)
    assert state["agent_pid"] > 0 and state["market_error"].startswith("Cannot reach")


async def test_only_the_owner_of_a_node_is_told_of_everybodys_jobs_on_it(market: MarketEnv) -> None:
    """Over the market's own connection, where the subject proves who asks."""
    market.wait_for_job(market.submit("-c", "print('hello')"), "succeeded")
    market.bazaar("wallet", "new", "stranger")
    node, seen = status(market)["node"], {}
    for wallet, role in (("seller", Role.SELLER), ("stranger", Role.BUYER)):
        settings = resolve({"wallet": wallet}, market.environment())
        async with await open_client(settings, role, Passphrases()) as client:
            seen[wallet] = len(await read_items(client, "/v1/jobs", {"node": node}))
            with pytest.raises(ReadRefused):
                await read(client, "/v1/no-such-thing")
    assert (True, 0) == (seen["seller"] > 0, seen["stranger"])


def test_of_two_nodes_of_one_home_one_must_be_named(market: MarketEnv) -> None:
    other = market.run_on("bazaar-seller", "run", "--price", "0.20", "--name", "other", "--simulate-gpus", "1xRTX 4090")
    market.wait_until(lambda: "Offered" in other.err or other.code is not None, "the other node is offered")
    told = seller(market, "status", code=2)
    assert "other (process" in told.stderr and "--name" in told.stderr
    seller(market, "price", "0.25", "--name", "other")
    assert "0.25" == seller(market, "status", "--name", "other", "--json").json["price_usd"]
    other.process.kill()
    other.process.wait()
    again = market.run_on("bazaar-seller", "run", "--price", "0.20", "--name", "other", "--simulate-gpus", "1xRTX 4090")
    market.wait_until(lambda: "Offered" in again.err or again.code is not None, "offered again")
    assert "0.25 USD" in again.err, "what the owner set last, not what the old command line says"
    seller(market, "withdraw", "--name", "other")
    assert 0 == again.ended()
    third = market.run_on("bazaar-seller", "run", "--price", "0.30", "--name", "other", "--simulate-gpus", "1xRTX 4090")
    market.wait_until(lambda: "Offered" in third.err or third.code is not None, "offered at another price")
    assert "0.30 USD" in third.err
    assert 0 == third.stop()
