"""Nodes that may be matched now, grouped by what jobs can tell apart, each group by price. Follows the market; decides nothing.

A group (`Bucket`) holds nodes with the same free cards and the same terms, so one look at it answers for all of them: whether a kind of job
fits, how tightly, and who is cheapest. Free cores and memory, and how long a node will stay, differ from node to node and are amounts of
the rows. Labels split groups only where a queued job asks for them, for else every host name would be a group of its own.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping
from operator import gt, itemgetter
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
Room = tuple[int, int, int]
"""(free cores, free memory in MiB, when the node will be away)."""
BusyKey = tuple[int, int, NodeId]
"""(when its attempts are expected to end, added up; price; node id)."""
BusyRoom = tuple[int, int, int, int]
"""A room, and the price below zero."""
CORES, MEMORY, LEAVES, PRICE = itemgetter(0), itemgetter(1), itemgetter(2), itemgetter(3)
Tasks = tuple[int, int]
"""(how many attempts are under way, when they are expected to end, added up)."""
Label = tuple[str, str]

BucketKey = tuple[tuple[int, ...], int, int, bool]
"""(kinds of the free cards, terms, tier, whether it will be away one day)."""
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
        """The most of everything; one node need not have all of it."""
        return max(map(CORES, amounts)), max(map(MEMORY, amounts)), max(map(LEAVES, amounts))

    @staticmethod
    def more(one: Room, other: Room) -> Room:
        """The same of two."""
        if one[0] >= other[0] and one[1] >= other[1] and one[2] >= other[2]:
            return one
        return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])

    @staticmethod
    def reaches(amount: Room, most: Room) -> bool:
        """Whether this node may be the one with the most of something."""
        return amount[0] >= most[0] or amount[1] >= most[1] or amount[2] >= most[2]

    def first(self, cores: int, memory_mib: int, avoid: Container[NodeId], until_ms: int = 0) -> NodeKey | None:
        """The cheapest node with that much room, for that long, that is not to be avoided."""
        return self._search(self.root, (cores, memory_mib, until_ms), avoid)

    def _search(self, block: Block[NodeKey, Room], least: Room, avoid: Container[NodeId]) -> NodeKey | None:
        cores, memory_mib, until_ms = least
        for at, room in enumerate(block.amounts):
            self.tally.touched += 1
            if room[0] >= cores and room[1] >= memory_mib and room[2] >= until_ms:
                if not block.leaf:
                    found = self._search(block.items[at], least, avoid)
                    if found is not None:
                        return found
                elif block.items[at] not in avoid:
                    return block.keys[at]
        return None

    def firsts(self, number: int, least: Room, avoid: Container[NodeId], most_uusd: int) -> list[NodeKey]:
        """The so many cheapest nodes with that much room, for that long, that are not to be avoided nor dearer than that."""
        found: list[NodeKey] = []
        self._gather(self.root, least, avoid, (number, most_uusd), found)
        return found

    def _gather(
        self, block: Block[NodeKey, Room], least: Room, avoid: Container[NodeId], until: tuple[int, int], found: list[NodeKey]
    ) -> None:
        number, most_uusd = until
        for at, room in enumerate(block.amounts):
            if len(found) == number or block.keys[at][0] > most_uusd:
                return
            self.tally.touched += 1
            if room[0] >= least[0] and room[1] >= least[1] and room[2] >= least[2]:
                if not block.leaf:
                    self._gather(block.items[at], least, avoid, until, found)
                elif block.items[at] not in avoid:
                    found.append(block.keys[at])


class NodesByBacklog(Ordered[BusyKey, BusyRoom]):
    """Nodes of a group with equally many attempts under way, the one first whose attempts end first, all in all."""

    __slots__ = ()

    block_rows_max = 32

    @staticmethod
    def most(amounts: list[BusyRoom]) -> BusyRoom:
        """The most of everything, and the lowest price."""
        return max(map(CORES, amounts)), max(map(MEMORY, amounts)), max(map(LEAVES, amounts)), max(map(PRICE, amounts))

    @staticmethod
    def more(one: BusyRoom, other: BusyRoom) -> BusyRoom:
        """The same of two."""
        return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])

    @staticmethod
    def reaches(amount: BusyRoom, most: BusyRoom) -> bool:
        """Whether this node may be the one with the most of something."""
        return any(one >= other for one, other in zip(amount, most, strict=True))

    def first(self, least: BusyRoom, avoid: Container[NodeId]) -> BusyKey | None:
        """The node with the least left to do that has so much of everything and is not to be avoided."""
        return self._search(self.root, least, avoid)

    def _search(self, block: Block[BusyKey, BusyRoom], least: BusyRoom, avoid: Container[NodeId]) -> BusyKey | None:
        cores, memory_mib, until_ms, price = least
        for at, room in enumerate(block.amounts):
            self.tally.touched += 1
            if room[0] >= cores and room[1] >= memory_mib and room[2] >= until_ms and room[3] >= price:
                if not block.leaf:
                    found = self._search(block.items[at], least, avoid)
                    if found is not None:
                        return found
                elif block.items[at] not in avoid:
                    return block.keys[at]
        return None


class Bucket:
    """Nodes that a job without a target can tell apart only by price and room."""

    __slots__ = ("busy", "chosen", "door", "ending", "example", "free", "key", "nodes", "shapes")

    def __init__(self, key: BucketKey, example: Node, free: tuple[Card, ...], chosen: Chosen, tally: Tally) -> None:
        self.key = key
        self.example = example
        """Stands for any of the nodes where conditions are concerned."""
        self.free = free
        self.chosen = chosen
        self.door = door_of(example)
        self.ending = key[3]
        self.nodes = NodesByPrice(tally)
        self.busy: dict[int, NodesByBacklog] = {}
        """The same nodes by how many attempts are under way there; kept only for a policy that asks for it."""
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
    reachable: bool
    labels: frozenset[Label]


class Row:
    """A node as the index has it."""

    __slots__ = ("bucket", "cards", "changes_ms", "key", "kinds", "offer", "room", "tasks", "terms")

    def __init__(self) -> None:
        self.offer: NodeOffered | None = None
        self.cards: tuple[tuple[str, int, Card], ...] = ()
        """(UUID, kind, card) of the healthy ones, by kind."""
        self.kinds: tuple[int, ...] = ()
        """The kinds alone."""
        self.terms = 0
        self.bucket: Bucket | None = None
        self.key: NodeKey = (0, "")
        self.room: Room = (0, 0, 0)
        self.tasks: Tasks = (0, 0)
        self.changes_ms = 0
        """When it will be another node by the mere passing of time; 0: never."""


class NodeIndex:
    """Every node of the market, in its bucket while it may be matched. `by_backlog`: by the work that it expects, too. `as_if_empty`: as
    if nothing ran anywhere."""

    def __init__(self, tally: Tally, by_backlog: bool = False, as_if_empty: bool = False) -> None:
        self.tally = tally
        self.by_backlog = by_backlog
        self.as_if_empty = as_if_empty
        self.moves = 0
        """How often a node has come, gone or changed."""
        self.kept: Mapping[NodeId, int] = {}
        """Nodes where a place is kept, each for when: what runs there until then is welcome."""
        self.ending = 0
        """How many of them will be away one day."""
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
        leaves_ms, row.changes_ms = FOR_EVER_MS, 0
        if node is not None and node.maintenance is not None and now_ms < node.maintenance[1]:
            leaves_ms, back_ms, _ = node.maintenance
            row.changes_ms = leaves_ms if now_ms < leaves_ms else back_ms
        if node is None or node.state is not NodeState.OFFERED or node_id in suspects or leaves_ms <= now_ms:
            self._leave(row)
            return False
        if row.offer is not node.offer:
            self._describe(row, node)
        tier = 0 if node.tier_until_ms <= now_ms else TIER_RANK[node.tier]
        if tier:
            row.changes_ms = min(row.changes_ms or FOR_EVER_MS, node.tier_until_ms)
        offer, taken = node.offer, node.taken
        key = (node.price_uusd_per_gpu_hour, node_id)
        if self.as_if_empty:
            free, room = row.kinds, (offer.cores, offer.memory_mib, leaves_ms)
        else:
            free = tuple([kind for uuid, kind, _ in row.cards if uuid not in taken])
            until_ms = min(leaves_ms, self.kept[node_id]) if node_id in self.kept else leaves_ms
            room = (offer.cores - node.cores_taken, offer.memory_mib - node.memory_taken_mib, until_ms)
        tasks = self._tasks(row, node, now_ms) if self.by_backlog else (0, 0)
        bucket_key = (free, row.terms, tier, leaves_ms != FOR_EVER_MS)
        bucket = self.buckets.get(bucket_key) or self._create(bucket_key, node, row)
        was = row.bucket
        if bucket is was and key == row.key and room == row.room and tasks == row.tasks:
            return False
        improved = was is None or not _is_less(row, bucket_key, key[0], room)
        self._leave(row)
        row.bucket, row.key, row.room, row.tasks = bucket, key, room, tasks
        self._enter(row, bucket)
        return improved

    def _tasks(self, row: Row, node: Node, now_ms: int) -> Tasks:
        """What is under way there; an attempt that takes longer than was expected counts no more."""
        ends = [end_ms for held in node.allocations.values() if (end_ms := held.since_ms + held.expected_ms) > now_ms]
        if not ends:
            return 0, 0
        row.changes_ms = min(row.changes_ms or FOR_EVER_MS, *ends)
        return len(ends), sum(ends)

    def _enter(self, row: Row, bucket: Bucket) -> None:
        key, room = row.key, row.room
        bucket.nodes.add(key, room, key[1])
        self.open[bucket] = bucket.nodes.root.keys[0][0]
        self.ending += bucket.ending
        self.moves += 1
        if self.by_backlog:
            number, ends_ms = row.tasks
            group = bucket.busy.get(number)
            if group is None:
                group = bucket.busy[number] = NodesByBacklog(self.tally)
            group.add((ends_ms, *key), (*room, -key[0]), key[1])

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

    def forget(self, shapes: set[Any]) -> None:
        """Shapes of jobs that there are no more."""
        for bucket in self.buckets.values():
            bucket.shapes = {shape: how for shape, how in bucket.shapes.items() if shape not in shapes}

    def _leave(self, row: Row) -> None:
        bucket = row.bucket
        if bucket is None:
            return
        bucket.nodes.remove(row.key)
        self.ending -= bucket.ending
        self.moves += 1
        if self.by_backlog:
            number, ends_ms = row.tasks
            group = bucket.busy[number]
            group.remove((ends_ms, *row.key))
            if not group.size:
                del bucket.busy[number]
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
        row.kinds = tuple(kind for _, kind, _ in row.cards)
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
            reachable=offer.address is not None,
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
            tier=node.tier if key[2] else Tier.CLAIMED,
            tier_until_ms=FOR_EVER_MS,
        )
        free = tuple(card for uuid, _, card in row.cards if self.as_if_empty or uuid not in node.taken)
        bucket = self.buckets[key] = Bucket(key, example, free, self._chosen.setdefault(key[0], {}), self.tally)
        self.created.append(bucket)
        return bucket


def _is_less(row: Row, key: BucketKey, price: int, room: Room) -> bool:
    """Whether a node offers nothing that it did not offer before: the same terms, no card, core, or memory more, and no lower price."""
    assert row.bucket is not None
    was = row.bucket.key
    if was[1:] != key[1:] or price < row.key[0] or any(map(gt, room, row.room)):
        return False
    before = iter(was[0])
    return all(kind in before for kind in key[0])
