"""The services as processes: each reads the market's folder, connects, runs, and ends on SIGTERM.

Wiring only: what a service does is in its own module.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from events.connection import Connection, ServiceKey
from events.nats_log import NatsLog
from services import genesis
from services.market_keys import MarketKeys, load_or_make, load_sealing_key

if TYPE_CHECKING:
    from services.certificates import Certificate


def calm_collector() -> None:
    """Let the garbage collector look at new objects only, and less often: a fold makes many small ones and no cycles.

    Measured: 10 % of the fold's time with Python's own thresholds, 3 % with these."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def keep_pauses_short() -> None:
    """The same for who answers while somebody waits, once its market is folded: few objects at a time, and what is there never again.

    Measured with 10,000 nodes that are heard every five seconds: a pause of up to 200 ms before, of 5 ms, seldom 25, after."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 5, 1000)


def version() -> str:
    """Of the installed distribution."""
    return metadata.version("gpubazaar")


@dataclass(frozen=True)
class MarketFolder:
    """Where the files of an embedded market lie: `$BAZAAR_HOME/market`."""

    home: Path

    @property
    def path(self) -> Path:
        return self.home / "market"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def genesis(self) -> Path:
        return self.path / "genesis.bin"

    @property
    def snapshot(self) -> Path:
        return self.path / "snapshot.bin"

    @property
    def read_model(self) -> Path:
        return self.path / "read_model.db"

    @property
    def endpoints(self) -> Path:
        return self.path / "endpoints.json"

    @property
    def running(self) -> Path:
        """Process ids and start times of what `up` started."""
        return self.path / "running.json"

    @property
    def lock(self) -> Path:
        """Held by the one `up` of this home."""
        return self.path / "up.lock"

    def load_keys(self) -> MarketKeys:
        """The market's secrets. Raises IdentityError."""
        return load_or_make(self.keys)


def on_stop(stop: Callable[[], None]) -> None:
    """Call `stop` when this process is asked to end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


async def run_matcher(folder: MarketFolder, broker: str, *, standby: bool) -> None:
    """The one writer."""
    from services.matcher.service import Matcher, MatcherKeys

    keys = folder.load_keys()
    connection = Connection(broker, ServiceKey(keys.market), "matcher")
    matcher = Matcher(
        connection,
        NatsLog(connection),
        MatcherKeys(keys.page_key, keys.live_secret, keys.sealing_public),
        genesis=genesis.load(folder.genesis) if folder.genesis.exists() else None,
        snapshot_file=folder.snapshot,
        version=version(),
        standby=standby,
    )
    on_stop(matcher.stop)
    try:
        await matcher.run()
    finally:
        await connection.close()


async def run_callout(folder: MarketFolder, broker: str) -> None:
    """Who may come in."""
    from services.callout import serve

    stopped = asyncio.Event()
    on_stop(stopped.set)
    market_id = genesis.load(folder.genesis).market_id
    await serve(broker, folder.load_keys(), market_id, stopped=stopped, ready=lambda: None)


async def run_gateway(folder: MarketFolder, broker: str) -> None:
    """Files and output."""
    from services.gateway import serve

    stopped = asyncio.Event()
    on_stop(stopped.set)
    keys = folder.load_keys()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no image of the secrets that pass through here
    await serve(broker, keys, snapshot_file=folder.snapshot, until=stopped, sealing_key=load_sealing_key(folder.keys))


async def run_api(
    folder: MarketFolder, broker: str, listening: socket.socket, *, tls: Certificate | None = None, public_hosts: tuple[str, ...] = ()
) -> None:
    """The read-only window. `public_hosts`: the names under which a proxy serves it."""
    from services.api.app import Facing, serve

    stopped = asyncio.Event()
    on_stop(stopped.set)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # connections that do nothing must not use up what others need
    await serve(
        broker,
        folder.load_keys(),
        listening=listening,
        database=folder.read_model,
        snapshot_file=folder.snapshot,
        until=stopped,
        facing=Facing(public_hosts, tls),
        folded=keep_pauses_short,
    )
