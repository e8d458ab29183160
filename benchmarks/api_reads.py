"""How fast does the query API answer while its market moves? A real broker and ledger, the API as a process of its own, clients in others.

10,000 nodes that send heartbeats, 100,000 queued jobs, 500 events a second arriving. CPU is the server's, from /proc, less what it uses
without any reader. Run: `python benchmarks/api_reads.py [one] [page] [state] [offers] [streams] [--nodes N] [--jobs N] [--seconds S]`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from events import ids, wire
from events.codec import encode_batch, encode_event
from events.connection import Connection, ServiceKey
from events.envelope import seal
from events.fact import Event
from events.jobs import JobCancelRequested, JobSubmitted
from events.market import Policy
from events.nats_log import NatsLog
from events.nodes import NodeOffered
from events.page import encode_page
from events.session import make_session
from events.streams import ensure_streams
from events.subjects import intake
from events.values import Card, Program, Requirements, Role
from events.wallet import KeySigner
from projections.market import Market
from services import broker, genesis, market_keys
from services.matcher.admission import Arrival
from services.matcher.draft import Closed, Draft
from services.matcher.memory import Memory
from services.matcher.turn import turn

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
EVENTS_PER_S = 500
BEAT_S = 5
TURN_S = 0.02
CLIENT_S_MAX = 120.0
BATCH = 24
MODELS = (
    ("NVIDIA GeForce RTX 3090", 24_576, 200_000),
    ("NVIDIA GeForce RTX 4090", 24_564, 400_000),
    ("NVIDIA A100-SXM4-80GB", 81_920, 1_500_000),
    ("NVIDIA H100 80GB HBM3", 81_559, 2_400_000),
)


# --- the market ---


class Party:
    """A wallet with a session key."""

    def __init__(self, number: int, role: Role, market_id: str) -> None:
        signer = KeySigner(number.to_bytes(32, "big"))
        self.session = make_session(signer, market_id, role, now_ms=time.time_ns() // 1_000_000, validity_ms=86_400_000)
        self.market_id = bytes.fromhex(market_id)
        self.number = 1

    def say(self, *events: Event) -> Arrival:
        """The next message of this wallet."""
        wallet = self.session.wallet
        said = (self.session.authorisation(), *events) if self.number == 1 else events
        body = encode_batch([encode_event(event) for event in said])
        data = seal(self.session.signing_key, market_id=self.market_id, subject=intake(wallet), seq=self.number, ts_ms=0, body=body)
        self.number += len(said)
        return Arrival(wallet, data)


class Writer:
    """Writes the ledger as the matcher does: turns, signed pages, appended to the broker."""

    def __init__(self, services: Connection, keys: market_keys.MarketKeys) -> None:
        self.services, self.keys = services, keys
        self.ledger, self.market = NatsLog(services), Market()
        self.now_ms = time.time_ns() // 1_000_000 - 600_000
        self.memory = Memory(self.market, keys.page_key, self.now_ms)
        self.memory.patient_until_ms = self.now_ms + 10**9  # nodes answer to nobody here, and are not lost for it
        self.buyer: Party
        self.seller: Party
        self.queued: list[str] = []
        self.jobs = 0

    async def begin(self) -> None:
        """The first event."""
        root = KeySigner((999).to_bytes(32, "big"))
        made = genesis.create(
            root=root.address,
            sign=root.sign_text,
            name="bench",
            matcher_key=bytes(self.keys.page_key.verify_key),
            policy=Policy(max_queue=10_000_000),
            random=bytes(16),
            now_ms=self.now_ms,
        )
        self.memory.market_id = bytes.fromhex(made.market_id)
        self.buyer, self.seller = Party(1, Role.BUYER, made.market_id), Party(3, Role.SELLER, made.market_id)
        draft = Draft(self.market, self.memory, self.now_ms)
        assert draft.decide(made) is None
        draft.close()
        await self._append(draft.closed)

    async def say(self, party: Party, *events: Event, pace_ms: int = 0) -> None:
        """All of it in one turn."""
        self.now_ms = self.now_ms + pace_ms if pace_ms else max(self.now_ms + 1, time.time_ns() // 1_000_000)
        before = self.market.last_seq
        closed, _ = turn(self.market, [party.say(*events)], [], self.now_ms, self.memory)
        assert self.market.last_seq >= before + len(events), "something was refused"
        await self._append(closed)

    async def _append(self, closed: list[Closed]) -> None:
        position = self.market.pages - len(closed)
        for page in closed:
            position = await self.ledger.append(encode_page(page.page), position)

    async def fill(self, nodes: int, jobs: int) -> None:
        """Nodes that nobody can pay, and jobs that wait for cheaper ones."""
        for first in range(0, nodes, BATCH):
            await self.say(self.seller, *(self.a_node(number) for number in range(first, min(nodes, first + BATCH))), pace_ms=5)
        for first in range(0, jobs, BATCH):
            await self.say(self.buyer, *(self.a_job() for _ in range(min(BATCH, jobs - first))), pace_ms=5)

    def a_node(self, number: int) -> NodeOffered:
        model, vram_mib, price = MODELS[number % len(MODELS)]
        name = f"node-{number}"
        count = (1, 2, 4, 8)[number // 4 % 4]
        cards = tuple(
            Card(index=index, uuid=f"GPU-{number}-{index}", model=model, vram_mib=vram_mib, cuda=12_040) for index in range(count)
        )
        node_id = ids.node_id(self.seller.session.wallet, name)
        price += number
        return NodeOffered(node_id=node_id, name=name, cards=cards, cores=64, memory_mib=262_144, price_uusd_per_gpu_hour=price)

    def a_job(self) -> JobSubmitted:
        self.jobs += 1
        job = JobSubmitted(
            job_id=ids.job_id(os.urandom(12)),
            name=f"train-{self.jobs}",
            requirements=Requirements(num_gpus=(1, 1, 2, 4)[self.jobs % 4], vram_mib=22_889),
            program=Program(argv=("python", "train.py")),
            timeout_s=3600,
            max_price_uusd_per_gpu_hour=100_000,
            labels={"team": "vision"},
        )
        self.queued.append(job.job_id)
        return job

    async def go_on(self, per_s: int) -> None:
        """So many events a second, for ever: jobs come and others are cancelled (two events each)."""
        began, said = time.monotonic(), 0
        place = 0
        while True:
            due = int((time.monotonic() - began) * per_s / 2)
            fresh = max(0, min(BATCH // 2, due - said))
            if fresh:
                gone = [JobCancelRequested(job_id=name) for name in self.queued[place : place + fresh]]
                place, said = place + fresh, said + fresh
                await self.say(self.buyer, *(self.a_job() for _ in range(fresh)), *gone)
            await asyncio.sleep(TURN_S)

    async def beat(self) -> None:
        """Every node's heartbeat, as the matcher passes it on, spread over the seconds between two of them."""
        nodes = list(self.market.nodes.values())
        views = [
            wire.BeatView(
                beat=wire.Beat(
                    node_id=node.node_id,
                    boot="b",
                    cards=tuple(
                        wire.BeatCard(uuid=card.uuid, gpu_percent=50, memory_used_mib=1000, temperature_c=60, power_w=200)
                        for card in node.offer.cards
                    ),
                ),
                wallet=node.wallet,
                time_ms=self.now_ms,
            )
            for node in nodes
        ]
        began, said = time.monotonic(), 0
        while views:
            due = int((time.monotonic() - began) * len(views) / BEAT_S)
            for number in range(said, due):
                view = views[number % len(views)]
                await self.services.publish(f"beats.{view.beat.node_id}", wire.encode(view))
            said = max(said, due)
            await asyncio.sleep(TURN_S)


