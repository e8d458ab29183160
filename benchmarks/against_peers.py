"""The same no-op jobs on this market, on HyperQueue, on Dask and on Slurm, by turns in one run; the table goes to docs/benchmarks.md.

The market is whole and durable (`sync_interval: always`, every event signed); HyperQueue and Dask keep nothing on disk. Each figure is the
median of the rounds, each round alternates between the systems, and the load of the machine stands beside it. Peers that are not installed
are left out and named: `pip install hyperqueue distributed` into an environment whose interpreter --python names, and the distribution's
slurmctld, slurmd, slurm-client and munge. Run: `python benchmarks/against_peers.py [--python PYTHON] [--rounds 3] [--write]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from market_speed import RunningMarket, job, market, tell_when_ended

from events.market import MatchingPaused, MatchingResumed
from events.values import Role
from events.wire import FilesRequest

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"
STARTS, DRAINED, SUBMITTED = 60, 1_000, 10_000
SLURM_STARTS, SLURM_DRAINED, SLURM_SUBMITTED = 10, 100, 300
PEER_S = 900


class System(NamedTuple):
    """One of those compared: its name, and how to get a figure of it."""

    name: str
    measure: Callable[..., Any]
    counts: tuple[int, int, int]


# -- this market --


async def _start(running: RunningMarket, count: int) -> list[float]:
    client = await running.client("buyer0", Role.BUYER)
    delays = []
    for _ in range(count + 5):
        event, done = job("date", "+%s%N"), asyncio.Event()
        tell_when_ended(client, {event.job_id}, done)
        began_ns = time.time_ns()
        client.enqueue(event)
        await asyncio.wait_for(done.wait(), 30)
        printed = b""
        while not printed:
            answer = await client.ask_files(FilesRequest(op="output", job_id=event.job_id))
            printed = b"".join(chunk.data for chunk in answer.chunks)
        delays.append((int(printed) - began_ns) / 1e6)
        await asyncio.sleep(0.02)
    await client.close()
    return delays[5:]


async def _drain(running: RunningMarket, count: int) -> float:
    operator, client = await running.client("market", Role.OPERATOR), await running.client("buyer0", Role.BUYER)
    assert (await operator.submit(MatchingPaused())).reason is None
    events = [job("true") for _ in range(count)]
    done = asyncio.Event()
    tell_when_ended(client, {event.job_id for event in events}, done)
    for ticket in client.enqueue(*events):
        assert (await ticket).reason is None
    began = time.perf_counter()
    await operator.submit(MatchingResumed())
    await asyncio.wait_for(done.wait(), 300)
    took_s = time.perf_counter() - began
    await client.close()
    await operator.close()
    return took_s


async def _submit(running: RunningMarket, count: int) -> dict[str, float]:
    client = await running.client("buyer0", Role.BUYER)
    for ticket in client.enqueue(*[job("true", simulated=False) for _ in range(100)]):
        await ticket
    before, events = running.resident_bytes("matcher"), [job("true", simulated=False) for _ in range(count)]
    began = time.perf_counter()
    for ticket in client.enqueue(*events):
        assert (await ticket).reason is None
    took_s = time.perf_counter() - began
    await asyncio.sleep(1)
    grown = running.resident_bytes("matcher") - before
    await client.close()
    return {"per_s": count / took_s, "bytes": grown / count, "restart_s": await asyncio.to_thread(restart_s, running)}


def restart_s(running: RunningMarket) -> float:
    """Seconds from the killing of the matcher until another one, with the same queue, answers."""
    before = running.pid_of("matcher")
    began = time.perf_counter()
    os.kill(before, 9)
    while _pid(running) in (None, before) or not _answers(running):
        time.sleep(0.01)
    return time.perf_counter() - began


def _pid(running: RunningMarket) -> int | None:
    try:
        return running.pid_of("matcher")
    except KeyError:  # between two of them
        return None


def _answers(running: RunningMarket) -> bool:
    async def ask() -> bool:
        client = await running.client("buyer0", Role.BUYER)
        try:
            await client.sync()
            return True
        finally:
            await client.close()

    try:
        return asyncio.run(asyncio.wait_for(ask(), 2))
    except Exception:
        return False


def ours(what: str, *counts: int) -> Any:
    """A figure of this market."""
    if what == "drain":
        count, slots = counts
        with market(*["8xRTX 4090"] * (slots // 8)) as running:
            return asyncio.run(_drain(running, count))
    with market(*(["2xRTX 4090"] if what == "start" else [])) as running:
        return asyncio.run({"start": _start, "submit": _submit}[what](running, *counts))


def peer(script: str, python: str) -> Callable[..., Any]:
    """How a peer's script is asked for a figure."""

    def measure(what: str, *counts: int) -> Any:
        command = [python, str(HERE / "peers" / script), what, *map(str, counts)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_S)
        if done.returncode:
            raise SystemExit(f"{script} {what}: {done.stderr[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    return measure


# -- the table --


def systems(python: str) -> tuple[list[System], list[str]]:
    """What can be compared here, and what is missing."""
    found, missing = [System("GPU Bazaar", ours, (STARTS, DRAINED, SUBMITTED))], []
    for name, module, script in (("HyperQueue", "hyperqueue", "hyperqueue_peer.py"), ("Dask", "distributed", "dask_peer.py")):
        if subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0:
            found.append(System(name, peer(script, python), (STARTS, DRAINED, SUBMITTED)))
        else:
            missing.append(name)
    if os.geteuid() == 0 and all(shutil.which(program) for program in ("slurmctld", "slurmd", "munged", "sbatch")):
        found.append(System("Slurm (sbatch)", peer("slurm_peer.py", sys.executable), (SLURM_STARTS, SLURM_DRAINED, SLURM_SUBMITTED)))
    else:
        missing.append("Slurm")
    return found, missing


def rounds(found: list[System], number: int) -> dict[str, dict[str, list[float]]]:
    """Every figure of every system, by turns, so many times."""
    figures: dict[str, dict[str, list[float]]] = {one.name: {} for one in found}

    def keep(name: str, what: str, value: float) -> None:
        figures[name].setdefault(what, []).append(value)
        print(f"{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:4.1f}  {name:15} {what:12} {value:,.3f}", file=sys.stderr, flush=True)

    for _ in range(number):
        for one in found:
            delays = sorted(one.measure("start", one.counts[0]))
            keep(one.name, "start p50", statistics.median(delays))
            keep(one.name, "start p99", delays[min(len(delays) - 1, int(len(delays) * 0.99))])
        for slots in (8, 64):
            for one in found:
                keep(one.name, f"drain {slots}", one.counts[1] / one.measure("drain", one.counts[1], slots))
        for one in found:
            told = one.measure("submit", one.counts[2])
            for what, value in told.items():
                keep(one.name, what, value)
    return figures


ROWS = (
    ("start, p50", "start p50", "{:,.1f} ms"),
    ("start, p99", "start p99", "{:,.1f} ms"),
    ("drain, 8 slots", "drain 8", "{:,.0f}/s"),
    ("drain, 64 slots", "drain 64", "{:,.0f}/s"),
    ("submissions, one client", "per_s", "{:,.0f}/s"),
    ("memory a queued job", "bytes", "{:,.0f} bytes"),
    ("restart with the queue", "restart_s", "{:,.2f} s"),
)


def table(figures: dict[str, dict[str, list[float]]]) -> str:
    """Medians, a row a figure."""
    names = list(figures)
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for title, key, how in ROWS:
        cells = [how.format(statistics.median(figures[name][key])) if key in figures[name] else "none" for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(figures: dict[str, dict[str, list[float]]]) -> str:
    """This market against each of the others, and what was aimed at."""

    def median(name: str, key: str) -> float | None:
        return statistics.median(figures[name][key]) if key in figures.get(name, {}) else None

    aims = (
        ("start p50 against HyperQueue's", "start p50", "HyperQueue", "at most 0.5"),
        ("start p50 against sbatch's", "start p50", "Slurm (sbatch)", "at most 0.01"),
        ("drain on 8 slots against HyperQueue's", "drain 8", "HyperQueue", "at least 1.0"),
        ("drain on 64 slots against HyperQueue's", "drain 64", "HyperQueue", "at least 1.5"),
        ("drain on 8 slots against Slurm's", "drain 8", "Slurm (sbatch)", "at least 10"),
        ("drain on 8 slots against Dask's", "drain 8", "Dask", "-"),
    )
    lines = ["| ratio | measured | aim |", "|---|---|---|"]
    for title, key, name, aim in aims:
        mine, theirs = median("GPU Bazaar", key), median(name, key)
        if mine is not None and theirs:
            lines.append(f"| {title} | {mine / theirs:.3g} | {aim} |")
    return "\n".join(lines)


def versions(python: str) -> str:
    """What was compared on what."""
    asked = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in ('hyperqueue', 'distributed')))"
    peers = subprocess.run([python, "-c", asked], capture_output=True, text=True).stdout.strip()
    slurm = subprocess.run(["sbatch", "--version"], capture_output=True, text=True).stdout.strip() if shutil.which("sbatch") else ""
    broker = (
        subprocess.run(["nats-server", "--version"], capture_output=True, text=True).stdout.strip() if shutil.which("nats-server") else ""
    )
    parts = (f"gpubazaar {metadata.version('gpubazaar')}", broker, peers, slurm, f"Python {platform.python_version()}")
    return f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}; " + ", ".join(part for part in parts if part)


