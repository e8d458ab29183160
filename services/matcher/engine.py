"""Which job gets which node next. Pure: an index over a Market, rebuilt from it at any time, and no part of its digest.

The decision is that of this loop, without walking anything: take the first job in policy order that any free node can run, and give it the
best of those nodes; once a job had to wait that could run, the node that has room for it first takes others only if they are over by then.
Whoever folds an event says what it touched. `finder.py` looks for the first job that fits, `heads.py` for the first that could.
"""

from __future__ import annotations

from collections.abc import Iterable

from events.values import JobId, NodeId, OrgId, Requirements, Wallet
from projections.job_states import HELD, QUEUED
from projections.jobs import Job
from projections.market import Market
from projections.parties import next_day_ms
from services.matcher.feasibility import Scene
from services.matcher.finder import Finder, Found
from services.matcher.frontier import Frontier
from services.matcher.heads import Heads
from services.matcher.limits import limits_money
from services.matcher.matches import Match, avoided, first_rank, gang_of, match_gang, match_of
from services.matcher.node_index import Bucket, NodeIndex
from services.matcher.ordered import Tally
from services.matcher.places import best_of
from services.matcher.policies import SEQ_MASK, order_key, orders_otherwise, row_of
from services.matcher.price_index import ANY_PRICE
from services.matcher.shapes import Placed, Shape, ShapeKey, ShapeTable, cap_of, fit, gang_key, keys_of, make_known
from services.matcher.share_index import Units
from services.matcher.timers import Timers

