"""Prices and matches over time, a row for each card model and minute: a fold of the matches, kept on disk beside the ended jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from events.jobs import JobMatched
from projections.market import Market

MINUTE_MS = 60_000
NO_CARD = "CPU only"
POINTS_MAX = 1000

Key = tuple[str, int]
"""(model, minute since 1970)."""


class Candle(msgspec.Struct, gc=False):
    """What was matched in a minute on cards of one model. `total_uusd`: of the prices, each times its cards."""

    matches: int = 0
    gpus: int = 0
    low_uusd: int = 0
    high_uusd: int = 0
    total_uusd: int = 0

    def add(self, other: Candle) -> None:
        """Together with what else was matched in the same time."""
        if self.matches == 0 or (other.matches and other.low_uusd < self.low_uusd):
            self.low_uusd = other.low_uusd
        self.high_uusd = max(self.high_uusd, other.high_uusd)
        self.matches += other.matches
        self.gpus += other.gpus
        self.total_uusd += other.total_uusd


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One step of a series: when it began, the lowest, mean (by card) and highest price of a GPU-hour, and how many jobs were matched."""

    at_ms: int
    low_uusd: int
    mean_uusd: int
    high_uusd: int
    matches: int


class Candles:
    """Rows that are not on disk yet: those still gathered, and those on their way."""

    def __init__(self) -> None:
        self._gathered: dict[Key, Candle] = {}
        self._leaving: dict[Key, Candle] = {}
        self._leaving_pages = 0
        """Up to which page those on their way go."""

    def matched(self, match: JobMatched, market: Market, time_ms: int) -> None:
        """A job was given a node."""
        cards, price = max(1, len(match.cards)), match.price_uusd_per_gpu_hour
        add(self._gathered, (model_of(match, market), time_ms // MINUTE_MS), Candle(1, cards, price, price, price * cards))

    def leave(self, pages: int) -> list[tuple[Key, Candle]]:
        """Everything up to this page, to go to disk now; again with the next call, unless `left` was called."""
        self._leaving_pages = pages
        for key, candle in self._gathered.items():
            add(self._leaving, key, candle)
        self._gathered = {}
        return list(self._leaving.items())

    def left(self) -> None:
        """What `leave` gave last is on disk."""
        self._leaving = {}

    def beyond(self, pages: int) -> list[tuple[Key, Candle]]:
        """All that is not in rows which go up to this page."""
        leaving = () if pages >= self._leaving_pages else self._leaving.items()
        return [*leaving, *self._gathered.items()]


def model_of(match: JobMatched, market: Market) -> str:
    """The model of the cards that a job was given."""
    node = market.nodes.get(match.node_id)
    if node is None or not match.cards:
        return NO_CARD
    return next((card.model for card in node.offer.cards if card.uuid == match.cards[0]), NO_CARD)


def add(rows: dict[Key, Candle], key: Key, candle: Candle) -> None:
    """Into the row that is there, or as a new one."""
    known = rows.get(key)
    if known is None:
        known = rows[key] = Candle()
    known.add(candle)


def series(rows: Iterable[tuple[Key, Candle]], step_minutes: int) -> Mapping[str, list[Point]]:
    """The rows as one series for each model, in steps of so many minutes; steps without a match are left out."""
    steps: dict[Key, Candle] = {}
    for (model, minute), candle in rows:
        add(steps, (model, minute - minute % step_minutes), candle)
    found: dict[str, list[Point]] = {}
    for (model, minute), step in sorted(steps.items()):
        mean = step.total_uusd // max(1, step.gpus)
        found.setdefault(model, []).append(Point(minute * MINUTE_MS, step.low_uusd, mean, step.high_uusd, step.matches))
    return found
