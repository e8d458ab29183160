"""What one decision of the matcher costs in CPU, and what a queued job costs in memory. No broker; the fold of the events is not counted.

Every job names a price of its own; 1, 2, 4 and 8 GPUs, eight models, five priorities, about 200 kinds of demand beside the price; a part of
the queue, and its head, can never run. 200 wallets; half of the jobs give an estimate.
`supply`: matches while free nodes last. `free one`: an attempt ends, its cards are free, a new job has come: what is decided then.
`arrival`: a job comes while many nodes are free.
The other policies follow at 10,000 x 100,000 (`fair-share` at its worst: every wallet asks for every kind of thing), and `priority` again
with a limit for every tenth wallet and a maintenance planned for every hundredth node.
Run: python benchmarks/decision_cost.py [--large]
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from random import Random
from time import thread_time_ns
from typing import NamedTuple

from events.ids import job_id, node_id
from events.jobs import JobMatched, JobSubmitted, LeaseExpired
from events.market import Policy
from events.nodes import NodeOffered
from events.page import Record
from events.reasons import Refusal
from events.values import Card, Program, Requirements
from projections import job_states, jobs, nodes
from projections.arbiter import apply
from projections.market import Limit, Market
from services.matcher.engine import Engine
from services.matcher.matches import Match
from services.matcher.policies import POLICIES

NOW_MS = 1_800_000_000_000
SELLER = "0x" + "5" * 40
WALLETS = [f"0x{number:040x}" for number in range(1, 201)]
MODELS = (
    ("NVIDIA GeForce RTX 3090", 24_576, 200_000),
    ("NVIDIA GeForce RTX 4090", 24_564, 400_000),
    ("NVIDIA GeForce RTX 5090", 32_607, 600_000),
    ("NVIDIA RTX A6000", 49_140, 700_000),
    ("NVIDIA L40S", 46_068, 900_000),
    ("NVIDIA A100-SXM4-80GB", 81_920, 1_500_000),
    ("NVIDIA H100 80GB HBM3", 81_559, 2_400_000),
    ("NVIDIA H200", 143_771, 3_500_000),
)
NAMES = ("RTX 3090", "RTX 4090", "RTX 5090", "A6000", "L40S", "A100", "H100", "H200")
SIZES = (1, 1, 1, 2, 2, 4, 8)
PROGRAM = Program(argv=("python", "train.py"))


class World:
    """A market of a given size, filled straight into its folds, and the engine beside it."""

    def __init__(self, num_nodes: int, num_jobs: int, policy: str = "priority") -> None:
        self.chance = Random(7)
        self.market = Market(policy=Policy(name=policy))
        self.seq = 0
        self.jobs = 0
        self.held: list[int] = []
        for number in range(num_nodes):
            self.add_node(number)
        for _ in range(num_jobs):
            self.add_job()

    def add_node(self, number: int) -> None:
        model, vram_mib, price = self.chance.choice(MODELS)
        name = f"node{number}"
        cards = tuple(
            Card(index=index, uuid=f"GPU-{number}-{index}", model=model, vram_mib=vram_mib, cuda=12_040)
            for index in range(self.chance.choice((1, 2, 4, 8)))
        )
        offered = NodeOffered(
            node_id=node_id(SELLER, name),
            name=name,
            cards=cards,
            cores=self.chance.choice((16, 32, 64, 128)),
            memory_mib=self.chance.randrange(60_000, 520_000),
            price_uusd_per_gpu_hour=self.chance.randrange(price * 7 // 10, price * 13 // 10),
            labels={"host": name},
        )
        self.seq += 1
        self.market.nodes[offered.node_id] = nodes.offer(None, offered, SELLER, self.seq, NOW_MS)

    def add_job(self) -> str:
        """A job with a price of its own. Every hundredth asks for more than there is, with the highest priority."""
        chance, at = self.chance, self.jobs
        self.jobs += 1
        kind = chance.randrange(len(MODELS))
        vram_mib = chance.choice((0, 22_889, 38_147))
        models = (NAMES[kind],) if chance.random() < 0.7 else ()
        memory_mib = chance.choice((0, 0, 0, 64_000))
        asked = Requirements(num_gpus=chance.choice(SIZES), vram_mib=vram_mib, gpu_models=models, memory_mib=memory_mib)
        priority = chance.choice((0, 25, 50, 75, 100))
        if at % 100 == 0:
            asked, priority = Requirements(num_gpus=8, vram_mib=900_000, cores=at // 100 % 50), 100
        event = JobSubmitted(
            job_id=job_id(at.to_bytes(12, "big")[::-1]),
            name="job",
            requirements=asked,
            program=PROGRAM,
            timeout_s=3600,
            max_price_uusd_per_gpu_hour=int(MODELS[kind][2] * chance.uniform(0.5, 1.3)),
            priority=priority,
            retries=0,
            estimate_s=None if at % 2 else 60 + at * 7919 % 3500,
        )
        self.seq += 1
        self.market.jobs[event.job_id] = jobs.submit(event, WALLETS[at * 31 % len(WALLETS)], self.seq, NOW_MS + at)
        self.market.moved(self.market.jobs[event.job_id], None)
        return event.job_id

    def fold(self, event: JobMatched | LeaseExpired) -> None:
        self.seq += 1
        result = apply(self.market, Record(self.seq, NOW_MS, event, "", b"", 0, b""))
        assert not isinstance(result, Refusal), result

    def fold_match(self, match: Match) -> None:
        self.fold(
            JobMatched(
                job_id=match.job_id,
                attempt=1,
                node_id=match.node_id,
                cards=match.cards,
                price_uusd_per_gpu_hour=match.price_uusd_per_gpu_hour,
                claim_by_ms=NOW_MS,
            )
        )
        self.held.append(self.seq)

    def end_one(self) -> tuple[str, str]:
        """End some attempt; its job and node."""
        at = self.chance.randrange(len(self.held))
        self.held[at], self.held[-1] = self.held[-1], self.held[at]
        epoch = self.held.pop()
        name = self.market.leases[epoch]
        ended = self.market.nodes[name].allocations[epoch].job_id
        self.fold(LeaseExpired(job_id=ended, attempt=1, epoch=epoch, node_id=name))
        return ended, name


class Costs(NamedTuple):
    """CPU of each decision in ns, and rows touched by all of them."""

    decisions: list[int]
    touched: int

    def quantile_us(self, percent: int) -> float:
        """What so many percent of the decisions cost at most, in µs."""
        ordered = sorted(self.decisions)
        return ordered[len(ordered) * percent // 100] / 1000

    def __str__(self) -> str:
        if not self.decisions:
            return "none"
        mean, rows = sum(self.decisions) / len(self.decisions), self.touched / len(self.decisions)
        told = f"{self.quantile_us(50):6.1f} {self.quantile_us(99):7.1f} {mean / 1000:7.1f} {rows:7.0f}"
        return f"{told}  ({len(self.decisions):,} decisions)"


def measured(world: World, engine: Engine, rounds: int, change: Callable[[], None]) -> Costs:
    """The CPU of every decision in so many rounds of: something changes, then decisions until there is none."""
    decisions = []
    touched = engine.touched
    for _ in range(rounds):
        change()
        while True:
            start = thread_time_ns()
            match = engine.next_match(NOW_MS)
            decisions.append(thread_time_ns() - start)
            if match is None:
                break
            world.fold_match(match)
            engine.touch_job(match.job_id)
            engine.touch_node(match.node_id)
    return Costs(decisions, engine.touched - touched)


def restrict(market: Market) -> None:
    """Limits and plans such as a large market has."""
    for wallet in WALLETS[::10]:
        market.limits[wallet] = Limit(gpus=40, spend_day_uusd=100_000_000)
    for number, node in enumerate(market.nodes.values()):
        if number % 100 == 0:
            node.maintenance = (NOW_MS + (number + 1) * 60_000, NOW_MS + 10**9, "")


def indexed(world: World) -> Engine:
    """An engine that has sorted in everything and decided nothing."""
    engine = Engine(world.market)
    world.market.paused = True
    engine.next_match(NOW_MS)
    world.market.paused = False
    return engine


def costs_of(num_nodes: int, num_jobs: int, rounds: int = 4000, *, policy: str = "priority", restricted: bool = False) -> dict[str, Costs]:
    """Each kind of decision in a market of this size."""
    world = World(num_nodes, num_jobs, policy)
    if restricted:
        restrict(world.market)
    engine = indexed(world)
    costs = {"supply": measured(world, engine, 1, lambda: None)}

    def free_one() -> None:
        if world.held:
            job, node = world.end_one()
            engine.touch_job(job)
            engine.touch_node(node)
        engine.touch_job(world.add_job())

    costs["free one"] = measured(world, engine, rounds, free_one)
    for job in list(world.market.jobs):
        if world.market.jobs[job].state is job_states.QUEUED:
            del world.market.jobs[job]
    for _ in range(len(world.held) * 2 // 3):
        world.end_one()
    engine = Engine(world.market)
    engine.next_match(NOW_MS)
    costs["arrival"] = measured(world, engine, min(rounds, num_nodes // 2), lambda: engine.touch_job(world.add_job()))
    return costs


def report(num_nodes: int, num_jobs: int, *, policy: str = "priority", restricted: bool = False) -> None:
    """One line for each kind of decision in a market of this size."""
    name = f"{policy}, restricted" if restricted else policy
    print(f"{name}: {num_nodes:,} nodes, {num_jobs:,} queued jobs")
    print("                  p50     p99    mean    rows")
    for kind, costs in costs_of(num_nodes, num_jobs, policy=policy, restricted=restricted).items():
        print(f"  {kind:12} {costs}")


def memory_per_job(num_jobs: int) -> float:
    """Bytes that the engine holds for a queued job, beside what the market itself holds."""
    world = World(100, num_jobs)
    world.market.paused = True
    tracemalloc.start()
    engine = Engine(world.market)
    engine.next_match(NOW_MS)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / num_jobs


def main() -> None:
    """Print the table."""
    print("CPU in µs of one decision (goal at 10,000 x 100,000: p50 <= 25, p99 <= 100), and rows touched by it")
    for num_nodes, num_jobs in ((100, 1000), (1000, 10_000), (10_000, 1000), (1000, 100_000), (10_000, 100_000)):
        report(num_nodes, num_jobs)
    for policy in [name for name in POLICIES if name != "priority"]:
        report(10_000, 100_000, policy=policy)
    report(10_000, 100_000, restricted=True)
    if "--large" in sys.argv:
        report(10_000, 1_000_000)
    print(f"memory of the engine: {memory_per_job(100_000):.0f} bytes a queued job (goal <= 300)")


if __name__ == "__main__":
    main()
