"""One line in the log for every ended attempt; of a storm of small jobs only some, and how many more: a line costs as much as a job."""

from __future__ import annotations

import asyncio

import structlog

from seller_agent.attempts.attempt import Attempt
from seller_agent.attempts.endings import Ending

log = structlog.get_logger("seller")

LINES_PER_S = 20


class EndLines:
    """The lines of one node."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._second = 0.0
        self._written = 0
        self._more = 0

    def note(self, attempt: Attempt, event: Ending) -> None:
        """An attempt ended."""
        now = self._loop.time()
        if now - self._second >= 1.0:
            self._second, self._written = now, 0
        self._written += 1
        if self._written <= LINES_PER_S:
            log.info(
                "ended",
                job=attempt.job_id,
                attempt=attempt.attempt,
                epoch=attempt.epoch,
                reason=event.reason.value,
                exit_code=event.exit_code,
                ran_ms=event.ran_ms,
            )
            return
        if self._more == 0:
            self._loop.call_later(1.0, self._say_more)
        self._more += 1

    def _say_more(self) -> None:
        log.info("ended, without a line each", jobs=self._more)
        self._more = 0
