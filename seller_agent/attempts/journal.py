"""What a node must still know after `kill -9`: its attempts, why it stopped a run, and when a beat was last answered for each lease.

SQLite (WAL, synchronous=FULL) in one thread; changes are gathered and written as one transaction a window, so that a job which comes
and goes within a window costs no disk access. `commit` is for what must be durable before something is done. The ledger, the outbox and
the runner know the rest: nothing here is believed against them.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from events.errors import BazaarError
from seller_agent.attempts.attempt import Attempt

WINDOW_S = 0.05
RETRY_S = 1.0
VERSION = 1

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Attempt)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (epoch INTEGER PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


class JournalError(BazaarError):
    """The journal cannot be read or written."""

    what = "The node's journal failed."


class Leases(msgspec.Struct, frozen=True, kw_only=True):
    """When the last answered beat of each epoch was sent, on CLOCK_BOOTTIME of the boot named."""

    boot_id: str
    sent_boot_ms: dict[int, int]


class Journal:
    """The journal of one node. Open and close it in a running event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._database: sqlite3.Connection | None = None
        self._dirty: dict[int, Attempt] = {}
        self._gone: set[int] = set()
        self._stored: set[int] = set()
        """Epochs that have a row, or may have one soon."""
        self._leases: Leases | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self.trouble: str = ""
        """Why the last write failed; empty when it did not."""

    async def open(self) -> tuple[list[Attempt], Leases | None]:
        """Everything kept. Raises JournalError."""
        try:
            attempts, leases = await self._in_thread(self._open)
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            hint = "Is the disk full, or the file damaged? Move it away to start anew."
            raise JournalError(why=f"{self._path}: {error}", hint=hint) from None
        self._stored = {attempt.epoch for attempt in attempts}
        return attempts, leases

    def keep(self, attempt: Attempt) -> None:
        """Write this attempt with the next window, as it is then."""
        self._dirty[attempt.epoch] = attempt
        self._schedule(WINDOW_S)

    def forget(self, epoch: int) -> None:
        """Take an attempt away with the next window."""
        self._dirty.pop(epoch, None)
        if epoch in self._stored:
            self._gone.add(epoch)
            self._schedule(WINDOW_S)

    def answered(self, leases: Leases) -> None:
        """Remember which leases were renewed, and from when that counts."""
        self._leases = leases
        self._schedule(WINDOW_S)

    async def commit(self) -> None:
        """Return once everything said so far is on the disk. Raises JournalError."""
        while self._writing is not None:
            await asyncio.shield(self._writing)
        await asyncio.shield(self._begin())  # who waits may be cancelled, the write goes on
        if self.trouble:
            raise JournalError(why=f"{self._path}: {self.trouble}", hint="Free the disk.")

    async def close(self) -> None:
        """Write what is left and let go of the file."""
        if self._database is not None:
            with contextlib.suppress(JournalError):
                await self.commit()
        if self._timer is not None:
            self._timer.cancel()
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    def _schedule(self, after_s: float) -> None:
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._begin)

    def _begin(self) -> asyncio.Task[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())
        return self._writing

    async def _write(self) -> None:
        dirty, gone, leases = self._dirty, self._gone, self._leases
        self._dirty, self._gone, self._leases = {}, set(), None
        rows = [(epoch, _encoder.encode(attempt)) for epoch, attempt in dirty.items()]
        self._stored |= dirty.keys()
        try:
            if rows or gone or leases is not None:
                await self._in_thread(self._store, rows, gone, leases)
            self._stored -= gone
            self.trouble = ""
        except (sqlite3.Error, OSError) as error:
            self.trouble = str(error)
            self._dirty = {epoch: attempt for epoch, attempt in {**dirty, **self._dirty}.items() if epoch not in self._gone}
            self._gone |= gone
            self._leases = self._leases or leases
        self._writing = None
        if self._dirty or self._gone or self._leases is not None:
            self._schedule(RETRY_S if self.trouble else WINDOW_S)

    # In the thread.

    def _open(self) -> tuple[list[Attempt], Leases | None]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._path.chmod(0o600)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.executescript(_SCHEMA)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, this program writes {VERSION}")
        database.execute(f"PRAGMA user_version={VERSION}")
        attempts = [_decoder.decode(body) for (body,) in database.execute("SELECT body FROM attempts ORDER BY epoch")]
        row = database.execute("SELECT value FROM meta WHERE name = 'leases'").fetchone()
        return attempts, None if row is None else msgspec.msgpack.decode(row[0], type=Leases)

    def _store(self, rows: list[tuple[int, bytes]], gone: Iterable[int], leases: Leases | None) -> None:
        database = self._database
        assert database is not None, "the journal is open"
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany("INSERT OR REPLACE INTO attempts VALUES (?, ?)", rows)
            database.executemany("DELETE FROM attempts WHERE epoch = ?", [(epoch,) for epoch in gone])
            if leases is not None:
                database.execute("INSERT OR REPLACE INTO meta VALUES ('leases', ?)", (_encoder.encode(leases),))
            database.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                database.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
