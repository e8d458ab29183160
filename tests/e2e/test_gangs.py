"""A gang on a market with three nodes: all ranks or none, one rank's end is the end of all, and a lost node begins all anew."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.market_env import MarketEnv, Running

HELLO = (Path(__file__).parents[2] / "examples" / "gang_hello.py").read_text()
SLEEPS = "import os, sys, time\nprint('rank', os.environ['BAZAAR_RANK'], flush=True)\ntime.sleep(300)\n"
FAILS = """
import os, sys, time
print('rank', os.environ['BAZAAR_RANK'], flush=True)
if os.environ['BAZAAR_RANK'] == '1':
    time.sleep(0.5)
    sys.exit(7)
time.sleep(300)
"""


class ThreeNodes:
    """A market with a node of its own and two more, each with an agent that a test may end."""

    def __init__(self, env: MarketEnv) -> None:
        self.env = env
        self.agents: dict[str, Running] = {}

    def offer(self, name: str) -> None:
        options = ("--price", "0.30", "--name", name, "--simulate-gpus", "1xRTX 4090", "--wallet", "seller", "--market", self.env.market)
        self.agents[name] = self.env.run_on("bazaar-seller", "run", *options)

    def nodes(self) -> dict[str, Any]:
        """By name, those that are offered."""
        return {node["name"]: node for node in self.env.get("/v1/nodes")["items"] if node["state"] == "offered"}

    def submit(self, *arguments: str, nodes: int = 3) -> list[str]:
        """The jobs of the ranks, in order."""
        return self.env.bazaar("run", "-d", "-y", "--allow-simulated", "--nodes", str(nodes), *arguments).stdout.split()

    def states(self, job_ids: list[str]) -> list[tuple[str, str | None]]:
        found = [self.env.job(job_id) for job_id in job_ids]
        return [(job.get("state", ""), job.get("reason")) for job in found]

    def wait_for(self, job_ids: list[str], state: str) -> None:
        for job_id in job_ids:
            self.env.wait_for_job(job_id, state)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeNodes]:
    env = MarketEnv(tmp_path_factory.mktemp("gangs"))
    try:
        env.start("--simulate-gpus", "1xRTX 4090")
        env.bazaar("wallet", "new", "default")
        nodes = ThreeNodes(env)
        for name in ("node-b", "node-c"):
            nodes.offer(name)
        env.wait_until(lambda: len(nodes.nodes()) == 3, "three nodes are offered")
        yield nodes
    finally:
        env.close()


def test_all_ranks_of_a_gang_meet_and_are_shown_together(three: ThreeNodes) -> None:
    env = three.env
    told = env.bazaar("run", "-y", "--allow-simulated", "--nodes", "3", env.script("hello.py", HELLO))
    lines = sorted(told.stdout.splitlines())
    assert [f"[{rank}] rank {rank} of 3 met" for rank in range(3)] == [line.partition(" 0@")[0] for line in lines]
    jobs = [env.job(word.strip()) for word in told.stderr.split() if word.startswith("j") and len(word) == 20]
    assert 3 == len({job["node"] for job in jobs})


def test_one_ranks_failure_ends_all(three: ThreeNodes) -> None:
    env = three.env
    told = env.bazaar("run", "-y", "--allow-simulated", "--propagate-exit", "--nodes", "3", env.script("fails.py", FAILS), code=7)
    assert {"[0] rank 0", "[1] rank 1", "[2] rank 2"} == set(told.stdout.splitlines())
    ids = list(dict.fromkeys(word for word in told.stderr.split() if word.startswith("j") and len(word) == 20))
    assert [("failed", "gang_rank_failed"), ("failed", "exited_nonzero"), ("failed", "gang_rank_failed")] == three.states(ids)


def test_to_cancel_one_rank_is_to_cancel_the_gang(three: ThreeNodes) -> None:
    ids = three.submit(three.env.script("sleeps.py", SLEEPS))
    three.wait_for(ids, "running")
    three.env.bazaar("cancel", ids[2])
    three.wait_for(ids, "cancelled")
    assert [("cancelled", "cancelled_by_buyer")] * 3 == three.states(ids)


def test_what_is_said_of_one_rank_or_of_the_group_is_said_of_all(three: ThreeNodes) -> None:
    env = three.env
    ids = three.submit(env.script("sleeps.py", SLEEPS))
    three.wait_for(ids, "running")
    group = env.job(ids[0])["group"]
    told = env.bazaar("extend", ids[1], "1h").stdout
    assert ids == [line.split()[0] for line in told.splitlines()]
    assert [3 * 3600] * 3 == [job["timeout_s"] for job in env.bazaar("extend", group, "1h", "--json").json]
    env.bazaar("cancel", group, "--wait")
    assert [("cancelled", "cancelled_by_buyer")] * 3 == three.states(ids)


def test_a_gang_larger_than_the_market_waits_says_why_and_holds_nobody_up(three: ThreeNodes) -> None:
    env = three.env
    ids = three.submit(env.script("sleeps.py", SLEEPS), nodes=4)
    assert 4 == len(ids)
    assert "needs 4 nodes, 3 fit" in env.bazaar("why", ids[1]).stdout
    quote = env.bazaar("quote", "--allow-simulated", "--nodes", "4", code=5)
    assert "4 nodes needed, 3 fit" in quote.stdout and "try: --nodes 3: then 3 nodes at" in quote.stderr
    assert "Smallest change: --nodes 3 -> 3 nodes at" in env.bazaar("why", ids[0]).stdout
    env.bazaar("priority", ids[2], "high")
    assert [75] * 4 == [env.job(job_id)["priority"] for job_id in ids]
    env.wait_for_job(env.submit("-c", "print(1)"), "succeeded")
    assert [("queued", None)] * 4 == three.states(ids)
    env.bazaar("cancel", ids[0])
    three.wait_for(ids, "cancelled")


def test_when_a_node_fails_under_one_rank_all_ranks_begin_anew_together(three: ThreeNodes) -> None:
    env = three.env
    ids = three.submit(env.script("sleeps.py", SLEEPS))
    three.wait_for(ids, "running")
    names = {node["id"]: name for name, node in three.nodes().items()}
    on = {names[env.job(job_id)["node"]]: job_id for job_id in ids}
    agent = three.agents["node-c"]
    agent.tell(signal.SIGTERM)  # the owner takes the machine: what runs there is evicted
    env.wait_until(lambda: all(state == "queued" for state, _ in three.states(ids)), "all ranks wait again")
    assert on["node-c"] in ids
    agent.ended()
    three.offer("node-d")
    env.wait_until(lambda: all(state == "running" for state, _ in three.states(ids)), "all ranks run again")
    jobs = [env.job(job_id) for job_id in ids]
    assert [2, 2, 2] == [job["attempt"] for job in jobs]
    assert 3 == len({job["node"] for job in jobs})
    env.bazaar("cancel", ids[0])
    three.wait_for(ids, "cancelled")
