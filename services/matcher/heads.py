"""The head of the queue: the first job that could run if nothing else ran, found without walking jobs or nodes; and the place kept for it.
Pure; the engine tells it of every change. The rule itself is `keeping.py`.
"""

from __future__ import annotations

from events.values import JobId, NodeId
from projections.market import Market
from projections.nodes import NodeState, planned
from services.matcher.feasibility import AS_IF_EMPTY, Scene, obstacle
from services.matcher.finder import Found
from services.matcher.frontier import Frontier
from services.matcher.keeping import KEEP_AMONG, Kept, Option, kept_among, room_from_ms
from services.matcher.matches import asks_as_one, gang_of
from services.matcher.node_index import NodeIndex
from services.matcher.ordered import Tally
from services.matcher.places import cheapest, cheapest_of_gang, target_of
from services.matcher.policies import Rank
from services.matcher.price_index import ANY_PRICE
from services.matcher.shapes import Shape, ShapeTable

KNOWN_NODES_MAX = 4096
"""So many nodes are remembered with the time from which they have room."""

Basis = tuple[int, int, int]
"""What a look at the empty nodes holds for: (their moves, the highest price that limits allow, the time where it matters)."""


class Heads:
    """What the engine knows of heads. `kept` is None as long as nobody had to be kept from passing."""

    def __init__(self, market: Market, table: ShapeTable, tally: Tally) -> None:
        self.kept: Kept | None = None
        self.empties = NodeIndex(tally, as_if_empty=True)
        """Every node that may be matched, as if nothing ran there."""
        self.frontier = Frontier(table.shapes)
        """Shapes with a bound before which none of their jobs could run at all."""
        self._market = market
        self._table = table
        self._tally = tally
        self._is_stale = False
        self._may_be_free = False
        """Whether a kept node has changed since it had no room."""
        self._candidates: dict[Shape, tuple[Basis, list[Rank]]] = {}
        self._room_from_ms: dict[NodeId, dict[bytes, int | None]] = {}

    # -- what has changed --

    def settle(self, node_id: NodeId, now_ms: int, suspects: set[NodeId]) -> None:
        """A node has changed."""
        self.touch(node_id)
        if self.kept is not None and node_id in self.kept.nodes:
            self._may_be_free = True
        if self._is_as_before(node_id, suspects):
            return
        empties, before = self.empties, self.empties.moves
        if empties.settle(self._market, node_id, now_ms, suspects):
            bucket = empties.rows[node_id].bucket
            if bucket is not None:
                self.frontier.push_each(bucket.shapes)
        if empties.moves != before:
            self._is_stale = True
            self.frontier.push_each(self._table.targets.get(node_id, ()))

    def _is_as_before(self, node_id: NodeId, suspects: set[NodeId]) -> bool:
        """Whether nothing has changed but what runs there: that is so of most nodes, and told soon."""
        row, node = self.empties.rows.get(node_id), self._market.nodes.get(node_id)
        return (
            row is not None
            and node is not None
            and row.bucket is not None
            and row.offer is node.offer
            and row.key[0] == node.price_uusd_per_gpu_hour
            and not node.tier_until_ms
            and node.maintenance is None
            and row.changes_ms == 0
            and node.state is NodeState.OFFERED
            and node_id not in suspects
        )

    def touch(self, node_id: NodeId) -> None:
        """What runs on a node, or how long it may, has changed."""
        if self._room_from_ms.pop(node_id, None) is not None:
            self._is_stale = True

    def look_again(self) -> None:
        """Who may run where, or what a job may cost, has changed."""
        self._is_stale = True

    def touch_job(self, job_id: JobId) -> None:
        """A queued job has changed."""
        if self.kept is not None and self.kept.job_id == job_id:
            self._is_stale = True

    def forget(self, shapes: set[Shape]) -> None:
        """There are no such shapes any more."""
        self.empties.forget(shapes)
        self.frontier.forget(shapes)
        for shape in shapes:
            self._candidates.pop(shape, None)

    # -- the head --

    def first(self, scene: Scene, room_for: int) -> Found | None:
        """The first queued job that could run. `room_for`: so many more jobs the market runs at once."""
        frontier = self.frontier
        while (top := frontier.top()) is not None:
            bound, shape = top
            floor = self._floor(shape, scene, room_for) if shape.jobs.size else None
            found = None if floor is None else shape.jobs.first(floor)
            if found is not None and found[0] == bound:
                return found
            frontier.raise_top(shape, None if found is None else found[0])
        return None

    def _floor(self, shape: Shape, scene: Scene, room_for: int) -> int | None:
        """The least that a job of this shape must pay to run on any empty node; None when it cannot."""
        if shape.num_nodes > room_for:
            return None
        if shape.target is not None:
            return self._look(shape, scene)
        basis = self._basis_of(shape, scene)
        if shape.floor[0] != basis:
            shape.floor = (basis, self._look(shape, scene))
        return shape.floor[1]

    def _basis_of(self, shape: Shape, scene: Scene) -> Basis:
        return (self.empties.moves, shape.cap, scene.now_ms if self.empties.ending else 0)

    def _look(self, shape: Shape, scene: Scene) -> int | None:
        if shape.target is not None:
            there = target_of(self.empties, shape, scene, AS_IF_EMPTY)
        elif shape.num_nodes == 1:
            there = cheapest(self.empties, shape, scene)
        else:
            found = cheapest_of_gang(self.empties, shape, scene, shape.num_nodes)
            there = found[-1] if len(found) == shape.num_nodes else None
        return None if there is None else there[0]

    # -- its place --

    def keeps_for(self, job_id: JobId) -> bool:
        """Whether what is kept is kept for this job, and was chosen from what is so still."""
        return self.kept is not None and self.kept.job_id == job_id and not self._is_stale

    def choose(self, job_id: JobId, scene: Scene) -> Kept:
        """Where to keep a place for the head, which fits no node now."""
        self._is_stale, self._may_be_free = False, True
        if len(self._room_from_ms) >= KNOWN_NODES_MAX:  # never in the middle: a change of any node that is looked at below must be heard
            self._room_from_ms.clear()
        job = self._market.jobs[job_id]
        gang, price = gang_of(self._market, job), job.max_price_uusd_per_gpu_hour
        most = gang.price_uusd if gang is not None else ANY_PRICE if price is None else price
        options = []
        for shape in self._table.placed[job_id].shapes:
            if not shape.key.ending:
                for place in self._cheapest(shape, scene):
                    if place[0] > most:
                        break
                    from_ms = self._room_from(place[3], shape)
                    if from_ms is not None:
                        options.append(Option(from_ms, place[0], place[3]))
        self.kept = kept_among(job_id, options, job.submitted.num_nodes)
        return self.kept

    def is_free_for(self, job_id: JobId, index: NodeIndex, scene: Scene) -> bool:
        """Whether the head fits where a place is kept for it now; a gang may have its other nodes anywhere."""
        assert self.kept is not None
        job = self._market.jobs[job_id]
        if not self.kept.nodes or not (self._may_be_free or job.submitted.num_nodes > 1):
            return False
        self._may_be_free = False
        gang, asks = gang_of(self._market, job), asks_as_one(self._market, job)
        plain = scene._replace(kept={})
        nodes = [self._market.nodes[node_id] for node_id in self.kept.nodes]
        free = sum(any(obstacle(ask, node, plain) is None for ask in asks) for node in nodes)
        if gang is None or not free:
            return free > 0
        (shape,) = self._table.placed[job_id].shapes
        elsewhere = cheapest_of_gang(index, shape, scene, shape.num_nodes - free) if free < shape.num_nodes else []
        return free + sum(place[0] <= gang.price_uusd for place in elsewhere) >= shape.num_nodes

    def _cheapest(self, shape: Shape, scene: Scene) -> list[Rank]:
        """The cheapest nodes that could run jobs of this shape, those that will be away one day aside."""
        nodes = self._market.nodes
        if shape.target is not None:
            there = target_of(self.empties, shape, scene, AS_IF_EMPTY)
            return [] if there is None or planned(nodes[there[3]], scene.now_ms) is not None else [there]
        basis = self._basis_of(shape, scene)
        known = self._candidates.get(shape)
        if known is None or known[0] != basis:
            found = cheapest_of_gang(self.empties, shape, scene._replace(kept={}), max(KEEP_AMONG, shape.num_nodes))
            staying = [place for place in found if planned(nodes[place[3]], scene.now_ms) is None]
            known = self._candidates[shape] = (basis, staying)
        return known[1]

    def _room_from(self, node_id: NodeId, shape: Shape) -> int | None:
        known = self._room_from_ms.setdefault(node_id, {})
        if shape.key.asked not in known:
            self._tally.touched += 1
            known[shape.key.asked] = room_from_ms(self._market, self._market.nodes[node_id], shape.ask.requirements)
        return known[shape.key.asked]
