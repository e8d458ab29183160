"""Joins a stream of a tunnel to what a runner gave: a connection into the run, or a program on a terminal.

Shell. A socket is handed to the event loop whole; anything else is read and written by two tasks. Contents are never looked at.
"""

from __future__ import annotations

import asyncio
import contextlib

from events.tunnel import Tunnel
from events.tunnel_frames import CHUNK_MAX
from events.tunnel_socket import SocketEnd
from seller_agent.runners.reach import SocketStream
from seller_agent.runners.runner import Stream, Terminal

RESET_WAIT_S = 0.05


async def join(tunnel: Tunnel, number: int, stream: Stream) -> None:
    """Let the bytes move; returns at once for a socket, else when the stream is over."""
    if isinstance(stream, SocketStream):
        end = SocketEnd()
        await asyncio.get_running_loop().create_connection(lambda: end, sock=stream.take())
        end.join(tunnel, number)
        tunnel.accept(number, end)
        return
    await StreamEnd(tunnel, number, stream, None).run()


async def join_terminal(tunnel: Tunnel, number: int, terminal: Terminal) -> None:
    """Likewise, for a program on a terminal: its exit code follows the last of its output. Returns when the stream is over."""
    await StreamEnd(tunnel, number, terminal, terminal).run()


class StreamEnd:
    """The end of a stream that is read and written by coroutines."""

    def __init__(self, tunnel: Tunnel, number: int, stream: Stream, terminal: Terminal | None) -> None:
        self._tunnel = tunnel
        self._number = number
        self._stream = stream
        self._terminal = terminal
        self._size: tuple[int, int] | None = None
        self._incoming: list[bytes] = []
        self._got_eof = False
        self._over = asyncio.Event()
        self._news = asyncio.Event()
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Until both ways have ended, or one has failed."""
        self._tunnel.accept(self._number, self)
        self.granted()
        parts = [asyncio.create_task(part) for part in (self._read(), self._write(), self._over.wait())]
        try:
            reading, writing, over = parts
            await asyncio.wait([reading, over], return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not over.done() and self._terminal is None:
                await asyncio.wait([writing, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self._stream.close()
            if not self._over.is_set():
                self._tunnel.eof(self._number)
                self._tunnel.reset(self._number, "")

    async def _read(self) -> None:
        """From the run to the buyer."""
        while True:
            await self._room.wait()
            data = await self._stream.read(self._tunnel.room(self._number) or 1)
            if not data:
                break
            while data and not self._over.is_set():
                room = self._tunnel.room(self._number)
                if room:
                    self._tunnel.send(self._number, data[:room])
                    data = data[room:]
                if not self._tunnel.room(self._number):
                    self._room.clear()
                    await self._room.wait()
        if self._terminal is not None:
            self._tunnel.exit(self._number, await self._terminal.exit_code())
        self._tunnel.eof(self._number)

    async def _write(self) -> None:
        """From the buyer to the run."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._size is not None and self._terminal is not None:
                size, self._size = self._size, None
                await self._terminal.resize(*size)
            incoming, self._incoming = self._incoming, []
            for data in incoming:
                try:
                    await self._stream.write(data)
                except ConnectionError:
                    if self._terminal is None:
                        self._tunnel.reset(self._number, "the connection in the job was closed")
                        self._over.set()
                        return
                self._tunnel.consumed(self._number, len(data))
            if self._got_eof and not self._incoming:
                with contextlib.suppress(ConnectionError):
                    await self._stream.write_eof()
                if self._terminal is None:
                    return

    # ---- what the tunnel tells

    def opened(self) -> None:
        raise AssertionError("a node's streams are opened by the node")

    def data(self, data: memoryview) -> None:
        self._incoming.append(bytes(data))
        self._news.set()

    def granted(self) -> None:
        if self._tunnel.room(self._number):
            self._room.set()

    def eof(self) -> None:
        self._got_eof = True
        self._news.set()

    def over(self, reason: str) -> None:
        self._over.set()
        self._room.set()

    def resized(self, columns: int, rows: int) -> None:
        self._size = (columns, rows)
        self._news.set()

    def exited(self, code: int) -> None:
        raise AssertionError("the buyer's end runs no program")


assert CHUNK_MAX
