"""The engine against the loop that it stands for, on random worlds, however they came about; and what no match may ever do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from random import Random
from typing import Any
from unittest import mock

import msgspec
from builders import BUYER, OPERATOR, ORG, SELLER, START_MS, By, digest, job_id, job_submitted, make, node_offered, wallet
from desk import Desk
from hypothesis import given, settings
from hypothesis import strategies as st

from events import identity, ids, jobs, market, nodes
from events.fact import Event
from events.market import Policy
from events.reasons import Reason, Refusal
from events.values import Accept, Card, Isolation, Network, OrgRole, Requirements, Tier
from projections.job_states import HELD, MATCHED, QUEUED
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Allocation, Node, free_cards, planned
from projections.parties import DAY_MS, spent_this_month_uusd, spent_today_uusd
from services.matcher import engine, finder, heads, node_index, shapes
from services.matcher.consequences import consequences
from services.matcher.engine import Engine
from services.matcher.feasibility import AS_IF_EMPTY, Ask, Scene, ask_of, asks_of, choose, choose_cards, is_free, obstacle
from services.matcher.matches import Match
from services.matcher.node_index import NodesByBacklog, NodesByPrice, door_of
from services.matcher.policies import POLICIES, Rank, backlog_of, order_key, place, rank
from services.matcher.price_index import PriceIndex

WORLDS = int(os.environ.get("BAZAAR_WORLDS", settings.default.max_examples * 10 // 3))
"""200 on a developer's machine, 1,000 in CI; `BAZAAR_WORLDS=100000` for a long run (docs/policies.md)."""

BUYERS = (BUYER, wallet("alice"), SELLER)
OWNERS = (SELLER, wallet("bob"))
MODELS = ("NVIDIA GeForce RTX 4090", "NVIDIA A100-SXM4-80GB")
ASKS: tuple[dict[str, Any], ...] = (
    {},
    {"num_gpus": 2},
    {"num_gpus": 0},
    {"num_gpus": 0, "cores": 3, "memory_mib": 2000},
    {"num_gpus": 4},
    {"vram_mib": 40_000},
    {"num_gpus": 2, "total_vram_mib": 60_000},
    {"gpu_models": ("A100",)},
    {"gpu_models": ("RTX 4090", "A100"), "num_gpus": 2, "cores": 2},
    {"min_cuda": 12_050},
    {"cores": 4},
    {"memory_mib": 5000},
    {"isolation": Isolation.CONTAINER},
    {"min_tier": Tier.CONSISTENT},
    {"network": Network.EGRESS},
    {"allow_simulated": True},
    {"node_labels": {"region": "eu"}},
    {"node_labels": {"region": "eu", "disk": "ssd"}, "num_gpus": 0},
    {"target": 0},
    {"target": 1, "target_cards": (1,)},
    {"target": 2, "target_cards": (0, 1), "num_gpus": 2},
)
TARGETLESS = sum("target" not in asked for asked in ASKS)
PRICES = (None, 100_000, 200_000, 300_000, 400_000)
LABELS: tuple[dict[str, str], ...] = ({}, {"region": "eu"}, {"region": "eu", "disk": "ssd"}, {"region": "us"})


class World(Desk):
    """A market and its engine, checked against the loop at every decision."""

    def __init__(self) -> None:
        super().__init__(make(identity.OrganisationCreated))
        self.suspects: set[str] = set()
        self.submitted = 0

    def try_event(self, happening: Event | By) -> Refusal | None:
        """With what the matcher does at once about the other ranks of a gang."""
        refused = super().try_event(happening)
        event: Any = happening.event if isinstance(happening, By) else happening
        job = self.market.jobs.get(getattr(event, "job_id", ""))
        if refused is None and job is not None and job.submitted.num_nodes > 1:
            for decision in consequences(self.market, event, self.now_ms):
                assert self.try_event(decision) is None, decision
        return refused

    def in_order(self, job: Job) -> int:
        """Where a queued job stands."""
        return order_key(job, self.market.policy, self.market)

    def match(self) -> None:
        """Let the engine decide all there is."""
        while True:
            expected = brute_force(self.market, self.now_ms, self.suspects)
            match = self.next_match()
            assert expected == match
            if match is None:
                return
            self.fold_match(match)


