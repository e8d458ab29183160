"""How fast does the query API answer while its market moves? A real broker and ledger, the API as a process of its own, clients in others.

10,000 nodes that send heartbeats, 100,000 queued jobs, 500 events a second arriving. CPU is the server's, from /proc, less what it uses
without any reader; "steps" are those of its loop, in CPU time, which says how long a reader waits for others on any machine.
Run: `python benchmarks/api_reads.py [one] [page] [state] [market] [streams] [dashboards] ... [--nodes N] [--jobs N] [--seconds S]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from busy_market import Writer, busy_market
from http_readers import load, watch
from stretches import Stretches

from services import market_keys
from services.processes import calm_collector, keep_pauses_short

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
EVENTS_PER_S = 500
STRETCHES = "stretches.json"
CLIENT_S_MAX = 120.0


# --- the server ---


async def _serve(folder: Path, url: str, fd: int) -> None:
    """The API and nothing else, until the end."""
    from services.api import app

    Stretches(folder / STRETCHES).install()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    keys = market_keys.load_or_make(folder / "keys")
    listening = socket.socket(fileno=fd)
    files = {"database": folder / "read.db", "snapshot_file": folder / "snapshot.bin"}
    await app.serve(url, keys, listening=listening, until=stopped, folded=keep_pauses_short, **files)


class Server:
    """The API's process."""

    def __init__(self, folder: Path, url: str) -> None:
        self._stretches = folder / STRETCHES
        listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = listening.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder), url, str(listening.fileno())], pass_fds=(listening.fileno(),)
        )
        listening.close()

    def cpu_s(self) -> float:
        """CPU time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def resident_mib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024

    async def stretches(self) -> Any:
        """The longest steps of its loop since this was asked last."""
        self._stretches.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        while not self._stretches.exists():
            await asyncio.sleep(0.05)
        return json.loads(self._stretches.read_text())

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    async def ready(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.get, "/readyz")
            except (urllib.error.HTTPError, OSError):
                assert self.process.poll() is None, "the API ended"
                await asyncio.sleep(0.2)
            else:
                return

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


async def _child(*arguments: str) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(CLIENT_S_MAX):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, f"the client failed: {arguments[:2]}"
    found: dict[str, float] = json.loads(out)
    return found


# --- the table ---

CASES = ("one", "page", "gzip", "state", "market", "stats", "prices", "metrics", "offers", "streams", "dashboards")
PATHS = {
    "page": "/v1/jobs?limit=1000",
    "gzip": "/v1/jobs?limit=1000",
    "state": "/v1/state",
    "market": "/v1/market",
    "stats": "/v1/stats",
    "prices": "/v1/prices",
    "metrics": "/metrics",
    "offers": "/v1/offers?gpus=2&vram=24GB",
}
CONNECTIONS = {"one": 32, "metrics": 1}
STREAMS = 500
LOOK_EVERY_S, SCRAPE_EVERY_S = 0.4, 5.0
"""How often a dashboard in a busy market looks at the whole, and Prometheus at everything."""


async def _measured(server: Server, idle_share: float, *arguments: str) -> tuple[dict[str, float], float]:
    before, began = server.cpu_s(), time.monotonic()
    told = await _child(*arguments)
    used = server.cpu_s() - before - idle_share * (time.monotonic() - began)
    return told, used


async def _report(writer: Writer, server: Server, cases: list[str], seconds: float) -> None:
    before = server.cpu_s()
    await asyncio.sleep(4)
    idle = (server.cpu_s() - before) / 4
    print(f"without readers the API uses {idle * 100:.0f} % of a core; {server.resident_mib()} MiB; steps {await server.stretches()}\n")
    print("| read | requests/s | p50 ms | p99 ms | server CPU µs | bytes | load | the loop's steps |\n" + "|---" * 8 + "|")
    one = ",".join(f"/v1/jobs/{name}" for name in writer.queued[len(writer.queued) * 3 // 4 :][:100])
    for case in cases:
        if case in ("streams", "dashboards"):
            continue
        told, used = await _measured(server, idle, *_load(server, case, PATHS.get(case, one), seconds))
        cpu_us = used / told["requests"] * 1e6
        cells = f"{told['per_s']:,.0f} | {told['p50_ms']:.1f} | {told['p99_ms']:.1f} | {cpu_us:,.0f} | {told['bytes']:,.0f}"
        print(f"| {case} | {cells} | {os.getloadavg()[0]:.1f} | {await server.stretches()} |", flush=True)
    if "streams" in cases:
        told, used = await _measured(server, idle, "--watch", str(server.port), str(STREAMS), str(seconds), "")
        cpu_us = used / max(1, told["deliveries"]) * 1e6
        print(f"\n{STREAMS} streams: {_rounded(told)}, {cpu_us:.0f} µs of server CPU a delivery, {server.resident_mib()} MiB")
        print(f"  steps {await server.stretches()}")
    if "dashboards" in cases:
        await _dashboards(server, seconds)


def _load(server: Server, case: str, paths: str, seconds: float) -> list[str]:
    gzip = "gzip" if case in ("gzip", "state") else ""
    return ["--load", str(server.port), paths, str(CONNECTIONS.get(case, 16)), str(seconds), gzip, "0"]


def _rounded(told: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in told.items()}


async def _dashboards(server: Server, seconds: float) -> None:
    """What as many open pages do: each follows the stream with its readings, and looks at the whole while the market moves."""
    port, before, began = str(server.port), server.cpu_s(), time.monotonic()
    watched, looked, scraped = await asyncio.gather(
        _child("--watch", port, str(STREAMS), str(seconds), "?telemetry=true"),
        _child("--load", port, PATHS["state"], str(STREAMS), str(seconds), "gzip", str(LOOK_EVERY_S)),
        _child("--load", port, PATHS["metrics"], "1", str(seconds), "", str(SCRAPE_EVERY_S)),
    )
    share, steps = (server.cpu_s() - before) / (time.monotonic() - began), await server.stretches()
    print(f"\n{STREAMS} dashboards, {share:.0%} of a core, load {os.getloadavg()[0]:.1f}, steps {steps}")
    for name, told in (("streams", watched), ("looks", looked), ("metrics", scraped)):
        print(f"  {name}: {_rounded(told)}")


async def _bench(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bazaar-bench-"))
    try:
        async with busy_market(folder) as (writer, url):
            began = time.monotonic()
            await writer.fill(options.nodes, options.jobs)
            print(f"{options.nodes:,} nodes and {options.jobs:,} queued jobs, made in {time.monotonic() - began:.0f} s")
            server = Server(folder, url)
            began = time.monotonic()
            await server.ready()
            print(f"ready after {time.monotonic() - began:.1f} s")
            work = [asyncio.create_task(writer.go_on(EVENTS_PER_S)), asyncio.create_task(writer.beat())]
            try:
                await _report(writer, server, options.cases or list(CASES), options.seconds)
            finally:
                for task in work:
                    task.cancel()
                ends = await asyncio.gather(*work, return_exceptions=True)
                server.stop()
            for end in ends:
                if isinstance(end, Exception):
                    raise end
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Print the table."""
    match sys.argv[1:]:
        case ["--serve", folder, url, fd]:
            calm_collector()  # as the service does
            asyncio.run(_serve(Path(folder), url, int(fd)))
        case ["--load", port, paths, connections, seconds, gzip, pause_s]:
            asking = load(int(port), paths.split(","), int(connections), float(seconds), gzip=bool(gzip), pause_s=float(pause_s))
            told = asyncio.run(asking)
            print(json.dumps(told))
        case ["--watch", port, streams, seconds, query]:
            print(json.dumps(asyncio.run(watch(int(port), int(streams), float(seconds), query))))
        case _:
            parser = argparse.ArgumentParser(description=__doc__)
            parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="what to measure; everything when not said")
            parser.add_argument("--nodes", type=int, default=10_000)
            parser.add_argument("--jobs", type=int, default=100_000)
            parser.add_argument("--seconds", type=float, default=5.0)
            asyncio.run(_bench(parser.parse_args()))


if __name__ == "__main__":
    main()
