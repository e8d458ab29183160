"""The connections to a host's programs that are more than a command: the link to its supervisor, and streams where nothing is forwarded."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from seller_agent.runners.process.link import HELLO_MAX_S, STARTING_MAX_S, Link, LinkLost, Listener
from seller_agent.runners.process.supervisor.worker import PROTOCOL
from seller_agent.runners.runner import RunnerError
from seller_agent.runners.ssh.connection import Channel
from seller_agent.runners.ssh.errors import HostAway
from seller_agent.runners.ssh.host import Host

READ_BYTES = 1 << 16
LINE_MAX_BYTES = 1 << 16


class Clock(msgspec.Struct, frozen=True):
    """The first line on a link."""

    boot_ms: int
    boot_id: str


class Answered(msgspec.Struct, frozen=True):
    """The first line of a stream."""

    refused: str | None = None


class Pipe(asyncio.Transport):
    """A channel as the transport of a link."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._closing: asyncio.Task[None] | None = None

    def write(self, data: Any) -> None:
        self._channel.post(bytes(data))

    def is_closing(self) -> bool:
        return self._closing is not None

    def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._channel.close())


async def open_link(host: Host, runs: str, idle_s: float, listener: Listener) -> Link:
    """A link to the supervisor of the folder `runs` there, which is started unless it runs. Raises SshFailed, RunnerError."""
    channel = await host.open("link", runs, str(idle_s))
    try:
        async with asyncio.timeout(STARTING_MAX_S):
            line, rest = await first_line(channel)
        clock = msgspec.json.decode(line, type=Clock)
    except (ConnectionError, TimeoutError, msgspec.DecodeError) as error:
        await channel.close()
        raise HostAway(why=f"The supervisor on {host.name} does not answer: {error}.", hint=f"See {runs}/.supervisor/log there.") from None
    host.set_clock(clock.boot_ms)
    link = Link(listener)
    link.connection_made(Pipe(channel))
    pumping = asyncio.get_running_loop().create_task(_pump(channel, link, rest))
    _PUMPING.add(pumping)
    pumping.add_done_callback(_PUMPING.discard)
    try:
        async with asyncio.timeout(HELLO_MAX_S):
            spoken = await link.greeting
    except (LinkLost, TimeoutError):
        await link.close()
        raise HostAway(why=f"The supervisor on {host.name} does not greet.") from None
    if spoken != PROTOCOL:
        await link.close()
        raise RunnerError("container_error", f"the supervisor on {host.name} speaks version {spoken}, this agent {PROTOCOL}")
    return link


_PUMPING: set[asyncio.Task[None]] = set()
"""Keeps them from being collected; each ends with its channel."""


async def _pump(channel: Channel, link: Link, data: bytes) -> None:
    """What comes, to the link, until the end."""
    try:
        while data or (data := await channel.read(READ_BYTES)):
            link.data_received(data)
            data = b""
    except msgspec.DecodeError:
        pass  # nonsense: as good as gone
    finally:
        link.connection_lost(None)
        await channel.close()


async def reach(host: Host, kind: str, place: str, name: str) -> Channel:
    """A stream to a port or socket there by a program of ours. Raises ConnectionError, SshFailed."""
    channel = await host.open("reach", kind, place, name)
    try:
        line, rest = await first_line(channel)
        answer = msgspec.json.decode(line, type=Answered)
    except (ConnectionError, msgspec.DecodeError):
        await channel.close()
        raise ConnectionRefusedError("nothing could be reached there") from None
    if answer.refused is not None:
        await channel.close()
        raise ConnectionRefusedError(f"nothing listens there: {answer.refused}")
    channel.unread(rest)
    return channel


async def first_line(channel: Channel) -> tuple[bytes, bytes]:
    """Everything up to a newline, and what came after it. Raises ConnectionError."""
    data = b""
    while b"\n" not in data and len(data) < LINE_MAX_BYTES:
        piece = await channel.read(READ_BYTES)
        if not piece:
            raise ConnectionResetError("it ended")
        data += piece
    line, _, rest = data.partition(b"\n")
    return line, rest
