"""This market against its own targets, those that need no broker: decisions, `why`, replay. CPU time of one process, medians of rounds.

Run: `python benchmarks/own_targets.py [--rounds 3] [--events 1000000] [--json]`; `against_peers.py` runs it too.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from random import Random

from decision_cost import NOW_MS, World, costs_of
from fold_rate import lives, replay
from peers.page import aims_table, alone

from projections import job_states
from services.api.standing import Standing
from services.matcher.verdicts import OfferKeys
from services.matcher.why import Moment, why
from services.processes import calm_collector

NODES, JOBS, FEW_JOBS = 10_000, 100_000, 1_000
ASKED = 20


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(f"{time.strftime('%H:%M:%S')}             own targets     {text}", file=sys.stderr, flush=True)


def decisions() -> dict[str, float]:
    """One round of what decisions cost, in µs."""
    figures = {}
    few, many = costs_of(NODES, FEW_JOBS), costs_of(NODES, JOBS)
    for kind, costs in many.items():
        figures[f"{kind} p50"], figures[f"{kind} p99"] = costs.quantile_us(50), costs.quantile_us(99)
        figures[f"{kind} growth"] = costs.quantile_us(50) / few[kind].quantile_us(50)
    return figures


def slowest_why_ms() -> float:
    """Of so many queued jobs, asked one after another as the API asks, the slowest answer; the first, which sorts the queue, apart."""
    world = World(NODES, NODES)
    queue, keys, spent = Standing(world.market).queue, OfferKeys(), []
    waiting = [job for job in world.market.jobs.values() if job.state is job_states.QUEUED]
    for job in Random(3).sample(waiting, 1 + ASKED):
        began = time.process_time()
        position = queue.position(job.submitted.job_id)
        why(world.market, job, Moment(NOW_MS, (), queue.in_order(), position or 0), keys)
        spent.append((time.process_time() - began) * 1000)
    return max(spent[1:])


def replays_s(events: int, rounds: int) -> list[float]:
    """Seconds for a ledger of whole lives of jobs, from its bytes."""
    pages = lives(events // 6).pages
    gc.collect()
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        replay(pages)
        spent.append(time.process_time() - began)
        gc.collect()
    return spent


def measured(rounds: int, events: int) -> dict[str, float]:
    """Every figure, as the median of the rounds."""
    seen: dict[str, list[float]] = {}
    for number in range(rounds):
        for what, value in decisions().items():
            seen.setdefault(what, []).append(value)
        seen.setdefault("why_ms", []).append(slowest_why_ms())
        say(f"round {number + 1}: " + ", ".join(f"{what} {values[-1]:.1f}" for what, values in seen.items()))
    calm_collector()  # as the services do
    seen["replay_s"] = [value * 1_000_000 / events for value in replays_s(events, rounds)]
    say(f"{events:,} events replayed: {seen['replay_s'][0]:.1f} s a million")
    return {what: statistics.median(values) for what, values in seen.items()}


def main() -> None:
    """Print the table, or the figures for a program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measured(options.rounds, options.events)
    print(json.dumps(figures) if options.json else aims_table(alone(figures)))


if __name__ == "__main__":
    main()
