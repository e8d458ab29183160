"""Nodes that may be matched now, grouped by what jobs can tell apart, each group by price. Follows the market; decides nothing.

A group (`Bucket`) holds nodes with the same free cards and the same terms, so one look at it answers for all of them: whether a kind of job
fits, how tightly, and who is cheapest. Free cores and memory differ from node to node and are amounts of the rows. Labels split groups only
where a queued job asks for them, for else every host name would be a group of its own.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from events.nodes import NodeOffered
from events.values import TIER_RANK, Accept, Card, NodeId, Tier
from projections.market import Market
from projections.nodes import Node, NodeState
from services.matcher.feasibility import has_simulated
from services.matcher.ordered import Block, Ordered, Tally

NodeKey = tuple[int, NodeId]
"""(price, node id): the order within a group."""
Room = tuple[int, int]
"""(free cores, free memory in MiB)."""
CORES, MEMORY = itemgetter(0), itemgetter(1)
Label = tuple[str, str]

BucketKey = tuple[tuple[int, ...], int, int]
"""(kinds of the free cards, terms, tier)."""
How = tuple[int, int]
"""How a job fits: (cards left free, VRAM taken in MiB)."""
Chosen = dict[Hashable, How | None]
"""What is known of choosing among certain cards: what was asked of them -> how it fits."""

FOR_EVER_MS = 1 << 62
BUCKETS_MIN = 1024
"""With fewer buckets none is forgotten."""


class NodesByPrice(Ordered[NodeKey, Room]):
    """The nodes of a group, cheapest first."""

    __slots__ = ()

    block_rows_max = 32

    @staticmethod
    def most(amounts: list[Room]) -> Room:
        """The most cores and the most memory; one node need not have both."""
        return max(map(CORES, amounts)), max(map(MEMORY, amounts))

    @staticmethod
    def more(one: Room, other: Room) -> Room:
        """The same of two."""
        return max(one[0], other[0]), max(one[1], other[1])

    @staticmethod
    def reaches(amount: Room, most: Room) -> bool:
        """Whether this node may be the one with the most of either."""
        return amount[0] >= most[0] or amount[1] >= most[1]

    def first(self, cores: int, memory_mib: int, avoid: Container[NodeId]) -> NodeKey | None:
        """The cheapest node with that much room that is not to be avoided."""
        return self._search(self.root, cores, memory_mib, avoid)

    def _search(self, block: Block[NodeKey, Room], cores: int, memory_mib: int, avoid: Container[NodeId]) -> NodeKey | None:
        for at, room in enumerate(block.amounts):
            self.tally.touched += 1
            if room[0] >= cores and room[1] >= memory_mib:
                if not block.leaf:
                    found = self._search(block.items[at], cores, memory_mib, avoid)
                    if found is not None:
                        return found
                elif block.items[at] not in avoid:
                    return block.keys[at]
        return None


class Bucket:
    """Nodes that a job without a target can tell apart only by price and room."""

    __slots__ = ("chosen", "door", "example", "free", "key", "nodes", "shapes")

    def __init__(self, key: BucketKey, example: Node, free: tuple[Card, ...], chosen: Chosen, tally: Tally) -> None:
        self.key = key
        self.example = example
        """Stands for any of the nodes where conditions are concerned."""
        self.free = free
        self.chosen = chosen
        self.door = door_of(example)
        self.nodes = NodesByPrice(tally)
        self.shapes: dict[Any, How] = {}
        """The shapes of jobs that fit here; kept by the engine."""


Door = frozenset[str] | str | None


def door_of(node: Node) -> Door:
    """Whose jobs the node takes: these wallets', the members' of this organisation, or (None) anyone's."""
    match node.offer.accept:
        case Accept.ANYONE:
            return None
        case Accept.OWN:
            return frozenset((node.wallet, *node.offer.accept_wallets))
        case Accept.ORGANISATION:
            return node.offer.org_id or ""


class Terms(NamedTuple):
    """Everything about a node's offer, besides cards and price, that a condition may ask for. A new condition needs its field here."""

    isolation: str
    egress: bool
    door: Door
    min_gpus: int
    simulated: bool
    sessions: bool
    images_allow: tuple[str, ...]
    labels: frozenset[Label]


class Row:
    """A node as the index has it."""

    __slots__ = ("bucket", "cards", "key", "offer", "room", "terms", "tier_until_ms")

    def __init__(self) -> None:
        self.offer: NodeOffered | None = None
        self.cards: tuple[tuple[str, int, Card], ...] = ()
        """(UUID, kind, card) of the healthy ones, by kind."""
        self.terms = 0
        self.bucket: Bucket | None = None
        self.key: NodeKey = (0, "")
        self.room: Room = (0, 0)
        self.tier_until_ms = 0


