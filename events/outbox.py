"""The outbox of one home: events that are not answered yet, in SQLite, so that a crash or an absent market loses none.

Shell. What lies here is unsigned: number and signature are given when an event is sent, so that it can go out under a later
session key. One thread writes and commits once per window, never per event; an event that is answered before its commit never
touches the disk. All processes of a home share the file; of one lane (market, wallet, role, agent) one process sends at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Container
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from events.errors import BazaarError
from events.home import private_folder
from events.wire import Outcome

log = logging.getLogger("bazaar.outbox")

COMMIT_WINDOW_S = 0.010
"""How long an event may wait for its commit; usually it is answered before."""
RETRY_S = 1.0
"""After a failed write."""
BUSY_TIMEOUT_S = 5.0
OUTCOMES_KEPT_MS = 3_600_000
ID_BYTES = 12

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, lane TEXT NOT NULL, body BLOB NOT NULL, created_ms INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_of_lane ON entries (lane, place);
CREATE TABLE IF NOT EXISTS outcomes (id BLOB PRIMARY KEY, outcome BLOB NOT NULL, ended_ms INTEGER NOT NULL) WITHOUT ROWID;
"""

_Inserts = dict[bytes, tuple[bytes, int]]
_Settled = dict[bytes, Outcome | None]


class OutboxFailed(BazaarError):
    """The outbox cannot be read or written: disk full, file damaged, no permission."""

    what = "The outbox cannot be written."


class StoredEntry(NamedTuple):
    """An unanswered event as it lies in the file."""

    id: bytes
    body: bytes


class Handover(NamedTuple):
    """What the last sender of a lane knew when it let go: its session key and that key's last used number."""

    key: bytes
    last_number: int


def new_id() -> bytes:
    """The id of one entry."""
    return secrets.token_bytes(ID_BYTES)


def lane_name(market_id: str, wallet: str, role: str, lane: str = "") -> str:
    """Entries of one lane are sent in order, under one session key."""
    return ".".join(part for part in (market_id[:16], wallet, role, lane) if part)


