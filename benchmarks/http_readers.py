"""Readers of the query API, for measuring it: connections that ask without rest, streams that are watched, in processes of their own."""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_left
from typing import Any

CHUNKED = 1 << 60
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Asker(asyncio.Protocol):
    """One connection that asks again as soon as it has its answer, or some time later."""

    def __init__(self, requests: list[bytes], latencies: list[float], until_s: float, pause_s: float) -> None:
        self.requests, self.latencies, self.until_s, self.pause_s = requests, latencies, until_s, pause_s
        self.turn = 0
        self.missing = 0
        self.tail = b""
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
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            self.missing = int(found[1]) + end + 4 if found else CHUNKED
        self.missing -= len(data)
        self.tail = (self.tail + data[-7:])[-7:]
        if self.missing <= 0 or (self.missing > CHUNKED // 2 and self.tail == b"\r\n0\r\n\r\n"):
            self.missing = 0
            now_s = time.perf_counter()
            self.latencies.append(now_s - self.asked_s)
            if now_s + self.pause_s < self.until_s:
                asyncio.get_running_loop().call_later(self.pause_s, self.ask) if self.pause_s else self.ask()
            elif not self.done.done():
                self.transport.close()
                self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError("the server closed the connection"))


async def load(port: int, paths: list[str], connections: int, seconds: float, *, gzip: bool, pause_s: float) -> dict[str, float]:
    """So many connections for so long, each with a pause between its answer and its next question; what was seen."""
    more = "Accept-Encoding: gzip\r\n" if gzip else ""
    requests = [f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n{more}\r\n".encode() for path in paths]
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    latencies: list[float] = []
    askers = []
    for number in range(connections):
        mine = requests[number % len(requests) :] + requests[: number % len(requests)]
        _, asker = await loop.create_connection(lambda: Asker(mine, latencies, began + seconds, pause_s), "127.0.0.1", port)  # noqa: B023
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
    """A dashboard's stream: when it was how far in the ledger."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.places: list[int] = []
        self.at_s: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.head)

    def data_received(self, data: bytes) -> None:
        place = data.rfind(b"\nid: ")
        if place >= 0:
            self.places.append(int(data[place + 5 : place + 30].partition(b"\n")[0]))
            self.at_s.append(time.time())

    def reached_s(self, seq: int) -> float | None:
        """When it had this event."""
        at = bisect_left(self.places, seq)
        return self.at_s[at] if at < len(self.at_s) else None


async def watch(port: int, streams: int, seconds: float, query: str) -> dict[str, float]:
    """Streams beside each other; how long after the first of them the last one had each frame, whatever frame it came in."""
    head = f"GET /v1/events{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    watchers = [(await loop.create_connection(lambda: Watcher(head), "127.0.0.1", port))[1] for _ in range(streams)]
    await asyncio.sleep(2)
    for watcher in watchers:
        watcher.places.clear()
        watcher.at_s.clear()
    await asyncio.sleep(seconds)
    for watcher in watchers:
        watcher.transport.close()
    behind = []
    for seq in sorted({place for watcher in watchers for place in watcher.places}):
        reached = [at for watcher in watchers if (at := watcher.reached_s(seq)) is not None]
        if len(reached) == streams:
            behind.append((max(reached) - min(reached)) * 1000)
    assert behind, "no frame came to all"
    behind.sort()
    deliveries = sum(len(watcher.places) for watcher in watchers)
    return {
        "deliveries": deliveries,
        "frames_per_s": deliveries / streams / seconds,
        "frames": len(behind),
        "last_p50_ms": behind[len(behind) // 2],
        "last_p99_ms": behind[len(behind) * 99 // 100],
        "last_max_ms": behind[-1],
    }
