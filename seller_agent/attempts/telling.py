"""Gathers what is to be told about attempts for a moment, so that what happens together travels in one envelope. It decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from events.jobs import AttemptEvent
from events.wire import Outcome
from seller_agent.attempts.attempt import Attempt
from seller_agent.attempts.link import Market

Answered = Callable[[Attempt, AttemptEvent, Outcome], None]


class Teller:
    """The events of one node about its attempts, in order; `answered` hears how each ended."""

    def __init__(self, market: Market, answered: Answered) -> None:
        self._market = market
        self._answered = answered
        self._outgoing: list[tuple[Attempt, AttemptEvent]] = []
        self._flushing: asyncio.Handle | None = None
        self._flush_soon = False

    def tell(self, attempt: Attempt, *events: AttemptEvent, wait_s: float = 0.0) -> None:
        """Publish events in order; with what else comes up in this moment, or for as long as `wait_s`."""
        self._outgoing.extend((attempt, event) for event in events)
        if self._flushing is not None and (self._flush_soon or wait_s):
            return
        if self._flushing is not None:
            self._flushing.cancel()
        self._flush_soon = wait_s == 0.0
        loop = asyncio.get_running_loop()
        self._flushing = loop.call_later(wait_s, self.flush) if wait_s else loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand everything told so far to the market client."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing:
            return
        tickets = self._market.enqueue(*(event for _, event in outgoing))
        for (attempt, event), ticket in zip(outgoing, tickets, strict=True):
            ticket.on_outcome(lambda outcome, attempt=attempt, event=event: self._answered(attempt, event, outcome))  # type: ignore[misc]
