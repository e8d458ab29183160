"""How fast the tunnel is, against two plain asyncio relays in the same run: bulk bytes both ways, and the time of a small request.

    python benchmarks/tunnel_speed.py [--mib 256] [--rounds 5] [--requests 400] [--loop asyncio|uvloop]

Both paths have the same number of Python programs in the middle: server - relay - relay - client, and server - node - broker - buyer -
client. The tunnel is the real one: a real broker with the callout in front, delegations, encryption, credit. Rounds alternate between the
paths; the ratio of the medians counts, absolute numbers are this machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import structlog
import uvloop

from buyer_cli.tunnels import Reach, forward
from events.connection import Connection, ServiceKey
from events.session import make_session
from events.values import Role
from events.wallet import KeySigner
from seller_agent.attempts.attempt import Attempt, Run, Standing
from seller_agent.runners.reach import dial_port
from seller_agent.sessions.tunnels import Tunnels
from services import broker, market_keys
from services.callout import Callout, verifier

MARKET_ID = "ab" * 32
JOB_ID = "j" + "a" * 19
TOKEN = "ef" * 8
HOUR_MS = 3_600_000
PIECE = 256 * 1024
RATIO_MIN = 0.8
ADDED_MS_MAX = 0.5


def run(work: Callable[[], Awaitable[None]], loop: str) -> None:
    """One program of the path, on its event loop."""
    with suppress(KeyboardInterrupt):
        asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None).run(_forever(work))


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    await work()
    await asyncio.Event().wait()


# --- the two ends ---


class Server(asyncio.Protocol):
    """`d` and a number: sends so many bytes. `u` and a number: takes so many, then says so. `e`: answers each 64 bytes with 512."""

    def __init__(self) -> None:
        self.line, self.left, self.pending = b"", 0, 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if b"\n" not in self.line:
            self.line += data
            if b"\n" not in self.line:
                return
            self.line, _, data = self.line.partition(b"\n")
            self.line += b"\n"
            self.left = int(self.line[1:] or 0)
            if self.line[:1] == b"d":
                self.task = asyncio.create_task(self.pour())
        if self.line[:1] == b"u":
            self.left -= len(data)
            if self.left == 0:
                self.transport.write(b"!")
        elif self.line[:1] == b"e":
            self.pending += len(data)
            while self.pending >= 64:
                self.pending -= 64
                self.transport.write(b"x" * 512)

    async def pour(self) -> None:
        piece = os.urandom(PIECE)
        for _ in range(self.left // PIECE):
            self.transport.write(piece)
            await self.writable.wait()
        self.transport.close()


async def serve(ready: Any) -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    ready.put(server.sockets[0].getsockname()[1])


async def relay(onward: int, ready: Any) -> None:
    """The plain relay: streams, 64 KiB at a time."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", onward)
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)
        for one in (writer, far_writer):
            one.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    ready.put(server.sockets[0].getsockname()[1])


# --- the tunnel ---


def session(number: int, role: Role) -> Any:
    return make_session(KeySigner(number.to_bytes(32, "big")), MARKET_ID, role, now_ms=int(time.time() * 1000), validity_ms=HOUR_MS)


async def market(folder: str, ready: Any) -> None:
    """A broker with the callout in front."""
    keys = market_keys.load_or_make(Path(folder) / "keys")
    running = await broker.start_async(broker.Place(Path(folder)), keys)
    system = await Connection(running.url, ServiceKey(keys.sys), "callout-system").open()
    auth = await Connection(running.url, ServiceKey(keys.callout), "callout").open()
    await Callout(auth, system, keys, verifier(MARKET_ID)).start()
    ready.put((running.url, running.process.pid))


class Dials:
    """The runner's one verb that is needed."""

    async def dial(self, key: object, place: str) -> Any:
        return await dial_port(int(place.partition(":")[2]))


async def node(url: str, buyer: str, ready: Any) -> None:
    acting = session(2, Role.SELLER)
    order: Any = SimpleNamespace()
    attempt = Attempt(job_id=JOB_ID, attempt=1, epoch=7, order=order, buyer=buyer, timeout_s=60, output_token=TOKEN)
    attempt.run, attempt.standing = Run.RUNNING, Standing.CLAIMED
    runner: Any = Dials()
    asyncio.get_running_loop().task = asyncio.create_task(Tunnels(url, lambda: acting, runner, {7: attempt}).run())  # type: ignore[attr-defined]
    ready.put(acting.wallet)


async def buyer(url: str, seller: str, onward: int, ready: Any) -> None:
    acting = session(1, Role.BUYER)
    reach = Reach.of(url, acting, job_id=JOB_ID, attempt=1, epoch=7, seller=seller, output_token=TOKEN)
    server = await forward(reach, f"tcp:{onward}", 0)
    ready.put(server.sockets[0].getsockname()[1])


# --- measuring ---


