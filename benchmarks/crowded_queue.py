"""One wallet queues a hundred thousand jobs: what another wallet notices of it. Real processes, real broker; every answer is durable.

Told are starts of the other wallet's jobs (from the publish on an open connection until the market says that the program runs) with an
empty queue, while the crowd arrives, and with all of it queued; then the same crowd under the default policy, which refuses most of it.
Run: `python benchmarks/crowded_queue.py [JOBS]`
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections import Counter

from market_speed import RunningMarket, job, market

from events.feed import Received
from events.jobs import JobStarted, JobSucceeded
from events.market import Policy, PolicyChanged
from events.market_client import MarketClient
from events.values import Role

STARTS = 60
AT_ONCE = 2_000


async def starts_ms(client: MarketClient, number: int = STARTS) -> list[float]:
    """How long each of so many jobs took to its start, one after the other."""
    found = []
    for _ in range(number):
        event = job("true")
        started, ended = asyncio.Event(), asyncio.Event()

        def hear(received: Received, job_id: str = event.job_id, started: asyncio.Event = started, ended: asyncio.Event = ended) -> None:
            if getattr(received.event, "job_id", "") == job_id:
                if isinstance(received.event, JobStarted):
                    started.set()
                if isinstance(received.event, JobSucceeded):
                    ended.set()

        client.on_event(hear)
        began = time.perf_counter()
        client.enqueue(event)
        async with asyncio.timeout(60):
            await started.wait()
            found.append((time.perf_counter() - began) * 1e3)
            await ended.wait()
        await asyncio.sleep(0.05)
    return found[5:]


def say(what: str, found: list[float]) -> None:
    """One row."""
    found.sort()
    middle, late = statistics.median(found), found[int(len(found) * 0.95)]
    print(f"| {what} | {middle:.1f} ms | {late:.1f} ms | {os.getloadavg()[0]:.1f} |", flush=True)


async def crowd(client: MarketClient, jobs: int, wanted: bool) -> Counter[str]:
    """Submit so many jobs; what the market answered to them, counted."""
    answers: Counter[str] = Counter()
    for first in range(0, jobs, AT_ONCE):
        events = [job("python", "train.py", "--seed", str(first + number), simulated=wanted) for number in range(AT_ONCE)]
        for ticket in client.enqueue(*events):
            outcome = await ticket
            answers["taken" if outcome.reason is None else outcome.reason.value] += 1
    return answers


async def _measure(running: RunningMarket, jobs: int) -> None:
    crowding, other = await running.client("buyer0", Role.BUYER), await running.client("buyer1", Role.BUYER)
    say("nobody else", await starts_ms(other))
    began = time.perf_counter()
    arriving = asyncio.create_task(crowd(crowding, jobs, False))
    await asyncio.sleep(1)
    say(f"while {jobs:,} jobs of another wallet arrive", await starts_ms(other))
    answers = await arriving
    print(f"  ({dict(answers)} in {time.perf_counter() - began:.0f} s)", flush=True)
    say(f"{answers['taken']:,} jobs of another wallet queued, which no node can run", await starts_ms(other))
    operator = await running.client("market", Role.OPERATOR)
    for name in ("fair-share", "least-backlog", "sjf", "fcfs"):
        assert (await operator.submit(PolicyChanged(policy=Policy(name=name, max_queue=1_000_000)))).reason is None
        say(f"the same under {name}", await starts_ms(other, 25))
    for client in (crowding, other, operator):
        await client.close()


async def _refused(running: RunningMarket, jobs: int) -> None:
    operator = await running.client("market", Role.OPERATOR)
    assert (await operator.submit(PolicyChanged(policy=Policy(name="fair-share")))).reason is None
    crowding, other = await running.client("buyer0", Role.BUYER), await running.client("buyer1", Role.BUYER)
    arriving = asyncio.create_task(crowd(crowding, jobs, False))
    await asyncio.sleep(1)
    say(f"while {jobs:,} jobs arrive and 100 are taken (the default)", await starts_ms(other, 40))
    print(f"  ({dict(await arriving)})", flush=True)
    for client in (crowding, other, operator):
        await client.close()


def main() -> None:
    """All of it."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print("| the other wallet's starts | p50 | p95 | load |\n|---|---|---|---|", flush=True)
    with market("2xRTX 4090") as running:
        asyncio.run(_measure(running, jobs))
    with market("2xRTX 4090") as running:
        asyncio.run(_refused(running, jobs // 5))


if __name__ == "__main__":
    main()
