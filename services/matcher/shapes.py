"""Queued jobs, grouped by everything they ask for but the price, so that one look at a group of nodes answers for all of them. Pure.

A job lies in one shape for each sort of node: those for anyone and, when some node takes only chosen buyers and its buyer is one of
them, those; and either again for nodes that will be away one day, where the job's timeout counts. Nodes that a job passes over for a while
are part of its shapes, and so is a party that the operator limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from events.values import JobId, NodeId, OrgId, Requirements, Wallet
from projections.jobs import Job
from projections.market import Market
from projections.nodes import cores_asked
from services.matcher.feasibility import STATIC, Ask, Scene, choose, obstacle
from services.matcher.limits import UNLIMITED_UUSD, is_limited, limits_money, price_cap
from services.matcher.matches import Gang
from services.matcher.node_index import Bucket, How
from services.matcher.ordered import Tally
from services.matcher.price_index import PriceIndex
from services.matcher.share_index import ShareIndex, Unit
from services.matcher.spans import span_s

ANSWERED_BY_THE_INDEX = frozenset(
    {"online", "target", "gpus", "vram", "model", "cuda", "cards", "total_vram", "cores", "memory", "price"},
)
"""Conditions that are met by where a node stands in the index, or checked on its free cards."""
TERMS = tuple(condition for condition in STATIC if condition.name not in ANSWERED_BY_THE_INDEX)


class Purse(NamedTuple):
    """Whose limits count for a job, and what its buyer lets it cost."""

    wallet: Wallet
    org_id: OrgId | None
    left_uusd: int | None


class ShapeKey(NamedTuple):
    """What jobs of one shape have in common."""

    asked: bytes
    """Their requirements."""
    buyer: Wallet | None
    """Where that matters."""
    avoid: frozenset[NodeId]
    ending: bool
    """Whether it is for nodes that will be away one day."""
    timeout_s: int
    """Where that matters, else 0."""
    purse: Purse | None
    """Of jobs under a limit."""
    num_nodes: int = 1
    """More than 1: of gangs, whose rank 0 stands for all."""
    span_s: int = 0
    """How long its jobs count where a place is kept for another; 0: nowhere is one."""


SHAPES_MIN = 1024
"""With fewer shapes none is forgotten."""

_encoder = msgspec.msgpack.Encoder()


class Shape:
    """Jobs that differ in price and order only."""

    __slots__ = (
        "alone",
        "ask",
        "avoid",
        "cap",
        "cards",
        "cores",
        "floor",
        "jobs",
        "key",
        "memory_mib",
        "num_nodes",
        "number",
        "target",
        "timeout_ms",
    )

    def __init__(self, key: ShapeKey, number: int, requirements: Requirements, jobs: PriceIndex | ShareIndex) -> None:
        self.key = key
        self.number = number
        purse = key.purse or Purse("", None, None)
        self.ask = Ask(
            requirements, key.buyer, org_id=purse.org_id, timeout_s=key.timeout_s, left_uusd=purse.left_uusd, num_nodes=key.num_nodes
        )
        self.num_nodes = key.num_nodes
        self.avoid = key.avoid
        self.cores = cores_asked(requirements)
        self.memory_mib = requirements.memory_mib
        self.timeout_ms = (key.timeout_s if key.ending or key.num_nodes > 1 else key.span_s) * 1000
        """How long the node must stay, or be free of other plans; 0: as nodes do that have none."""
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
        self.jobs = jobs
        self.alone = (self,)
        """Of jobs that lie in no other shape."""
        self.cap = UNLIMITED_UUSD
        """The highest price that limits allow now."""
        self.floor: tuple[tuple[int, ...], int | None] = ((), None)
        """The least that a job must pay to run when all nodes are empty, after what that holds for; kept by `heads.py`."""


class Placed(NamedTuple):
    """Where a queued job lies."""

    key: int
    """Its order key; with a unit only the place of the job in the ledger."""
    shapes: tuple[Shape, ...]
    unit: Unit | None
    variants: tuple[int, ...] = (0,)
    """Which of its buyer's choices each shape is."""


def fit(shape: Shape, bucket: Bucket, scene: Scene) -> How | None:
    """How jobs of this shape fit the bucket's nodes now, room aside; None when they do not."""
    key = shape.key
    if key.num_nodes > 1:
        pass  # the ranks of a gang may stand on nodes of every sort
    elif shape.target is not None or (key.buyer is None) != (bucket.door is None) or key.ending is not bucket.ending:
        return None
    cards, chosen = shape.cards, bucket.chosen
    how = chosen[cards] if cards in chosen else chosen.setdefault(cards, _choose(shape.ask.requirements, bucket))
    if how is None or obstacle(shape.ask, bucket.example, scene, TERMS) is not None:
        return None
    return how


def keys_of(
    job: Job, requirements: Requirements, market: Market, avoid: frozenset[NodeId], *, private: bool, ending: bool
) -> list[ShapeKey]:
    """The shapes that a job belongs in with these requirements. `private`: some node names its buyer; `ending`: some node will be away
    one day."""
    asked, buyer = job.submitted, job.buyer
    targeted = requirements.target_node is not None
    purse, spends = None, False
    if is_limited(market, buyer, asked.org_id):
        spends = limits_money(market, buyer, asked.org_id)
        purse = Purse(buyer, asked.org_id, job.left_uusd if spends else None)
    timeout_s = job.timeout_s if targeted or spends else 0
    key = ShapeKey(_encoder.encode(requirements), buyer if targeted else None, avoid, False, timeout_s, purse)
    if targeted:
        return [key]
    if market.policy.keep_place:
        key = key._replace(span_s=span_s(job.timeout_s))
    keys = [key, key._replace(buyer=buyer)] if private else [key]
    if ending:
        keys += [one._replace(ending=True, timeout_s=job.timeout_s, span_s=0) for one in keys]
    return keys