async def download(port: int, size: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    began, left = time.perf_counter(), size
    writer.write(b"d%d\n" % size)
    while left:
        data = await reader.read(1 << 20)
        assert data, f"{left} bytes are missing"
        left -= len(data)
    took = time.perf_counter() - began
    writer.close()
    return took


async def upload(port: int, size: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    piece, began = os.urandom(PIECE), time.perf_counter()
    writer.write(b"u%d\n" % size)
    for _ in range(size // PIECE):
        writer.write(piece)
        await writer.drain()
    assert b"!" == await reader.readexactly(1)
    took = time.perf_counter() - began
    writer.close()
    return took


async def requests(port: int, count: int) -> list[float]:
    """Each on the same connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"e0\n")
    took = []
    for _ in range(count):
        began = time.perf_counter()
        writer.write(b"?" * 64)
        await reader.readexactly(512)
        took.append(time.perf_counter() - began)
    writer.close()
    return took


async def connects(port: int, count: int) -> list[float]:
    """Each on a connection of its own."""
    took = []
    for _ in range(count):
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"e0\n" + b"?" * 64)
        await reader.readexactly(512)
        took.append(time.perf_counter() - began)
        writer.close()
    return took


async def measure(paths: dict[str, int], size: int, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """The medians of every path, in MB/s and ms."""
    found: dict[str, dict[str, list[float]]] = {name: {"down": [], "up": [], "request": [], "connect": []} for name in paths}
    for port in paths.values():
        await download(port, 4 * PIECE)
    for _ in range(rounds):
        for name, port in paths.items():
            found[name]["down"].append(size / await download(port, size) / 1e6)
            found[name]["up"].append(size / await upload(port, size) / 1e6)
            found[name]["request"] += [took * 1000 for took in await requests(port, count // rounds)]
            found[name]["connect"] += [took * 1000 for took in await connects(port, count // rounds)]
    return {name: {what: round(statistics.median(values), 3) for what, values in kinds.items()} for name, kinds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="asyncio", help="of the tunnel's programs")
    parser.add_argument("--hold", action="store_true", help="only start everything, print the process ids, wait")
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready, started = context.Queue(), []

    def start(work: Callable[..., Awaitable[None]], *arguments: Any, loop: str = "asyncio") -> Any:
        process = context.Process(target=_entry, args=(work.__name__, arguments, loop, ready), daemon=True)
        process.start()
        started.append(process)
        return ready.get(timeout=30)

    with tempfile.TemporaryDirectory() as folder:
        broker_pid = 0
        try:
            server = start(serve)
            relayed = start(relay, start(relay, server))
            url, broker_pid = start(market, folder)
            seller = start(node, url, session(1, Role.BUYER).wallet, loop=asked.loop)
            tunnelled = start(buyer, url, seller, server, loop=asked.loop)
            if asked.hold:
                print(json.dumps({"node": started[-2].pid, "buyer": started[-1].pid, "tunnel": tunnelled, "relays": relayed}), flush=True)
                time.sleep(3600)
            paths = {"direct": server, "relays": relayed, "tunnel": tunnelled}
            found = asyncio.run(measure(paths, asked.mib << 20, asked.rounds, asked.requests))
        finally:
            for process in reversed(started):
                process.terminate()
                process.join()
            if broker_pid:
                with suppress(ProcessLookupError):
                    os.kill(broker_pid, 15)
    report(found)


def _entry(name: str, arguments: tuple[Any, ...], loop: str, ready: Any) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    run(lambda: globals()[name](*arguments, ready), loop)


def report(found: dict[str, dict[str, float]]) -> None:
    print(f"{'':8} {'down MB/s':>10} {'up MB/s':>10} {'request ms':>11} {'connect ms':>11}")
    for name, values in found.items():
        print(f"{name:8} {values['down']:10.0f} {values['up']:10.0f} {values['request']:11.3f} {values['connect']:11.3f}")
    relays, tunnel, direct = found["relays"], found["tunnel"], found["direct"]
    down, up = tunnel["down"] / relays["down"], tunnel["up"] / relays["up"]
    added = tunnel["request"] - direct["request"]
    for what, value, good in (
        ("bulk down, of two relays", f"{down:.2f}", down >= RATIO_MIN),
        ("bulk up, of two relays", f"{up:.2f}", up >= RATIO_MIN),
        ("added per small request", f"{added:.3f} ms", added <= ADDED_MS_MAX),
    ):
        print(f"{what:26} {value:>9}   {'met' if good else 'missed'}")
    print(f"targets: at least {RATIO_MIN} of two relays, at most {ADDED_MS_MAX} ms added (docs/tunnel.md says what limits them)")
    print(json.dumps({"down_ratio": round(down, 3), "up_ratio": round(up, 3), "added_ms": round(added, 3), "paths": found}))


if __name__ == "__main__":
    main()
