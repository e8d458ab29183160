"""Joins a stream of a tunnel to a socket on this machine: bytes one way and the other, never more than either side takes.

Shell, used at both ends: a local program's connection at the buyer's, a connection into the run at the node's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from events.tunnel import Tunnel
from events.tunnel_frames import EARLY_WINDOW

READ_BYTES = 48 * 1024
"""What is read and sent at once. A message that fits a read of the broker (64 KiB) costs it less than half of what larger ones do."""
UNSENT_MAX = 256 * 1024
"""Bytes that wait for a slow local socket before no credit is given back."""


class SocketEnd(asyncio.BufferedProtocol):
    """The socket's end of a stream; `join` it to a stream to make bytes move."""

    def __init__(self, connected: Callable[[SocketEnd], None] | None = None) -> None:
        """`connected` is told of an accepted connection; nothing is read from it before it is joined."""
        self._connected = connected
        self.settled = asyncio.Event()
        """Set once the stream was opened, or is over."""
        self.reason = ""
        """Why the stream is over."""
        self._transport: asyncio.Transport | None = None
        self._tunnel: Tunnel | None = None
        self._number = 0
        self._view = memoryview(bytearray(READ_BYTES))
        self._early = b""
        """What came before there was a stream; some event loops read a little although told not to."""
        self._is_paused = True
        self._waits = False
        self._is_clogged = False
        self._unsent = 0
        self._got_eof = self._sent_eof = self._lost = False

    def join(self, tunnel: Tunnel, number: int, *, wait: bool = False) -> None:
        """From now on this is the end of that stream. `wait`: send nothing before it is opened."""
        self._tunnel, self._number, self._waits = tunnel, number, wait
        if self._lost:
            tunnel.reset(number, "the connection was closed")
        self.granted()

    def leave(self) -> None:
        """It is no stream's end any more, and may be joined to another, if none of its bytes was sent."""
        self._tunnel = None

    def refuse(self) -> None:
        """There is no stream for it."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_lost(self) -> bool:
        """Whether the socket is gone."""
        return self._lost

    # ---- the socket's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=UNSENT_MAX)
        self._transport.pause_reading()
        if self._connected is not None:
            self._connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        room = 0 if self._tunnel is None else self._tunnel.room(self._number)
        return self._view[: room or EARLY_WINDOW - len(self._early) or 1]

    def buffer_updated(self, nbytes: int) -> None:
        tunnel, data = self._tunnel, self._view[:nbytes]
        if tunnel is None or self._waits or self._early or nbytes > tunnel.room(self._number):
            self._early += data
            self._pause()
            return
        tunnel.send(self._number, data)
        if not tunnel.room(self._number):
            self._pause()

    def eof_received(self) -> bool:
        self._got_eof = True
        self._pass_eof()
        self._close_if_done()
        return True

    def _pass_eof(self) -> None:
        if self._got_eof and self._tunnel is not None and not self._waits and not self._early:
            self._tunnel.eof(self._number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._tunnel is not None and not (self._got_eof and self._sent_eof):
            self._tunnel.reset(self._number, "the connection was closed" if exc is None else f"the connection broke: {exc}")

    def pause_writing(self) -> None:
        self._is_clogged = True

    def resume_writing(self) -> None:
        self._is_clogged = False
        unsent, self._unsent = self._unsent, 0
        if unsent and self._tunnel is not None:
            self._tunnel.consumed(self._number, unsent)

    # ---- the stream's side

    def opened(self) -> None:
        self._waits = False
        self.settled.set()
        self.granted()

    def data(self, data: memoryview) -> None:
        if self._transport is None or self._tunnel is None or self._lost:
            return
        self._transport.write(data)
        if self._is_clogged:
            self._unsent += len(data)
        else:
            self._tunnel.consumed(self._number, len(data))

    def granted(self) -> None:
        tunnel = self._tunnel
        if tunnel is None or self._transport is None or self._waits:
            return
        while self._early and (room := tunnel.room(self._number)):
            data, self._early = self._early[:room], self._early[room:]
            tunnel.send(self._number, data)
        self._pass_eof()
        if self._is_paused and not self._early and tunnel.room(self._number):
            self._is_paused = False
            if not self._got_eof and not self._transport.is_closing():
                self._transport.resume_reading()

    def eof(self) -> None:
        self._sent_eof = True
        if self._transport is not None and not self._lost and not self._transport.is_closing():
            self._transport.write_eof()
        self._close_if_done()

    def over(self, reason: str) -> None:
        self._tunnel = None
        self.reason = reason
        self.settled.set()
        if self._transport is not None:
            self._transport.abort()

    def resized(self, columns: int, rows: int) -> None:
        pass  # no terminal here

    def exited(self, code: int) -> None:
        pass

    def _pause(self) -> None:
        self._is_paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _close_if_done(self) -> None:
        if self._got_eof and self._sent_eof and self._transport is not None:
            self._transport.close()  # what was written still leaves
