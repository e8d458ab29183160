"""Jobs in containers, through the whole market: what a buyer sees of them, what they may do, and that nothing of them is lost or left."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.docker_market import DEFAULT_IMAGE, IMAGE, DockerMarket, docker_market, engine
from e2e.market_env import TWO_CARDS, Running
from e2e.test_secrets import DIGEST, run_with_secrets
from integration.docker_engine import Engine, Registry, registry

__all__ = ["docker_market", "engine", "registry"]  # the fixtures

pytestmark = pytest.mark.timeout(120)

IN_IMAGE = ("--allow-simulated", "--image", IMAGE, "--", "sh", "-c")
LOUD = """
i=0; while [ $i -lt 4000 ]; do echo line $i of the output; i=$((i+1)); done
i=0; while [ $i -lt 300 ]; do echo note $i >&2; i=$((i+1)); done
mkdir -p $BAZAAR_OUT/deep/er; seq 1 20000 > $BAZAAR_OUT/deep/er/numbers; echo empty > $BAZAAR_OUT/empty
printf 'the end, without a line end'; exit 7
"""
LINES = 150
COUNTS = f"""
i=0; while [ $i -lt {LINES} ]; do
    echo line $i; if [ $((i % 10)) = 0 ]; then echo note $i >&2; fi
    i=$((i+1)); usleep 20000
done
"""
HOLDS = "echo up; while :; do usleep 20000; done"
TRAINS = """
import argparse, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
epochs = parser.parse_args().epochs
out = pathlib.Path(os.environ["BAZAAR_OUT"])
words = pathlib.Path("data/words.txt").read_text().split() + pathlib.Path("more.txt").read_text().split()
for epoch in range(epochs):
    print(f"epoch {epoch}: {len(words)} words", flush=True)
