"""The buyer's side of tunnels: meets the job's node when somebody wants something of it, and again after a loss.

Shell. On a connection of its own beside the market client's. Local ports are bound on 127.0.0.1 only; each of their connections becomes a
stream of the one session.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from events.connection import Connection, WalletKey
from events.errors import BazaarError
from events.session import Session
from events.stepping import end_all
from events.tunnel import NodeSilent, Tunnel, meet
from events.tunnel_frames import Target
from events.tunnel_keys import Facts, Identity
from events.tunnel_socket import SocketEnd

LOOPBACK = "127.0.0.1"
FRESH_S = 2.0
"""A session heard of so lately is trusted with bytes before it has answered."""
SILENT_S = 3.0
"""So long a stream's opening may go without a word before the session is taken for dead."""
UP_S = 10.0
IDLE_S = 300.0
TRIES = 2


class Place(NamedTuple):
    """Where a job runs at this moment."""

    facts: Facts
    output_token: str


class Reach:
    """A way to one job's node. `locate` says where the job runs now, and raises when it does not."""

    def __init__(self, url: str, session: Callable[[], Session], locate: Callable[[], Awaitable[Place]]) -> None:
        self._url = url
        self._session = session
        self._locate = locate
        self._connection: Connection | None = None
        self._tunnel: Tunnel | None = None
        self._meeting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    @classmethod
    def of(cls, url: str, session: Session, *, job_id: str, attempt: int, epoch: int, seller: str, output_token: str) -> Reach:
        """The way to an attempt that will not move."""
        facts = Facts(market_id=session.market_id, job_id=job_id, attempt=attempt, epoch=epoch, buyer=session.wallet, seller=seller)

        async def locate() -> Place:
            return Place(facts, output_token)

        return cls(url, lambda: session, locate)

    async def tunnel(self) -> Tunnel:
        """A session that is open, as far as can be told. Raises NodeSilent, NodeRefused, MarketUnreachable, and what `locate` raises."""
        async with self._meeting:
            if self._tunnel is not None and not self._tunnel.is_closed and self._tunnel.idle_s < IDLE_S:
                return self._tunnel
            if self._tunnel is not None:
                self._tunnel.close("idle")
            place = await self._locate()
            session = self._session()
            connection = await self._connected(session)
            identity = Identity(session.signing_key, session.signed)
            self._tunnel = await meet(connection, place.facts, identity, place.output_token)
            return self._tunnel

    async def _connected(self, session: Session) -> Connection:
        identity = WalletKey(session.seed, session.token, session.wallet)
        if self._connection is None:
            self._connection = await Connection(self._url, identity, "tunnel", bulk=True).open()
        self._connection.identity = identity
        await self._connection.wait_up(UP_S)
        return self._connection

    async def connect(self, target: Target, end: SocketEnd) -> None:
        """Join a socket to a new stream. Raises as `tunnel`, and BazaarError when no stream may be opened."""
        for _ in range(TRIES):
            tunnel = await self.tunnel()
            if tunnel.is_full:
                raise BazaarError("The tunnel carries as many connections as it can.", hint="close some of them")
            is_fresh = tunnel.silent_s < FRESH_S
            number = tunnel.open(target, end)
            end.join(tunnel, number, wait=not is_fresh)
            if await self._lives(tunnel, end):
                return
            if is_fresh:  # bytes may have left: who sent them must know that they went nowhere
                tunnel.close("the node fell silent")
                return
            end.leave()
            tunnel.reset(number, "")
            tunnel.close("the node fell silent")
        raise NodeSilent(why="it was met, but fell silent")

    async def _lives(self, tunnel: Tunnel, end: SocketEnd) -> bool:
        """Whether the other end is there: it opens the stream, or, asked for one, at least says a word."""
        for _ in range(TRIES):
            with suppress(TimeoutError):
                async with asyncio.timeout(SILENT_S / TRIES):
                    await end.settled.wait()
                return True
            if tunnel.silent_s < SILENT_S / TRIES:
                return True  # it lives; what is dialled takes its time
            tunnel.ping()
        return False

    def spawn(self, work: Awaitable[None]) -> None:
        """Do this beside; it ends with `close`."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def listen(self, connected: Callable[[SocketEnd], Awaitable[None]], port: int) -> asyncio.Server:
        """Do this for every connection to this port of 127.0.0.1, until `close`. Raises OSError."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SocketEnd(lambda end: self.spawn(connected(end))), LOOPBACK, port)
        self._servers.append(server)
        return server

    async def close(self) -> None:
        """Say goodbye and let go."""
        for server in self._servers:
            server.close()
        await end_all(self._tasks)
        if self._tunnel is not None:
            self._tunnel.close("the buyer left")
        if self._connection is not None:
            await self._connection.close()


async def forward(reach: Reach, place: str, local_port: int, trouble: Callable[[str], None] | None = None) -> asyncio.Server:
    """Listen on this port of 127.0.0.1 (0: any), and join every connection to `place` inside the run. `trouble` hears in a few words why a
    connection came to nothing. Raises OSError when the port cannot be had."""

    async def serve(end: SocketEnd) -> None:
        try:
            await reach.connect(Target(place=place), end)
            await end.settled.wait()
            if end.reason and trouble is not None:
                trouble(end.reason)
        except BazaarError as error:
            end.refuse()
            if trouble is not None:
                trouble(f"{error.what} {error.why}".strip())
        except Exception as error:
            end.refuse()
            if trouble is not None:
                trouble(str(error))

    return await reach.listen(serve, local_port)


@asynccontextmanager
async def opened(reach: Reach, place: str, local_port: int = 0, trouble: Callable[[str], None] | None = None) -> AsyncIterator[int]:
    """A port of 127.0.0.1 that leads to `place` inside the run, for as long as this is entered. The reach stays open. Raises OSError."""
    server = await forward(reach, place, local_port, trouble)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