def gang_key(gang: Gang, market: Market, avoid: frozenset[NodeId]) -> ShapeKey:
    """The one shape of a gang: it takes nodes of every sort, so each of its ranks does."""
    first = gang.ranks[0]
    asked, buyer, purse = first.submitted, first.buyer, None
    if is_limited(market, buyer, asked.org_id):
        counts = limits_money(market, buyer, asked.org_id)
        purse = Purse(buyer, asked.org_id, gang.left_uusd if counts else None)
    return ShapeKey(_encoder.encode(asked.requirements), buyer, avoid, False, gang.timeout_s, purse, asked.num_nodes)


def cap_of(shape: Shape, market: Market, now_ms: int) -> int:
    """The highest price that limits allow jobs of this shape now."""
    purse = shape.key.purse
    if purse is None:
        return UNLIMITED_UUSD
    num_gpus, timeout_s = shape.ask.requirements.num_gpus, shape.key.timeout_s
    return price_cap(
        market,
        purse.wallet,
        purse.org_id,
        num_gpus=num_gpus,
        timeout_s=timeout_s,
        left_uusd=purse.left_uusd,
        num_nodes=shape.num_nodes,
        now_ms=now_ms,
    )


def _parties(shape: Shape) -> tuple[str, ...]:
    purse = shape.key.purse
    if purse is None:
        return ()
    return (purse.wallet,) if purse.org_id is None else (purse.wallet, purse.org_id)


def make_known(shape: Shape, buckets: Iterable[Bucket], scene: Scene) -> None:
    """Tell all buckets that it fits of a new shape."""
    for bucket in buckets:
        how = fit(shape, bucket, scene)
        if how is not None:
            bucket.shapes[shape] = how


def _choose(requirements: Requirements, bucket: Bucket) -> How | None:
    taken = choose(bucket.free, requirements)
    return None if taken is None else (len(bucket.free) - len(taken), sum(card.vram_mib for card in taken))


class ShapeTable:
    """Every shape, and every queued job in its shapes. `by_share`: parties move as wholes."""

    def __init__(self, tally: Tally, by_share: bool) -> None:
        self.tally = tally
        self.shapes: dict[ShapeKey, Shape] = {}
        self.targets: dict[NodeId, dict[Shape, None]] = {}
        self.gangs: dict[Shape, None] = {}
        """Those of gangs."""
        self.purses: dict[str, dict[Shape, None]] = {}
        """The shapes under the limits of a wallet or organisation."""
        self.placed: dict[JobId, Placed] = {}
        self._jobs: type[PriceIndex] | type[ShareIndex] = ShareIndex if by_share else PriceIndex
        self._made = 0
        self._sweep_at = SHAPES_MIN

    def make(self, key: ShapeKey, requirements: Requirements) -> Shape:
        """A new shape; there is none of the kind."""
        self._made += 1
        shape = self.shapes[key] = Shape(key, self._made, requirements, self._jobs(self.tally))
        if shape.target is not None:
            self.targets.setdefault(shape.target, {})[shape] = None
        if shape.num_nodes > 1:
            self.gangs[shape] = None
        for name in _parties(shape):
            self.purses.setdefault(name, {})[shape] = None
        return shape

    def put(self, job_id: JobId, placed: Placed, price: int) -> None:
        """Lay a job into its shapes."""
        self.placed[job_id] = placed
        key, shapes, unit, _ = placed
        for shape in shapes:
            jobs = shape.jobs
            if isinstance(jobs, PriceIndex):
                jobs.add(key, price, job_id)
            elif unit is not None:
                jobs.put(unit, key, price, job_id)
                unit.shapes[shape] = None

    def take(self, job_id: JobId) -> None:
        """Take a job out, if it is there."""
        placed = self.placed.pop(job_id, None)
        if placed is None:
            return
        key, shapes, unit, _ = placed
        for shape in shapes:
            jobs = shape.jobs
            if isinstance(jobs, PriceIndex):
                jobs.remove(key)
            elif unit is not None and not jobs.take(unit, key):
                del unit.shapes[shape]

    def move(self, unit: Unit, rank: int) -> list[Shape]:
        """Give all jobs of a party another place in the order; the shapes in which they stand earlier than they did."""
        before, unit.rank = unit.rank, rank
        if rank > before:
            return []
        self.tally.touched += len(unit.shapes)
        for shape in unit.shapes:
            if isinstance(shape.jobs, ShareIndex):
                shape.jobs.moved_ahead(unit)
        return list(unit.shapes)

    def is_crowded(self) -> bool:
        """Whether there are twice as many shapes as the last sweep left, so that each new one pays for sweeping a few."""
        return len(self.shapes) >= self._sweep_at

    def sweep(self) -> set[Shape]:
        """Forget the shapes without a job; which ones they were."""
        idle = {shape for shape in self.shapes.values() if not shape.jobs.size}
        for shape in idle:
            del self.shapes[shape.key]
            self.gangs.pop(shape, None)
            for name in _parties(shape):
                of_party = self.purses[name]
                del of_party[shape]
                if not of_party:
                    del self.purses[name]
            if shape.target is not None:
                of_node = self.targets[shape.target]
                del of_node[shape]
                if not of_node:
                    del self.targets[shape.target]
        self._sweep_at = max(SHAPES_MIN, 2 * len(self.shapes))
        return idle
