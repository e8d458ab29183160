"""Which job gets which node next. Pure: an index over a Market, rebuilt from it at any time, and no part of its digest.

The decision is that of this loop, without walking anything: take the first job in policy order that any free node can run, and give it the
best of those nodes. Whoever folds an event says what it touched; between turns no queued job fits any free node, so only what has changed
since needs a look. Two lists keep that look small. `_frontier`: shapes of jobs, each with a bound before which none of its jobs fits any
node. `_fresh`: a few nodes that may fit more than before; when they are many, the shapes that fit them go to the frontier instead.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable

from events.values import JobId, NodeId, OrgId, Requirements, Wallet
from projections.job_states import HELD, QUEUED
from projections.jobs import Job
from projections.market import Market
from projections.parties import next_day_ms
from services.matcher.feasibility import Scene
from services.matcher.frontier import Frontier
from services.matcher.limits import limits_money
from services.matcher.matches import Match, avoided, first_rank, gang_of, match_gang, match_of
from services.matcher.node_index import Bucket, NodeIndex
from services.matcher.ordered import Tally
from services.matcher.places import best_of, cheapest, cheapest_of_gang
from services.matcher.policies import SEQ_MASK, Rank, order_key, orders_otherwise, row_of
from services.matcher.price_index import ANY_PRICE, NEVER
from services.matcher.shapes import Placed, Shape, ShapeKey, ShapeTable, cap_of, fit, gang_key, keys_of, make_known
from services.matcher.share_index import Units
from services.matcher.timers import Timers

FRESH_NODES_MAX = 4
STALE_LABELS_MAX = 64
ENDING_KEPT_MS = 3_600_000
"""How long jobs are still laid out by their timeouts when no node has a plan to leave any more."""
FIRST = (0,)

Found = tuple[int, JobId]
"""A job and its order key."""


class Engine:
    """Everything that matching needs to know beside the market. Touching is cheap and may be done once too often, never too seldom."""

    def __init__(self, market: Market) -> None:
        self.market = market
        self._suspects: set[NodeId] = set()
        self._tally = Tally()
        self._rebuild()

    @property
    def touched(self) -> int:
        """How many rows (jobs, nodes, shapes, buckets) have been looked at so far."""
        return self._tally.touched

    def touch_job(self, job_id: JobId) -> None:
        """The job has changed, and what its parties use perhaps with it."""
        self._touched_jobs[job_id] = None
        job = self.market.jobs.get(job_id) if self._row.by_share or self._table.purses else None
        if job is not None:
            self._touched_parties |= dict.fromkeys((job.buyer, job.submitted.org_id or job.buyer))

    def touch_node(self, node_id: NodeId) -> None:
        """The node's offer, state, price or allocations have changed."""
        self._touched_nodes[node_id] = None

    def touch_org(self, org_id: OrgId) -> None:
        """The organisation's members have changed."""
        self._touched_orgs[org_id] = None

    def suspect(self, node_id: NodeId, is_suspect: bool) -> None:
        """Nothing is matched to a node that has not been heard of lately."""
        if is_suspect is not (node_id in self._suspects):
            (self._suspects.add if is_suspect else self._suspects.discard)(node_id)
            self._touched_nodes[node_id] = None

    def next_wakeup_ms(self) -> int | None:
        """When a job or node may become fit by the mere passing of time; None: never."""
        return self._timers.next_ms()

    def next_match(self, now_ms: int) -> Match | None:
        """The next decision, or None when no queued job fits any free node. The caller folds it, touches job and node, and asks again."""
        self._settle(now_ms)
        if self.market.paused or self._is_full():
            return None
        found = self._first_of_frontier(self._first_of_fresh())
        if found is None:
            return None
        return self._match(found[1])

    def _match(self, job_id: JobId) -> Match:
        """The match of a job that is known to fit some node."""
        placed, variant = self._table.placed[job_id], 0
        shape = placed.shapes[0]
        if shape.num_nodes > 1:
            return match_gang(self.market, job_id, self._gang_places(shape))
        best = self._best_place(shape)
        if len(placed.shapes) > 1 or self._row.by_backlog:
            price = self.market.jobs[job_id].max_price_uusd_per_gpu_hour
            most = ANY_PRICE if price is None else price
            (_, _, variant, best), shape = best_of(placed, self._nodes, self._scene, most, by_backlog=self._row.by_backlog)
        assert best is not None, job_id
        return match_of(self.market, job_id, best, shape.ask.requirements, variant)

    def _rebuild(self) -> None:
        market = self.market
        self._policy, self._row, self._limits_seq = market.policy, row_of(market.policy), market.limits_seq
        self._is_stale = False
        self._scene = Scene(market, 0, self._suspects)
        self._nodes = NodeIndex(self._tally, self._row.by_backlog)
        self._table = ShapeTable(self._tally, self._row.by_share)
        self._units = Units(market)
        self._ending_until_ms = 0
        """Until then jobs are laid out for nodes that will be away one day; 0: no node has such a plan."""
        self._known: set[Wallet] = set()
        """Buyers whom some node names, so that their jobs lie in a private shape, too."""
        self._frontier = Frontier(self._table.shapes)
        self._fresh: dict[NodeId, Found | None] = {}
        """Nodes, each with its first job if that is known."""
        self._seen: tuple[Shape | None, Rank | None] = (None, None)
        """The last shape that a place was looked for, and the place; good until something changes."""
        self._timers = Timers()
        self._touched_jobs: dict[JobId, None] = {job_id: None for job_id, job in market.jobs.items() if job.state is QUEUED}
        self._touched_nodes: dict[NodeId, None] = dict.fromkeys(market.nodes)
        self._touched_orgs: dict[OrgId, None] = {}
        self._touched_parties: dict[str, None] = {}

    def _is_full(self, jobs: int = 1) -> bool:
        """Whether the market runs so many jobs that it takes no more of them at once."""
        most = self.market.policy.max_concurrent
        return most is not None and sum(self.market.states.get(state, 0) for state in HELD) + jobs > most

    # -- keeping the index in step with the market --

    def _settle(self, now_ms: int) -> None:
        """Take in everything that was touched, and everything whose time has come."""
        policy = self.market.policy
        if self._is_stale or self.market.limits_seq != self._limits_seq or orders_otherwise(policy, self._policy):
            self._rebuild()
        self._policy = policy
        if now_ms != self._scene.now_ms:
            self._scene = Scene(self.market, now_ms, self._suspects)
            self._look_again()
        for name in self._timers.due(now_ms) if self._timers.is_due(now_ms) else ():
            is_party = name in self._table.purses
            (self._touched_parties if is_party else self._touched_nodes if name in self.market.nodes else self._touched_jobs)[name] = None
        self._seen = (None, None)
        if self._touched_nodes:
            touched_nodes, self._touched_nodes = self._touched_nodes, {}
            self._settle_nodes(touched_nodes)
            self._watch_ends(now_ms)
        if self._touched_parties:
            touched_parties, self._touched_parties = self._touched_parties, {}
            for name in touched_parties:
                self._settle_party(name)
        if self._touched_orgs:
            touched_orgs, self._touched_orgs = self._touched_orgs, {}
            for bucket in self._nodes.buckets.values():
                if bucket.door in touched_orgs:
                    self._introduce(bucket)
        while self._touched_jobs:
            touched_jobs, self._touched_jobs = self._touched_jobs, {}
            for job_id in touched_jobs:
                self._settle_job(job_id)
        if self._table.gangs and policy.max_concurrent is not None:
            self._frontier.push_each(self._table.gangs)  # any job that ends makes room for them, wherever it ran

    def _settle_nodes(self, node_ids: Iterable[NodeId]) -> None:
        index, fresh, now_ms = self._nodes, self._fresh, self._scene.now_ms
        for node_id in node_ids:
            self._tally.touched += 1
            if index.settle(self.market, node_id, now_ms, self._suspects) or node_id in fresh:
                fresh[node_id] = None
                self._frontier.push_each(self._table.gangs)
            self._frontier.push_each(self._table.targets.get(node_id, ()))
            changes_ms = index.rows[node_id].changes_ms
            if changes_ms:
                self._timers.wake(changes_ms, node_id)
        if index.created:
            created, index.created = index.created, []
            for bucket in created:
                self._introduce(bucket)
        if len(fresh) > FRESH_NODES_MAX:
            self._spread()

    def _watch_ends(self, now_ms: int) -> None:
        """Lay jobs out by their timeouts, too, while some node has a plan to leave and for a while after."""
        if self._nodes.ending:
            if not self._ending_until_ms:
                self._touched_jobs |= dict.fromkeys(self._table.placed)
            self._ending_until_ms = now_ms + ENDING_KEPT_MS
        elif self._ending_until_ms <= now_ms:
            self._ending_until_ms = 0

    def _look_again(self) -> None:
        """What the fresh nodes would take may no longer be so."""
        for node_id in self._fresh:
            self._fresh[node_id] = None

    def _settle_party(self, name: str) -> None:
        """What a wallet or organisation uses has changed: what its limits allow, and where its jobs stand."""
        for shape in self._table.purses.get(name, ()):
            self._limit(shape)
        for unit, rank in self._units.misplaced(name):
            for shape in self._table.move(unit, rank):
                if shape.bound is not None:
                    self._frontier.push(shape, unit.low)
            self._look_again()

    def _limit(self, shape: Shape) -> None:
        """Find out what limits allow jobs of this shape now; more of it is a reason to look for nodes."""
        self._tally.touched += 1
        purse, now_ms = shape.key.purse, self._scene.now_ms
        cap = cap_of(shape, self.market, now_ms)
        if cap > shape.cap:
            self._frontier.push_all(shape)
        if cap != shape.cap:
            shape.cap = cap
            self._look_again()
        if purse is not None and limits_money(self.market, purse.wallet, purse.org_id):
            self._timers.wake(next_day_ms(now_ms), purse.wallet)

    def _introduce(self, bucket: Bucket) -> None:
        """Find out which shapes of jobs fit a bucket that is new, or whose organisation has changed."""
        if bucket.door is not None:
            self._admit(bucket)
        bucket.shapes.clear()
        for shape in self._table.shapes.values():
            how = fit(shape, bucket, self._scene)
            if how is not None:
                bucket.shapes[shape] = how
                self._frontier.push_all(shape)

    def _admit(self, bucket: Bucket) -> None:
        """Give the buyers whom these nodes take private shapes, if they have none yet."""
        door = bucket.door
        if isinstance(door, str):
            org = self.market.identity.orgs.get(door)
            door = frozenset() if org is None else frozenset(org.members)
        assert door is not None
        new = door - self._known
        self._known |= new
        if not new.isdisjoint(self.market.queued_of):
            for job_id in self._table.placed:
                job = self.market.jobs.get(job_id)
                if job is not None and job.buyer in new:
                    self._touched_jobs[job_id] = None

    def _settle_job(self, job_id: JobId) -> None:
        """Lay a job where it belongs: in its shapes, among those that wait for a time, or nowhere."""
        table, now_ms = self._table, self._scene.now_ms
        self._tally.touched += 1
        table.take(job_id)
        job = self.market.jobs.get(job_id)
        first = first_rank(self.market, job)
        if first is not None:  # it lies where rank 0 does
            self._touched_jobs[first] = None
        if job is None or job.state is not QUEUED or job.submitted.rank > 0:
            return
        gang = gang_of(self.market, job)
        if job.submitted.num_nodes > 1 and gang is None:
            return
        not_before_ms = job.not_before_ms if gang is None else gang.not_before_ms
        if not_before_ms > now_ms:
            self._timers.wake(not_before_ms, job_id)
            return
        avoid = avoided(job, now_ms)
        if avoid and job.avoid is not None:
            self._timers.wake(min(job.avoid[node_id] for node_id in avoid), job_id)
        if table.is_crowded():
            self._sweep()
        price = job.max_price_uusd_per_gpu_hour
        if gang is not None:
            key = gang_key(gang.ranks, self.market, avoid)
            shape = table.shapes.get(key) or self._shape(key, job.submitted.requirements)
            self._put(job, shape.alone, FIRST, gang.price_uusd)
            return
        shapes, variants = self._shapes_of(job, avoid)
        self._put(job, shapes, variants, ANY_PRICE if price is None else price)

    def _put(self, job: Job, shapes: tuple[Shape, ...], variants: tuple[int, ...], price: int) -> None:
        unit = self._units.of(job) if self._row.by_share else None
        key = order_key(job, self._policy, self.market)
        self._table.put(job.submitted.job_id, Placed(key if unit is None else key & SEQ_MASK, shapes, unit, variants), price)
        self._look_again()
        for shape in shapes:
            self._frontier.push(shape, key if unit is None else unit.low)

    def _shapes_of(self, job: Job, avoid: frozenset[NodeId]) -> tuple[tuple[Shape, ...], tuple[int, ...]]:
        """One shape for each sort of node that may take it and each of its buyer's choices; and which choice each shape is."""
        known, asked = self._table.shapes, job.submitted
        of: dict[Shape, int] = {}
        for variant, requirements in enumerate((asked.requirements, *asked.variants) if asked.variants else (asked.requirements,)):
            keys = keys_of(job, requirements, self.market, avoid, private=job.buyer in self._known, ending=self._ending_until_ms > 0)
            if len(keys) == 1 and not asked.variants:
                return (known.get(keys[0]) or self._shape(keys[0], requirements)).alone, FIRST
            for key in keys:
                of.setdefault(known.get(key) or self._shape(key, requirements), variant)
        return tuple(of), tuple(of.values())

    def _shape(self, key: ShapeKey, requirements: Requirements) -> Shape:
        """A new shape, made known to every bucket that it fits."""
        shape = self._table.make(key, requirements)
        if key.purse is not None:
            self._limit(shape)
        if requirements.node_labels:
            self._settle_nodes(self._nodes.ask_labels(requirements.node_labels.items()))
        make_known(shape, self._nodes.buckets.values(), self._scene)
        return shape

    def _sweep(self) -> None:
        """Forget shapes without a job; begin anew when labels that nobody asks for any more split the nodes."""
        idle = self._table.sweep()
        self._nodes.forget(idle)
        asked = {label for shape in self._table.shapes.values() for label in shape.ask.requirements.node_labels.items()}
        self._is_stale = len(self._nodes.labels_asked) > 2 * len(asked) + STALE_LABELS_MAX

    # -- finding the next match --

    def _spread(self) -> None:
        """Many nodes are fresh: let the shapes that fit them look for nodes, rather than each node for a job."""
        for bucket in {self._nodes.rows[node_id].bucket: None for node_id in self._fresh}:
            if bucket is not None:
                self._frontier.push_each(bucket.shapes)
        self._fresh.clear()

    def _first_of_fresh(self) -> Found | None:
        """The first job that fits a fresh node; nodes that fit none are no longer fresh."""
        best, placed = None, self._table.placed
        for node_id, known in list(self._fresh.items()):
            if known is None or known[1] not in placed:
                known = self._fresh[node_id] = self._first_for(node_id)
                if known is None:
                    del self._fresh[node_id]
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
        stays_ms = leaves_ms - self._scene.now_ms
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

    def _first_of_frontier(self, best: Found | None) -> Found | None:
        """The first job of all: `best`, unless a shape has an earlier one that fits a node. Bounds are made exact from the lowest up."""
        frontier = self._frontier.heap
        exact: tuple[Shape, Found] | None = None
        while frontier:
            bound, _, shape = frontier[0]
            if shape.bound != bound:
                heapq.heappop(frontier)
                continue
            if best is not None and bound >= best[0]:
                return best
            if exact is not None and exact[0] is shape:
                return exact[1]
            place = self._best_place(shape) if shape.jobs.size else None
            found = None if place is None else shape.jobs.first(place[0])
            if found is None:
                heapq.heappop(frontier)
                shape.bound = None
            elif found[0] == bound:
                return found
            else:
                exact, shape.bound = (shape, found), found[0]
                heapq.heapreplace(frontier, (found[0], shape.number, shape))
        return best

    def _best_place(self, shape: Shape) -> Rank | None:
        """The best node for jobs of this shape, whatever they pay."""
        if shape is self._seen[0]:
            return self._seen[1]
        place = next(reversed(self._gang_places(shape)), None) if shape.num_nodes > 1 else cheapest(self._nodes, shape, self._scene)
        self._seen = (shape, place)
        return place

    def _gang_places(self, shape: Shape) -> list[Rank]:
        """The best nodes for all ranks of a gang of this shape, whatever they pay; none when they cannot be placed together."""
        return [] if self._is_full(shape.num_nodes) else cheapest_of_gang(self._nodes, shape, self._scene)