def brute_force(state: Market, now_ms: int, suspects: set[str]) -> Match | None:
    """The first job in policy order that any free node can run, and the best of those nodes; no job gets a node where a place is kept for
    the head, unless it is over by then."""
    running = sum(job.state in HELD for job in state.jobs.values())
    if state.paused or (state.policy.max_concurrent is not None and running >= state.policy.max_concurrent):
        return None
    queued = [job for job in state.jobs.values() if job.state is QUEUED and job.not_before_ms <= now_ms]
    queued.sort(key=lambda job: order_key(job, state.policy, state))
    scene = Scene(state, now_ms, suspects)
    head = next((job for job in queued if could_start(state, job, scene, running)), None) if state.policy.keep_place else None
    if head is not None and placed(state, head, scene, running) is None:
        scene = scene._replace(kept=brute_kept(state, head, scene))
    for job in queued:
        found = placed(state, job, scene, running)
        if found is not None:
            return found
    return None


def placed(state: Market, job: Job, scene: Scene, running: int) -> Match | None:
    """Where this job goes now, if anywhere."""
    if job.submitted.num_nodes > 1:
        return brute_gang(state, job, scene, running)
    found = [
        (place(backlog_of(state.policy, node, scene.now_ms), ask.requirements.num_gpus, variant, rank_of(node, ask)), node, ask)
        for variant, ask in enumerate(asks_of(job))
        for node in state.nodes.values()
        if obstacle(ask, node, scene) is None
    ]
    if not found:
        return None
    best, node, ask = min(found, key=lambda one: one[0])
    cards = choose_cards(node, ask.requirements)
    assert cards is not None
    return Match(job.submitted.job_id, node.node_id, cards, node.price_uusd_per_gpu_hour, best[2])


def could_start(state: Market, job: Job, scene: Scene, running: int) -> bool:
    """Whether it could start now if nothing else ran."""
    if job.submitted.num_nodes > 1:
        return brute_gang(emptied(state), job, scene, running) is not None
    return any(obstacle(ask, node, scene, AS_IF_EMPTY) is None for ask in asks_of(job) for node in state.nodes.values())


def emptied(state: Market) -> Market:
    nodes = {
        name: msgspec.structs.replace(node, allocations={}, taken={}, cores_taken=0, memory_taken_mib=0)
        for name, node in state.nodes.items()
    }
    return msgspec.structs.replace(state, nodes=nodes)


def brute_kept(state: Market, head: Job, scene: Scene) -> dict[str, int]:
    """Of the cheapest nodes that stay and could run the head those that have room for it first, until the last of them has."""
    empty, number = emptied(state), head.submitted.num_nodes
    options: dict[str, tuple[int, int, str]] = {}
    asks = asks_of(head) if number == 1 else (ask_of_gang(state.ranks_of(head)),)
    for ask in asks:
        able = [node for node in empty.nodes.values() if obstacle(ask, node, scene, AS_IF_EMPTY) is None]
        if number == 1:
            able = [node for node in able if planned(node, scene.now_ms) is None]
        able.sort(key=lambda node: rank_of(node, ask))
        sorts = (
            [able]
            if number > 1 or ask.requirements.target_node
            else [[n for n in able if (door_of(n) is None) is each] for each in (True, False)]
        )
        for nodes_of_sort in sorts:
            for node in nodes_of_sort[: max(heads.KEEP_AMONG, number)]:
                if planned(node, scene.now_ms) is None:
                    from_ms = free_from_ms(state, state.nodes[node.node_id], ask.requirements)
                    option = (from_ms, node.price_uusd_per_gpu_hour, node.node_id)
                    options[node.node_id] = min(option, options.get(node.node_id, option))
    best = sorted(options.values())[:number]
    return {node_id: best[-1][0] for _, _, node_id in best} if len(best) == number else {}


