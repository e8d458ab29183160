"""Places for work, and a room for questions that came before their answer: who waits there takes no place from anybody.

A service that folds the ledger is a moment behind those who ask about what has just happened. It lets such a question wait for the fold,
but a question about a job that will never be costs its asker only: so many of one wallet wait, so many in all, and so many bytes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager

import structlog

from events.errors import Refused
from events.reasons import Refusal
from events.stepping import end_all

log = structlog.get_logger("market")

OF_A_WALLET = 64
IN_ALL = 8_192
BYTES_MAX = 128 << 20


class Places:
    """So many pieces of work at once."""

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)
        self._tasks: set[asyncio.Task[None]] = set()

    async def give(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        """Start this once there is a place for it; it goes on by itself."""
        await self._free.acquire()
        task = asyncio.get_running_loop().create_task(self._do(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await work()
        except Exception:
            log.exception("an answer failed")
        finally:
            self._free.release()

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Somebody else has the place of this work meanwhile."""
        self._free.release()
        try:
            yield
        finally:
            await self._free.acquire()

    async def close(self) -> None:
        """End all work."""
        await end_all(self._tasks)


class WaitingRoom:
    """Questions about jobs, each with what it waits for."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Future[None], Callable[[], bool]]] = {}
        self._of: Counter[str] = Counter()
        self._bytes = 0

    async def wait(self, wallet: str, job_id: str, holds: Callable[[], bool], *, size_bytes: int, timeout_s: float) -> None:
        """Return when it holds, or not in time. Raises Refused when too many wait already: the same question may be asked again."""
        if self._of[wallet] >= OF_A_WALLET or self._of.total() >= IN_ALL or self._bytes + size_bytes > BYTES_MAX:
            raise Refused(Refusal.RATE_LIMITED, "too many questions wait for jobs that are not known yet; ask again")
        guest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, {})[guest] = holds
        self._of[wallet] += 1
        self._bytes += size_bytes
        try:
            await asyncio.wait({guest}, timeout=timeout_s)
        finally:
            self._bytes -= size_bytes
            self._of[wallet] -= 1
            if not self._of[wallet]:
                del self._of[wallet]
            del self._waiting[job_id][guest]
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    def changed(self, job_ids: Iterable[str]) -> None:
        """These jobs are no longer what they were: who waited for that goes on."""
        for job_id in job_ids:
            for guest, holds in self._waiting.get(job_id, {}).items():
                if not guest.done() and holds():
                    guest.set_result(None)
