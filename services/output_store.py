"""What jobs print, on the stream OUTPUT: one message a frame, subject `out.<job>.<attempt>`, each with the totals after it.

Every channel is append-only: what starts before the recorded end is cut to what is new, what starts after it is a gap and waits.
"""

from __future__ import annotations

import asyncio

import msgspec

from events.connection import Connection
from events.errors import LogUnavailable
from events.streams import append, direct_get
from events.subjects import OUTPUT_STREAM
from events.wire import OutputChunk

READ_BYTES = 256 * 1024
STDOUT, STDERR = 1, 2
KNOWN_MAX = 20_000


class OutputRecord(msgspec.Struct, frozen=True, array_like=True):
    """One stored frame."""

    stdout_bytes: int
    stderr_bytes: int
    chunks: tuple[OutputChunk, ...]


class OutputStore:
    """Recorded output of all attempts. One process writes it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._totals: dict[tuple[str, int], tuple[int, int]] = {}
        self._generation = 0
        """Of the connection over which the totals were learnt: a broker that was killed may have forgotten the last of what it took."""
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}

    async def totals(self, job_id: str, attempt: int) -> tuple[int, int]:
        """Recorded bytes of stdout and stderr. Raises LogUnavailable."""
        key = (job_id, attempt)
        if self._generation != self._connection.generation:
            self._totals.clear()
            self._generation = self._connection.generation
        known = self._totals.get(key)
        if known is None:
            stored = await direct_get(self._connection, OUTPUT_STREAM, subject=f"out.{job_id}.{attempt}", last=True)
            record = None if stored is None else msgspec.msgpack.decode(stored.data, type=OutputRecord)
            known = (0, 0) if record is None else (record.stdout_bytes, record.stderr_bytes)
            if len(self._totals) > KNOWN_MAX:
                self._totals.clear()
            self._totals[key] = known
        return known

    async def add(self, job_id: str, attempt: int, chunks: tuple[OutputChunk, ...], limit_bytes: int) -> tuple[int, int, bool]:
        """Record what is new; the totals then, and whether the attempt's quota is used up. Raises LogUnavailable."""
        key = (job_id, attempt)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                known = await self.totals(job_id, attempt)
                ends = {STDOUT: known[0], STDERR: known[1]}
                fresh: list[OutputChunk] = []
                for chunk in chunks:
                    kept = _fresh_part(chunk, ends[chunk.channel], limit_bytes - sum(ends.values()))
                    if kept is not None:
                        fresh.append(kept)
                        ends[chunk.channel] += len(kept.data)
                if fresh:
                    if self._generation != self._connection.generation:
                        raise LogUnavailable(why="the connection was lost while output was recorded", hint="Send it again.")
                    record = OutputRecord(ends[STDOUT], ends[STDERR], tuple(fresh))
                    self._totals.pop(key, None)  # until this is known to be stored
                    await append(self._connection, f"out.{job_id}.{attempt}", msgspec.msgpack.encode(record))
                    self._totals[key] = (ends[STDOUT], ends[STDERR])
                return ends[STDOUT], ends[STDERR], sum(ends.values()) >= limit_bytes
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def read(self, job_id: str, attempt: int, cursor: int) -> tuple[tuple[OutputChunk, ...], int]:
        """Chunks after this cursor, some at a time, and the cursor then; no chunks: nothing more yet. Raises LogUnavailable."""
        found: list[OutputChunk] = []
        size = 0
        while size < READ_BYTES:
            stored = await direct_get(self._connection, OUTPUT_STREAM, seq=cursor + 1, subject=f"out.{job_id}.{attempt}")
            if stored is None:
                break
            record = msgspec.msgpack.decode(stored.data, type=OutputRecord)
            found.extend(record.chunks)
            size += len(stored.data)
            cursor = stored.seq
        return tuple(found), cursor


def _fresh_part(chunk: OutputChunk, end: int, room: int) -> OutputChunk | None:
    """What of a chunk goes on where its channel ends, cut to the room that is left."""
    if chunk.offset > end or chunk.offset + len(chunk.data) <= end:
        return None
    data = chunk.data[end - chunk.offset :][: max(0, room)]
    return OutputChunk(chunk.channel, end, data) if data else None