# --- the server ---


async def _serve(folder: Path, url: str, fd: int) -> None:
    """The API and nothing else, until the end."""
    from services.api import app

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    keys = market_keys.load_or_make(folder / "keys")
    listening = socket.socket(fileno=fd)
    await app.serve(url, keys, listening=listening, database=folder / "read.db", snapshot_file=folder / "snapshot.bin", until=stopped)


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


# --- clients, in a process of their own ---

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer."""

    def __init__(self, requests: list[bytes], latencies: list[float], until_s: float) -> None:
        self.requests, self.latencies, self.until_s = requests, latencies, until_s
        self.turn = 0
        self.missing = 0
        self.received = 0
        self.asked_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.ask()

    def ask(self) -> None:
        self.asked_s = time.perf_counter()
        self.transport.write(self.requests[self.turn % len(self.requests)])
        self.turn += 1

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.missing <= 0:
            end = data.find(b"\r\n\r\n")
            found = _LENGTH.search(data, 0, end + 2)
            assert data.startswith(b"HTTP/1.1 200") and found, data[:200]
            self.missing = int(found[1]) + end + 4
        self.missing -= len(data)
        if self.missing <= 0:
            now_s = time.perf_counter()
            self.latencies.append(now_s - self.asked_s)
            if now_s < self.until_s:
                self.ask()
            elif not self.done.done():
                self.transport.close()
                self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server closed the connection"))


async def _load(port: int, paths: list[str], connections: int, seconds: float, gzip: bool) -> dict[str, float]:
    """So many connections for so long; what was seen."""
    more = "Accept-Encoding: gzip\r\n" if gzip else ""
    requests = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n{more}\r\n".encode() for path in paths]
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    latencies: list[float] = []
    askers = []
    for number in range(connections):
        mine = requests[number % len(requests) :] + requests[: number % len(requests)]
        _, asker = await loop.create_connection(lambda: Asker(mine, latencies, began + seconds), "127.0.0.1", port)  # noqa: B023
        askers.append(asker)
    await asyncio.gather(*(asker.done for asker in askers))
    took_s = time.perf_counter() - began
    latencies.sort()
    return {
        "requests": len(latencies),
        "per_s": len(latencies) / took_s,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
        "bytes": sum(asker.received for asker in askers) / len(latencies),
    }


class Watcher(asyncio.Protocol):
    """A dashboard's stream: when each new event came, and how many frames."""

    def __init__(self, head: bytes, seen: dict[int, list[float]]) -> None:
        self.head, self.seen = head, seen
        self.chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.head)

    def data_received(self, data: bytes) -> None:
        place = data.rfind(b"\nid: ")
        if place >= 0:
            self.chunks += 1
            digits = data[place + 5 : place + 30].partition(b"\n")[0]
            self.seen.setdefault(int(digits), []).append(time.perf_counter())


