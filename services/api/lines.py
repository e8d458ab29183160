"""The connections of the HTTP server: so many of one address, and none that takes for ever to ask, or to read what it asked for.

Without this one reader could hold every descriptor of the process with connections that say nothing, or a letter a minute. What a
connection asks for is not looked at here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

LINES_OF_ADDRESS = 256
LINES_OF_THIS_MACHINE = 2048
LINES_MAX = 8192
HEAD_S = 10.0
"""From the connection's beginning, or a later request's first byte, to the end of the request's head."""
STALLED_S = 60.0
"""How long a reader may leave what it asked for in the buffers."""
_AT_ONCE = struct.pack("ii", 1, 0)


def lines(*, proxied: bool) -> type[asyncio.Protocol]:
    """The protocol of one server, with counts of its own. `proxied`: connections of this machine are a proxy's, and not counted."""
    return type("Line", (_Line,), {"held": Counter(), "proxied": proxied})


class _Line(H11Protocol):
    """One connection, counted for as long as it is open."""

    held: ClassVar[Counter[str]]
    proxied: ClassVar[bool]

    _address: str | None = None
    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = address = "" if self.client is None else self.client[0]
        self.held[address] += 1
        if self.held[address] > most(address, proxied=self.proxied) or len(self.connections) > LINES_MAX:
            self._cut()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._address is not None:
            self.held[self._address] -= 1
            if not self.held[self._address]:
                del self.held[self._address]
            self._address = None
        _cancel(self._late)
        self._late = None
        _cancel(self._stalled)
        self._stalled = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering():
            _cancel(self._late)
            self._late = None
        else:
            self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_S, self._cut)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stalled)
        self._stalled = None

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEAD_S, self._too_late)

    def _too_late(self) -> None:
        self._late = None
        if not self._is_answering():
            self._cut()

    def _cut(self) -> None:
        """End it at once: neither we nor the kernel wait for the other side to read, or to say goodbye."""
        underneath = self.transport.get_extra_info("socket")
        if underneath is not None:
            underneath.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()


def most(address: str, *, proxied: bool) -> int:
    """How many connections one address may hold."""
    if address in ("127.0.0.1", "::1"):
        return LINES_MAX if proxied else LINES_OF_THIS_MACHINE
    return LINES_OF_ADDRESS


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