class NodeIndex:
    """Every node of the market, in its bucket while it may be matched."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.rows: dict[NodeId, Row] = {}
        self.buckets: dict[BucketKey, Bucket] = {}
        self.open: dict[Bucket, int] = {}
        """Buckets with a node in them, each with a price that none of its nodes is below."""
        self.created: list[Bucket] = []
        """New buckets that nobody has taken note of yet."""
        self.labels_asked: set[Label] = set()
        self._labelled: dict[Label, dict[NodeId, None]] = {}
        self._chosen: dict[tuple[int, ...], Chosen] = {}
        self._kinds: dict[tuple[str, int, int], int] = {}
        self._terms: dict[Terms, int] = {}
        self._sweep_at = BUCKETS_MIN

    def settle(self, market: Market, node_id: NodeId, now_ms: int, suspects: Container[NodeId]) -> bool:
        """Put a node where it belongs after a change. Whether some job may fit it now that did not before."""
        row = self.rows.get(node_id)
        if row is None:
            row = self.rows[node_id] = Row()
        node = market.nodes.get(node_id)
        if node is None or node.state is not NodeState.OFFERED or node_id in suspects:
            self._leave(row)
            return False
        if row.offer is not node.offer:
            self._describe(row, node)
        tier = 0 if node.tier_until_ms <= now_ms else TIER_RANK[node.tier]
        row.tier_until_ms = node.tier_until_ms if tier else 0
        offer, taken = node.offer, node.taken
        free = tuple([kind for uuid, kind, _ in row.cards if uuid not in taken])
        key = (node.price_uusd_per_gpu_hour, node_id)
        room = (offer.cores - node.cores_taken, offer.memory_mib - node.memory_taken_mib)
        bucket_key = (free, row.terms, tier)
        bucket = self.buckets.get(bucket_key) or self._create(bucket_key, node, row)
        was = row.bucket
        if bucket is was and key == row.key and room == row.room:
            return False
        improved = was is None or not _is_less(row, bucket_key, key[0], room)
        self._leave(row)
        row.bucket, row.key, row.room = bucket, key, room
        bucket.nodes.add(key, room, node_id)
        self.open[bucket] = bucket.nodes.root.keys[0][0]
        return improved

    def ask_labels(self, labels: Iterable[Label]) -> list[NodeId]:
        """Let groups tell these labels apart from now on; the nodes that have to be settled anew."""
        moved: dict[NodeId, None] = {}
        for label in labels:
            if label not in self.labels_asked:
                self.labels_asked.add(label)
                moved |= self._labelled.get(label, {})
        for node_id in moved:
            self.rows[node_id].offer = None
        return list(moved)

    def _leave(self, row: Row) -> None:
        bucket = row.bucket
        if bucket is None:
            return
        bucket.nodes.remove(row.key)
        if bucket.nodes.size:
            self.open[bucket] = bucket.nodes.root.keys[0][0]
        else:
            del self.open[bucket]
        row.bucket = None

    def _describe(self, row: Row, node: Node) -> None:
        """Read an offer."""
        offer, kinds = node.offer, self._kinds
        if row.offer is not None:
            for label in row.offer.labels.items():
                self._labelled.get(label, {}).pop(offer.node_id, None)
        cards = []
        for card in offer.cards:
            if card.healthy:
                kind = kinds.setdefault((card.model, card.vram_mib, card.cuda), len(kinds))
                cards.append((kind, card.index, card))
        row.cards = tuple((card.uuid, kind, card) for kind, _, card in sorted(cards, key=lambda one: one[:2]))
        for label in offer.labels.items():
            self._labelled.setdefault(label, {})[offer.node_id] = None
        labels = frozenset(offer.labels.items() & self.labels_asked)
        terms = Terms(
            isolation=offer.isolation,
            egress=offer.egress,
            door=door_of(node),
            min_gpus=offer.min_gpus,
            simulated=has_simulated(node),
            sessions=offer.sessions,
            images_allow=offer.images_allow,
            labels=labels,
        )
        row.terms = self._terms.setdefault(terms, len(self._terms))
        row.offer = offer

    def _create(self, key: BucketKey, node: Node, row: Row) -> Bucket:
        if len(self.buckets) >= self._sweep_at:
            self.buckets = {bucket.key: bucket for bucket in self.buckets.values() if bucket.nodes.size}
            self._chosen = {bucket.key[0]: bucket.chosen for bucket in self.buckets.values()}
            self._sweep_at = max(BUCKETS_MIN, 2 * len(self.buckets))
        labels = dict(node.offer.labels.items() & self.labels_asked)
        example = Node(
            offer=msgspec.structs.replace(node.offer, labels=labels),
            wallet=node.wallet,
            price_uusd_per_gpu_hour=0,
            offered_seq=0,
            offered_ms=0,
            first_ms=0,
            updated_ms=0,
            updated_seq=0,
            tier=node.tier if row.tier_until_ms else Tier.CLAIMED,
            tier_until_ms=FOR_EVER_MS,
        )
        free = tuple(card for uuid, _, card in row.cards if uuid not in node.taken)
        bucket = self.buckets[key] = Bucket(key, example, free, self._chosen.setdefault(key[0], {}), self.tally)
        self.created.append(bucket)
        return bucket


def _is_less(row: Row, key: BucketKey, price: int, room: Room) -> bool:
    """Whether a node offers nothing that it did not offer before: the same terms, no card, core, or memory more, and no lower price."""
    assert row.bucket is not None
    was = row.bucket.key
    if was[1:] != key[1:] or price < row.key[0] or room[0] > row.room[0] or room[1] > row.room[1]:
        return False
    before = iter(was[0])
    return all(kind in before for kind in key[0])