STALE_LABELS_MAX = 64
ENDING_KEPT_MS = 3_600_000
"""How long jobs are still laid out by their timeouts when no node has a plan to leave any more."""
FIRST = (0,)
ANY_NUMBER = 1 << 30


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
        room_for = self._room_for()
        if self.market.paused or room_for <= 0:
            return None
        head = self._heads.first(self._scene, room_for) if self._policy.keep_place else None
        self._renew(head)
        found = self._finder.first(room_for)
        if head is not None and (found is None or found[1] != head[1]):
            if self._heads.kept is None and found is not None:  # it passes the head
                self._keep(head[1])
                found = self._finder.first(room_for)
            elif self._heads.kept is not None and self._heads.is_free_for(head[1], self._nodes, self._finder.scene):
                found = head
        if found is None:
            return None
        if head is not None and found[1] == head[1]:
            self._let_go()
        return self._match(found[1], room_for)

    def _match(self, job_id: JobId, room_for: int) -> Match:
        """The match of a job that is known to fit some node."""
        placed, variant = self._table.placed[job_id], 0
        shape = placed.shapes[0]
        if shape.num_nodes > 1:
            return match_gang(self.market, job_id, self._finder.gang_places(shape, room_for))
        best = self._finder.best_place(shape, room_for)
        if len(placed.shapes) > 1 or self._row.by_backlog:
            price = self.market.jobs[job_id].max_price_uusd_per_gpu_hour
            most, scene = ANY_PRICE if price is None else price, self._finder.scene
            (_, _, variant, best), shape = best_of(placed, self._nodes, scene, most, by_backlog=self._row.by_backlog)
        assert best is not None, job_id
        return match_of(self.market, job_id, best, shape.ask.requirements, variant)

    # -- the place that is kept --

    def _renew(self, head: Found | None) -> None:
        """Keep no place for a job that is not the head any more, and the right one for the head."""
        kept = self._heads.kept
        if kept is None:
            return
        if head is None or kept.job_id != head[1]:
            self._let_go()
        elif not self._heads.keeps_for(head[1]):
            self._keep(head[1])

    def _keep(self, job_id: JobId) -> None:
        self._bar(self._heads.choose(job_id, self._scene).nodes)

    def _let_go(self) -> None:
        self._heads.kept = None
        self._bar({})

    def _bar(self, kept: dict[NodeId, int]) -> None:
        """Let nobody start on these nodes who is not over in time."""
        before = self._nodes.kept
        if before == kept:
            return
        self._nodes.kept = kept
        self._finder.scene = self._scene._replace(kept=kept)
        for node_id in {**before, **kept}:
            self._finder.refresh(node_id, self._nodes.settle(self.market, node_id, self._scene.now_ms, self._suspects))
        self._introduce_new()
        self._finder.forget_place()
        self._finder.spread()

    def _rebuild(self) -> None:
        market = self.market
        self._policy, self._row, self._limits_seq = market.policy, row_of(market.policy), market.limits_seq
        self._is_stale = False
        self._scene = Scene(market, 0, self._suspects)
        self._nodes = NodeIndex(self._tally, self._row.by_backlog)
        self._table = ShapeTable(self._tally, self._row.by_share)
        self._finder = Finder(self._nodes, self._table, self._scene)
        self._heads = Heads(market, self._table, self._tally)
        self._units = Units(market)
        self._ending_until_ms = 0
        """Until then jobs are laid out for nodes that will be away one day; 0: no node has such a plan."""
        self._known: set[Wallet] = set()
        """Buyers whom some node names, so that their jobs lie in a private shape, too."""
        self._timers = Timers()
        self._touched_jobs: dict[JobId, None] = {job_id: None for job_id, job in market.jobs.items() if job.state is QUEUED}
        self._touched_nodes: dict[NodeId, None] = dict.fromkeys(market.nodes)
        self._touched_orgs: dict[OrgId, None] = {}
        self._touched_parties: dict[str, None] = {}

    def _room_for(self) -> int:
        """How many more jobs the market runs at once."""
        most = self.market.policy.max_concurrent
        return ANY_NUMBER if most is None else most - sum(self.market.states.get(state, 0) for state in HELD)

    # -- keeping the index in step with the market --

    def _settle(self, now_ms: int) -> None:
        """Take in everything that was touched, and everything whose time has come."""
        policy = self.market.policy
        if self._is_stale or self.market.limits_seq != self._limits_seq or orders_otherwise(policy, self._policy):
            self._rebuild()
        self._policy = policy
        if now_ms != self._scene.now_ms:
            self._scene = Scene(self.market, now_ms, self._suspects)
            self._finder.scene = self._scene._replace(kept=self._nodes.kept)
            self._finder.look_again()
        for name in self._timers.due(now_ms) if self._timers.is_due(now_ms) else ():
            is_party = name in self._table.purses
            (self._touched_parties if is_party else self._touched_nodes if name in self.market.nodes else self._touched_jobs)[name] = None
        self._finder.forget_place()
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
            self._settle_orgs(touched_orgs)
        while self._touched_jobs:
            touched_jobs, self._touched_jobs = self._touched_jobs, {}
            for job_id in touched_jobs:
                self._settle_job(job_id)
        if self._table.gangs and policy.max_concurrent is not None:
            for frontier in self._frontiers():
                frontier.push_each(self._table.gangs)  # any job that ends makes room for them, wherever it ran

    def _frontiers(self) -> tuple[Frontier, Frontier]:
        return self._finder.frontier, self._heads.frontier

    def _settle_nodes(self, node_ids: Iterable[NodeId]) -> None:
        index, finder, now_ms = self._nodes, self._finder, self._scene.now_ms
        for node_id in node_ids:
            self._tally.touched += 1
            finder.refresh(node_id, index.settle(self.market, node_id, now_ms, self._suspects))
            self._heads.settle(node_id, now_ms, self._suspects)
            changes_ms = index.rows[node_id].changes_ms
            if changes_ms:
                self._timers.wake(changes_ms, node_id)
        self._introduce_new()
        finder.spread()

    def _settle_orgs(self, org_ids: dict[OrgId, None]) -> None:
        """Whose jobs some nodes take has changed."""
        self._heads.look_again()
        for index, frontier in zip((self._nodes, self._heads.empties), self._frontiers(), strict=True):
            index.moves += 1
            for bucket in index.buckets.values():
                if bucket.door in org_ids:
                    self._introduce(bucket, frontier)
        for shapes in self._table.targets.values():
            for frontier in self._frontiers():
                frontier.push_each(shapes)

    def _watch_ends(self, now_ms: int) -> None:
        """Lay jobs out by their timeouts, too, while some node has a plan to leave and for a while after."""
        if self._nodes.ending:
            if not self._ending_until_ms:
                self._touched_jobs |= dict.fromkeys(self._table.placed)
            self._ending_until_ms = now_ms + ENDING_KEPT_MS
        elif self._ending_until_ms <= now_ms:
            self._ending_until_ms = 0

    def _settle_party(self, name: str) -> None:
        """What a wallet or organisation uses has changed: what its limits allow, and where its jobs stand."""
        for shape in self._table.purses.get(name, ()):
            self._limit(shape)
        for unit, rank in self._units.misplaced(name):
            for shape in self._table.move(unit, rank):
                for frontier in self._frontiers():
                    if shape in frontier.bounds:
                        frontier.push(shape, unit.low)
            self._finder.look_again()

    def _limit(self, shape: Shape) -> None:
        """Find out what limits allow jobs of this shape now; more of it is a reason to look for nodes."""
        self._tally.touched += 1
        purse, now_ms = shape.key.purse, self._scene.now_ms
        cap = cap_of(shape, self.market, now_ms)
        if cap > shape.cap:
            for frontier in self._frontiers():
                frontier.push_all(shape)
        if cap != shape.cap:
            shape.cap = cap
            self._finder.look_again()
            self._heads.look_again()
        if purse is not None and limits_money(self.market, purse.wallet, purse.org_id):
            self._timers.wake(next_day_ms(now_ms), purse.wallet)

    def _introduce_new(self) -> None:
        """Make groups of nodes known that there were not before."""
        for index, frontier in zip((self._nodes, self._heads.empties), self._frontiers(), strict=True):
            if index.created:
                created, index.created = index.created, []
                for bucket in created:
                    self._introduce(bucket, frontier)

    def _introduce(self, bucket: Bucket, frontier: Frontier) -> None:
        """Find out which shapes of jobs fit a bucket that is new, or whose organisation has changed."""
        if bucket.door is not None:
            self._admit(bucket)
        bucket.shapes.clear()
        for shape in self._table.shapes.values():
            how = fit(shape, bucket, self._scene)
            if how is not None:
                bucket.shapes[shape] = how
                frontier.push_all(shape)

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
        self._heads.touch_job(job_id)
        if job is not None and job.run is not None:
            self._heads.touch(job.run.node_id)
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
            key = gang_key(gang, self.market, avoid)
            shape = table.shapes.get(key) or self._shape(key, job.submitted.requirements)
            self._put(job, shape.alone, FIRST, gang.price_uusd)
            return
        shapes, variants = self._shapes_of(job, avoid)
        self._put(job, shapes, variants, ANY_PRICE if price is None else price)

    def _put(self, job: Job, shapes: tuple[Shape, ...], variants: tuple[int, ...], price: int) -> None:
        unit = self._units.of(job) if self._row.by_share else None
        key = order_key(job, self._policy, self.market)
        self._table.put(job.submitted.job_id, Placed(key if unit is None else key & SEQ_MASK, shapes, unit, variants), price)
        self._finder.look_again()
        fits, could, bound = self._finder.frontier, self._heads.frontier, key if unit is None else unit.low
        for shape in shapes:
            fits.push(shape, bound)
            could.push(shape, bound)

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
            labels = requirements.node_labels.items()
            self._settle_nodes({*self._nodes.ask_labels(labels), *self._heads.empties.ask_labels(labels)})
        for index in (self._nodes, self._heads.empties):
            make_known(shape, index.buckets.values(), self._scene)
        return shape

    def _sweep(self) -> None:
        """Forget shapes without a job; begin anew when labels that nobody asks for any more split the nodes."""
        idle = self._table.sweep()
        self._nodes.forget(idle)
        self._finder.frontier.forget(idle)
        self._heads.forget(idle)
        asked = {label for shape in self._table.shapes.values() for label in shape.ask.requirements.node_labels.items()}
        self._is_stale = len(self._nodes.labels_asked) > 2 * len(asked) + STALE_LABELS_MAX
