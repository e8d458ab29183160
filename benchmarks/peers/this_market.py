"""This market under the same no-op jobs: a whole one, of separate processes, durable and signed, in an empty folder for every figure."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from market_speed import TICK_S, RunningMarket, job, market, tell_when_ended
from peers.stamps import Stamps

from events.errors import BazaarError
from events.market import MatchingPaused, MatchingResumed
from events.market_client import MarketClient
from events.values import Role
from events.wire import FilesRequest

DRAIN_S = 300.0
RESTART_S = 60.0
STABLE_S = 11.0
"""A matcher that has lived for so long is started again at once when it ends."""


async def _starts(running: RunningMarket, count: int) -> list[float]:
    client = await running.client("buyer0", Role.BUYER)
    delays = []
    for _ in range(count + 5):
        event, done = job("date", "+%s%N"), asyncio.Event()
        tell_when_ended(client, {event.job_id}, done)
        began_ns = time.time_ns()
        client.enqueue(event)
        async with asyncio.timeout(30):
            await done.wait()
        printed = b""
        while not printed:
            answer = await client.ask_files(FilesRequest(op="output", job_id=event.job_id))
            printed = b"".join(chunk.data for chunk in answer.chunks)
        delays.append((int(printed) - began_ns) / 1e6)
        await asyncio.sleep(0.02)
    await client.close()
    return delays[5:]


def start(count: int) -> list[float]:
    """Milliseconds from the submission to the job's own clock."""
    with market("8xRTX 4090") as running:
        return asyncio.run(_starts(running, count))


def _cpu_ticks(running: RunningMarket) -> dict[str, int]:
    """Clock ticks that each part of the market has used by now. Broker and guards of processes are known by the market's folder."""
    pids = {int(part["pid"]): name for name, part in json.loads((running.home / "market" / "running.json").read_text()).items()}
    spent: dict[str, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            command = Path(entry.path, "cmdline").read_bytes()
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        own, waited_for = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        name = pids.get(int(entry.name), "").partition("-")[0]
        if not name and str(running.home).encode() in command:
            name = "broker" if b"nats-server" in command else "guard" if b"supervisor" in command else ""
        if name:
            spent[name] = spent.get(name, 0) + own
        if name == "guard":
            spent["jobs"] = spent.get("jobs", 0) + waited_for
    return spent


async def _drain(running: RunningMarket, stamps: Stamps) -> dict[str, float]:
    operator, client = await running.client("market", Role.OPERATOR), await running.client("buyer0", Role.BUYER)
    assert (await operator.submit(MatchingPaused())).reason is None
    events = [job(*stamps.argv(number)) for number in range(stamps.count)]
    done = asyncio.Event()
    tell_when_ended(client, {event.job_id for event in events}, done)
    for ticket in client.enqueue(*events):
        assert (await ticket).reason is None
    before, began = _cpu_ticks(running), time.time()
    await operator.submit(MatchingResumed())
    async with asyncio.timeout(DRAIN_S):
        await done.wait()
    after = _cpu_ticks(running)
    await client.close()
    await operator.close()
    cpu_us = {name: (after.get(name, 0) - ticks) * TICK_S * 1e6 / stamps.count for name, ticks in before.items()}
    return {"s": stamps.wait() - began} | {f"cpu {name}": spent_us for name, spent_us in cpu_us.items()}


def drain(count: int, slots: int) -> dict[str, float]:
    """Seconds from the operator's word to go until the last job of a full queue has run, on nodes of eight slots each; and the CPU that
    each part of the market took for a job, in µs."""
    folder = Path(tempfile.mkdtemp(prefix="bench-bazaar-"))
    try:
        with market(*["8xRTX 4090"] * (slots // 8)) as running:
            return asyncio.run(_drain(running, Stamps(folder / "drain", count)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _restart_s(running: RunningMarket, client: MarketClient, number: signal.Signals) -> float:
    """Seconds from the signal to the matcher until another one, with the same ledger, answers."""
    before = (await client.sync()).as_of_seq
    began = time.perf_counter()
    os.kill(running.pid_of("matcher"), number)
    async with asyncio.timeout(RESTART_S):
        while True:
            try:
                answer = await client.sync(timeout_s=0.5)
            except BazaarError:
                await asyncio.sleep(0.005)
                continue
            if answer.as_of_seq > before:  # that it leads is the next event; every one before it is in its fold
                return time.perf_counter() - began
            await asyncio.sleep(0.005)


async def _queue(running: RunningMarket, count: int) -> dict[str, float]:
    client = await running.client("buyer0", Role.BUYER)
    for ticket in client.enqueue(*[job("true", simulated=False) for _ in range(100)]):
        await ticket
    events = [job("true", simulated=False) for _ in range(count)]
    before, began = running.resident_bytes("matcher"), time.perf_counter()
    for ticket in client.enqueue(*events):
        assert (await ticket).reason is None
    took_s = time.perf_counter() - began
    await asyncio.sleep(1)
    told = {"per_s": count / took_s, "bytes": (running.resident_bytes("matcher") - before) / count}
    for what, number in (("restart_s", signal.SIGKILL), ("restart_in_order_s", signal.SIGTERM)):
        await asyncio.sleep(STABLE_S)
        told[what] = await _restart_s(running, client, number)
    await client.close()
    return told


def queue(count: int) -> dict[str, float]:
    """Submissions a second from one client, the matcher's memory a queued job, and its restart: killed, and ended in order."""
    with market() as running:
        return asyncio.run(_queue(running, count))


def measure(what: str, *counts: int) -> Any:
    """A figure of this market."""
    return {"start": start, "drain": drain, "queue": queue}[what](*counts)
