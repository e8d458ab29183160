"""The query API as a process: an HTTP server on a socket that was opened for it, and the answers over NATS, from one mirror of the ledger.

Serves `/healthz` at once, everything else once the ledger is read. Writes nothing but its own read model.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from asyncio import constants
from collections.abc import Callable, Generator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog
import uvicorn

from events.connection import Connection, ServiceKey
from events.errors import BazaarError, LogUnavailable
from events.nats_log import NatsLog
from events.stepping import end_all
from events.streams import ensure_streams
from services.api import lines
from services.api.asking import Source
from services.api.desk import Desk
from services.api.guard import Guard
from services.api.identity_endpoints import IDENTITY_ENDPOINTS
from services.api.job_endpoints import JOB_ENDPOINTS
from services.api.live import EVENTS, Streams
from services.api.market_endpoints import MARKET_ENDPOINTS
from services.api.output_endpoints import OUTPUT_ENDPOINTS
from services.api.overview import OVERVIEW_ENDPOINTS
from services.api.past import Past
from services.api.read_model import ReadModel
from services.api.routes import make_app
from services.api.rpc import Rpc
from services.api.upkeep import Upkeep, begin
from services.api.why_endpoint import WHY
from services.market_keys import MarketKeys

if TYPE_CHECKING:
    from services.certificates import Certificate

log = structlog.get_logger("api")

GRACE_S = 2
KEEP_ALIVE_S = 15
BACKLOG = 512
RETRY_S = 0.5
ENDPOINTS = (*MARKET_ENDPOINTS, *JOB_ENDPOINTS, *OUTPUT_ENDPOINTS, *OVERVIEW_ENDPOINTS, *IDENTITY_ENDPOINTS, WHY, EVENTS)


class Api:
    """One API over one ledger. `serve` is the way to run it."""

    def __init__(self, connection: Connection, read_model: ReadModel, snapshot_file: Path | None, folded: Callable[[], None]) -> None:
        self._folded = folded
        self._connection = connection
        self._ledger = NatsLog(connection)
        self._read_model = read_model
        self._snapshot_file = snapshot_file
        self._upkeep: Upkeep | None = None
        self.desk = Desk(ENDPOINTS)
        self.streams = Streams(self.desk.now_ms)

    def unready(self) -> str | None:
        """Why this API's answers may be old, or are not there at all; None when it is ready."""
        if self.desk.source is None or self._upkeep is None:
            upkeep = self._upkeep
            return "the ledger is being read" + (f", {upkeep.mirror.market.pages} pages so far" if upkeep is not None else "")
        return self._upkeep.unready()

    async def run(self) -> None:
        """Read the ledger, then answer and go on reading, for ever. Raises LogCorrupt: a damaged ledger is never served from."""
        self._connection.on_up(self._streams)
        await self._connection.open(wait_s=None)
        upkeep = await self._caught_up()
        upkeep.mirror.tallies.settle(self.desk.now_ms())  # the first count is the only long one
        self._folded()
        self.desk.source = Source(upkeep.mirror, self._read_model, self._ledger, self._connection, Past(self._ledger))
        await Rpc(self._connection, self.desk).start()
        log.info("ready", seq=upkeep.mirror.market.last_seq)
        async with asyncio.TaskGroup() as group:
            group.create_task(upkeep.follow())
            group.create_task(upkeep.write())

    async def _streams(self) -> None:
        await ensure_streams(self._connection)

    async def _caught_up(self) -> Upkeep:
        while True:
            try:
                mirror, how = await begin(self._ledger, self._read_model, self._snapshot_file)
                self._upkeep = upkeep = Upkeep(self._connection, self._ledger, self._read_model, mirror)
                catching, writing = asyncio.create_task(upkeep.catch_up()), asyncio.create_task(upkeep.write())
                try:
                    done, _ = await asyncio.wait({catching, writing}, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:  # whoever catches up may wait for who writes: when that one fails there is nothing to wait for
                        task.result()
                finally:
                    await end_all((catching, writing))
            except LogUnavailable as error:
                log.warning("the ledger is not available", why=error.why or str(error))
                await asyncio.sleep(RETRY_S)
                continue
            await upkeep.listen()
            log.info("ledger folded", how=how, pages=mirror.market.pages)
            return upkeep

    async def stop(self) -> None:
        """Leave the rows on disk as far as they are known, and let go."""
        if self._upkeep is not None:
            with contextlib.suppress(BazaarError):
                await self._upkeep.write_now()
        await self._read_model.close()
        await self._connection.close()


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers of its own: who runs the process says when to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine can connect."""
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


class Facing(NamedTuple):
    """How the API faces those who ask. `public_hosts`: names under which a proxy serves it, so that nobody is local any more."""

    public_hosts: tuple[str, ...] = ()
    tls: Certificate | None = None


LOCAL = Facing()


def _server(api: Api, listening: socket.socket, facing: Facing) -> _Server:
    on_loopback, is_proxied = is_loopback(listening), bool(facing.public_hosts)
    if facing.tls is not None:
        constants.SSL_HANDSHAKE_TIMEOUT = (
            lines.HEAD_S
        )  # a connection is ours to watch only once hands are shaken, and uvicorn passes none on
    app = make_app(
        api.desk,
        api.streams,
        api.unready,
        is_loopback=on_loopback and not is_proxied,
        is_proxied=is_proxied,
        version=metadata.version("gpubazaar"),
    )
    config = uvicorn.Config(
        Guard(app, names=facing.public_hosts if on_loopback or is_proxied else None),
        http=lines.lines(proxied=is_proxied),
        ssl_certfile=None if facing.tls is None else facing.tls.certificate,
        ssl_keyfile=None if facing.tls is None else facing.tls.key,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        backlog=BACKLOG,
    )
    return _Server(config)


async def serve(
    broker: str,
    keys: MarketKeys,
    *,
    listening: socket.socket,
    database: Path,
    snapshot_file: Path,
    until: asyncio.Event,
    facing: Facing = LOCAL,
    folded: Callable[[], None] = lambda: None,
) -> None:
    """Run until the event. `folded`: called once the ledger is read, before anybody is answered.

    Raises LogCorrupt when the ledger is damaged, ReadModelFailed when the database cannot be opened."""
    read_model = await ReadModel.open(database)
    api = Api(Connection(broker, ServiceKey(keys.market), "api"), read_model, snapshot_file, folded)
    try:
        await _run(api, listening, facing, until)
    finally:
        await api.stop()


async def _run(api: Api, listening: socket.socket, facing: Facing, until: asyncio.Event) -> None:
    """Read and serve until the event, or until either fails."""
    server = _server(api, listening, facing)
    reading = asyncio.create_task(api.run(), name="api")
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    stopped = asyncio.create_task(until.wait())
    try:
        await asyncio.wait({reading, serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        api.streams.close()
        server.should_exit = True
        await end_all((stopped, reading))
        ends = await asyncio.gather(reading, serving, return_exceptions=True)
    for failure in ends:
        if isinstance(failure, ExceptionGroup):
            raise failure.exceptions[0]
        if isinstance(failure, Exception):
            raise failure
