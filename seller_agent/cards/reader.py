"""Reads the cards of this machine, of every kind, in a thread of its own: a driver that hangs stops nobody.

A call that takes too long raises CardsHung, and so does every further one at once until the driver has answered.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

from seller_agent.cards.card import CardTelemetry, DetectedCard, Inventory, NoCards, Vendor, idle
from seller_agent.cards.nvidia import INDEX_MAX, Nvml
from seller_agent.cards.others import Amd, Apple

T = TypeVar("T")

TIMEOUT_S = 5.0


class CardsHung(Exception):
    """The driver has not answered in time; it cannot be interrupted, only waited for."""


class _Sources:
    """Every kind of card. Used by the reading thread only."""

    def __init__(self) -> None:
        self.nvml = Nvml()
        self.others = (Amd(), Apple())

    def inventory(self, known: tuple[DetectedCard, ...]) -> Inventory:
        """All cards, numbered through; without any, why NVIDIA's library has none."""
        found = self.nvml.inventory([card for card in known if card.vendor is Vendor.NVIDIA])
        cards = list(found.cards)
        for source in self.others:
            first = max((card.index for card in cards), default=-1) + 1
            cards += [msgspec.structs.replace(card, index=first + number) for number, card in enumerate(source.cards())]
        listed = tuple(card for card in cards if card.index <= INDEX_MAX)
        return msgspec.structs.replace(found, cards=listed, reason=None if listed else found.reason)

    def telemetry(self, cards: tuple[DetectedCard, ...]) -> tuple[CardTelemetry, ...]:
        """What the given cards are doing, in their order; simulated ones do nothing."""
        real = [card for card in cards if not card.simulated]
        nvidia = [card for card in real if card.vendor is Vendor.NVIDIA]
        readings = list(self.nvml.telemetry(nvidia)) if nvidia else []
        for source in self.others:
            readings += [source.telemetry(card) for card in real if card.vendor is source.vendor]
        by_uuid = {reading.uuid: reading for reading in readings}
        return tuple(by_uuid.get(card.uuid) or idle(card) for card in cards)


class CardReader:
    """Reads the cards without ever stopping the loop."""

    def __init__(self, timeout_s: float | None = None) -> None:
        self._timeout_s = TIMEOUT_S if timeout_s is None else timeout_s
        self._sources = _Sources()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy: Future[Any] | None = None

    async def inventory(self, known: Iterable[DetectedCard] = ()) -> Inventory:
        """Every card of this machine, or why there is none; a driver that hangs is such a reason."""
        cards = tuple(known)
        try:
            return await self._read(lambda: self._sources.inventory(cards))
        except CardsHung as error:
            return Inventory(reason=NoCards.HUNG, detail=str(error))

    async def telemetry(self, cards: Iterable[DetectedCard]) -> tuple[CardTelemetry, ...]:
        """What the given cards are doing. Raises CardsHung."""
        asked = tuple(cards)
        return await self._read(lambda: self._sources.telemetry(asked))

    def close(self) -> None:
        """Let the thread end; one that hangs is left to end with the process."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread = None

    async def _read(self, function: Callable[[], T]) -> T:
        if self._busy is not None and not self._busy.done():
            raise CardsHung("The graphics driver has not answered an earlier question yet. Try nvidia-smi; if it hangs too, restart.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="cards", daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._busy = future

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._calls.put(call)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            raise CardsHung(f"The graphics driver has not answered for {self._timeout_s:g} s.") from None

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
        self._sources.nvml.close()