async def _watch(port: int, streams: int, seconds: float, query: str) -> dict[str, float]:
    """Streams beside each other; how long after the first of them the last one had each frame."""
    head = f"GET /v1/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
    seen: dict[int, list[float]] = {}
    loop = asyncio.get_running_loop()
    watchers = [(await loop.create_connection(lambda: Watcher(head, seen), "127.0.0.1", port))[1] for _ in range(streams)]
    await asyncio.sleep(2)
    seen.clear()
    before = sum(watcher.chunks for watcher in watchers)
    await asyncio.sleep(seconds)
    chunks = sum(watcher.chunks for watcher in watchers) - before
    whole = [times for times in seen.values() if len(times) == streams]
    spreads = sorted((times[-1] - times[0]) * 1000 for times in whole) or [float("nan")]
    for watcher in watchers:
        watcher.transport.close()
    return {
        "deliveries": chunks,
        "frames_per_s": chunks / streams / seconds,
        "frames_to_all": len(whole),
        "frames": len(seen),
        "last_p50_ms": spreads[len(spreads) // 2],
        "last_p99_ms": spreads[len(spreads) * 99 // 100],
    }


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

CASES = ("one", "page", "gzip", "state", "offers", "streams")


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
        "offers": "/v1/offers?gpus=2&vram=24GB",
    }
    for case in cases:
        if case == "streams":
            continue
        connections = 32 if case == "one" else 16
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


@contextlib.asynccontextmanager
async def _market(folder: Path) -> AsyncIterator[tuple[Writer, str]]:
    keys = market_keys.load_or_make(folder / "keys")
    running = await broker.start_async(broker.Place(folder), keys)
    services = await Connection(running.url, ServiceKey(keys.market), "bench").open(wait_s=10.0)
    try:
        await ensure_streams(services)
        writer = Writer(services, keys)
        await writer.begin()
        yield writer, running.url
    finally:
        await services.close()
        await running.stop_async()


async def _bench(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bazaar-bench-"))
    try:
        async with _market(folder) as (writer, url):
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
            asyncio.run(_serve(Path(folder), url, int(fd)))
        case ["--load", port, paths, connections, seconds, gzip]:
            told = asyncio.run(_load(int(port), paths.split(","), int(connections), float(seconds), bool(gzip)))
            print(json.dumps(told))
        case ["--watch", port, streams, seconds, query]:
            print(json.dumps(asyncio.run(_watch(int(port), int(streams), float(seconds), query))))
        case _:
            parser = argparse.ArgumentParser(description=__doc__)
            parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="what to measure; everything when not said")
            parser.add_argument("--nodes", type=int, default=10_000)
            parser.add_argument("--jobs", type=int, default=100_000)
            parser.add_argument("--seconds", type=float, default=5.0)
            asyncio.run(_bench(parser.parse_args()))


if __name__ == "__main__":
    main()
