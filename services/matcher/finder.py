"""The first queued job in policy order that fits a node now, without walking jobs or nodes. Pure; the engine keeps its lists in step.

Between decisions no queued job fits any free node, so only what has changed since needs a look. Two lists keep that look small.
`frontier`: shapes of jobs, each with a bound before which none of its jobs fits any node. `fresh`: a few nodes that may fit more than
before; when they are many, the shapes that fit them go to the frontier instead.
"""

from __future__ import annotations

from bisect import bisect_left

from events.values import JobId, NodeId
from services.matcher.feasibility import Scene
from services.matcher.frontier import Frontier
from services.matcher.node_index import NodeIndex
from services.matcher.places import cheapest, cheapest_of_gang
from services.matcher.policies import Rank
from services.matcher.price_index import NEVER
from services.matcher.shapes import Shape, ShapeTable

FRESH_NODES_MAX = 4

Found = tuple[int, JobId]
"""A job and its order key."""


class Finder:
    """Looks for jobs among the shapes of a table, for nodes in an index."""

    def __init__(self, nodes: NodeIndex, table: ShapeTable, scene: Scene) -> None:
        self.scene = scene
        self.frontier = Frontier(table.shapes)
        self.fresh: dict[NodeId, Found | None] = {}
        """Nodes, each with its first job if that is known."""
        self._nodes = nodes
        self._table = table
        self._tally = nodes.tally
        self._seen: tuple[Shape | None, Rank | None] = (None, None)
        """The last shape that a place was looked for, and the place; good until something changes."""

    def forget_place(self) -> None:
        """Something has changed."""
        self._seen = (None, None)

    def look_again(self) -> None:
        """What the fresh nodes would take may no longer be so."""
        for node_id in self.fresh:
            self.fresh[node_id] = None

    def refresh(self, node_id: NodeId, improved: bool) -> None:
        """The node has changed; `improved`: some job may fit it that did not."""
        if improved or node_id in self.fresh:
            self.fresh[node_id] = None
            self.frontier.push_each(self._table.gangs)
        self.frontier.push_each(self._table.targets.get(node_id, ()))

    def spread(self) -> None:
        """When many nodes are fresh, let the shapes that fit them look for nodes, rather than each node for a job."""
        if len(self.fresh) <= FRESH_NODES_MAX:
            return
        for bucket in {self._nodes.rows[node_id].bucket: None for node_id in self.fresh}:
            if bucket is not None:
                self.frontier.push_each(bucket.shapes)
        self.fresh.clear()

    def first(self, room_for: int) -> Found | None:
        """The first job that fits a node; None when there is none. `room_for`: so many more jobs the market runs at once."""
        return self._first_of_frontier(self._first_of_fresh(), room_for)

    def best_place(self, shape: Shape, room_for: int) -> Rank | None:
        """The best node for jobs of this shape, whatever they pay; of a gang, the last of its nodes."""
        if shape is self._seen[0]:
            return self._seen[1]
        place = self._last_of_gang(shape, room_for) if shape.num_nodes > 1 else cheapest(self._nodes, shape, self.scene)
        self._seen = (shape, place)
        return place

    def _last_of_gang(self, shape: Shape, room_for: int) -> Rank | None:
        return next(reversed(self.gang_places(shape, room_for)), None)

    def gang_places(self, shape: Shape, room_for: int) -> list[Rank]:
        """The best nodes for all ranks of a gang of this shape, whatever they pay; none when they cannot be placed together."""
        if shape.num_nodes > room_for:
            return []
        found = cheapest_of_gang(self._nodes, shape, self.scene, shape.num_nodes)
        return found if len(found) == shape.num_nodes else []

    def _first_of_fresh(self) -> Found | None:
        """The first job that fits a fresh node; nodes that fit none are no longer fresh."""
        best, placed = None, self._table.placed
        for node_id, known in list(self.fresh.items()):
            if known is None or known[1] not in placed:
                known = self.fresh[node_id] = self._first_for(node_id)
                if known is None:
                    del self.fresh[node_id]
                    continue
            if best is None or known < best:
                best = known
        return best

    def _first_for(self, node_id: NodeId) -> Found | None:
        """The first job in order that fits this node now, those with a target aside."""
        row = self._nodes.rows[node_id]
        bucket = row.bucket
        if bucket is None:
            return None
        best, before, price, (cores, memory_mib, leaves_ms) = None, NEVER, row.key[0], row.room
        stays_ms = leaves_ms - self.scene.now_ms
        self._tally.touched += len(bucket.shapes)
        for shape in bucket.shapes:
            root = shape.jobs.root
            so_far = root.most_so_far
            if so_far is not None:  # most shapes are passed over here: nobody in them pays the price, or nobody early enough
                at = bisect_left(so_far, price)
                if at == len(so_far) or root.keys[at] >= before:
                    continue
            if price > shape.cap or shape.timeout_ms > stays_ms or shape.num_nodes > 1:
                continue
            if shape.cores <= cores and shape.memory_mib <= memory_mib and (not shape.avoid or node_id not in shape.avoid):
                found = shape.jobs.first(price, before)
                if found is not None:
                    best, before = found, found[0]
        return best

    def _first_of_frontier(self, best: Found | None, room_for: int) -> Found | None:
        """The first job of all: `best`, unless a shape has an earlier one that fits a node. Bounds are made exact from the lowest up."""
        frontier = self.frontier
        exact: tuple[Shape, Found] | None = None
        while (top := frontier.top()) is not None:
            bound, shape = top
            if best is not None and bound >= best[0]:
                return best
            if exact is not None and exact[0] is shape:
                return exact[1]
            place = self.best_place(shape, room_for) if shape.jobs.size else None
            found = None if place is None else shape.jobs.first(place[0])
            if found is None:
                frontier.raise_top(shape, None)
            elif found[0] == bound:
                return found
            else:
                exact = (shape, found)
                frontier.raise_top(shape, found[0])
        return best
