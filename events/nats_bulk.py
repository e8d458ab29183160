"""Reads a broker's connection in large pieces: messages go straight from the socket's buffer to their sinks.

Takes over the socket of a client that has logged in (see `nats_client`). What is no plain message (pings, errors, messages with headers)
goes on to the client's own reader, unchanged and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

BUFFER_BYTES = 1 << 19
LINE_MAX = 8192

Deliver = Callable[[int, bytes, bytes, bytes], None]
"""Called with a subscription's number, subject, reply and the message."""


class BulkProtocol(asyncio.BufferedProtocol):
    """The broker's side of the socket from now on."""

    def __init__(self, former: asyncio.Protocol, reader: asyncio.StreamReader, deliver: Deliver) -> None:
        """`former` and `reader` are what served the socket until now, and still serve what is not ours."""
        self._former = former
        self._reader = reader
        self._deliver = deliver
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end > BUFFER_BYTES // 2:  # a message never crosses the end: what is left of one moves to the front
            rest = self._end - self._start
            if self._start >= rest:
                self._view[:rest] = self._view[self._start : self._end]
            else:
                self._buffer[:rest] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._end += nbytes
        while self._start < self._end and self._take_one():
            pass

    def _take_one(self) -> bool:
        """One message or line; False while it is not complete."""
        buffer, start = self._buffer, self._start
        line_end = buffer.find(b"\r\n", start, min(self._end, start + LINE_MAX))
        if line_end < 0:
            if self._end - start >= LINE_MAX:
                self._pass_on(self._end)  # nothing that a broker says; the client's own parser complains
            return False
        if buffer[start : start + 4] == b"MSG ":
            words = bytes(self._view[start + 4 : line_end]).split()
            after = line_end + 2 + int(words[-1])
            if after + 2 > self._end:
                return False
            self._start = after + 2
            data = bytes(self._view[line_end + 2 : after])
            self._deliver(int(words[1]), words[0], words[2] if len(words) == 4 else b"", data)
            return True
        if buffer[start : start + 5] == b"HMSG ":
            after = line_end + 4 + int(buffer[start:line_end].rpartition(b" ")[2])
            if after > self._end:
                return False
            self._pass_on(after)
            return True
        self._pass_on(line_end + 2)
        return True

    def _pass_on(self, end: int) -> None:
        self._reader.feed_data(bytes(self._view[self._start : end]))
        self._start = end

    def eof_received(self) -> bool | None:
        return self._former.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._former.connection_lost(exc)

    def pause_writing(self) -> None:
        self._former.pause_writing()

    def resume_writing(self) -> None:
        self._former.resume_writing()


def take_over(writer: Any, reader: asyncio.StreamReader, deliver: Deliver) -> BulkProtocol:
    """Let the socket of this stream pair be read by a BulkProtocol."""
    transport = writer.transport
    protocol = BulkProtocol(transport.get_protocol(), reader, deliver)
    transport.set_protocol(protocol)
    return protocol
