"""What all nodes come to, kept in step node by node, so that a look at ten thousand of them costs no more than what has changed. Pure.

All of it follows from the market and from when each node was last heard of, and can be made anew at any time. Counting is put off until
somebody looks: `settle`.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from typing import NamedTuple

from events.jobs import JobMatched
from events.page import Record
from projections.market import Market
from projections.nodes import Node, NodeState
from services.api.candles import NO_CARD
from services.api.telemetry import Telemetry


class Cards(NamedTuple):
    """Cards of nodes: all, held, and those that a job could have."""

    gpus: int = 0
    taken: int = 0
    free: int = 0

    def plus(self, other: Cards, sign: int = 1) -> Cards:
        """Together, or without the other's."""
        return Cards(self.gpus + sign * other.gpus, self.taken + sign * other.taken, self.free + sign * other.free)


class _Row(NamedTuple):
    """What one node adds."""

    state: NodeState
    is_there: bool
    price_uusd: int
    cards: Cards
    models: tuple[tuple[str, int, int], ...]
    """(model, cards, free ones)."""


class ModelTally:
    """The cards of one model on offered nodes."""

    __slots__ = ("free", "gpus", "prices_uusd")

    def __init__(self) -> None:
        self.gpus = self.free = 0
        self.prices_uusd: list[int] = []
        """Of a GPU-hour, one for each node, lowest first."""


class Tallies:
    """The sums over one market's nodes."""

    def __init__(self, market: Market, telemetry: Telemetry) -> None:
        self._market = market
        self._telemetry = telemetry
        self._rows: dict[str, _Row] = {}
        self._changed: dict[str, None] = dict.fromkeys(market.nodes)
        self._nodes_of: dict[str, dict[int, str]] = {}
        """Job -> epoch -> node that holds something for it."""
        for node_id, node in market.nodes.items():
            for epoch, allocation in node.allocations.items():
                self._nodes_of.setdefault(allocation.job_id, {})[epoch] = node_id
        self._due: list[tuple[int, str]] = []
        self._watched: set[str] = set()
        """Nodes with a place in `_due`: when they will be silent unless they are heard of."""
        self.silent: set[str] = set()
        """Offered nodes not heard of for longer than the policy allows."""
        self.there = 0
        """Nodes that are told of: not withdrawn, or still with something to do."""
        self.states: Counter[NodeState] = Counter()
        self.silent_states: Counter[NodeState] = Counter()
        """The same of silent nodes."""
        self.offered = Cards()
        """Of all offered nodes, silent ones too."""
        self.offered_silent = Cards()
        self.models: dict[str, ModelTally] = {}

    # --- what happens ---

    def folded(self, record: Record) -> None:
        """An event was folded."""
        event = record.event
        node_id: str | None = getattr(event, "node_id", None)
        if node_id is not None:
            self._changed[node_id] = None
            if type(event) is JobMatched:
                self._nodes_of.setdefault(event.job_id, {})[record.seq] = node_id

    def touch(self, job_id: str) -> None:
        """A job may have changed, and so what nodes hold for it."""
        held = self._nodes_of.get(job_id)
        if held is None:
            return
        self._changed.update(dict.fromkeys(held.values()))
        leases = self._market.leases
        for epoch in [epoch for epoch in held if epoch not in leases]:
            del held[epoch]
        if not held:
            del self._nodes_of[job_id]

    def heard(self, node_id: str) -> None:
        """A node said something."""
        if node_id in self.silent:
            self._changed[node_id] = None

    def count_anew(self) -> None:
        """The rules have changed."""
        self._due, self._watched = [], set()
        self._changed = dict.fromkeys(self._market.nodes)

    # --- counting ---

    def settle(self, now_ms: int) -> None:
        """Bring everything up to this moment."""
        changed, self._changed = self._changed, {}
        for node_id in changed:
            self._recount(node_id, now_ms)
        while self._due and self._due[0][0] <= now_ms:
            _, node_id = heapq.heappop(self._due)
            self._watched.discard(node_id)
            self._listen(node_id, now_ms)

    def _recount(self, node_id: str, now_ms: int) -> None:
        node, before = self._market.nodes.get(node_id), self._rows.get(node_id)
        after = None if node is None else _row(node)
        if after != before:
            was_silent = node_id in self.silent
            if before is not None:
                self._count(before, -1, is_silent=was_silent)
                del self._rows[node_id]
            if after is not None:
                self._count(after, 1, is_silent=was_silent)
                self._rows[node_id] = after
            elif was_silent:
                self.silent.remove(node_id)
        self._listen(node_id, now_ms)

    def _listen(self, node_id: str, now_ms: int) -> None:
        """Find out whether a node is silent, or when it will be."""
        node, suspect_s = self._market.nodes.get(node_id), self._market.policy.suspect_s
        if node is None:
            return
        is_silent = self._telemetry.is_suspect(node, suspect_s, now_ms)
        if is_silent != (node_id in self.silent):
            sign = 1 if is_silent else -1
            (self.silent.add if is_silent else self.silent.remove)(node_id)
            self._count_silent(self._rows[node_id], sign)
        if not is_silent and node.presence is NodeState.OFFERED and node_id not in self._watched:
            self._watched.add(node_id)
            heapq.heappush(self._due, (self._telemetry.last_ms(node) + suspect_s * 1000 + 1, node_id))

    def _count(self, row: _Row, sign: int, *, is_silent: bool) -> None:
        self.there += sign * row.is_there
        self.states[row.state] += sign
        if is_silent:
            self._count_silent(row, sign)
        if row.state is not NodeState.OFFERED:
            return
        self.offered = self.offered.plus(row.cards, sign)
        for model, gpus, free in row.models:
            tally = self.models.setdefault(model, ModelTally())
            tally.gpus += sign * gpus
            tally.free += sign * free
            if sign > 0:
                insort(tally.prices_uusd, row.price_uusd)
            else:
                del tally.prices_uusd[bisect_left(tally.prices_uusd, row.price_uusd)]
            if not tally.prices_uusd:
                del self.models[model]

    def _count_silent(self, row: _Row, sign: int) -> None:
        self.silent_states[row.state] += sign
        if row.state is NodeState.OFFERED:
            self.offered_silent = self.offered_silent.plus(row.cards, sign)

    # --- what it comes to ---

    @property
    def heard_nodes(self) -> int:
        """Offered nodes that are not silent,"""
        return self.states[NodeState.OFFERED] - self.silent_states[NodeState.OFFERED]

    @property
    def heard_cards(self) -> Cards:
        """and their cards."""
        return self.offered.plus(self.offered_silent, -1)


def is_there(node: Node) -> bool:
    """Whether it is told of: not withdrawn, or something still runs there."""
    return node.state is not NodeState.WITHDRAWN or bool(node.allocations)


def _row(node: Node) -> _Row:
    models: dict[str, tuple[int, int]] = {}
    free = 0
    taken = node.taken
    for card in node.offer.cards:
        is_free = card.healthy and card.uuid not in taken
        free += is_free
        gpus_of, free_of = models.get(card.model, (0, 0))
        models[card.model] = (gpus_of + 1, free_of + is_free)
    by_model = tuple((model, *counts) for model, counts in models.items()) or ((NO_CARD, 0, 0),)
    return _Row(node.state, is_there(node), node.price_uusd_per_gpu_hour, Cards(len(node.offer.cards), len(taken), free), by_model)
