"""What a person can do on one machine, in the order in which he would: the README's story with the real commands."""

from __future__ import annotations

from pathlib import Path

from e2e.market_env import MarketEnv, own_market

__all__ = ["own_market"]  # the fixture

TRAIN = """
import os, pathlib, sys, time
print("epochs", sys.argv[1:])
for epoch in range(3):
    print("epoch", epoch, flush=True)
    time.sleep(0.3)
pathlib.Path(os.environ["BAZAAR_OUT"], "model.txt").write_text("weights of " + os.environ["BAZAAR_JOB_ID"])
"""


def test_a_buyer_finds_a_node_runs_a_script_and_a_cheaper_seller_wins_the_next_job(own_market: MarketEnv) -> None:
    market = own_market
    assert market.bazaar("wallet", "show").stdout.startswith("0x")
    [node] = market.bazaar("nodes", "--json").json
    assert (2, 400_000, True) == (node["num_gpus"], node["price_uusd_per_gpu_hour"], node["simulated"])
    assert "RTX 4090" in market.bazaar("nodes").stdout
    assert "1 node could run it, 1 free now" in market.bazaar("quote", "--allow-simulated").stdout

    train = market.script("train.py", TRAIN)
    told = market.bazaar("run", "--allow-simulated", train, "--", "--epochs", "3")
    assert ["epochs ['--epochs', '3']", "epoch 0", "epoch 1", "epoch 2"] == told.stdout.splitlines()
    assert "bill" in told.stderr
    job = market.bazaar("show", "last", "--json").json
    assert f"weights of {job['id']}" == (market.work / "results" / job["id"] / "model.txt").read_text()
    assert 0 < job["charged_uusd"] == job["ran_ms"] * 400_000 // 3_600_000
    assert "" == market.bazaar("ps").stdout
    assert job["id"] in market.bazaar("ps", "-a").stdout

    market.command("bazaar-market", "pause")
    detached = market.submit(train)
    following = market.run_on("bazaar", "logs", "-f", detached)
    assert "train.py" in market.bazaar("ps").stdout
    market.command("bazaar-market", "resume")
    assert 0 == following.ended()
    assert ["epoch 0", "epoch 1", "epoch 2"] == following.lines[1:]
    market.bazaar("results", detached, "--to", "fetched")
    assert f"weights of {detached}" == (market.work / "fetched/model.txt").read_text()

    other = market.run_on(
        "bazaar-seller", "run", "--price", "0.20", "--name", "other", "--runner", "process", "--simulate-gpus", "1xRTX 4090"
    )
    market.wait_until(lambda: "Offered other" in other.err, "the second seller has offered")
    market.bazaar("run", "--allow-simulated", "-c", "print('cheap')")
    job = market.bazaar("show", "last", "--json").json
    assert ("other", 200_000) == (job["node_name"], job["price_uusd_per_gpu_hour"])

    sleeping = market.submit("--gpus", "2", "-c", "import time; time.sleep(600)")
    assert node["id"] == market.wait_for_job(sleeping, "running")["node"]
    market.bazaar("cancel", sleeping, "--wait")
    assert "cancelled" == market.job(sleeping)["state"]

    assert 0 == other.stop()
    market.wait_until(
        lambda: (
            {"other": "withdrawn"}.items() <= {node["name"]: node["state"] for node in market.get("/v1/nodes")["items"]}.items()
            or "other" not in {node["name"] for node in market.get("/v1/nodes")["items"]}
        ),
        "the second node is off the market",
    )
    assert market.command("bazaar-market", "verify-log", "--json").json["agrees"]


def test_a_machine_without_a_card_offers_its_cores_and_says_so(tmp_path: Path) -> None:
    """Whatever this machine has: jobs that ask for no GPU run there."""
    env = MarketEnv(tmp_path)
    try:
        env.start("--seller", "--price", "0.10")
        env.bazaar("wallet", "new")
        [node] = env.get("/v1/nodes")["items"]
        assert (100_000, False) == (node["price_uusd_per_gpu_hour"], node["simulated"])
        if not node["num_gpus"]:
            assert "No GPU was found here" in (env.home / "log" / "seller.err").read_text()
        assert "42\n" == env.bazaar("run", "--gpus", "0", "-c", "print(6 * 7)").stdout
        assert [] == env.bazaar("show", "last", "--json").json["gpus"]
    finally:
        env.close()
