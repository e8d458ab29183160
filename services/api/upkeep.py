"""Keeping the mirror and the read model in step with the ledger: begin, follow, write, listen to heartbeats. The only writer of either.

Begins at the matcher's snapshot when the rows on disk reach at least as far, else at the first page. Rows that do not continue this very
ledger are thrown away.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import structlog

from events import wire
from events.codec import Malformed
from events.connection import Connection
from events.errors import LogUnavailable
from events.log import Log
from events.nats_client import Message
from events.page import BrokenPage, decode_page, page_hash
from events.subjects import LIVE_MARKET
from projections.snapshot import FOLD_VERSION
from services.api.desk import wall_ms
from services.api.mirror import Batch, Mirror
from services.api.read_model import VIEW_VERSION, Progress, ReadModel, ReadModelFailed
from services.follower import Follower, restore

log = structlog.get_logger("api")

SLICE_S = 0.02
"""How long pages are folded without letting readers in between."""
WRITE_EVERY_S = 0.25
WRITE_AGAIN_S = 1.0
ROWS_UNWRITTEN_MAX = 50_000
"""Beyond it folding waits for the disk."""
LAG_S_MAX = 10.0
"""How long the market may be ahead before the API says that it is not ready."""
RETRY_S = 0.2


async def begin(ledger: Log, read_model: ReadModel, snapshot_file: Path | None) -> tuple[Mirror, str]:
    """A mirror to go on from, and what was decided, in words. Raises LogUnavailable, LogCorrupt, ReadModelFailed."""
    created = (await ledger.head()).created
    progress = await read_model.progress()
    doubt = await _doubt(ledger, progress, created)
    if progress is not None and doubt is not None:
        log.warning("the read model is made anew", why=doubt)
        await read_model.reset()
        progress = None
    pages = 0 if progress is None else progress.pages
    follower, how = await restore(ledger, snapshot_file)
    if follower.market.pages > pages:
        follower, how = Follower(), f"replaying the whole ledger: the rows end at page {pages}, the snapshot at {follower.market.pages}"
    return Mirror(follower, log_created=created, on_disk_pages=pages, now_ms=wall_ms()), how


async def _doubt(ledger: Log, progress: Progress | None, created: str) -> str | None:
    """Why the rows do not continue this ledger, or None when they do."""
    if progress is None:
        return None
    if (progress.fold_version, progress.view_version) != (FOLD_VERSION, VIEW_VERSION):
        return "it was made by another version"
    if progress.log_created != created:
        return "it was made of another ledger"
    stored = await ledger.read(progress.pages)
    try:
        if stored is None or page_hash(decode_page(stored.data)) != progress.page_hash:
            return f"the ledger has another page {progress.pages}"
    except BrokenPage as error:
        return f"the ledger has another page {progress.pages}: {error}"
    return None


class Upkeep:
    """Follows one ledger for as long as it runs."""

    def __init__(self, connection: Connection, ledger: Log, read_model: ReadModel, mirror: Mirror) -> None:
        self._connection = connection
        self._ledger = ledger
        self._read_model = read_model
        self.mirror = mirror
        self._behind_since_s: float | None = None
        self._disk_trouble = ""
        self._write_wanted = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def unready(self) -> str | None:
        """Why answers may be older than the ledger; None when they are not."""
        if not self._connection.is_up:
            return "the broker is not reachable"
        since_s = self._behind_since_s
        if since_s is not None and time.monotonic() - since_s > LAG_S_MAX:
            return f"the ledger has been ahead for more than {LAG_S_MAX:g} s"
        return self._disk_trouble or None

    async def listen(self) -> None:
        """Hear heartbeats and where the ledger stands."""
        await self._connection.subscribe("beats.*", self._on_beat)
        await self._connection.subscribe(LIVE_MARKET, self._on_tick)

    async def catch_up(self) -> None:
        """Fold what the ledger holds now. Raises LogCorrupt, LogUnavailable."""
        head = await self._ledger.head()
        if head.position > self.mirror.market.pages:
            await self._fold(until=head.position)

    async def follow(self) -> None:
        """Fold the ledger for ever. Raises LogCorrupt."""
        while True:
            try:
                await self._fold(until=None)
            except LogUnavailable as error:
                log.warning("the ledger is not available", why=error.why or str(error))
                await asyncio.sleep(RETRY_S)

    async def _fold(self, until: int | None) -> None:
        mirror = self.mirror
        began_s = time.monotonic()
        async for stored in self._ledger.follow(mirror.market.pages, until=until):
            mirror.fold(stored)
            self._write_wanted.set()
            if time.monotonic() - began_s > SLICE_S:
                await asyncio.sleep(0)
                began_s = time.monotonic()
            if mirror.unwritten_rows > ROWS_UNWRITTEN_MAX:
                self._room.clear()
                await self._room.wait()

    async def write(self) -> None:
        """Bring rows to disk for ever, many at a time."""
        while True:
            await self._write_wanted.wait()
            self._write_wanted.clear()
            try:
                await self.write_now()
                self._disk_trouble = ""
            except ReadModelFailed as error:
                if not self._disk_trouble:
                    log.error("rows stay in memory", why=error.why)
                self._disk_trouble = f"the read model cannot be written: {error.why}"
                self._write_wanted.set()
                await asyncio.sleep(WRITE_AGAIN_S)
            await asyncio.sleep(WRITE_EVERY_S if self._room.is_set() else 0)

    async def write_now(self) -> None:
        """Bring to disk what is not there yet. Raises ReadModelFailed."""
        batch: Batch | None = self.mirror.batch()
        if batch is not None:
            await self._read_model.write(batch.jobs, batch.places, batch.progress, batch.candles)
            self.mirror.written(batch)
            self._room.set()

    def _on_beat(self, message: Message) -> None:
        try:
            view = wire.decode(message.data, wire.BeatView)
        except Malformed:
            log.warning("a heartbeat cannot be read", subject=message.subject)
            return
        self.mirror.heard(view, wall_ms())

    def _on_tick(self, message: Message) -> None:
        try:
            tick = wire.decode(message.data, wire.Tick)
        except Malformed:
            return
        if tick.seq <= self.mirror.market.last_seq:
            self._behind_since_s = None
        elif self._behind_since_s is None:
            self._behind_since_s = time.monotonic()
