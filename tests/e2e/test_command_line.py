"""What scripts rely on: JSON on success and failure, exit codes, whose wallet acts, Ctrl-C. One market for all."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from e2e.market_env import MarketEnv, market

__all__ = ["market"]  # the fixture

NOWHERE = {"BAZAAR_MARKET": "nats://127.0.0.1:9", "BAZAAR_API": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def job_id(market: MarketEnv) -> str:
    """A job that has succeeded and left a file."""
    job_id = market.submit("-c", "import os; print('hello'); open(os.environ['BAZAAR_OUT'] + '/secret', 'w').write('plans')")
    market.wait_for_job(job_id, "succeeded")
    return job_id


# --- JSON ---


@pytest.mark.parametrize(
    "command",
    [
        "wallet list",
        "wallet show",
        "wallet export default",
        "login --for 2h",
        "quote --allow-simulated",
        "ps",
        "ps -a",
        "show last",
        "queue",
        "wait JOB",
        "logs JOB",
        "results JOB --to out",
        "cancel JOB",
        "nodes",
        "offers",
        "offers gpus>=2",
        "events",
        "events --from 1 -n 3",
        "doctor",
        "config show",
        "config get market",
        "config set allow_simulated false",
        "completion bash",
        "run -d --allow-simulated -c 1",
        "submit --allow-simulated -c 1",
    ],
)
def test_every_command_answers_in_json(market: MarketEnv, job_id: str, command: str) -> None:
    told = market.bazaar(*command.replace("JOB", job_id).split(), "--json")
    values = [json.loads(line) for line in told.stdout.splitlines()]
    assert 1 == len(values)


def test_logs_are_one_object_and_lines_when_followed(market: MarketEnv, job_id: str) -> None:
    assert {"id": job_id, "attempt": 1, "stdout": "hello\n", "stderr": ""} == market.bazaar("logs", job_id, "--json").json
    lines = [json.loads(line) for line in market.bazaar("logs", "-f", job_id, "--json").stdout.splitlines()]
    assert {"type": "output", "stream": "stdout", "text": "hello\n"} in lines


def test_a_followed_run_answers_in_json_lines(market: MarketEnv) -> None:
    told = market.bazaar("run", "--allow-simulated", "--json", "-c", "print('hello')")
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert {"submitted", "state", "output", None} == {line.get("type") for line in lines}
    assert ("succeeded", 0) == (lines[-1]["state"], lines[-1]["exit_code"])


JOB_KEYS = (
    "id state reason detail phase kind name buyer buyer_alias org group labels node node_name gpus num_gpus image price_uusd_per_gpu_hour"
    " max_price_uusd_per_gpu_hour priority queue_position attempt epoch exit_code submitted_ms matched_ms started_ms ended_ms updated_ms"
    " timeout_s estimate_s charged_uusd"
)


def test_job_json_is_the_same_from_every_command_and_from_the_api(market: MarketEnv, job_id: str) -> None:
    shown = market.bazaar("show", job_id, "--json").json
    assert 0 < shown.pop("as_of_seq")
    assert set(JOB_KEYS.split()) <= set(shown)
    assert shown == next(job for job in market.bazaar("ps", "-a", "--json").json if job["id"] == job_id)
    told = market.job(job_id)
    assert shown == {key: told[key] for key in shown}


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("show jaaaaaaaaaaaaaaaaaaa", 3),
        ("show nonsense!", 3),
        ("logs jaaaaaaaaaaaaaaaaaaa", 3),
        ("results jaaaaaaaaaaaaaaaaaaa", 3),
        ("cancel jaaaaaaaaaaaaaaaaaaa", 3),
        ("wait jaaaaaaaaaaaaaaaaaaa", 3),
        ("node nowhere", 3),
        ("wallet show nobody", 4),
        ("wallet new default", 4),
        ("ps --wallet nobody", 4),
        ("ps --state sideways", 2),
        ("offers speed>=9", 2),
        ("quote --gpus -1", 2),
        ("quote --gpus 9", 2),
        ("quote --gpus two", 2),
        ("quote --vram -1", 2),
        ("quote --vram 1e999", 2),
        ("quote --max-price NaN", 2),
        ("quote --max-price -0.1", 2),
        ("quote --max-price 0.123456789012345678901234567890", 2),
        ("run --no-such-flag", 2),
        ("run missing.py", 2),
        ("run -d", 2),
        ("config get nonsense", 2),
        ("config set token x", 2),
        ("completion tcsh", 2),
        ("no-such-command", 2),
        ("run --now -c 1", 5),
        ("run --now --allow-simulated --gpus 3 -c 1", 5),
    ],
)
def test_every_failure_is_one_problem_object_on_stderr(market: MarketEnv, command: str, code: int) -> None:
    problem = market.bazaar(*command.split(), "--json", code=code).problem
    assert problem["title"] and problem["code"]


@pytest.mark.parametrize("command", ["ps", "nodes", "events", "show last", "queue"])
def test_a_query_api_that_is_away_is_said_with_exit_6(market: MarketEnv, command: str) -> None:
    assert "market_unreachable" == market.bazaar(*command.split(), "--json", code=6, **NOWHERE).problem["code"]


@pytest.mark.parametrize("command", ["quote", "run -c 1", "submit -c 1"])
def test_a_broker_that_is_away_is_said_with_exit_6(market: MarketEnv, command: str) -> None:
    assert "market_unreachable" == market.bazaar(*command.split(), "--json", code=6, **NOWHERE).problem["code"]


def test_a_home_without_a_market_says_how_to_get_one(market: MarketEnv, tmp_path: Path) -> None:
    told = market.bazaar("nodes", code=6, BAZAAR_HOME=str(tmp_path))
    assert "bazaar-market up" in told.stderr and "" == told.stdout


# --- who acts ---


def test_of_several_wallets_one_must_be_chosen(market: MarketEnv, tmp_path: Path) -> None:
    there = {"BAZAAR_HOME": str(tmp_path), "BAZAAR_MARKET": market.market, "BAZAAR_API": market.api}
    addresses = [market.bazaar("wallet", "new", name, **there).stdout.strip() for name in ("alice", "bob")]
    told = market.bazaar("ps", code=4, **there)
    assert "alice" in told.stderr and "bob" in told.stderr
    assert "[]\n" == market.bazaar("ps", "--json", "--wallet", "alice", **there).stdout
    assert addresses[1] == market.bazaar("wallet", "show", BAZAAR_WALLET="bob", **there).stdout.strip()
    assert "market" not in {wallet["name"] for wallet in market.bazaar("wallet", "list", "--json", **there).json}


def test_a_wallet_of_another_home_is_not_taken_by_a_node_that_takes_only_its_own(market: MarketEnv, tmp_path: Path) -> None:
    there = {"BAZAAR_HOME": str(tmp_path), "BAZAAR_MARKET": market.market, "BAZAAR_API": market.api}
    market.bazaar("wallet", "new", **there)
    assert "accepts you" == market.bazaar("quote", "--allow-simulated", "--json", code=5, **there).json["failing"]


def test_a_wrong_passphrase_is_named_and_a_right_one_lets_in(market: MarketEnv, tmp_path: Path) -> None:
    there = {"BAZAAR_HOME": str(tmp_path / "home"), "BAZAAR_MARKET": market.market, "BAZAAR_API": market.api}
    for name, text in (("right", "correct horse battery"), ("wrong", "incorrect horse")):
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o600)
    market.bazaar("wallet", "new", BAZAAR_PASSPHRASE_FILE=str(tmp_path / "right"), **there)
    told = market.bazaar("login", "--json", code=4, BAZAAR_PASSPHRASE_FILE=str(tmp_path / "wrong"), **there)
    assert "passphrase" in told.problem["detail"] + told.problem["title"]
    assert "incorrect horse" not in told.stderr
    market.bazaar("login", BAZAAR_PASSPHRASE_FILE=str(tmp_path / "right"), **there)
    (tmp_path / "right").chmod(0o644)
    market.bazaar("login", code=4, BAZAAR_PASSPHRASE_FILE=str(tmp_path / "right"), **there)


def test_a_delegation_file_acts_without_a_keystore(market: MarketEnv, tmp_path: Path) -> None:
    file = str(tmp_path / "delegation.json")
    market.bazaar("login", "-o", file, "--for", "1h")
    there = {"BAZAAR_HOME": str(tmp_path / "home"), "BAZAAR_MARKET": market.market, "BAZAAR_API": market.api}
    market.bazaar("login", "--use", file, **there)
    assert "1\n" == market.bazaar("run", "--allow-simulated", "-c", "print(1)", **there).stdout


# --- Ctrl-C ---


def test_ctrl_c_stops_looking_and_never_the_job(market: MarketEnv) -> None:
    slow = "import time\nprint('began', flush=True)\nwhile not __import__('os').path.exists({!r}): time.sleep(0.05)\nprint('ended')"
    go_on = market.work / "go-on"
    watching = market.run_on("bazaar", "run", "--allow-simulated", "-c", slow.format(str(go_on)))
    market.wait_until(lambda: watching.lines == ["began"], "its first line")
    watching.tell(signal.SIGINT)
    assert 130 == watching.ended()
    job = market.bazaar("show", "last", "--json").json
    assert "running" == job["state"]
    assert f"bazaar logs -f {job['id']}" in watching.err
    following = market.run_on("bazaar", "logs", "-f", job["id"])
    market.wait_until(lambda: following.lines == ["began"], "the line again")
    following.tell(signal.SIGINT)
    assert 130 == following.ended()
    go_on.touch()
    market.wait_for_job(job["id"], "succeeded")
    assert "began\nended\n" == market.bazaar("logs", job["id"]).stdout


def test_another_wallets_job_is_neither_cancelled_nor_read(market: MarketEnv, tmp_path: Path, job_id: str) -> None:
    there = {"BAZAAR_HOME": str(tmp_path), "BAZAAR_MARKET": market.market, "BAZAAR_API": market.api}
    market.bazaar("wallet", "new", **there)
    for command in ("cancel", "logs", "results"):
        told = market.bazaar(command, job_id, code=4, cwd=tmp_path, **there)
        assert "" == told.stdout
    assert not list(tmp_path.rglob("secret"))
