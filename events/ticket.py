"""The promise that a client gives for an event: its answer, once the market has one. No I/O; settled by `events/sender.py`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from typing import Any

from events.errors import BazaarError
from events.wire import Outcome

log = logging.getLogger("bazaar.sender")


class Ticket:
    """The promise of an answer to one event. Await it for its Outcome."""

    __slots__ = ("_callbacks", "_error", "_outcome", "_waiters", "_withdraw", "id")

    def __init__(self, id: bytes, withdraw: Callable[[Ticket], bool]) -> None:
        self.id = id
        self._withdraw = withdraw
        self._outcome: Outcome | None = None
        self._error: BazaarError | None = None
        self._waiters: list[asyncio.Future[Outcome]] = []
        self._callbacks: list[Callable[[Outcome], None]] = []

    @property
    def outcome(self) -> Outcome | None:
        """The answer, once it is there."""
        return self._outcome

    def on_outcome(self, callback: Callable[[Outcome], None]) -> None:
        """Call back with the answer, in the call that brings it."""
        if self._outcome is not None:
            callback(self._outcome)
        else:
            self._callbacks.append(callback)

    def withdraw(self) -> bool:
        """Take the event back. False when it was or may have been sent: then it stays in the outbox until it is answered."""
        return self._withdraw(self)

    def settle(self, outcome: Outcome) -> None:
        """For the sender only."""
        self._outcome = outcome
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(outcome)
        for callback in self._callbacks:
            try:
                callback(outcome)
            except Exception:
                log.exception("what waits for an outcome failed")

    def fail(self, error: BazaarError) -> None:
        """For the sender only: there will be no answer in this process."""
        self._error = error
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(error)

    def __await__(self) -> Generator[Any, None, Outcome]:
        if self._outcome is not None:
            return self._outcome
        if self._error is not None:
            raise self._error
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return (yield from waiter)