class Outbox:
    """One process's view of the outbox of one lane."""

    def __init__(self, home: Path, lane: str) -> None:
        """Raises OutboxFailed."""
        self._path = private_folder(home) / "outbox.db"
        self._lane = lane
        try:
            with closing(_connect(self._path)) as setup:
                setup.executescript(_SCHEMA)
            os.chmod(self._path, 0o600)
            self._reader = _connect(self._path)
            self.lock = LaneLock(home / "outbox.locks" / f"{lane}.lock")
            """Who holds it sends for the lane."""
        except (sqlite3.Error, OSError) as error:
            raise OutboxFailed(why=f"{self._path}: {error}", hint="Check the disk and the rights of the file.") from None
        self._writer = _Writer(self._path, lane)
        self._timer: asyncio.TimerHandle | None = None
        self._seen = -1

    def add(self, id: bytes, body: bytes) -> None:
        """Keep an event until it is settled; written within COMMIT_WINDOW_S unless it is settled before. Needs a running event loop."""
        self._writer.insert(id, body)
        self._write_soon()

    async def durable(self) -> None:
        """Return when everything added so far is on disk or settled. Raises OutboxFailed."""
        await asyncio.wrap_future(self._writer.flush())

    def settle(self, id: bytes, outcome: Outcome | None, *, ours: bool) -> None:
        """An event has its answer, or was withdrawn (None). Of another process's event the outcome is kept for it to find."""
        if self._writer.settle(id, None if ours else outcome):
            self._write_soon()

    @property
    def clean(self) -> bool:
        """Whether the file says all that we know: before that nobody else may send for the lane."""
        return self._writer.idle

    def others(self, known: Container[bytes]) -> list[StoredEntry]:
        """Entries of the lane that this process does not know yet, in order. Raises OutboxFailed."""
        rows = self._read("SELECT id, body FROM entries WHERE lane = ? ORDER BY place", (self._lane,))
        return [StoredEntry(*row) for row in rows if row[0] not in known]

    def changed(self) -> bool:
        """Whether anything was written since the last look. Takes microseconds. Raises OutboxFailed."""
        version: int = self._read("PRAGMA data_version", ())[0][0]
        before, self._seen = self._seen, version
        return version != before

    def outcome(self, id: bytes) -> Outcome | None:
        """How an event ended that another process sent for us, if it has. Raises OutboxFailed."""
        rows = self._read("SELECT outcome FROM outcomes WHERE id = ?", (id,))
        return msgspec.msgpack.decode(rows[0][0], type=Outcome) if rows else None

    def close(self) -> None:
        """Write what is left, give up the lock. May take as long as a commit."""
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close()
        self.lock.close()
        self._reader.close()

    def _write_soon(self) -> None:
        """The thread is only woken when something is left to write: waking it costs the sender more than all the rest."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COMMIT_WINDOW_S, self._write)

    def _write(self) -> None:
        self._timer = None
        self._writer.kick()

    def _read(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise OutboxFailed("The outbox cannot be read.", why=f"{self._path}: {error}") from None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class _Writer:
    """The thread that writes. Everything waits in memory until it is kicked."""

    def __init__(self, path: Path, lane: str) -> None:
        self._path = path
        self._lane = lane
        self._wake = threading.Condition()
        self._inserts: _Inserts = {}
        self._settled: _Settled = {}
        self._flushes: list[Future[None]] = []
        self._kicked = False
        self._writing = False
        self._failed = False
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def idle(self) -> bool:
        with self._wake:
            return not (self._writing or self._inserts or self._settled)

    def insert(self, id: bytes, body: bytes) -> None:
        with self._wake:
            self._inserts[id] = (body, int(time.time() * 1000))

    def settle(self, id: bytes, outcome: Outcome | None) -> bool:
        """Whether there is something to write: an event that was never written needs no deletion."""
        with self._wake:
            if self._inserts.pop(id, None) is None:
                self._settled[id] = outcome
            return bool(self._settled or self._inserts)

    def flush(self) -> Future[None]:
        done: Future[None] = Future()
        with self._wake:
            if self._closing:
                done.set_exception(OutboxFailed(why=f"{self._path}: it is closed"))
                return done
            self._flushes.append(done)
        self.kick()
        return done

    def kick(self) -> None:
        with self._wake:
            if not (self._inserts or self._settled or self._flushes):
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
            self._kicked = True
            self._wake.notify()

    def close(self) -> None:
        self.kick()
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        last = False
        while not last:
            with self._wake:
                while not (self._kicked or self._closing) and self._wake.wait(RETRY_S if self._failed else None):
                    pass
                last, self._kicked = self._closing, False
                inserts, self._inserts = self._inserts, {}
                settled, self._settled = self._settled, {}
                flushes, self._flushes = self._flushes, []
                self._writing = True
            failure: OutboxFailed | None = None
            try:
                connection = connection or _connect(self._path)
                if inserts or settled:
                    self._write(connection, inserts, settled)
            except Exception as error:  # whatever it is: this thread goes on, and who waits for the disk hears of it
                failure = OutboxFailed(why=f"{self._path}: {error}", hint="Free some disk space; until then a crash would lose events.")
                log.error("%s %s", failure.what, failure.why)
                self._put_back(inserts, settled)
            with self._wake:
                self._failed, self._writing = failure is not None, False
            for done in flushes:
                done.set_result(None) if failure is None else done.set_exception(failure)
        if connection is not None:
            connection.close()

    def _write(self, connection: sqlite3.Connection, inserts: _Inserts, settled: _Settled) -> None:
        """One transaction, one fsync."""
        now_ms = int(time.time() * 1000)
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(
                "INSERT OR IGNORE INTO entries (id, lane, body, created_ms) VALUES (?, ?, ?, ?)",
                [(id, self._lane, body, created_ms) for id, (body, created_ms) in inserts.items()],
            )
            connection.executemany("DELETE FROM entries WHERE id = ?", [(id,) for id in settled])
            kept = [(id, msgspec.msgpack.encode(outcome), now_ms) for id, outcome in settled.items() if outcome is not None]
            connection.executemany("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", kept)
            if kept:
                connection.execute("DELETE FROM outcomes WHERE ended_ms < ?", (now_ms - OUTCOMES_KEPT_MS,))
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _put_back(self, inserts: _Inserts, settled: _Settled) -> None:
        """To be written later, without what was settled meanwhile."""
        with self._wake:
            for id, insert in inserts.items():
                if id in self._settled:
                    del self._settled[id]
                else:
                    self._inserts[id] = insert
            self._settled = settled | self._settled


class LaneLock:
    """Who may send for a lane, across processes, and what it leaves to the next one."""

    def __init__(self, path: Path) -> None:
        private_folder(path.parent)
        self._handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self.held = False

    def acquire(self) -> tuple[bool, Handover | None]:
        """Whether it is ours now, and what the last sender left; None when it ended without saying, so that the market must be asked."""
        assert not self.held
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False, None
        self.held = True
        left = _handover(os.pread(self._handle, 200, 0))
        os.ftruncate(self._handle, 0)  # until we say otherwise we may die at any moment
        return True, left

    def release(self, left: Handover | None) -> None:
        """Let go, and leave word for the next one if we know where the key stands."""
        if not self.held:
            return
        if left is not None:
            os.pwrite(self._handle, f"{left.key.hex()} {left.last_number}\n".encode(), 0)
        fcntl.flock(self._handle, fcntl.LOCK_UN)
        self.held = False

    def close(self) -> None:
        """Let go for good."""
        self.release(None)
        os.close(self._handle)


def _handover(data: bytes) -> Handover | None:
    try:
        key, number = data.decode().split()
        return Handover(bytes.fromhex(key), int(number)) if data.endswith(b"\n") else None
    except ValueError:
        return None
