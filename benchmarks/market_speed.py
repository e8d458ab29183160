"""How fast is a whole market on this machine? Real processes, real broker, `sync_interval: always`: what is counted is durable.

Each figure comes from a market of its own in an empty folder: broker, callout, matcher, gateway and API on this machine's cores, together
with the clients and the sellers that load them. Run: `python benchmarks/market_speed.py [submit] [start] [drain] [memory]`
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from events import ids
from events.feed import Received
from events.home import resolve
from events.jobs import JobFailed, JobSubmitted, JobSucceeded
from events.login import open_client
from events.market import MatchingPaused, MatchingResumed
from events.market_client import MarketClient
from events.values import Program, Requirements, Role
from events.wallet import Keystore, Passphrases
from events.wire import FilesRequest

SUBMISSIONS = 10_000
STARTS = 200
DRAINED = 1_000
QUEUED = 20_000
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class RunningMarket:
    """A market that `bazaar-market up` keeps running."""

    home: Path
    url: str

    def pid_of(self, part: str) -> int:
        """The process of one of its parts."""
        parts = json.loads((self.home / "market" / "running.json").read_text())
        return int(parts[part]["pid"])

    def cpu_s(self, part: str) -> float:
        """CPU time that a part has used."""
        fields = Path(f"/proc/{self.pid_of(part)}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def resident_bytes(self, part: str) -> int:
        """Memory that a part holds."""
        status = Path(f"/proc/{self.pid_of(part)}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024

    async def client(self, wallet: str, role: Role) -> MarketClient:
        """A connection as one of its wallets."""
        environment = {**os.environ, "BAZAAR_HOME": str(self.home), "BAZAAR_WALLET": wallet}
        return await open_client(resolve({}, environment), role, Passphrases(), name="bench", wait_s=10.0)


@contextmanager
def market(*sellers: str) -> Iterator[RunningMarket]:
    """A market with these sellers' simulated cards, ended and deleted afterwards."""
    home = Path(tempfile.mkdtemp(prefix="bazaar-bench-"))
    environment = {**os.environ, "BAZAAR_HOME": str(home), "BAZAAR_MAX_QUEUE": "1000000"}
    for number in range(4):
        Keystore(home).create(f"buyer{number}", Passphrases())
    command = [sys.executable, "-m", "services", "up", "--port", "0", "--json", "--runner", "process"]
    for seller in sellers:
        command += ["--simulate-gpus", seller]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the market did not come up: see {home / 'log'}")
        yield RunningMarket(home, json.loads(line)["market"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(home, ignore_errors=True)


def job(*argv: str, simulated: bool = True) -> JobSubmitted:
    """A job of one card that does next to nothing."""
    return JobSubmitted(
        job_id=ids.job_id(os.urandom(12)),
        name="bench",
        requirements=Requirements(num_gpus=1, allow_simulated=simulated),
        program=Program(argv=argv),
        timeout_s=600,
        max_price_uusd_per_gpu_hour=400_000,
    )


def say(what: str, value: str, target: str) -> None:
    """One row of the table."""
    load = os.getloadavg()[0]
    print(f"| {what} | {value} | {target} | {load:.1f} |", flush=True)


async def _submit(running: RunningMarket, wallet: str, count: int, at_s: float) -> tuple[float, float]:
    client = await running.client(wallet, Role.BUYER)
    events = [job("true", simulated=False) for _ in range(count)]
    await asyncio.sleep(max(0.0, at_s - time.time()))
    began = time.time()
    outcomes = [await ticket for ticket in client.enqueue(*events)]
    ended = time.time()
    assert all(outcome.reason is None for outcome in outcomes)
    await client.close()
    return began, ended


def submissions() -> None:
    """Durable submissions with their signatures checked, from clients in processes of their own."""
    for clients, target in ((1, ">= 5,000/s"), (4, ">= 8,000/s")):
        with market() as running:
            at_s = time.time() + 3.0
            share = SUBMISSIONS // clients
            children = [
                subprocess.Popen(
                    [sys.executable, __file__, "--submit", str(running.home), running.url, f"buyer{number}", str(share), str(at_s)],
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for number in range(clients)
            ]
            spans = [tuple(map(float, (child.communicate()[0] or "0 0").split())) for child in children]
            took_s = max(span[1] for span in spans) - min(span[0] for span in spans)
            say(f"durable submissions, {clients} client{'s' if clients > 1 else ''}", f"{share * clients / took_s:,.0f}/s", target)


def tell_when_ended(client: MarketClient, wanted: set[str], done: asyncio.Event) -> None:
    """Set `done` when all of these jobs have ended."""

    def hear(received: Received) -> None:
        event = received.event
        if isinstance(event, JobSucceeded | JobFailed):
            assert isinstance(event, JobSucceeded), event
            wanted.discard(event.job_id)
            if not wanted:
                done.set()

    client.on_event(hear)


async def _starts(running: RunningMarket) -> None:
    client = await running.client("buyer0", Role.BUYER)
    delays_ms: list[float] = []
    for _ in range(STARTS + 10):
        event = job("date", "+%s%N")
        done = asyncio.Event()
        tell_when_ended(client, {event.job_id}, done)
        began_ns = time.time_ns()
        client.enqueue(event)
        await asyncio.wait_for(done.wait(), 30)
        for _ in range(200):
            answer = await client.ask_files(FilesRequest(op="output", job_id=event.job_id))
            printed = b"".join(chunk.data for chunk in answer.chunks)
            if printed:
                break
            await asyncio.sleep(0.01)
        delays_ms.append((int(printed) - began_ns) / 1e6)
        await asyncio.sleep(0.02)
    await client.close()
    steady = sorted(delays_ms[10:])
    say("idle submit -> process prints its clock, p50", f"{statistics.median(steady):.1f} ms", "<= 5 ms")
    say("the same, p99", f"{steady[int(len(steady) * 0.99)]:.1f} ms", "<= 10 ms")


def starts() -> None:
    """From the publish on an open connection until the job's own program reads the clock."""
    with market("2xRTX 4090") as running:
        asyncio.run(_starts(running))


async def _drain(running: RunningMarket, slots: int, target: str) -> None:
    operator = await running.client("market", Role.OPERATOR)
    client = await running.client("buyer0", Role.BUYER)
    outcome = await operator.submit(MatchingPaused())
    assert outcome.reason is None, outcome
    events = [job("true") for _ in range(DRAINED)]
    done = asyncio.Event()
    tell_when_ended(client, {event.job_id for event in events}, done)
    for ticket in client.enqueue(*events):
        assert (await ticket).reason is None
    before_s = running.cpu_s("matcher")
    began = time.perf_counter()
    await operator.submit(MatchingResumed())
    await asyncio.wait_for(done.wait(), 300)
    took_s = time.perf_counter() - began
    used_s = running.cpu_s("matcher") - before_s
    say(f"drain of {DRAINED:,} no-op jobs on {slots} slots", f"{DRAINED / took_s:,.0f}/s", target)
    say(f"matcher CPU per job from queue to release, {slots} slots", f"{used_s / DRAINED * 1e6:,.0f} us", "<= 200 us with its submission")
    await client.close()
    await operator.close()


def drains() -> None:
    """A full queue, then the word to go."""
    for slots, sellers, target in ((8, 1, ">= 500/s"), (64, 8, ">= 900/s")):
        with market(*["8xRTX 4090"] * sellers) as running:
            asyncio.run(_drain(running, slots, target))


async def _memory(running: RunningMarket) -> None:
    client = await running.client("buyer0", Role.BUYER)
    for ticket in client.enqueue(*[job("true", simulated=False) for _ in range(100)]):
        await ticket
    before, before_s = running.resident_bytes("matcher"), running.cpu_s("matcher")
    for ticket in client.enqueue(*[job("python", "train.py", "--seed", str(number), simulated=False) for number in range(QUEUED)]):
        assert (await ticket).reason is None
    await asyncio.sleep(1)
    say(
        f"matcher memory per queued job ({QUEUED:,} queued)",
        f"{(running.resident_bytes('matcher') - before) / QUEUED:,.0f} bytes",
        "<= 2,048",
    )
    say("matcher CPU per submission", f"{(running.cpu_s('matcher') - before_s) / QUEUED * 1e6:,.0f} us", "part of 200 us a job")
    await client.close()


def memory() -> None:
    """What waiting jobs cost the matcher."""
    with market() as running:
        asyncio.run(_memory(running))


PARTS = {"submit": submissions, "start": starts, "drain": drains, "memory": memory}


def main() -> None:
    """Print the table, or the parts that were named."""
    if sys.argv[1:2] == ["--submit"]:
        home, url, wallet, count, at_s = sys.argv[2:]
        began, ended = asyncio.run(_submit(RunningMarket(Path(home), url), wallet, int(count), float(at_s)))
        print(began, ended)
        return
    print("sync_interval: always; process runner; everything on this machine\n")
    print("| what | measured | target | load |\n|---|---|---|---|", flush=True)
    for name in sys.argv[1:] or list(PARTS):
        PARTS[name]()


if __name__ == "__main__":
    main()
