"""A laboratory on one market: an organisation with members, jobs submitted for it, and read tokens that show just that."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from e2e.market_env import MarketEnv, own_market

__all__ = ["own_market"]  # the fixture


def read(market: MarketEnv, path: str, token: str) -> tuple[int, Any]:
    """What the API tells whoever has this token."""
    request = urllib.request.Request(market.api + path, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_members_submit_for_their_organisation_and_a_token_shows_its_jobs_and_no_others(own_market: MarketEnv) -> None:
    market = own_market
    bob = market.bazaar("wallet", "new", "bob").stdout.strip()
    me = ("--wallet", "default")
    lab = market.bazaar("org", "create", "vision lab", *me).stdout.strip()
    market.bazaar("org", "add", bob, "--alias", "Bob", *me)
    shown = market.bazaar("org", "show", "--json", *me).json
    assert {("member", "Bob"), ("owner", None)} == {(member["role"], member["alias"]) for member in shown["members"]}
    assert "vision lab" in market.bazaar("org", "list", "--wallet", "bob").stdout

    submit = ("submit", "-y", "--allow-simulated", "--wallet", "bob")
    ours = market.bazaar(*submit, "--org", "vision lab", "-c", "print('ours')").stdout.strip()
    private = market.bazaar(*submit, "-c", "print('private')").stdout.strip()
    told = market.job(ours)
    assert (lab, "Bob") == (told["org"], told["buyer_alias"])

    assert [ours] == [job["id"] for job in market.bazaar("ps", "-a", "--org", "vision lab", "--json", *me).json]
    token = market.bazaar("token", "create", "wall", "--org", "vision lab", *me).stdout.strip()
    status, jobs = read(market, "/v1/jobs", token)
    assert (200, [ours]) == (status, [job["id"] for job in jobs["items"]])
    assert 404 == read(market, f"/v1/jobs/{private}", token)[0]
    assert ["wall"] == [one["name"] for one in market.bazaar("token", "list", "--json", *me).json]
    assert token not in market.bazaar("events", "--json").stdout
    market.bazaar("token", "revoke", "wall", *me)
    market.wait_until(lambda: read(market, "/v1/jobs", token)[0] == 401, "the token is void")

    market.bazaar("org", "role", bob, "viewer", *me)
    refused = market.bazaar(*submit, "--org", lab, "-c", "1", code=4)
    assert "viewer" in refused.stderr
    market.bazaar("org", "remove", bob, *me)
    assert 3 == market.bazaar(*submit, "--org", lab, "-c", "1", code=3).code


def test_why_is_told_by_the_command_with_the_change_that_would_help(own_market: MarketEnv) -> None:
    market = own_market
    waiting = market.submit("--gpus", "2", "--max-price", "0.30", "-c", "print(1)")
    told = market.bazaar("why", waiting)
    assert "Smallest change: --max-price 0.40" in told.stdout
    body = market.bazaar("why", waiting, "--json").json
    assert ("price", True, "price") == (body["cause"], body["change"]["at_once"], body["waits"][0]["cause"])
    seq = market.job(waiting)["submitted_seq"]
    assert "price" == market.bazaar("why", waiting, "--as-of", str(seq), "--json").json["cause"]
    assert 2 == market.bazaar("why", waiting, "--as-of", "yesterday", code=2).code
    market.bazaar("cancel", waiting)
    assert "It has ended, cancelled" in market.bazaar("why", waiting).stdout


def test_top_shows_the_machines_what_runs_and_why_the_rest_waits(own_market: MarketEnv) -> None:
    market = own_market
    running = market.submit("--gpus", "1", "--name", "busy", "-c", "import time; time.sleep(30)")
    market.wait_for_job(running, "running")
    market.submit("--gpus", "2", "--max-price", "0.10", "--name", "frugal", "-c", "1")
    told = market.bazaar("top").stdout
    assert "1 of 2 GPUs free" in told and "#." in told
    assert "busy" in told and "frugal" in told and "asks more than it may cost" in told
    assert {"market", "stats", "nodes", "queued", "running"} <= market.bazaar("top", "--json").json.keys()
    market.bazaar("cancel", running, "--wait")
