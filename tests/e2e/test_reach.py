"""A market that other machines reach: three homes as on three machines, TLS with a certificate of the market's own, one line to join by."""

from __future__ import annotations

import json
import socket
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from e2e.market_env import MarketEnv

from events import pinning
from events.invitation import Invitation, read_line

JOB = "print(6 * 7)"


class Machines(NamedTuple):
    """The operator's, a seller's and a buyer's."""

    operator: MarketEnv
    seller: MarketEnv
    buyer: MarketEnv
    line: str


def machine(folder: Path, stack: ExitStack) -> MarketEnv:
    made = MarketEnv(folder)
    stack.callback(made.close)
    return made


def asked(url: str, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """What the API answers over HTTP, its certificate checked against the fingerprint in the address."""
    base, path = url.split(" ")
    context, (plain, _) = pinning.context_for([base]), pinning.split(base)
    try:
        with urllib.request.urlopen(urllib.request.Request(plain + path, headers=headers or {}), timeout=10, context=context) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with ExitStack() as stack:
        operator, seller, buyer = (machine(tmp_path_factory.mktemp(name), stack) for name in ("operator", "seller", "buyer"))
        operator.start("--bind", "0.0.0.0", "--tls-self-signed")
        line = operator.command("bazaar-market", "invite", "--host", "127.0.0.1").stdout.strip()
        seller.command("bazaar-seller", *line.split()[1:])
        buyer.bazaar(*line.split()[1:])
        buyer.bazaar("wallet", "new")
        cards = ("--simulate-gpus", "2xRTX 4090", "--runner", "process", "--accept", "anyone")
        seller.run_on("bazaar-seller", "run", "--price", "0.40", "--name", "far", *cards)
        buyer.wait_until(lambda: buyer.bazaar("quote", "--allow-simulated", code=None).code == 0, "the node is offered")
        yield Machines(operator, seller, buyer, line)


# --- joining, and what follows from it ---


def test_the_line_is_one_line_and_says_all_that_is_needed(machines: Machines) -> None:
    assert 1 == len(machines.line.splitlines()) and machines.line.startswith("bazaar join bzj1.")
    invitation = read_line(machines.line)
    endpoints = json.loads((machines.operator.home / "market" / "endpoints.json").read_text())
    assert (endpoints["market"], endpoints["api"], endpoints["market_id"]) == tuple(vars(invitation).values())
    assert (
        invitation.market.startswith("tls://127.0.0.1:") and invitation.api is not None and invitation.api.startswith("https://127.0.0.1:")
    )
    written = tomllib.loads((machines.buyer.home / "config.toml").read_text())
    assert vars(invitation) == written


def test_a_buyer_without_a_token_runs_a_job_and_reads_all_about_it(machines: Machines) -> None:
    buyer, api = machines.buyer, machines.operator.api
    tape = buyer.run_on("bazaar", "events", "-f", "--from", "1", "--json")
    ran = buyer.bazaar("run", "--allow-simulated", "--name", "far away", "-y", "-c", JOB)
    assert ran.stdout.splitlines()[-1] == "42"
    status, problem = asked(f"{api} /v1/jobs")
    assert (401, "token_required") == (status, problem["code"]), "over HTTP it is a stranger"
    [job] = buyer.bazaar("ps", "-a", "--json").json
    assert ("far away", "succeeded", "far") == (job["name"], job["state"], job["node_name"])
    assert job["id"] in buyer.bazaar("show", "last").stdout
    assert job["id"] == buyer.bazaar("show", job["id"][:6], "--json").json["id"]
    assert [] == buyer.bazaar("queue", "--json").json["queued"]
    assert "42\n" == buyer.bazaar("logs", "last").stdout
    kinds = {event["type"] for event in buyer.bazaar("events", "--from", "1", "-n", "500", "--json").json}
    assert {"MarketCreated", "NodeOffered", "JobSubmitted", "JobSucceeded"} <= kinds
    buyer.wait_until(lambda: any('"JobSucceeded"' in line for line in tape.lines), "the tape goes on over the broker")
    numbers = [json.loads(line)["seq"] for line in tape.lines]
    assert list(range(1, len(numbers) + 1)) == numbers, "none missing, none twice"
    tape.stop()


def test_a_token_reads_over_https_with_the_same_certificate(machines: Machines) -> None:
    token = machines.buyer.bazaar("token", "create", "laptop").stdout.split()[-1]
    api = machines.operator.api
    status, jobs = asked(f"{api} /v1/jobs", {"Authorization": f"Bearer {token}"})
    assert 200 == status and all(job["buyer"] == jobs["items"][0]["buyer"] for job in jobs["items"])
    assert machines.buyer.bazaar("ps", "-a", "--json", BAZAAR_TOKEN=token).json == jobs["items"]
    assert "The read token is not valid" in machines.buyer.bazaar("ps", BAZAAR_TOKEN="bzr_guess", code=4).stderr


def test_a_shell_reaches_into_a_job_behind_the_same_certificate(machines: Machines) -> None:
    buyer = machines.buyer
    job = buyer.submit("-c", "import time; time.sleep(600)")
    buyer.wait_until(lambda: buyer.bazaar("show", job, "--json").json["state"] == "running", "it runs")
    text = "".join(f"line {number}\n" for number in range(40_000))
    assert text == buyer.bazaar("shell", job, "--", "cat", stdin=text).stdout
    buyer.bazaar("cancel", job, "--wait")


def test_everybody_comes_back_after_the_broker_was_killed(machines: Machines) -> None:
    machines.operator.kill("broker")
    ran = machines.buyer.bazaar("run", "--allow-simulated", "-y", "-c", JOB)
    assert ran.stdout.splitlines()[-1] == "42"
    assert machines.operator.command("bazaar-market", "status", "--json").json["state"]["seq"] > 1
    assert machines.operator.command("bazaar-market", "verify-log", "--json").json["agrees"]


def test_nobody_is_greeted_in_the_clear(machines: Machines) -> None:
    address = urlsplit(pinning.split(machines.operator.market)[0])
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as connection:
        connection.sendall(b"CONNECT {}\r\nPING\r\n")
        heard = b""
        with suppress(ConnectionResetError):
            while data := connection.recv(4096):
                heard += data
    assert b"INFO" not in heard and b"nonce" not in heard


# --- what is refused ---


def changed(line: str, **values: str | None) -> str:
    return Invitation(**(vars(read_line(line)) | values)).line()


def test_a_certificate_that_was_not_agreed_on_is_refused_with_both_fingerprints(machines: Machines, tmp_path: Path) -> None:
    with ExitStack() as stack:
        home = machine(tmp_path, stack)
        plain, real = pinning.split(machines.operator.market)
        other = "0" * 64
        refused = home.bazaar("join", changed(machines.line, market=pinning.pinned(plain, other)), code=6)
        assert f"{real}" in refused.stderr and f"expected was {other}" in refused.stderr
        assert not (home.home / "config.toml").exists(), "nothing is written down"
        problem = home.bazaar(
            "ps", "--buyer", "all", "--json", BAZAAR_API=pinning.pinned(pinning.split(machines.operator.api)[0], other), code=6
        ).problem
        assert "market_unreachable" == problem["code"] and other in problem["detail"]


def test_a_joined_home_notices_that_the_certificate_has_changed(machines: Machines, tmp_path: Path) -> None:
    with ExitStack() as stack:
        home = machine(tmp_path, stack)
        home.bazaar("join", read_line(machines.line).line())
        assert "A wallet would do as well" in home.bazaar("queue", code=4).stderr
        config = home.home / "config.toml"
        real = pinning.split(machines.operator.market)[1]
        assert real is not None
        config.write_text(config.read_text().replace(real, "f" * 64))
        refused = home.bazaar("nodes", code=6).stderr
        assert real in refused and "f" * 64 in refused


def test_where_only_the_broker_is_reached_everything_is_read_over_it(machines: Machines, tmp_path: Path) -> None:
    with ExitStack() as stack:
        home = machine(tmp_path, stack)
        home.bazaar("join", changed(machines.line, api=None))
        assert "api" not in tomllib.loads((home.home / "config.toml").read_text())
        home.bazaar("wallet", "new")
        assert ["far"] == [node["name"] for node in home.bazaar("nodes", "--json").json]
        assert "far" in home.bazaar("node", "far").stdout
        assert [] == home.bazaar("ps", "-a", "--json").json


def test_another_market_never_takes_the_place_of_this_one_unasked(machines: Machines, tmp_path: Path) -> None:
    with ExitStack() as stack:
        home = machine(tmp_path, stack)
        lying = home.bazaar("join", changed(machines.line, market_id="ab" * 32), code=4)
        assert "Another market answers there" in lying.stderr
        (home.home / "config.toml").write_text(f'market = "nats://127.0.0.1:1"\nmarket_id = "{"cd" * 32}"\n')
        for program in ("bazaar", "bazaar-seller"):
            refused = home.command(program, *machines.line.split()[1:], code=4)
            assert "This home has another market" in refused.stderr and "--force" in refused.stderr
        home.bazaar(*machines.line.split()[1:], "--force")
        home.bazaar(*machines.line.split()[1:])  # joining once more changes nothing
        assert vars(read_line(machines.line)) == tomllib.loads((home.home / "config.toml").read_text())


@pytest.mark.parametrize("program", ["bazaar", "bazaar-seller"])
def test_a_damaged_line_is_wrong_usage(machines: Machines, program: str) -> None:
    line = machines.line.split()[-1]
    for damaged in (line[:-1], line[:40] + ("A" if line[40] != "A" else "B") + line[41:], "bzj2" + line[4:], "hello"):
        assert "invitation" in machines.buyer.command(program, "join", damaged, code=2).stderr


def test_a_market_is_not_opened_in_the_clear_unless_that_is_said(tmp_path: Path) -> None:
    with ExitStack() as stack:
        home = machine(tmp_path, stack)
        refused = home.command("bazaar-market", "up", "--port", "0", "--bind", "0.0.0.0", code=2)
        assert "would listen to other machines without TLS" in refused.stderr and "--insecure" in refused.stderr
        refused = home.command("bazaar-market", "up", "--port", "0", "--api-bind", "0.0.0.0", code=2)
        assert "API" in refused.stderr
        home.start("--bind", "0.0.0.0", "--insecure")
        told = home.command("bazaar-market", "invite", "--host", "127.0.0.1")
        assert "no TLS" in told.stderr
        assert f"nats://127.0.0.1:{home.market.rpartition(':')[2]}" == read_line(told.stdout).market
        assert (401, "token_required") == ((got := asked(f"{home.api} /v1/jobs"))[0], got[1]["code"]), "tokens are asked for all the same"


# --- behind a proxy ---


def test_behind_a_proxy_nobody_is_local_and_only_its_names_are_answered(tmp_path: Path) -> None:
    with ExitStack() as stack:
        home = machine(tmp_path, stack)
        home.start("--public-host", "market.test")
        for host in ("market.test", "MARKET.TEST:443", "127.0.0.1"):
            assert 200 == asked(f"{home.api} /v1/market", {"Host": host})[0], host
            assert (401, "token_required") == ((got := asked(f"{home.api} /v1/jobs", {"Host": host}))[0], got[1]["code"])
        for host in ("evil.test", "market.test.evil.test", "xmarket.test"):
            assert (421, "wrong_host") == ((got := asked(f"{home.api} /v1/market", {"Host": host}))[0], got[1]["code"])
        assert "https://market.test" == read_line(home.command("bazaar-market", "invite").stdout).api
        home.bazaar("wallet", "new")
        job = home.bazaar("run", "-d", "-c", JOB).stdout.strip()
        assert [job] == [one["id"] for one in home.bazaar("ps", "--json").json], "the operator's own reads go by wallet"
