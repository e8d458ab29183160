"""Queued jobs, grouped by everything they ask for but the price, so that one look at a group of nodes answers for all of them. Pure.

A job lies in the shape that nodes for anyone serve, and, when some node takes only chosen buyers and its buyer is one of them, in a second
shape for such nodes. Nodes that a job passes over for a while are part of its shape, too.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from events.values import JobId, NodeId, Requirements, Wallet
from projections.nodes import cores_asked
from services.matcher.feasibility import STATIC, Ask, Scene, choose, obstacle
from services.matcher.node_index import Bucket, How
from services.matcher.ordered import Tally
from services.matcher.price_index import PriceIndex

ANSWERED_BY_THE_INDEX = frozenset(
    {"online", "target", "gpus", "vram", "model", "cuda", "cards", "total_vram", "cores", "memory", "price"},
)
"""Conditions that are met by where a node stands in the index, or checked on its free cards."""
TERMS = tuple(condition for condition in STATIC if condition.name not in ANSWERED_BY_THE_INDEX)

ShapeKey = tuple[bytes, Wallet | None, frozenset[NodeId]]
"""(requirements, the buyer where that matters, nodes to pass over): what jobs of one shape have in common."""

SHAPES_MIN = 1024
"""With fewer shapes none is forgotten."""

_encoder = msgspec.msgpack.Encoder()


class Shape:
    """Jobs that differ in price and order only."""

    __slots__ = ("ask", "avoid", "bound", "cards", "cores", "jobs", "key", "memory_mib", "number", "target")

    def __init__(self, key: ShapeKey, number: int, requirements: Requirements, tally: Tally) -> None:
        self.key = key
        self.number = number
        self.ask = Ask(requirements, key[1])
        self.avoid = key[2]
        self.cores = cores_asked(requirements)
        self.memory_mib = requirements.memory_mib
        self.cards = (
            requirements.num_gpus,
            requirements.vram_mib,
            requirements.total_vram_mib,
            requirements.gpu_models,
            requirements.min_cuda,
            requirements.target_cards,
        )
        """All that `choose` looks at."""
        self.target = requirements.target_node
        self.jobs = PriceIndex(tally)
        self.bound: int | None = None
        """No job before this key fits any node, as far as is known; None: no job at all does."""


class Placed(NamedTuple):
    """Where a queued job lies."""

    key: int
    shape: Shape
    private: Shape | None


def fit(shape: Shape, bucket: Bucket, scene: Scene) -> How | None:
    """How jobs of this shape fit the bucket's nodes now, room aside; None when they do not."""
    if shape.target is not None or (shape.ask.buyer is None) != (bucket.door is None):
        return None
    cards, chosen = shape.cards, bucket.chosen
    how = chosen[cards] if cards in chosen else chosen.setdefault(cards, _choose(shape.ask.requirements, bucket))
    if how is None or obstacle(shape.ask, bucket.example, scene, TERMS) is not None:
        return None
    return how


def _choose(requirements: Requirements, bucket: Bucket) -> How | None:
    taken = choose(bucket.free, requirements)
    return None if taken is None else (len(bucket.free) - len(taken), sum(card.vram_mib for card in taken))


class ShapeTable:
    """Every shape, and every queued job in its shapes."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.shapes: dict[ShapeKey, Shape] = {}
        self.targets: dict[NodeId, dict[Shape, None]] = {}
        self.placed: dict[JobId, Placed] = {}
        self._made = 0
        self._sweep_at = SHAPES_MIN

    def find(self, requirements: Requirements, buyer: Wallet | None, avoid: frozenset[NodeId]) -> Shape | None:
        """The shape of these jobs, if there is one."""
        return self.shapes.get((_encoder.encode(requirements), buyer, avoid))

    def make(self, requirements: Requirements, buyer: Wallet | None, avoid: frozenset[NodeId]) -> Shape:
        """A new shape; there is none of the kind."""
        key = (_encoder.encode(requirements), buyer, avoid)
        self._made += 1
        shape = self.shapes[key] = Shape(key, self._made, requirements, self.tally)
        if shape.target is not None:
            self.targets.setdefault(shape.target, {})[shape] = None
        return shape

    def put(self, job_id: JobId, placed: Placed, price: int) -> None:
        """Lay a job into its shapes."""
        self.placed[job_id] = placed
        placed.shape.jobs.add(placed.key, price, job_id)
        if placed.private is not None:
            placed.private.jobs.add(placed.key, price, job_id)

    def take(self, job_id: JobId) -> None:
        """Take a job out, if it is there."""
        placed = self.placed.pop(job_id, None)
        if placed is not None:
            placed.shape.jobs.remove(placed.key)
            if placed.private is not None:
                placed.private.jobs.remove(placed.key)

    def is_crowded(self) -> bool:
        """Whether there are twice as many shapes as the last sweep left, so that each new one pays for sweeping a few."""
        return len(self.shapes) >= self._sweep_at

    def sweep(self) -> set[Shape]:
        """Forget the shapes without a job; which ones they were."""
        idle = {shape for shape in self.shapes.values() if not shape.jobs.size}
        for shape in idle:
            del self.shapes[shape.key]
            shape.bound = None
            if shape.target is not None:
                of_node = self.targets[shape.target]
                del of_node[shape]
                if not of_node:
                    del self.targets[shape.target]
        self._sweep_at = max(SHAPES_MIN, 2 * len(self.shapes))
        return idle