def free_from_ms(state: Market, node: Node, asked: Requirements) -> int:
    """When it has room, by trying every moment at which something ends."""
    ends = {epoch: end_of(state, epoch, held) for epoch, held in node.allocations.items()}
    for moment in (0, *sorted(ends.values())):
        left = {epoch: held for epoch, held in node.allocations.items() if ends[epoch] > moment}
        taken = {uuid: epoch for epoch, held in left.items() for uuid in held.cards}
        cores, memory = sum(held.cores for held in left.values()), sum(held.memory_mib for held in left.values())
        if is_free(msgspec.structs.replace(node, taken=taken, cores_taken=cores, memory_taken_mib=memory), asked):
            return moment
    raise AssertionError("an empty node has room")


def end_of(state: Market, epoch: int, held: Allocation) -> int:
    job = state.jobs.get(held.job_id)
    if job is None or job.run is None or job.run.epoch != epoch or job.run.ended_ms:
        return held.since_ms
    return (job.run.started_ms or job.run.matched_ms) + job.timeout_s * 1000


def ask_of_gang(ranks: Iterable[Job]) -> Ask:
    """What all ranks ask as one."""
    asks = [ask_of(rank) for rank in ranks]
    prices = [ask.max_price_uusd_per_gpu_hour for ask in asks if ask.max_price_uusd_per_gpu_hour is not None]
    left = [ask.left_uusd for ask in asks if ask.left_uusd is not None]
    return asks[0]._replace(
        max_price_uusd_per_gpu_hour=min(prices, default=None),
        timeout_s=max(ask.timeout_s for ask in asks),
        left_uusd=max(left) if len(left) == len(asks) else None,
    )


def brute_gang(state: Market, job: Job, scene: Scene, running: int) -> Match | None:
    """All ranks on the best nodes that all of them may have, one each, if there are as many; rank 0 speaks for them."""
    ranks, number = state.ranks_of(job), job.submitted.num_nodes
    if job.submitted.rank or any(rank.state is not QUEUED or rank.not_before_ms > scene.now_ms for rank in ranks):
        return None
    most = state.policy.max_concurrent
    if most is not None and running + number > most:
        return None
    ask = ask_of_gang(ranks)
    fit = [node for node in state.nodes.values() if obstacle(ask, node, scene) is None]
    best = sorted(fit, key=lambda node: rank_of(node, ask))[:number]
    if len(best) < number:
        return None
    found = []
    for one, node in zip(ranks, best, strict=True):
        cards = choose_cards(node, one.submitted.requirements)
        assert cards is not None
        found.append(Match(one.submitted.job_id, node.node_id, cards, node.price_uusd_per_gpu_hour))
    return found[0]._replace(others=tuple(found[1:]))


def rank_of(node: Node, ask: Ask) -> Rank:
    free = free_cards(node)
    taken: tuple[Card, ...] | None = choose(free, ask.requirements)
    assert taken is not None
    return rank(node.price_uusd_per_gpu_hour, len(free) - len(taken), sum(card.vram_mib for card in taken), node.node_id)


# What may happen in a world: each verb reads three numbers as it likes.


def node_names(world: World) -> list[str]:
    return list(world.market.nodes)


