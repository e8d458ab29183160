"""The read model on disk: every job that has ended, as the JSON that is served, and in which pages of the ledger a job is spoken of.

A fold of the ledger, kept in SQLite because it outgrows memory. Each batch is one transaction together with its checkpoint, so rows and
checkpoint never disagree; on any doubt whether it continues this very ledger it is thrown away and made anew. The owner of aiosqlite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiosqlite

from events.errors import BazaarError
from projections.job_states import TERMINAL
from projections.snapshot import FOLD_VERSION
from services.api.candles import Candle, Key

VIEW_VERSION = 2
"""Raised whenever the JSON of a finished job, or a table, changes."""

_SCHEMA = """
CREATE TABLE checkpoint (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    view_version INTEGER NOT NULL, fold_version INTEGER NOT NULL, log_created TEXT NOT NULL,
    pages INTEGER NOT NULL, last_seq INTEGER NOT NULL, page_hash BLOB NOT NULL
);
CREATE TABLE jobs (
    submitted_seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, ended_seq INTEGER NOT NULL, submitted_ms INTEGER NOT NULL,
    state TEXT NOT NULL, buyer TEXT NOT NULL, node TEXT, org TEXT, grp TEXT, body BLOB NOT NULL
);
CREATE INDEX jobs_state ON jobs (state, submitted_seq);
CREATE INDEX jobs_buyer ON jobs (buyer, submitted_seq);
CREATE INDEX jobs_node ON jobs (node, submitted_seq);
CREATE INDEX jobs_org ON jobs (org, submitted_seq);
CREATE INDEX jobs_grp ON jobs (grp, submitted_seq);
CREATE TABLE labels (label TEXT NOT NULL, submitted_seq INTEGER NOT NULL, PRIMARY KEY (label, submitted_seq)) WITHOUT ROWID;
CREATE TABLE candles (
    model TEXT NOT NULL, minute INTEGER NOT NULL, matches INTEGER NOT NULL, gpus INTEGER NOT NULL,
    low INTEGER NOT NULL, high INTEGER NOT NULL, total INTEGER NOT NULL, PRIMARY KEY (model, minute)
) WITHOUT ROWID;
CREATE INDEX candles_minute ON candles (minute);
CREATE TABLE places (job TEXT NOT NULL, page INTEGER NOT NULL, PRIMARY KEY (job, page)) WITHOUT ROWID;
"""
TERMINAL_STATES = frozenset(state.value for state in TERMINAL)
_TABLES = ("candles", "checkpoint", "jobs", "labels", "places")


class ReadModelFailed(BazaarError):
    """The file of the read model cannot be read or written just now."""

    what = "The API's read model failed."


class Progress(NamedTuple):
    """What the rows cover, and by which code."""

    log_created: str
    pages: int
    last_seq: int
    page_hash: bytes
    fold_version: int = FOLD_VERSION
    view_version: int = VIEW_VERSION


class FinishedJob(NamedTuple):
    """A job that has ended, and what it is found by."""

    submitted_seq: int
    job_id: str
    ended_seq: int
    submitted_ms: int
    state: str
    buyer: str
    node: str | None
    org: str | None
    group: str | None
    labels: tuple[str, ...]
    """`key=value` each."""
    body: bytes
    """Its JSON."""


class JobFilter(NamedTuple):
    """Which jobs are asked for; everything must hold."""

    states: frozenset[str] = frozenset()
    """Any of these; empty: all."""
    buyer: str | None = None
    node: str | None = None
    org: str | None = None
    group: str | None = None
    labels: tuple[str, ...] = ()
    since_ms: int | None = None
    until_ms: int | None = None
    seen_by: tuple[str, frozenset[str]] | None = None
    """(a wallet, organisations): only jobs of these; None: all."""

    def passes(self, job: FinishedJob) -> bool:
        """Whether a row that is not on disk yet is asked for."""
        return (
            (not self.states or job.state in self.states)
            and self.buyer in (None, job.buyer)
            and self.node in (None, job.node)
            and self.org in (None, job.org)
            and self.group in (None, job.group)
            and set(self.labels) <= set(job.labels)
            and (self.since_ms is None or job.submitted_ms >= self.since_ms)
            and (self.until_ms is None or job.submitted_ms < self.until_ms)
            and (self.seen_by is None or job.buyer == self.seen_by[0] or job.org in self.seen_by[1])
        )


class ReadModel:
    """The open file. One connection writes, another one reads, so that readers wait for nobody."""

    def __init__(self, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self._writer = writer
        self._reader = reader

    @classmethod
    async def open(cls, file: Path) -> ReadModel:
        """The read model in this file; a file that is none is replaced. Raises ReadModelFailed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with _wrapped():
            try:
                return await cls._open(file)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                    raise
                for name in (file.name, f"{file.name}-wal", f"{file.name}-shm"):
                    file.with_name(name).unlink(missing_ok=True)
                return await cls._open(file)

    @classmethod
    async def _open(cls, file: Path) -> ReadModel:
        writer = await _connect(file)
        try:
            found = {str(row[0]) for row in await writer.execute_fetchall("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if found != set(_TABLES):
                await _make_anew(writer, found)
            reader = await _connect(file)
        except BaseException:
            await writer.close()
            raise
        return cls(writer, reader)

    async def close(self) -> None:
        """Let go of the file."""
        await self._reader.close()
        await self._writer.close()

    async def progress(self) -> Progress | None:
        """What the rows cover; None when there are none. Raises ReadModelFailed."""
        with _wrapped():
            rows = await self._fetch(
                self._writer, "SELECT log_created, pages, last_seq, page_hash, fold_version, view_version FROM checkpoint", ()
            )
        return Progress(*rows[0]) if rows else None

    async def reset(self) -> None:
        """Throw everything away. Raises ReadModelFailed."""
        with _wrapped():
            await _make_anew(self._writer, set(_TABLES))

    async def write(
        self,
        jobs: Iterable[FinishedJob],
        places: Iterable[tuple[str, int]],
        progress: Progress,
        candles: Iterable[tuple[Key, Candle]] = (),
    ) -> None:
        """Add rows and move the checkpoint, all or nothing. Raises ReadModelFailed."""
        kept = list(jobs)
        minutes = [(*key, one.matches, one.gpus, one.low_uusd, one.high_uusd, one.total_uusd) for key, one in candles]
        labels = [(label, job.submitted_seq) for job in kept for label in job.labels]
        rows = [(*job[:9], job.body) for job in kept]
        writer = self._writer
        with _wrapped():
            try:  # around BEGIN as well: who is cancelled while it is under way must not leave it open
                await writer.execute("BEGIN IMMEDIATE")
                await writer.executemany("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
                await writer.executemany("INSERT OR IGNORE INTO labels VALUES (?, ?)", labels)
                await writer.executemany("INSERT OR IGNORE INTO places VALUES (?, ?)", places)
                await writer.executemany(_ADD_CANDLE, minutes)
                await writer.execute(
                    "INSERT OR REPLACE INTO checkpoint (one, log_created, pages, last_seq, page_hash, fold_version, view_version)"
                    " VALUES (1, ?, ?, ?, ?, ?, ?)",
                    progress,
                )
                await writer.execute("COMMIT")
            except BaseException:
                await _roll_back(writer)
                raise

    async def job(self, job_id: str) -> FinishedJob | None:
        """One job. Raises ReadModelFailed."""
        with _wrapped():
            rows = await self._fetch(self._reader, f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,))
        return _finished(rows[0]) if rows else None

    async def jobs(self, wanted: JobFilter, *, before_seq: int | None, as_of_seq: int, limit: int, above_seq: int = 0) -> list[FinishedJob]:
        """Jobs that had ended by `as_of_seq`, newest first, all submitted after `above_seq`. Raises ReadModelFailed."""
        found: dict[int, FinishedJob] = {}
        for branch in branches(wanted):
            query, values = select(branch, before_seq=before_seq, above_seq=above_seq, as_of_seq=as_of_seq)
            with _wrapped():
                rows = await self._fetch(self._reader, query, (*values, limit))
            found.update((int(row[0]), _finished(row)) for row in rows)
        return [found[seq] for seq in sorted(found, reverse=True)[:limit]]

    async def places(self, job_id: str) -> list[int]:
        """The pages that speak of a job, in order. Raises ReadModelFailed."""
        with _wrapped():
            rows = await self._fetch(self._reader, "SELECT page FROM places WHERE job = ? ORDER BY page", (job_id,))
        return [int(row[0]) for row in rows]

    async def candles(self, model: str | None, since_minute: int, until_minute: int) -> tuple[list[tuple[Key, Candle]], int]:
        """What was matched from the one minute on, before the other; and up to which page (0: there is nothing). Raises ReadModelFailed."""
        told = "model, minute, matches, gpus, low, high, total, (SELECT pages FROM checkpoint)"
        query = f"SELECT {told} FROM candles WHERE minute >= ? AND minute < ?"
        values: tuple[Any, ...] = (since_minute, until_minute)
        if model is not None:
            query, values = f"{query} AND model = ?", (*values, model)
        with _wrapped():
            rows = await self._fetch(self._reader, query, values)
        return [((str(row[0]), int(row[1])), Candle(*row[2:7])) for row in rows], int(rows[0][7]) if rows else 0

    @staticmethod
    async def _fetch(connection: aiosqlite.Connection, query: str, values: tuple[Any, ...]) -> list[sqlite3.Row]:
        return list(await connection.execute_fetchall(query, values))


_ADD_CANDLE = (
    "INSERT INTO candles VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (model, minute) DO UPDATE SET matches = matches + excluded.matches,"
    " gpus = gpus + excluded.gpus, low = min(low, excluded.low), high = max(high, excluded.high), total = total + excluded.total"
)
_COLUMNS = "jobs.submitted_seq, id, ended_seq, submitted_ms, state, buyer, node, org, grp, body"


def _finished(row: Any) -> FinishedJob:
    return FinishedJob._make((*row[:9], (), row[9]))


def branches(wanted: JobFilter) -> list[JobFilter]:
    """The same filter as several, each of which one index answers in order: whoever asks for two states is asked for neither twice."""
    states: list[frozenset[str]] = [frozenset()]
    if wanted.states and not wanted.states >= TERMINAL_STATES:
        states = [frozenset({state}) for state in sorted(wanted.states & TERMINAL_STATES)]
    seen: list[JobFilter] = [wanted]
    if wanted.seen_by is not None:
        wallet, orgs = wanted.seen_by
        mine = [wanted._replace(seen_by=None, buyer=wallet)] if wanted.buyer in (None, wallet) else []
        seen = mine + [wanted._replace(seen_by=None, org=org) for org in sorted(orgs) if wanted.org in (None, org)]
    return [branch._replace(states=state) for branch in seen for state in states]


def select(wanted: JobFilter, *, before_seq: int | None, above_seq: int = 0, as_of_seq: int) -> tuple[str, list[Any]]:
    """The query of one branch, newest first, but for its limit; whatever a caller wrote stands in the values only."""
    source, place = "jobs", "jobs.submitted_seq"
    conditions: list[str] = []
    values: list[Any] = []
    if wanted.labels:  # walk along the first label, newest first, whatever the planner thinks of it
        source, place = "labels CROSS JOIN jobs ON jobs.submitted_seq = labels.submitted_seq", "labels.submitted_seq"
        conditions.append("label = ?")
        values.append(wanted.labels[0])
    exact: dict[str, Any] = {
        f"{place} < ?": before_seq,
        f"{place} > ?": above_seq or None,
        "ended_seq <= ?": as_of_seq,
        "state = ?": next(iter(wanted.states), None),
        "buyer = ?": wanted.buyer,
        "node = ?": wanted.node,
        "org = ?": wanted.org,
        "grp = ?": wanted.group,
        "submitted_ms >= ?": wanted.since_ms,
        "submitted_ms < ?": wanted.until_ms,
    }
    for condition, value in exact.items():
        if value is not None:
            conditions.append(condition)
            values.append(value)
    for label in wanted.labels[1:]:
        conditions.append("EXISTS (SELECT 1 FROM labels AS l WHERE l.label = ? AND l.submitted_seq = jobs.submitted_seq)")
        values.append(label)
    return f"SELECT {_COLUMNS} FROM {source} WHERE {' AND '.join(conditions)} ORDER BY {place} DESC LIMIT ?", values


async def _connect(file: Path) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(file, isolation_level=None)
    try:
        for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = NORMAL", "temp_store = MEMORY"):
            await connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        await connection.close()
        raise
    return connection


async def _make_anew(writer: aiosqlite.Connection, found: set[str]) -> None:
    try:
        await writer.execute("BEGIN IMMEDIATE")
        for table in sorted(found):
            await writer.execute(f'DROP TABLE "{table.replace(chr(34), chr(34) * 2)}"')
        for statement in _SCHEMA.split(";"):
            await writer.execute(statement)
        await writer.execute("COMMIT")
    except BaseException:
        await _roll_back(writer)
        raise


async def _roll_back(writer: aiosqlite.Connection) -> None:
    with suppress(sqlite3.Error):  # the failure that led here is what counts
        await writer.execute("ROLLBACK")


@contextmanager
def _wrapped() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        hint = "Is its disk full? The file may be deleted while the API is stopped: it is made anew."
        raise ReadModelFailed(why=str(error), hint=hint) from error
