"""How fast does the query API answer while its market moves? A real broker and ledger, the API as a process of its own, clients in others.

10,000 nodes that send heartbeats, 100,000 queued jobs, 500 events a second arriving. CPU is the server's, from /proc, less what it uses
without any reader. Run: `python benchmarks/api_reads.py [one] [page] [state] [market] [streams] ... [--nodes N] [--jobs N] [--seconds S]`
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
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop
from busy_market import Writer, busy_market
from http_readers import load, watch

from services import market_keys
from services.processes import calm_collector

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
EVENTS_PER_S = 500
CLIENT_S_MAX = 120.0


# --- the server ---


async def _serve(folder: Path, url: str, fd: int) -> None:
    """The API and nothing else, until the end."""
    from services.api import app

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    keys = market_keys.load_or_make(folder / "keys")
    listening = socket.socket(fileno=fd)
    await app.serve(url, keys, listening=listening, database=folder / "read.db", snapshot_file=folder / "snapshot.bin", until=stopped)


def _as_a_service(work: Coroutine[Any, Any, None]) -> None:
    """As `bazaar-market` runs it."""
    calm_collector()
    if os.environ.get("LOOP") == "asyncio":
        asyncio.run(work)
    else:
        uvloop.run(work)


class Server:
    """The API's process."""

    def __init__(self, folder: Path, url: str) -> None:
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

CASES = ("one", "page", "gzip", "state", "market", "stats", "prices", "metrics", "offers", "streams")


async def _measured(server: Server, idle_share: float, *arguments: str) -> tuple[dict[str, float], float]:
    before, began = server.cpu_s(), time.monotonic()
    told = await _child(*arguments)
    used = server.cpu_s() - before - idle_share * (time.monotonic() - began)
    return told, used


async def _report(writer: Writer, server: Server, cases: list[str], seconds: float) -> None:
    before = server.cpu_s()
    await asyncio.sleep(4)
    idle = (server.cpu_s() - before) / 4
    print(f"without readers the API uses {idle * 100:.0f} % of a core; {server.resident_mib()} MiB resident\n")
    print("| read | requests/s | p50 ms | p99 ms | server CPU µs | bytes | load |\n|---|---|---|---|---|---|---|")
    one = ",".join(f"/v1/jobs/{name}" for name in writer.queued[len(writer.queued) * 3 // 4 :][:100])
    paths = {
        "one": one,
        "page": "/v1/jobs?limit=1000",
        "gzip": "/v1/jobs?limit=1000",
        "state": "/v1/state",
        "market": "/v1/market",
        "stats": "/v1/stats",
        "prices": "/v1/prices",
        "metrics": "/metrics",
        "offers": "/v1/offers?gpus=2&vram=24GB",
    }
    for case in cases:
        if case == "streams":
            continue
        connections = {"one": 32, "metrics": 1}.get(case, 16)
        arguments = ["--load", str(server.port), paths[case], str(connections), str(seconds), "gzip" if case in ("gzip", "state") else ""]
        told, used = await _measured(server, idle, *arguments)
        cpu_us = used / told["requests"] * 1e6
        cells = f"{told['per_s']:,.0f} | {told['p50_ms']:.1f} | {told['p99_ms']:.1f} | {cpu_us:,.0f} | {told['bytes']:,.0f}"
        print(f"| {case} | {cells} | {os.getloadavg()[0]:.1f} |", flush=True)
    if "streams" in cases:
        told, used = await _measured(server, idle, "--watch", str(server.port), "500", str(seconds), "")
        seen = {name: round(value, 1) for name, value in told.items()}
        cpu_us = used / max(1, told["deliveries"]) * 1e6
        print(f"\n500 streams: {seen}, {cpu_us:.0f} µs of server CPU a delivery, {server.resident_mib()} MiB")


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
            _as_a_service(_serve(Path(folder), url, int(fd)))
        case ["--load", port, paths, connections, seconds, gzip]:
            told = asyncio.run(load(int(port), paths.split(","), int(connections), float(seconds), bool(gzip)))
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