def main() -> None:
    """Measure, print, and write the page when told to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has hyperqueue and distributed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT.name}")
    options = parser.parse_args()
    found, missing = systems(options.python)
    before = os.getloadavg()
    figures = rounds(found, options.rounds)
    page = "\n\n".join(
        [
            "# Against others, in one run",
            f"Written by `python benchmarks/against_peers.py --write`. {versions(options.python)}; load {before[0]:.1f} at the beginning, "
            f"{os.getloadavg()[0]:.1f} at the end; medians of {options.rounds} alternating rounds.",
            "The same job that does nothing. "
            f"Starts: {STARTS} one by one ({SLURM_STARTS} with Slurm), until the job's own process reads the clock. "
            f"Drains: {DRAINED} jobs ({SLURM_DRAINED} with Slurm) of a full queue, Dask's with their submission. "
            f"Submissions: {SUBMITTED} ({SLURM_SUBMITTED} with Slurm) from one client. The market's are signed, checked and on disk "
            "(`sync_interval: always`); HyperQueue's and Dask's are stored nowhere, so neither can be restarted.",
            table(figures),
            ratios(figures),
            *([f"Not here: {', '.join(missing)}."] if missing else []),
        ]
    )
    print(page)
    if options.write:
        DOCUMENT.write_text(page + "\n")


if __name__ == "__main__":
    main()