(out / "model").mkdir()
(out / "model" / "weights.bin").write_bytes(bytes(range(256)) * 1000)
(out / "run.sh").write_text("#!/bin/sh\\n")
(out / "run.sh").chmod(0o755)
os.symlink("/etc/passwd", out / "stolen")
pathlib.Path("scratch").write_text("the working directory may be written")
print(os.getcwd(), sorted(os.listdir()))
"""
PROBE = """
echo user $(id -u); grep -h -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
echo networks $(ls /sys/class/net); touch /etc/mine 2>/dev/null && echo wrote the image
touch /tmp/a /job/a /out/a && echo may write; mknod /tmp/node c 1 3 2>/dev/null && echo made a device
chroot / true 2>/dev/null && echo changed root; ls /var/run/docker.sock 2>/dev/null; echo processes $(ls /proc | grep -c '^[0-9]')
"""


def test_output_exit_code_and_results_of_a_container_are_whole(docker_market: DockerMarket) -> None:
    market = docker_market
    told = market.bazaar("run", *IN_IMAGE, LOUD, code=100)
    lines = [f"line {number} of the output" for number in range(4000)] + ["the end, without a line end"]
    notes = [f"note {number}" for number in range(300)]
    assert lines == told.stdout.splitlines()
    assert notes == [line for line in told.stderr.splitlines() if line.startswith("note ")]
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", 7, "exited_nonzero", IMAGE) == (job["state"], job["exit_code"], job["reason"], job["image"])
    logs = market.bazaar("logs", job["id"])
    assert lines == logs.stdout.splitlines() and notes == [line for line in logs.stderr.splitlines() if line.startswith("note ")]
    results = market.work / "results" / job["id"]
    assert "".join(f"{number}\n" for number in range(1, 20001)) == (results / "deep" / "er" / "numbers").read_text()
    assert "empty\n" == (results / "empty").read_text()
    market.ended_once(job["id"])


def test_a_program_over_in_no_time_is_told_with_all_that_it_said(docker_market: DockerMarket) -> None:
    for number in range(5):
        assert f"{number}\n" == docker_market.bazaar("run", *IN_IMAGE, f"echo {number}").stdout


def test_a_script_runs_in_the_offers_default_image_with_its_inputs(docker_market: DockerMarket) -> None:
    market = docker_market
    assert DEFAULT_IMAGE in market.bazaar("quote", "--allow-simulated").stdout
    (market.work / "data").mkdir()
    (market.work / "data" / "words.txt").write_text("to be or not to be")
    (market.work / "more.txt").write_text("that is the question")
    given = ("--allow-simulated", "--in", "data", "--in", "more.txt", "--out", "fetched")
    told = market.bazaar("run", *given, market.script("train.py", TRAINS), "--", "--epochs", "3")
    inside = "/job ['data', 'more.txt', 'scratch', 'train.py']"
    assert ["epoch 0: 10 words", "epoch 1: 10 words", "epoch 2: 10 words", inside] == told.stdout.splitlines()
    fetched = market.work / "fetched"
    assert ["model", "run.sh"] == sorted(path.name for path in fetched.iterdir())
    assert bytes(range(256)) * 1000 == (fetched / "model" / "weights.bin").read_bytes()
    assert (fetched / "run.sh").stat().st_mode & 0o100
    assert DEFAULT_IMAGE == market.bazaar("show", "last", "--json").json["image"]


def test_a_job_finds_in_its_environment_what_the_contract_promises(docker_market: DockerMarket) -> None:
    market = docker_market
    asked = ("--gpus", "2", "--env", "MINE=yes", "--env", "BAZAAR_ATTEMPT=9")
    found = dict(line.split("=", 1) for line in market.bazaar("run", *asked, *IN_IMAGE, "env").stdout.splitlines())
    job = market.bazaar("show", "last", "--json").json
    ours = {"BAZAAR_JOB_ID": job["id"], "BAZAAR_ATTEMPT": "1", "BAZAAR_EPOCH": str(job["epoch"]), "BAZAAR_OUT": "/out"}
    ours |= {"BAZAAR_GPU_UUIDS": ",".join(gpu["uuid"] for gpu in job["gpus"]), "MINE": "yes", "PWD": "/job", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert ours == {name: found[name] for name in ours}
    assert 2 == len(job["gpus"])
    assert not {name for name in found if name.startswith("BAZAAR_")} - set(ours)


def test_a_job_can_do_its_work_and_nothing_else(docker_market: DockerMarket) -> None:
    told = docker_market.bazaar("run", *IN_IMAGE, PROBE)
    none = "0000000000000000"
    expected = ["user 65534", "NoNewPrivs: 1", "Seccomp: 2", f"CapEff: {none}", f"CapBnd: {none}", "networks lo", "may write"]
    found = [" ".join(line.split()) for line in told.stdout.splitlines()]
    processes = [line for line in found if line.startswith("processes")]
    assert sorted(expected) == sorted(line for line in found if line not in processes)
    assert int(processes[0].split()[1]) < 10  # its own only


# --- how it ends ---


def test_more_memory_than_asked_for_ends_the_job_and_says_so(docker_market: DockerMarket) -> None:
    market = docker_market
    told = market.bazaar("run", "--memory", "64MB", *IN_IMAGE, "echo begun; exec dd if=/dev/zero of=/dev/null bs=200M count=1", code=100)
    assert "begun\n" == told.stdout
    assert "ask for more with --memory" in told.stderr
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", "out_of_memory", 137) == (job["state"], job["reason"], job["exit_code"])


def test_a_job_past_its_timeout_has_time_to_save_and_exits_104(docker_market: DockerMarket) -> None:
    market = docker_market
    saves = f"trap 'echo saved > $BAZAAR_OUT/state; echo bye; exit 9' TERM; {HOLDS}"
    told = market.bazaar("run", "--timeout", "1s", "--out", "saved", *IN_IMAGE, saves, code=104)
    assert "up\nbye\n" == told.stdout
    assert "saved\n" == (market.work / "saved" / "state").read_text()
    job = market.bazaar("show", "last", "--json").json
    assert ("timed_out", "run_timeout") == (job["state"], job["reason"])
    market.ended_once(job["id"])


def test_a_cancelled_container_is_gone_and_the_run_exits_103(docker_market: DockerMarket) -> None:
    market = docker_market
    watching = market.run_on("bazaar", "run", *IN_IMAGE, HOLDS)
    market.wait_until(lambda: watching.lines == ["up"], "it says that it is up")
    job_id = market.bazaar("show", "last", "--json").json["id"]
    name = market.container(job_id, "running")
    market.bazaar("cancel", job_id, "--wait")
    assert "running" != market.engine.state(name).get("Status")
    assert 103 == watching.ended()
    assert "cancelled_by_buyer" == market.job(job_id)["reason"]
    market.ended_once(job_id)


def test_a_program_that_the_image_lacks_is_named(docker_market: DockerMarket) -> None:
    market = docker_market
    market.bazaar("run", "--allow-simulated", "--image", IMAGE, "--", "no-such-program", code=100)
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", "program_not_found", 0) == (job["state"], job["reason"], job["charged_uusd"])
    assert "no-such-program" in job["detail"]
    market.ended_once(job["id"])


# --- images ---


def test_an_image_that_does_not_exist_fails_the_job_with_a_reason_and_costs_nothing(
    docker_market: DockerMarket, registry: Registry
) -> None:
    market = docker_market
    told = market.bazaar("run", "--allow-simulated", "--image", f"{registry.address}/absent/tool:9", "--", "true", code=100)
    assert "the image does not exist" in told.stderr
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", "image_not_found", 1, 0) == (job["state"], job["reason"], job["attempt"], job["charged_uusd"])
    assert "There is no such image" in job["detail"]
    assert job["exit_code"] is None
    market.ended_once(job["id"])


def test_an_image_is_pulled_when_it_is_not_there_and_a_pull_that_hangs_can_be_cancelled(
    docker_market: DockerMarket, registry: Registry
) -> None:
    market = docker_market
    pulled = ("--allow-simulated", "--image", f"{registry.address}/good/tool:1", "--", "echo", "pulled")
    assert "pulled\n" == market.bazaar("run", *pulled).stdout
    job_id = market.submit("--image", f"{registry.address}/slow/tool:1", "--", "true")
    market.wait_until(lambda: (market.job(job_id).get("phase") or "").startswith("pulling"), "the pull shows as the job's phase")
    market.bazaar("cancel", job_id, "--wait")
    job = market.job(job_id)
    assert ("cancelled", 0) == (job["state"], job["charged_uusd"])
    market.ended_once(job_id)


# --- whose jobs ---


def test_a_stranger_is_welcome_in_a_container_and_not_in_a_plain_process(docker_market: DockerMarket, tmp_path: Path) -> None:
    market = docker_market
    own = market.own_node()
    plain = market.seller("plain", "--price", "0.01", "--runner", "process", "--simulate-gpus", "1xRTX 4090")
    try:
        market.wait_until(lambda: "plain" in market.node_names(), "plain is in the list")
        assert {own: "anyone", "plain": "own"} == market.node_names()
        stranger = {"BAZAAR_HOME": str(tmp_path), "BAZAAR_MARKET": market.market, "BAZAAR_API": market.api}
        market.bazaar("wallet", "new", "stranger", **stranger)
        quoted = [
            [offer["name"] for offer in market.bazaar("quote", "--allow-simulated", "--json", **who).json["offers"]]
            for who in ({}, stranger)
        ]
        assert [["plain", own], [own]] == quoted
        told = market.bazaar("run", *IN_IMAGE, "echo welcome", **stranger)
        assert "welcome\n" == told.stdout
        told = market.bazaar("run", "--now", "--target", "plain", *IN_IMAGE, "echo in", code=5, **stranger)
        assert "Nobody here could run this" in told.stderr
    finally:
        assert 0 == plain.stop()


# --- Docker is not there ---


@pytest.mark.parametrize(
    ("host", "why"),
    [("unix:///nowhere/docker.sock", "Docker does not answer at /nowhere/docker.sock"), ("tcp://127.0.0.1:1", "is no socket")],
)
def test_a_docker_that_is_not_there_is_said_with_what_to_try(docker_market: DockerMarket, host: str, why: str) -> None:
    asked = ("run", "--price", "1", "--runner", "docker", "--name", "lame", "--wallet", "seller", "--simulate-gpus", "1xT4")
    told = docker_market.command("bazaar-seller", *asked, "--docker-host", host, code=1)
    assert why in told.stderr and "--runner process" in told.stderr
    findings = json.loads(docker_market.command("bazaar-seller", "doctor", "--json", "--docker-host", host, code=None).stdout)
    assert any(finding["severity"] == "warning" and why in finding["finding"] for finding in findings)


def test_a_container_reads_its_secrets_and_nobody_else_finds_them(docker_market: DockerMarket) -> None:
    job_id = run_with_secrets(docker_market, "--image", IMAGE)
    assert DIGEST in docker_market.bazaar("logs", job_id).stdout
    docker_market.is_cleared(job_id)


# --- crashes ---


def test_an_agent_killed_in_the_middle_of_a_run_takes_it_up_again(docker_market: DockerMarket) -> None:
    market = docker_market
    watching = market.run_on("bazaar", "run", *IN_IMAGE, COUNTS)
    market.wait_until(lambda: len(watching.lines) >= LINES // 4, "a quarter of its lines")
    assert len(watching.lines) < LINES
    market.kill("seller")
    assert 0 == watching.ended(), watching.err
    assert [f"line {number}" for number in range(LINES)] == watching.lines
    assert [f"note {number}" for number in range(0, LINES, 10)] == [line for line in watching.err.splitlines() if line.startswith("note ")]
    job = market.bazaar("show", "last", "--json").json
    assert ("succeeded", 1) == (job["state"], job["attempt"])
    assert [f"line {number}" for number in range(LINES)] == market.bazaar("logs", job["id"], "--stdout").stdout.splitlines()
    market.ended_once(job["id"])


@pytest.fixture
def lone(docker_market: DockerMarket) -> Iterator[Running]:
    """A second node on the same Docker, dearer than the first, with a default image of its own."""
    running = start_lone(docker_market)
    yield running
    if running.code is None:
        assert 0 == running.stop()


def start_lone(market: DockerMarket) -> Running:
    options = ("--price", "0.90", "--simulate-gpus", "1xRTX 4090", "--runner", "docker", "--default-image", IMAGE)
    return market.seller("lone", *options, "--docker-host", f"unix://{market.engine.socket}", DOCKER_HOST="unix:///nowhere")


def test_a_run_that_ended_while_no_agent_lived_is_told_whole_by_the_next(docker_market: DockerMarket, lone: Running) -> None:
    market = docker_market
    waits = "echo up; while [ ! -e go ]; do usleep 20000; done; echo end; echo left > $BAZAAR_OUT/left; exit 3"
    job_id = market.submit("--target", "lone", "--", "sh", "-c", waits)
    market.says(job_id, "up\n")
    lone.process.kill()
    lone.process.wait()
    [folder] = (market.home / "seller" / "lone" / "runs").glob(f"{job_id}-*")
    (folder / "job" / "go").touch()
    market.container(job_id, "exited")
    assert "running" == market.job(job_id)["state"]
    again = start_lone(market)
    try:
        job = market.wait_for_job(job_id, "failed")
        assert (3, "exited_nonzero", 1) == (job["exit_code"], job["reason"], job["attempt"])
        assert "up\nend\n" == market.bazaar("logs", job_id).stdout
        market.bazaar("results", job_id, "--to", "left")
        assert "left\n" == (market.work / "left" / "left").read_text()
        market.ended_once(job_id)
    finally:
        assert 0 == again.stop()


def test_a_run_whose_docker_was_restarted_runs_again_elsewhere(docker_market: DockerMarket, lone: Running) -> None:
    market = docker_market
    own = market.own_node()
    job_id = market.submit("--image", IMAGE, "--", "sh", "-c", f"if [ $BAZAAR_ATTEMPT = 1 ]; then {HOLDS}; fi; echo second")
    market.says(job_id, "up\n")
    assert own == market.job(job_id)["node_name"]
    market.engine.stop(signal.SIGTERM)
    market.engine.start()
    job = market.wait_for_job(job_id, "succeeded")
    assert (2, "lone") == (job["attempt"], job["node_name"])
    assert ["runtime_restarted"] == market.requeued_for(job_id)
    assert "second" == market.bazaar("logs", job_id).stdout.splitlines()[-1]
    market.is_cleared(job_id)
    assert "on\n" == market.bazaar("run", "--target", own, *IN_IMAGE, "echo on").stdout


def test_a_run_whose_docker_was_restarted_while_no_agent_lived_runs_again(docker_market: DockerMarket, lone: Running) -> None:
    market = docker_market
    job_id = market.submit("--target", "lone", "--", "sh", "-c", HOLDS)
    market.says(job_id, "up\n")
    lone.process.kill()
    lone.process.wait()
    market.engine.stop(signal.SIGKILL)
    market.engine.start()
    again = start_lone(market)
    try:
        market.wait_until(lambda: market.requeued_for(job_id) == ["runtime_restarted"], "the job is queued again")
        market.bazaar("cancel", job_id, "--wait")
        market.is_cleared(job_id)
    finally:
        assert 0 == again.stop()


def test_with_live_restore_a_run_survives_its_docker(docker_market: DockerMarket) -> None:
    market = docker_market
    market.engine.stop()
    market.engine.start("--live-restore")
    try:
        pauses = COUNTS.replace("usleep", f"[ $i = {LINES // 4} ] && while [ ! -e go ]; do usleep 20000; done; usleep")
        watching = market.run_on("bazaar", "run", *IN_IMAGE, pauses)
        market.wait_until(lambda: len(watching.lines) == LINES // 4, "a quarter of its lines")
        market.engine.stop()  # between two lines: what the daemon has in its hand then is lost in its own log
        job_id = market.bazaar("show", "last", "--json").json["id"]
        [folder] = market.home.glob(f"seller/*/runs/{job_id}-*/job")
        (folder / "go").touch()
        market.engine.start("--live-restore")
        assert 0 == watching.ended(), watching.err
        assert [f"line {number}" for number in range(LINES)] == watching.lines
        job = market.bazaar("show", "last", "--json").json
        assert 1 == job["attempt"]
        market.ended_once(job["id"])
    finally:
        market.engine.stop()
        market.engine.start()


def test_an_agent_that_leaves_stops_its_container_and_the_job_goes_elsewhere(docker_market: DockerMarket, lone: Running) -> None:
    market = docker_market
    with_two = ("--gpus", "2", "--image", IMAGE, "--", "sh", "-c")
    holder = market.submit(*with_two, HOLDS)
    job_id = market.submit("--image", IMAGE, "--", "sh", "-c", f"if [ $BAZAAR_ATTEMPT = 1 ]; then {HOLDS}; fi; echo second")
    market.says(job_id, "up\n")
    assert "lone" == market.job(job_id)["node_name"]
    assert 0 == lone.stop()
    assert [] == market.containers_of(job_id)
    market.bazaar("cancel", holder, "--wait")
    job = market.wait_for_job(job_id, "succeeded")
    assert (2, market.own_node()) == (job["attempt"], job["node_name"])
    market.is_cleared(job_id)
    market.is_cleared(holder)


def test_a_market_killed_with_a_container_running_finds_it_again_and_leaves_none_when_it_ends(engine: Engine, tmp_path: Path) -> None:
    market = DockerMarket(tmp_path, engine)
    try:
        market.start("--runner", "docker", *TWO_CARDS)
        market.bazaar("wallet", "new")
        job_id = market.submit(*IN_IMAGE[1:], COUNTS)
        market.wait_for_job(job_id, "running")
        market.kill_up()
        assert 1 == len(market.containers_of(job_id))
        market.start_again()
        assert 1 == market.wait_for_job(job_id, "succeeded")["attempt"]
        assert [f"line {number}" for number in range(LINES)] == market.bazaar("logs", job_id, "--stdout").stdout.splitlines()
        market.ended_once(job_id)
        held = market.submit(*IN_IMAGE[1:], HOLDS)
        market.container(held, "running")
    finally:
        market.close()
    assert [] == market.containers_of(held)
