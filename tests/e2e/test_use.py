"""Time and use of a job as its buyer sees them: more time, warnings, limits, and what was used of what was asked. One market for all."""

from __future__ import annotations

import json

from e2e.market_env import MarketEnv, market

__all__ = ["market"]  # the fixture

IDLES = "import time; print('up', flush=True); time.sleep(600)"


def test_a_job_that_is_given_more_time_ends_by_itself(market: MarketEnv) -> None:
    job_id = market.submit("--timeout", "7s", "-c", "import time; print('up', flush=True); time.sleep(8); print('done')")
    market.wait_for_job(job_id, "running")
    told = market.bazaar("extend", job_id, "1h").stdout
    assert told.startswith(f"{job_id} may run 1 h 7 s; it ends at ") and "at the latest, in 1 h" in told, told
    market.bazaar("wait", job_id)
    job = market.job(job_id)
    assert ("succeeded", 3607, 3607) == (job["state"], job["timeout_s"], job["limit_s"])
    assert ["up", "done"] == market.bazaar("logs", job_id).stdout.splitlines()
    assert "cannot be extended any more" in market.bazaar("extend", job_id, "1h", code=1).stderr


def test_a_waiting_job_can_be_given_more_time_and_says_from_when_it_counts(market: MarketEnv) -> None:
    job_id = market.submit("--gpus", "2", "--vram", "80GB", "-c", IDLES)
    told = market.bazaar("extend", job_id, "30m", "--json").json
    assert ("queued", 5400) == (told["state"], told["timeout_s"])
    assert "may run 2 h, counted from its start" in market.bazaar("extend", job_id, "30m").stdout
    assert "not a duration" in market.bazaar("extend", job_id, "soon", code=2).stderr
    market.bazaar("cancel", job_id)


def test_an_idle_job_is_warned_where_its_buyer_looks_and_then_timed_out(market: MarketEnv) -> None:
    watching = market.run_on("bazaar", "run", "--gpus", "2", "--allow-simulated", "--idle-timeout", "11s", "--cores", "1", "-c", IDLES)
    market.wait_until(lambda: watching.lines == ["up"], "it is up")
    job_id = market.bazaar("show", "last", "--json").json["id"]
    market.wait_until(lambda: market.job(job_id)["warning"], "it is warned")
    assert "running (stops in " in market.bazaar("ps").stdout
    assert "stops in" in market.bazaar("show", job_id).stdout
    assert 104 == watching.ended()
    assert "warning: stops in" in watching.err and "idle for 11 s: no CPU, no GPU use and no output" in watching.err, watching.err
    assert f"{job_id} card 1 was never used: 50 % of the bill" in watching.err
    job = market.job(job_id)
    assert ("timed_out", "idle") == (job["state"], job["reason"])
    usage = job["usage"]
    assert [gpu["uuid"] for gpu in job["gpus"]] == usage["gpus"]
    assert usage["samples"] > 3 and 0 == usage["max_gpu_percent"][1]
    shown = {line.partition("  ")[0]: line for line in market.bazaar("show", job_id).stdout.splitlines()}
    assert "never used" in shown["card 1"] and "in the mean of 1 asked" in shown["cores"] and "nothing was asked" in shown["main memory"]


def test_a_limit_that_needs_an_estimate_is_a_usage_error_without_one(market: MarketEnv) -> None:
    problem = json.loads(market.bazaar("run", "--json", "--estimate-limit", "2", "-c", IDLES, code=2).stderr)
    assert "none is given" in problem["detail"]


def test_a_job_that_takes_a_multiple_of_its_estimate_is_timed_out(market: MarketEnv) -> None:
    market.bazaar("run", "--allow-simulated", "--estimate", "1s", "--estimate-limit", "2", "-c", IDLES, code=104)
    job = market.bazaar("show", "last", "--json").json
    assert ("timed_out", "estimate_exceeded", 2) == (job["state"], job["reason"], job["limit_s"])


def test_a_job_that_misses_a_module_is_told_what_to_try(market: MarketEnv) -> None:
    """Without a traceback, for which these tests look in what our own programs say."""
    program = "import sys\nsys.tracebacklimit = 0\nimport no_such_module_of_ours"
    told = market.bazaar("run", "--allow-simulated", "-c", program, code=100)
    assert "Python has no module no_such_module_of_ours where the job ran" in told.stderr
    assert "Python has no module no_such_module_of_ours where the job ran" in market.bazaar("show", "last").stdout
