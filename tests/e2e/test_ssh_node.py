"""A node behind a gate, as its owner and a buyer have it: real commands, two real SSH servers, one market."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.market_env import MarketEnv
from integration.ssh_env import SshWorld, opened_world

TRAIN = """
import os, pathlib, sys
print("hello from", pathlib.Path(sys.argv[0]).name, flush=True)
print("and to the other", file=sys.stderr)
print(pathlib.Path("data.txt").read_text())
pathlib.Path(os.environ["BAZAAR_OUT"], "sub").mkdir()
pathlib.Path(os.environ["BAZAAR_OUT"], "sub", "model.txt").write_text("weights")
sys.exit(7)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshWorld]:
    yield from opened_world(tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarketEnv]:
    env = MarketEnv(tmp_path_factory.mktemp("market"))
    try:
        env.start()
        env.bazaar("wallet", "new")
        yield env
    finally:
        env.close()


def test_a_wrong_host_key_is_said_and_nothing_is_offered(market: MarketEnv, world: SshWorld) -> None:
    (market.work / "hosts.toml").write_text(world.hosts_toml(node_key=world.gate.host_key))
    told = market.command("bazaar-seller", "run", "--price", "0.35", "--runner", "ssh", "--hosts", "hosts.toml", code=1)
    assert "another key than the one pinned" in told.stderr
    [visited] = market.command("bazaar-seller", "hosts", "hosts.toml", "--json", code=1).json
    assert 2 == visited["trouble"].count("SHA256:")
    assert [] == market.bazaar("nodes", "--json").json
    assert 0 == world.node.logins()


def test_a_node_behind_a_jump_host_runs_a_job_and_returns_output_exit_code_and_results(market: MarketEnv, world: SshWorld) -> None:
    (market.work / "hosts.toml").write_text(world.hosts_toml(more='labels = { rack = "b2" }\nprice = "0.20"'))
    assert market.command("bazaar-seller", "hosts", "hosts.toml").stdout.startswith("node-1: 0 cards, ")
    seller = market.run_on(
        "bazaar-seller", "run", "--price", "0.35", "--runner", "ssh", "--hosts", "hosts.toml", "--simulate-gpus", "2xRTX 4090"
    )
    market.wait_until(lambda: "Offered node-1" in seller.err or seller.code is not None, "the node is offered")
    assert seller.code is None, seller.err
    [node] = market.bazaar("nodes", "--json").json
    assert ("node-1", 2, 200_000) == (node["name"], node["num_gpus"], node["price_uusd_per_gpu_hour"])
    assert "node-1" in market.bazaar("nodes").stdout

    (market.work / "data.txt").write_text("forty-two")
    train = market.script("train.py", TRAIN)
    told = market.bazaar("run", "--allow-simulated", "--in", "data.txt", train, "--propagate-exit", code=None)
    assert ["hello from train.py", "forty-two"] == told.stdout.splitlines()
    assert "and to the other" in told.stderr
    job = market.bazaar("show", "last", "--json").json
    assert ("failed", 7, "node-1") == (job["state"], job["exit_code"], job["node_name"])
    assert "node-1" in market.command("bazaar-seller", "status").stdout
    market.command("bazaar-seller", "reap")
    market.bazaar("results", job["id"], "--to", "fetched")
    assert "weights" == (market.work / "fetched/sub/model.txt").read_text()

    assert 0 == seller.stop()
    assert [] == [path for path in world.work.glob("*/runs/*") if path.name != ".supervisor"]


SLOW = """
import os, pathlib, time
while not pathlib.Path("go").exists(): time.sleep(0.02)
for n in range(40): print("line", n, flush=True); time.sleep(0.02)
pathlib.Path(os.environ["BAZAAR_OUT"], "done").write_text("yes")
"""


def test_a_gate_that_restarts_in_mid_run_loses_nothing_and_a_host_that_is_away_holds_up_no_other(
    market: MarketEnv, world: SshWorld
) -> None:
    """Agent and jump host die together and come back together, as when the machine at the gate restarts."""
    (market.work / "hosts.toml").write_text(world.hosts_toml(ports=(world.node.port, 1)))
    command = ("run", "--price", "0.35", "--runner", "ssh", "--hosts", "hosts.toml", "--simulate-gpus", "2xRTX 4090")
    seller = market.run_on("bazaar-seller", *command)
    market.wait_until(lambda: "Offered node-1" in seller.err and "Offered node-2" in seller.err, "two nodes are offered")
    market.wait_until(lambda: "node-3 cannot be reached" in seller.err, "the third is said to be away")

    job_id = market.submit(market.script("slow.py", SLOW))
    node = market.wait_for_job(job_id, "running")["node"]
    [folder] = (world.work / node / "runs").glob(f"{job_id}-*")
    seller.process.kill()
    world.gate.kill()
    (folder / "job" / "go").touch()
    market.wait_until(lambda: b'"exited"' in (folder / "run.jsonl").read_bytes(), "the job ends while nobody can reach it")
    world.gate.start()
    seller = market.run_on("bazaar-seller", *command)
    assert 0 == market.wait_for_job(job_id, "succeeded")["exit_code"]
    assert [f"line {n}" for n in range(40)] == market.bazaar("logs", job_id).stdout.splitlines()
    market.bazaar("results", job_id, "--to", "again")
    assert "yes" == (market.work / "again/done").read_text()

    job_id = market.submit("-c", "import time; time.sleep(600)")
    node = market.wait_for_job(job_id, "running")["node"]
    market.bazaar("cancel", job_id, "--wait")
    assert 0 == seller.stop()
    assert [] == [path for path in world.work.glob("*/runs/*") if path.name != ".supervisor"]
