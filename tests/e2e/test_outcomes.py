"""How jobs end and what is left of them: exit codes, limits, cancelling, output, results, inputs. One market for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from e2e.market_env import MarketEnv, market

__all__ = ["market"]  # the fixture

LOUD_FAILURE = """
import sys
for number in range(300):
    print(f"out {number:03}")
for number in range(50):
    print(f"err {number:02}", file=sys.stderr)
print("the end, without a line end", end="")
sys.exit(7)
"""

TREE = """
import hashlib, os
for folder, folders, files in sorted(os.walk(".")):
    for name in sorted(files):
        path = os.path.join(folder, name)
        mode = "x" if os.access(path, os.X_OK) else "-"
        print(os.path.relpath(path), mode, hashlib.sha256(open(path, "rb").read()).hexdigest()[:8])
"""

LEAVES_FILES = """
import os, pathlib
out = pathlib.Path(os.environ["BAZAAR_OUT"])
(out / "deep" / "er").mkdir(parents=True)
(out / "empty.txt").write_bytes(b"")
(out / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)) * 2000)
(out / "run.sh").write_text("#!/bin/sh\\necho hello\\n")
(out / "run.sh").chmod(0o755)
print("left three files")
"""

SLEEPS = "import time; print('asleep', flush=True); time.sleep(600)"


@contextmanager
def all_cards_taken(market: MarketEnv) -> Iterator[str]:
    """Both cards are with a job that sleeps, until this ends."""
    job_id = market.submit("--gpus", "2", "-c", SLEEPS)
    market.wait_for_job(job_id, "running")
    try:
        yield job_id
    finally:
        market.bazaar("cancel", job_id, "--wait")
        market.wait_until(lambda: market.get("/v1/nodes")["items"][0]["gpus_free"] == 2, "both cards are free")


# --- how it ends ---


def test_a_script_that_exits_7_exits_100_and_all_of_its_lines_are_in_the_logs(market: MarketEnv) -> None:
    told = market.bazaar("run", "--allow-simulated", market.script("loud.py", LOUD_FAILURE), code=100)
    expected = [f"out {number:03}" for number in range(300)] + ["the end, without a line end"]
    assert expected == told.stdout.splitlines()
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", 7, "exited_nonzero") == (job["state"], job["exit_code"], job["reason"])
    logs = market.bazaar("logs", job["id"])
    assert expected == logs.stdout.splitlines()
    assert [f"err {number:02}" for number in range(50)] == [line for line in logs.stderr.splitlines() if line.startswith("err ")]
    assert 7 == market.bazaar("wait", job["id"], "--propagate-exit", code=None).code


def test_of_logs_one_channel_or_the_last_lines_can_be_had(market: MarketEnv) -> None:
    job_id = market.submit(market.script("loud.py", LOUD_FAILURE))
    market.bazaar("wait", job_id, code=100)
    assert [f"err {number:02}" for number in range(50)] == market.bazaar("logs", job_id, "--stderr").stderr.splitlines()
    assert 301 == len(market.bazaar("logs", job_id, "--stdout").stdout.splitlines())
    assert ["out 298", "out 299"] == market.bazaar("logs", job_id, "--stdout", "--tail", "3").stdout.splitlines()[:2]
    assert 100 == market.bazaar("logs", job_id, "-f", code=None).code


def test_a_program_that_does_not_exist_fails_by_name(market: MarketEnv) -> None:
    market.bazaar("run", "--allow-simulated", "--", "no-such-program", code=100)
    assert "program_not_found" == market.bazaar("show", "last", "--json").json["reason"]


def test_a_job_over_its_timeout_is_ended_and_exits_104(market: MarketEnv) -> None:
    told = market.bazaar("run", "--allow-simulated", "--timeout", "1s", "-c", SLEEPS, code=104)
    assert ["asleep"] == told.stdout.splitlines()
    job = market.bazaar("show", "last", "--json").json
    assert ("timed_out", "run_timeout", 1) == (job["state"], job["reason"], job["timeout_s"])


def test_jobs_behind_a_full_node_wait_can_be_cancelled_and_expire(market: MarketEnv) -> None:
    with all_cards_taken(market) as taken:
        told = market.bazaar("run", "-d", "--allow-simulated", "-c", "print(1)")
        [queued] = told.stdout.split()
        assert "warning: nobody can run it at present" in told.stderr
        assert "queued" == market.job(queued)["state"]
        assert 0 == market.job(queued)["queue_position"]
        market.bazaar("quote", "--allow-simulated")
        market.bazaar("run", "--now", "--allow-simulated", "-c", "print(1)", code=5)
        market.bazaar("wait", queued, "--for", "1s", code=101)
        market.bazaar("cancel", queued)
        assert "cancelled" == market.job(queued)["state"]
        market.bazaar("wait", queued, code=103)
        market.bazaar("run", "--allow-simulated", "--queue-timeout", "1s", "-c", "print(1)", code=105)
        assert ("expired", "queue_timeout") == tuple(market.bazaar("show", "last", "--json").json[key] for key in ("state", "reason"))
        market.bazaar("results", taken, code=101)
        market.bazaar("cancel", taken, "--wait")
        job = market.job(taken)
        assert ("cancelled", "cancelled_by_buyer") == (job["state"], job["reason"])
        assert ["asleep"] == market.bazaar("logs", taken).stdout.splitlines()
        market.bazaar("wait", taken, code=103)


def test_a_run_that_is_cancelled_meanwhile_exits_103(market: MarketEnv) -> None:
    watching = market.run_on("bazaar", "run", "--allow-simulated", "-c", SLEEPS)
    market.wait_until(lambda: watching.lines == ["asleep"], "it says that it sleeps")
    market.bazaar("cancel", "last")
    assert 103 == watching.ended()


# --- who could run it ---


@pytest.mark.parametrize(
    ("asked", "condition"),
    [
        (["--gpus", "3"], "gpus"),
        (["--vram", "40GB"], "vram"),
        (["--gpu-model", "A100"], "model"),
        (["--max-price", "0.10"], "price"),
        (["--isolation", "container"], "isolation"),
    ],
)
def test_a_job_that_no_node_could_ever_run_is_quoted_with_the_condition_that_fails(
    market: MarketEnv, asked: list[str], condition: str
) -> None:
    told = market.bazaar("quote", "--allow-simulated", "--json", *asked, code=5)
    assert condition == told.json["failing"]
    assert condition in told.stderr
    assert f"no node passes: {condition}" in market.bazaar("run", "--now", "--allow-simulated", *asked, "-c", "1", code=5).stderr


def test_two_cards_of_24_gb_are_40_gb_together(market: MarketEnv) -> None:
    told = market.bazaar(
        "run", "--allow-simulated", "--total-vram", "40GB", "--gpus", "2", "-c", "import os; print(os.environ['BAZAAR_GPU_UUIDS'])"
    )
    assert 2 == len(set(told.stdout.strip().split(",")))
    assert 2 == len(market.bazaar("show", "last", "--json").json["gpus"])


def test_simulated_cards_are_only_for_jobs_that_allow_them(market: MarketEnv) -> None:
    assert "--allow-simulated" in market.bazaar("quote", code=5).stderr
    assert "--allow-simulated" in market.bazaar("run", "--now", "-c", "print(1)", code=5).stderr
    told = market.bazaar("run", "-d", "-c", "print(1)")
    assert "--allow-simulated" in told.stderr
    [job_id] = told.stdout.split()
    assert "queued" == market.job(job_id)["state"]
    market.bazaar("cancel", job_id)
    assert "1\n" == market.bazaar("run", "-c", "print(1)", BAZAAR_ALLOW_SIMULATED="1").stdout


def test_a_target_is_a_node_and_its_cards(market: MarketEnv) -> None:
    [node] = market.get("/v1/nodes")["items"]
    market.bazaar("run", "--allow-simulated", "-t", f"{node['name']}::1", "-c", "print(1)")
    job = market.bazaar("show", "last", "--json").json
    assert (node["id"], [node["cards"][1]["uuid"]]) == (job["node"], [card["uuid"] for card in job["gpus"]])
    market.bazaar("run", "--allow-simulated", "-t", "nowhere", "-c", "print(1)", code=3)


def test_each_target_is_a_job_of_its_own_in_one_group(market: MarketEnv) -> None:
    [node] = market.get("/v1/nodes")["items"]
    targets = ["-t", f"{node['id']}::1", "-t", f"{node['name']}:0::0", "-t", f"{node['name']}"]
    told = market.bazaar("run", "--allow-simulated", "-d", *targets, "--", "true").stdout.split()
    jobs = [market.wait_for_job(job_id, "succeeded") for job_id in told]
    assert 3 == len(jobs) and 1 == len({job["group"] for job in jobs}) and jobs[0]["group"] is not None
    assert [[1], [0]] == [[card["index"] for card in job["gpus"]] for job in jobs[:2]]
    assert {node["id"]} == {job["node"] for job in jobs}


def test_a_card_that_a_node_does_not_have_is_refused_and_nothing_of_the_order_is_submitted(market: MarketEnv) -> None:
    [node] = market.get("/v1/nodes")["items"]
    before = [job["id"] for job in market.get("/v1/jobs")["items"]]
    for target in (node["name"], node["id"]):
        told = market.bazaar("run", "--allow-simulated", "-d", "-t", f"{target}::0", "-t", f"{target}::1,7", "--", "true", code=5)
        assert "" == told.stdout
        assert f"Node {node['name']} has no card 7." in told.stderr and "It has cards 0, 1." in told.stderr
        assert "waits in the queue" not in told.stderr
    problem = market.bazaar("quote", "--json", "-t", f"{node['id']}::7,9", "--", "true", code=5).problem
    assert ("unknown_target", 422) == (problem["code"], problem["status"])
    assert before == [job["id"] for job in market.get("/v1/jobs")["items"]]


# --- files ---


def test_results_come_back_byte_for_byte(market: MarketEnv) -> None:
    told = market.bazaar("run", "--allow-simulated", "--out", "mine", market.script("leaves.py", LEAVES_FILES))
    assert "left three files\n" == told.stdout
    found = {str(path.relative_to(market.work / "mine")) for path in (market.work / "mine").rglob("*") if path.is_file()}
    assert {"empty.txt", "deep/er/weights.bin", "run.sh"} == found
    assert bytes(range(256)) * 2000 == (market.work / "mine/deep/er/weights.bin").read_bytes()
    again = market.bazaar("results", "last", "--to", "again", "--json").json
    assert {"empty.txt": 0, "deep/er/weights.bin": 512_000, "run.sh": 21} == {file["path"]: file["size_bytes"] for file in again["files"]}
    assert (market.work / "again/run.sh").stat().st_mode & 0o100
    assert not (market.work / "again/empty.txt").stat().st_mode & 0o100


def test_without_a_folder_results_lie_under_the_jobs_id(market: MarketEnv) -> None:
    market.bazaar("run", "--allow-simulated", market.script("leaves.py", LEAVES_FILES))
    job_id = market.bazaar("show", "last", "--json").json["id"]
    assert (market.work / "results" / job_id / "run.sh").exists()


def test_a_job_that_leaves_nothing_has_no_results(market: MarketEnv) -> None:
    market.bazaar("run", "--allow-simulated", "--", "true")
    assert [] == market.bazaar("results", "last", "--json").json["files"]


def test_a_folder_is_shipped_but_for_what_its_ignore_file_names(market: MarketEnv) -> None:
    data = market.work / "project"
    (data / "sub").mkdir(parents=True)
    for name, content in {
        "a.txt": "a",
        "sub/b.bin": "b",
        "sub/c.tmp": "c",
        "secret.key": "k",
        ".bazaarignore": "*.tmp\n/secret.key\n",
    }.items():
        (data / name).write_text(content)
    (data / "tool").write_text("#!/bin/sh\n")
    (data / "tool").chmod(0o755)
    (data / "tree.py").write_text(TREE)
    told = market.bazaar("run", "--allow-simulated", "--in", ".", "tree.py", cwd=data)
    shipped = {line.split()[0]: line.split()[1] for line in told.stdout.splitlines()}
    assert {"a.txt", "sub/b.bin", "tool", "tree.py"} == set(shipped) - {".bazaarignore"}
    assert "x" == shipped["tool"]
    named = market.bazaar("run", "--allow-simulated", "--in", "project", market.script("tree.py", TREE))
    assert {"project/a.txt", "project/sub/b.bin", "project/tool", "project/tree.py", "tree.py"} == {
        line.split()[0] for line in named.stdout.splitlines()
    } - {"project/.bazaarignore"}


def test_code_comes_from_the_command_line_or_from_standard_input(market: MarketEnv) -> None:
    assert "42\n" == market.bazaar("run", "--allow-simulated", "-c", "print(6 * 7)").stdout
    assert (
        "['one', 'two']\n"
        == market.bazaar("run", "--allow-simulated", "-", "--", "one", "two", stdin="import sys\nprint(sys.argv[1:])\n").stdout
    )


def test_a_job_sees_what_the_contract_promises(market: MarketEnv) -> None:
    names = ["BAZAAR_JOB_ID", "BAZAAR_ATTEMPT", "BAZAAR_EPOCH", "BAZAAR_GPU_UUIDS", "BAZAAR_OUT", "GREETING"]
    told = market.bazaar(
        "run", "--allow-simulated", "--env", "GREETING=hi there", "-c", f"import os; print([os.environ[n] for n in {names}])"
    )
    job = market.bazaar("show", "last", "--json").json
    assert f"['{job['id']}', '1', '{job['epoch']}', '{job['gpus'][0]['uuid']}', " in told.stdout
    assert "'hi there']" in told.stdout


def test_hostile_output_reaches_the_terminal_harmless_and_raw_only_when_asked(market: MarketEnv) -> None:
    told = market.bazaar("run", "--allow-simulated", "-c", r"print('\x1b]0;gotcha\x07\x1b[2J red')")
    assert "\x1b" not in told.stdout and "\x07" not in told.stdout
    assert "\x1b]0;gotcha\x07\x1b[2J red\n" == market.bazaar("logs", "last", "--raw").stdout