def submit(world: World, a: int, b: int, c: int) -> None:
    asked = dict(ASKS[a % len(ASKS)])
    target = asked.pop("target", None)
    if target is not None:
        if not world.market.nodes:
            return
        asked["target_node"] = node_names(world)[target % len(world.market.nodes)]
    changes: dict[str, Any] = {"max_price": PRICES[b % len(PRICES)], "priority": (b // 7) % 3 * 25, "retries": 20}
    changes |= {"timeout_s": (10, 60, 3600)[b // 5 % 3], "estimate_s": (None, 5, 50)[b // 11 % 3], "org_id": (None, ORG)[b // 13 % 2]}
    if target is None and a % 4 == 0:
        changes["variants"] = tuple(Requirements(**ASKS[number % TARGETLESS]) for number in (a // 4, b)[: 1 + c % 2])
    changes |= {"max_total_uusd": (None, None, 50_000)[b // 17 % 3]}
    world.submitted += 1
    world.try_event(By(BUYERS[c % len(BUYERS)], job_submitted(f"job{world.submitted}", **asked, **changes)))


def submit_gang(world: World, a: int, b: int, c: int) -> None:
    """Two to four ranks at once."""
    asked = ASKS[a % TARGETLESS] if a % 3 == 0 else {"num_gpus": a % 3 - 1}
    number, buyer = (2, 2, 3, 4)[b % 4], BUYERS[c % len(BUYERS)]
    changes: dict[str, Any] = {"max_price": PRICES[b // 3 % len(PRICES)], "priority": (b // 7) % 3 * 25, "retries": 20}
    changes |= {
        "timeout_s": (10, 60, 3600)[c // 5 % 3],
        "org_id": (None, ORG)[c // 13 % 2],
        "max_total_uusd": (None, None, 50_000)[c // 17 % 3],
    }
    world.submitted += 1
    group_id = ids.group_id(digest(f"gang {world.submitted}"))
    for index in range(number):
        named = f"gang{world.submitted}-{index}"
        world.try_event(By(buyer, job_submitted(named, **asked, **changes, num_nodes=number, rank=index, group_id=group_id)))


def submit_some(world: World, a: int, b: int, c: int) -> None:
    for index in range(b % 5):
        submit(world, a, b + index, c)


def offer(world: World, a: int, b: int, c: int) -> None:
    owner = OWNERS[a // 5 % 2]
    number = b % 7
    cards: dict[str, Any] = {"gpus": c % 5, "model": MODELS[c // 5 % 2], "vram_mib": (24_564, 81_920)[c // 5 % 2]}
    cards |= {"simulated": c // 11 % 7 == 0, "cuda": (12_040, 12_080)[c // 13 % 2]}
    terms: dict[str, Any] = {"cores": c // 3 % 6 + 1, "memory_mib": (4000, 8000)[c // 17 % 2], "labels": LABELS[c // 19 % 4]}
    terms |= {"min_gpus": (0, 0, 0, 2)[c // 23 % 4], "egress": c // 29 % 2 == 0, "price": PRICES[1:][b // 7 % 4]}
    terms |= {"isolation": (Isolation.PROCESS, Isolation.CONTAINER)[c // 31 % 2], "address": ("10.0.0.1", "10.0.0.1", None)[c // 43 % 3]}
    terms |= (
        {},
        {},
        {"accept": Accept.OWN},
        {"accept": Accept.OWN, "accept_wallets": (BUYER,)},
        {"accept": Accept.ORGANISATION, "org_id": ORG},
    )[a % 5]
    offered = node_offered(f"node{number}", owner=owner, **cards, **terms)
    if c // 37 % 3 == 0 and len(offered.cards) > 1:  # unlike cards in one node, one of them broken
        odd = msgspec.structs.replace(offered.cards[0], model=MODELS[0], vram_mib=12_288, healthy=c // 41 % 2 == 0)
        offered = msgspec.structs.replace(offered, cards=(odd, *offered.cards[1:]))
    world.try_event(By(owner, offered))


def plan(world: World, a: int, b: int, c: int) -> None:
    """A node will be away soon, later, now, or not at all."""
    if world.market.nodes:
        node_id = node_names(world)[a % len(world.market.nodes)]
        from_ms = world.now_ms + (b % 9 - 1) * 12_000
        planned = make(nodes.NodeMaintenancePlanned, node_id=node_id, from_ms=from_ms, until_ms=from_ms + c % 4 * 15_000)
        world.try_event(By(world.market.nodes[node_id].wallet, planned))


def change_node(world: World, a: int, b: int, c: int) -> None:
    if not world.market.nodes:
        return
    node_id = node_names(world)[a % len(world.market.nodes)]
    owner = world.market.nodes[node_id].wallet
    changes: tuple[tuple[str, type[Event], dict[str, Any]], ...] = (
        (owner, nodes.NodeRepriced, {"price_uusd_per_gpu_hour": PRICES[1:][c % 4]}),
        (owner, nodes.NodeDrained, {}),
        (owner, nodes.NodeResumed, {}),
        (owner, nodes.NodeWithdrawn, {}),
        ("", nodes.NodeLost, {}),
        (OPERATOR, market.NodeBanned, {"lifted": c % 2 == 0}),
        (OPERATOR, nodes.NodeVerified, {"tier": Tier.CONSISTENT, "expires_ms": world.now_ms + c % 40 * 1000}),
    )
    sender, kind, values = changes[b % len(changes)]
    world.try_event(By(sender, make(kind, node_id=node_id, **values)))


def suspect(world: World, a: int, b: int, c: int) -> None:
    if world.market.nodes:
        node_id = node_names(world)[a % len(world.market.nodes)]
        (world.suspects.add if b % 2 else world.suspects.discard)(node_id)
        world.engine.suspect(node_id, b % 2 == 1)


def end_attempt(world: World, a: int, b: int, c: int) -> None:
    held = [job for job in world.market.jobs.values() if job.state is MATCHED]
    if not held:
        return
    job = held[a % len(held)]
    assert job.run is not None
    attempt: dict[str, Any] = {"job_id": job.submitted.job_id, "attempt": job.run.attempt, "epoch": job.run.epoch}
    node_id, owner = job.run.node_id, job.run.node_wallet
    if b % 4 == 0:
        world.try_event(By(job.buyer, make(jobs.JobCancelRequested, job_id=attempt["job_id"])))
        return
    if b % 4 == 1:
        for kind in (jobs.JobClaimed, jobs.JobStarted):
            world.try_event(By(owner, make(kind, **attempt)))
        world.history.now_ms += c % 3 * 4000
        world.try_event(By(owner, make(jobs.JobSucceeded, **attempt, ran_ms=c % 3 * 4000)))
        world.try_event(By(owner, make(jobs.GpusReleased, **attempt)))
        return
    if b % 4 == 2:
        world.try_event(By(owner, make(jobs.JobDeclined, **attempt)))
    else:
        world.try_event(make(jobs.LeaseExpired, **attempt, node_id=node_id))
    if job.state is QUEUED:
        now_ms = world.now_ms
        avoid: dict[str, Any] = {"avoid_node": node_id, "avoid_until_ms": now_ms + c // 5 % 30 * 1000} if c % 3 else {}
        again = {"job_id": attempt["job_id"], "attempt": job.attempts + 1, "reason": Reason.DECLINED}
        world.try_event(make(jobs.JobRequeued, **again, not_before_ms=now_ms + c % 5 * 2000, **avoid))


def start_attempt(world: World, a: int, b: int, c: int) -> None:
    """It runs, for a while; its buyer may want more time."""
    held = [job for job in world.market.jobs.values() if job.state in HELD and job.run is not None]
    if not held:
        return
    job = held[a % len(held)]
    assert job.run is not None
    attempt: dict[str, Any] = {"job_id": job.submitted.job_id, "attempt": job.run.attempt, "epoch": job.run.epoch}
    if job.state is MATCHED:
        for kind in (jobs.JobClaimed, jobs.JobStarted):
            world.try_event(By(job.run.node_wallet, make(kind, **attempt)))
            world.history.now_ms += b % 3 * 1000
    elif c % 2:
        world.try_event(By(job.buyer, make(jobs.JobExtended, job_id=attempt["job_id"], extra_s=b % 7 * 60 + 1)))


def change_job(world: World, a: int, b: int, c: int) -> None:
    queued = [job for job in world.market.jobs.values() if job.state is QUEUED]
    if not queued:
        return
    job = queued[a % len(queued)]
    changes: tuple[tuple[type[Event], dict[str, Any]], ...] = (
        (jobs.JobRepriced, {"max_price_uusd_per_gpu_hour": PRICES[c % len(PRICES)]}),
        (jobs.JobReprioritised, {"priority": c % 101}),
        (jobs.JobCancelRequested, {}),
        (jobs.JobExtended, {}),
    )
    kind, values = changes[b % len(changes)]
    world.try_event(By(job.buyer, make(kind, job_id=job.submitted.job_id, **values)))


def limit_changed(who: str, b: int, c: int) -> market.LimitChanged:
    """Some cards, little money, both, or no limit any more."""
    money: dict[str, Any] = ({}, {"spend_day_uusd": c % 7 * 30_000}, {"spend_month_uusd": c % 5 * 60_000})[b % 3]
    return make(market.LimitChanged, party=who, gpus=(None, c % 4)[b // 3 % 2], **money)


def set_policy(world: World, a: int, b: int, c: int) -> None:
    name = sorted(POLICIES)[a % len(POLICIES)]
    policy = Policy(name=name, ageing_s_per_point=b % 2 * 72, half_life_s=(60, 86400)[c % 2])
    world.try_event(By(OPERATOR, make(market.PolicyChanged, policy=policy)))


def change_market(world: World, a: int, b: int, c: int) -> None:
    member = {"org_id": ORG, "wallet": BUYERS[b % 2 + 1]}
    changes: tuple[Event | By, ...] = (
        By(OPERATOR, make(market.MatchingPaused)),
        By(OPERATOR, make(market.MatchingResumed)),
        *(By(OPERATOR, limit_changed(who, b, c)) for who in (BUYER, BUYERS[1], ORG, BUYER)),
        By(OPERATOR, make(market.PolicyChanged, policy=Policy(max_concurrent=None if b % 2 else c % 4 + 1))),
        By(BUYER, make(identity.MemberAdded, **member, role=OrgRole.MEMBER)),
        By(BUYER, make(identity.MemberRemoved, **member)),
    )
    world.try_event(changes[a % len(changes)])


def wait(world: World, a: int, b: int, c: int) -> None:
    world.history.now_ms += b % 3 * DAY_MS if a % 13 == 0 else a % 20 * 1000


def decide(world: World, a: int, b: int, c: int) -> None:
    world.match()


VERBS: tuple[Callable[[World, int, int, int], None], ...] = (
    submit,
    submit_some,
    submit_some,
    submit_gang,
    submit_gang,
    offer,
    offer,
    offer,
    change_node,
    plan,
    suspect,
    end_attempt,
    end_attempt,
    start_attempt,
    change_job,
    change_market,
    set_policy,
    wait,
    decide,
    decide,
)

NUMBERS = st.integers(0, 20_000)
STEPS = st.lists(st.tuples(st.sampled_from(VERBS), NUMBERS, NUMBERS, NUMBERS), min_size=20, max_size=60)


def play(steps: list[Any]) -> World:
    """A world in which all of this has happened."""
    world = World()
    for verb, a, b, c in steps:
        verb(world, a, b, c)
    return world


@settings(max_examples=WORLDS)
@given(STEPS)
def test_the_engine_decides_as_the_plain_loop_does_whatever_happened_before(steps: list[Any]) -> None:
    play(steps).match()


@settings(max_examples=WORLDS // 2)
@given(STEPS)
def test_so_it_does_when_its_lists_are_cramped(steps: list[Any]) -> None:
    """Blocks of four rows, and what is idle is forgotten at once: what otherwise happens in large markets only."""
    with (
        mock.patch.object(PriceIndex, "block_rows_max", 4),
        mock.patch.object(NodesByPrice, "block_rows_max", 4),
        mock.patch.object(shapes, "SHAPES_MIN", 2),
        mock.patch.object(node_index, "BUCKETS_MIN", 2),
        mock.patch.object(NodesByBacklog, "block_rows_max", 4),
        mock.patch.object(engine, "STALE_LABELS_MAX", 0),
        mock.patch.object(engine, "ENDING_KEPT_MS", 1),
        mock.patch.object(finder, "FRESH_NODES_MAX", 1),
        mock.patch.object(heads, "KEEP_AMONG", 2),
        mock.patch.object(heads, "KNOWN_NODES_MAX", 2),
    ):
        play(steps).match()


@settings(max_examples=WORLDS // 4)
@given(STEPS)
def test_an_engine_built_from_the_market_decides_as_the_one_that_followed_it(steps: list[Any]) -> None:
    world = play(steps)
    rebuilt = Engine(world.market)
    for node_id in world.suspects:
        rebuilt.suspect(node_id, True)
    assert rebuilt.next_match(world.now_ms) == world.next_match()


@settings(max_examples=WORLDS // 4)
@given(STEPS, st.randoms(use_true_random=False))
def test_the_order_in_which_things_stand_in_the_market_decides_nothing(steps: list[Any], chance: Any) -> None:
    world = play(steps)
    shuffled = msgspec.structs.replace(world.market, jobs=mixed(world.market.jobs, chance), nodes=mixed(world.market.nodes, chance))
    one, other = Engine(world.market), Engine(shuffled)
    assert one.next_match(world.now_ms) == other.next_match(world.now_ms)


def mixed(things: dict[str, Any], chance: Any) -> dict[str, Any]:
    names = list(things)
    chance.shuffle(names)
    return {name: things[name] for name in names}


@settings(max_examples=WORLDS // 4)
@given(STEPS)
def test_no_match_takes_what_is_taken_or_costs_more_or_offers_less_than_was_asked(steps: list[Any]) -> None:
    world = World()
    for verb, a, b, c in steps:
        verb(world, a, b, c)
        while (match := world.next_match()) is not None:
            for one in (match, *match.others):
                check(world.market, one)
            world.fold_match(match)
            check_limits(world, match)
            check_gang(world.market, match)


def check_gang(state: Market, match: Match) -> None:
    """All ranks are on nodes of their own, or none is anywhere."""
    ranks = state.ranks_of(state.jobs[match.job_id])
    held = [rank.run.node_id for rank in ranks if rank.state is MATCHED and rank.run is not None]
    assert len(ranks) == len(held) == len(set(held)) == state.jobs[match.job_id].submitted.num_nodes


def check(state: Market, match: Match) -> None:
    job, node = state.jobs[match.job_id], state.nodes[match.node_id]
    asked, cards = (job.submitted.requirements, *job.submitted.variants)[match.variant], {card.uuid: card for card in node.offer.cards}
    chosen = [cards[uuid] for uuid in match.cards]
    assert asked.num_gpus == len(set(match.cards))
    assert not set(match.cards) & set(node.taken)
    assert all(card.healthy and card.vram_mib >= asked.vram_mib for card in chosen)
    assert sum(card.vram_mib for card in chosen) >= asked.total_vram_mib
    assert asked.allow_simulated or not any(card.simulated for card in chosen)
    most = job.max_price_uusd_per_gpu_hour
    assert most is None or match.price_uusd_per_gpu_hour <= most
    assert node.cores_taken + max(asked.cores, int(asked.num_gpus == 0)) <= node.offer.cores
    assert node.memory_taken_mib + asked.memory_mib <= node.offer.memory_mib


def check_limits(world: World, match: Match) -> None:
    """After a match: its parties have no more than they may have, and cannot come to spend more, and the node stays for the run."""
    state = world.market
    job, node = state.jobs[match.job_id], state.nodes[match.node_id]
    for name in (job.buyer, job.submitted.org_id or job.buyer):
        limit, party = state.limits.get(name), state.parties[name]
        if limit is None:
            continue
        assert limit.gpus is None or party.gpus <= limit.gpus or not match.cards
        for most, spent in ((limit.spend_day_uusd, spent_today_uusd), (limit.spend_month_uusd, spent_this_month_uusd)):
            assert most is None or spent(party, world.now_ms) + party.committed_uusd <= most
    if node.maintenance is not None and world.now_ms < node.maintenance[1]:
        assert world.now_ms + job.timeout_s * 1000 <= node.maintenance[0]


def test_worlds_are_rich_enough_to_mean_something() -> None:
    """What the random worlds above are made of does lead to matches, requeues, waits and restricted nodes."""
    world, chance = World(), Random(3)
    for _ in range(400):
        chance.choice(VERBS)(world, chance.randrange(20_000), chance.randrange(20_000), chance.randrange(20_000))
    assert START_MS < world.now_ms
    kinds = {type(record.event) for record in world.history.records}
    assert {jobs.JobMatched, jobs.JobRequeued, jobs.GpusReleased, nodes.NodeLost, market.PolicyChanged, jobs.JobRepriced} <= kinds
    assert {nodes.NodeMaintenancePlanned, market.LimitChanged, jobs.JobSucceeded} <= kinds
    assert any(node.offer.accept is not Accept.ANYONE for node in world.market.nodes.values())
    assert job_id("job1") in world.market.jobs
