"""`kill -9` of any part of the market, or of all of it, during a run: the job ends once, its output is complete, nothing is lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from e2e.market_env import MarketEnv, market, opened_market, own_market

from services.broker import start_time

__all__ = ["market", "own_market"]  # the fixtures

LINES = 200
COUNTS = f"""
import sys, time
for number in range({LINES}):
    print(f"line {{number:03}}", flush=True)
    if number % 10 == 0:
        print(f"note {{number:03}}", file=sys.stderr, flush=True)
    time.sleep(0.02)
"""
EXPECTED = [f"line {number:03}" for number in range(LINES)]
NOTES = [f"note {number:03}" for number in range(0, LINES, 10)]
PARTS = ("matcher", "api", "files", "callout", "seller", "broker")


ENDS = ("JobSucceeded", "JobFailed", "JobTimedOut", "JobCancelled")


def kinds_of(market: MarketEnv, job_id: str) -> list[str]:
    """What the ledger says of a job, by kind and in order."""
    return [event["type"] for event in market.get(f"/v1/jobs/{job_id}/events?limit=500")["items"]]


def ended_once(market: MarketEnv, job_id: str, attempts: int = 1) -> None:
    """It succeeded, its output is whole and in order, and its ledger holds one end."""
    job = market.job(job_id)
    assert ("succeeded", 0, attempts) == (job["state"], job["exit_code"], job["attempt"])
    logs = market.bazaar("logs", job_id)
    assert EXPECTED == logs.stdout.splitlines()
    assert NOTES == [line for line in logs.stderr.splitlines() if line.startswith("note")]
    kinds = kinds_of(market, job_id)
    assert (1, attempts) == (kinds.count("JobSubmitted"), kinds.count("JobMatched"))
    assert 1 == sum(kind in ENDS for kind in kinds), kinds


def agrees(market: MarketEnv) -> None:
    """A replay of the whole ledger gives what the live matcher holds."""
    found = market.command("bazaar-market", "verify-log", "--json").json
    assert found["agrees"] and {} == found["void"], found


@pytest.mark.parametrize("part", PARTS)
def test_a_run_survives_the_death_of(market: MarketEnv, part: str) -> None:
    watching = market.run_on("bazaar", "run", "--allow-simulated", market.script("counts.py", COUNTS))
    market.wait_until(lambda: len(watching.lines) >= LINES // 4, "a quarter of its lines")
    assert len(watching.lines) < LINES
    market.kill(part)
    assert 0 == watching.ended(), watching.err
    assert EXPECTED == watching.lines
    assert NOTES == [line for line in watching.err.splitlines() if line.startswith("note")]
    ended_once(market, market.bazaar("show", "last", "--json").json["id"])
    agrees(market)


def test_a_detached_run_survives_the_death_of_everything_but_the_parent_at_once(market: MarketEnv) -> None:
    job_id = market.submit(market.script("counts.py", COUNTS))
    market.wait_for_job(job_id, "running")
    for part in PARTS:
        market.kill(part)
    market.wait_for_job(job_id, "succeeded")
    ended_once(market, job_id)
    agrees(market)


SHORT = """
import sys, time
for number in range(20):
    print(sys.argv[1], "line", number, flush=True)
    time.sleep(0.03)
"""


def test_jobs_in_every_moment_of_their_life_survive_the_death_of_each_part_in_turn(market: MarketEnv) -> None:
    """Some wait, some are matched, claimed, started, shipping or ending while one part after the other dies."""
    market.script("short.py", SHORT)
    market.script("jobs.toml", 'script = "short.py"\n' + "".join(f'[[job]]\nargs = ["job {number}"]\n' for number in range(20)))
    job_ids = market.bazaar("run", "-d", "--allow-simulated", "--file", "jobs.toml").stdout.split()
    assert 20 == len(job_ids)
    for part in PARTS:
        market.kill(part)
    for number, job_id in enumerate(job_ids):
        market.wait_for_job(job_id, "succeeded")
        assert "".join(f"job {number} line {line}\n" for line in range(20)) == market.bazaar("logs", job_id).stdout
        assert 1 == sum(kind in ENDS for kind in kinds_of(market, job_id) if kind != "JobFailed")
    agrees(market)


def test_after_the_death_of_up_another_up_serves_the_same_store_and_nothing_is_lost(own_market: MarketEnv) -> None:
    market = own_market
    running = market.submit("--gpus", "2", market.script("counts.py", COUNTS))
    market.wait_for_job(running, "running")
    waiting = [market.submit("--gpus", "2", "-c", f"print({number})") for number in range(3)]
    before = market.pids()
    market.kill_up()
    market.start_again()
    assert not set(before.values()) & set(market.pids().values())
    for name, pid in before.items():
        market.wait_until(lambda pid=pid: start_time(pid) is None, f"the old {name} is gone")  # type: ignore[misc]
    assert 1 == len(serving(market))
    assert {running, *waiting} <= {job["id"] for job in market.get("/v1/jobs?limit=100")["items"]}
    job = market.wait_for_job(running, "succeeded")
    ended_once(market, running, attempts=job["attempt"])
    for number, job_id in enumerate(waiting):
        market.wait_for_job(job_id, "succeeded")
        assert f"{number}\n" == market.bazaar("logs", job_id).stdout
    agrees(market)


def serving(market: MarketEnv) -> list[int]:
    """The nats-servers that work in this home's store."""
    store = market.home / "market" / "store"
    return [pid for pid in market.left_over() if Path(f"/proc/{pid}/cwd").resolve() == store]


def test_up_twice_in_one_home_is_refused_and_disturbs_nobody(market: MarketEnv) -> None:
    before = market.pids()
    told = market.command("bazaar-market", "up", "--port", "0", code=None)
    assert 0 < told.code and str(market.up.pid) in told.stderr
    assert before == market.pids()
    assert "1\n" == market.bazaar("run", "--allow-simulated", "-c", "print(1)").stdout


def test_a_taken_port_is_named_and_another_way_offered(market: MarketEnv, tmp_path: Path) -> None:
    port = market.market.rpartition(":")[2]
    told = market.command("bazaar-market", "up", "--port", port, "--api-port", "0", code=None, BAZAAR_HOME=str(tmp_path))
    assert 0 < told.code and port in told.stderr and "--port 0" in told.stderr
    api_port = market.api.rpartition(":")[2]
    told = market.command("bazaar-market", "up", "--port", "0", "--api-port", api_port, code=None, BAZAAR_HOME=str(tmp_path))
    assert 0 < told.code and api_port in told.stderr and "--port 0" in told.stderr


def test_down_ends_the_market_and_what_runs_there_is_told(tmp_path: Path) -> None:
    for env in opened_market(tmp_path):
        job_id = env.submit("-c", "import time; time.sleep(600)")
        env.wait_for_job(job_id, "running")
        assert {"market", "api", "pid", "parts", "state"} == set(env.command("bazaar-market", "status", "--json").json)
        env.command("bazaar-market", "down")
        assert 0 == env.up.ended()
        env.wait_until(lambda: not env.left_over(), "nothing is left")  # noqa: B023
        env.command("bazaar-market", "status", code=6)
        env.start_again()
        assert env.job(job_id)["state"] in ("queued", "matched", "claimed", "running")
        env.bazaar("cancel", job_id, "--wait")


def test_ctrl_c_ends_up_in_order(tmp_path: Path) -> None:
    env = MarketEnv(tmp_path)
    try:
        env.start()
        os.kill(env.up.pid, signal.SIGINT)
        assert 0 == env.up.ended()
        assert "Traceback" not in env.up.err
        assert 1 == len(env.up.lines) and json.loads(env.up.lines[0])
    finally:
        env.close()
