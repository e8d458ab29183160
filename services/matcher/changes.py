"""The smallest single change of a queued job that would place it, found by the matcher's conditions and confirmed by its engine. Pure.

Every change is of one thing that the buyer asked for. It is tried on the nodes that fail nothing else, nearest first; of a gang it counts
when it leaves enough nodes for all ranks. Whether the job would be placed at once is not computed here but decided by the real engine, run
on the changed job, the jobs before it, and those nodes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import nsmallest
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from events.values import Requirements, charge_uusd
from events.why import Change
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Node
from services.matcher.engine import Engine
from services.matcher.feasibility import CONDITIONS, Ask, Scene, could_run, obstacle, usd
from services.matcher.relaxations import RELAXATIONS, Tried
from services.matcher.verdicts import OfferKeys, Verdicts, verdicts

NODES_MAX = 64
"""Of each failing condition so many kinds of nodes are looked at, the cheapest first."""
GANG_NODES_MAX = 128
"""For a gang so many nodes that fail a condition are looked at, the cheapest first, beside as many that fail none."""
CHEAPEST_FIRST = attrgetter("price_uusd_per_gpu_hour", "node_id")
LEAST_FIRST = attrgetter("size", "flag")


class Question(NamedTuple):
    """A queued job, what it asks, when, and the first of the queued jobs that the policy places before it."""

    job: Job
    ask: Ask
    scene: Scene
    ahead: Sequence[Job]


class Advice(NamedTuple):
    """The best change that was found, the nodes it was found on (of a gang one for each rank), and what stood in the way there."""

    tried: Tried
    nodes: list[Node]
    condition: str
    at_once: bool


def advice(question: Question, found: Verdicts, keys: OfferKeys) -> Advice | None:
    """The change that places the job at once, else the one that makes a node able to run it; None when no single one does."""
    possible = _for_a_gang(question, found, keys) if question.ask.num_nodes > 1 else _for_one(question, found, keys)
    best = min(possible, key=_rank, default=None)
    return None if best is None else best._replace(at_once=best.at_once and _is_placed(question, best))


def smallest_change(question: Question, found: Verdicts, keys: OfferKeys) -> Change | None:
    """The same as a buyer is told of it."""
    best = advice(question, found, keys)
    if best is None:
        return None
    flag, ask, last = best.tried.flag, best.tried.ask, best.nodes[-1]
    price = max(node.price_uusd_per_gpu_hour for node in best.nodes)
    name, it_is = (last.offer.name, "it is") if ask.num_nodes == 1 else (f"{ask.num_nodes} nodes", "they are")
    when = "the matcher would place it at once" if best.at_once else f"it could run there once {it_is} free"
    lasts_ms = ask.timeout_s * 1000
    return Change(
        flag=flag,
        condition=best.condition,
        why=f"with {flag}, {name} at {usd(price)}: {when}",
        node=last.node_id,
        name=name,
        price_uusd_per_gpu_hour=price,
        cost_uusd=sum(charge_uusd(lasts_ms, ask.requirements.num_gpus, node.price_uusd_per_gpu_hour) for node in best.nodes),
        at_once=best.at_once,
    )


def _rank(advice: Advice) -> tuple[Any, ...]:
    prices = sum(node.price_uusd_per_gpu_hour for node in advice.nodes)
    return (not advice.at_once, advice.tried.size, prices, advice.nodes[-1].node_id, advice.tried.flag)


def _for_one(question: Question, found: Verdicts, keys: OfferKeys) -> Iterator[Advice]:
    """What would make one node do."""
    ask, scene = question.ask, question.scene
    for name, node in _candidates(scene.market, ask.requirements, found, keys):
        for tried in RELAXATIONS[name](ask, node):
            at_once = obstacle(tried.ask, node, scene) is None
            if at_once or (_is_static(found, name) and could_run(tried.ask, node, scene)):
                yield Advice(tried, [node], name, at_once)


def _is_static(found: Verdicts, name: str) -> bool:
    """Whether a node that fails this can never run the job; any other can as it is, and need only be free."""
    return any(condition.name == name and condition.static for condition in found.asked)


def _candidates(market: Market, asked: Requirements, found: Verdicts, keys: OfferKeys) -> Iterator[tuple[str, Node]]:
    """Nodes worth a try, each with what it fails first: of every kind of offer the cheapest, those with something free before others."""
    kinds: dict[tuple[str, object, bool], Node] = {}
    sized = {"cores", "memory", "free"}
    for node_id, at in found.first.items():
        if at >= len(found.asked) or found.asked[at].name not in RELAXATIONS:
            continue
        node = market.nodes[node_id]
        name, offer = found.asked[at].name, node.offer
        room = (offer.cores, offer.memory_mib) if name in sized else (offer.cores >= asked.cores, offer.memory_mib >= asked.memory_mib)
        kind = (name, (keys.of(node), room), bool(node.allocations))
        known = kinds.get(kind)
        if known is None or (node.price_uusd_per_gpu_hour, node_id) < (known.price_uusd_per_gpu_hour, known.node_id):
            kinds[kind] = node
    left = dict.fromkeys(RELAXATIONS, NODES_MAX)
    for (name, _, _), node in sorted(kinds.items(), key=lambda item: (item[0][2], item[1].price_uusd_per_gpu_hour, item[1].node_id)):
        if left[name]:
            left[name] -= 1
            yield name, node


# -- gangs --


def _for_a_gang(question: Question, found: Verdicts, keys: OfferKeys) -> Iterator[Advice]:
    """Fewer nodes, or one thing less asked of each of them."""
    nodes, static = question.scene.market.nodes, sum(condition.static for condition in found.asked)
    failing: dict[int, list[Node]] = {}
    for node_id, at in found.first.items():
        failing.setdefault(at, []).append(nodes[node_id])
    now = failing.get(len(found.asked), [])
    ever = [node for at, some in failing.items() if at >= static for node in some]
    ask = question.ask
    for some, at_once in ((now, True), (ever, False)):
        if 0 < len(some) < ask.num_nodes:
            tried = Tried(ask._replace(num_nodes=len(some)), f"--nodes {len(some)}", (ask.num_nodes - len(some)) / ask.num_nodes)
            yield Advice(tried, _cheapest(some), "nodes", at_once)
    others = {node.node_id: node for node in (*_cheapest(now), *_cheapest(ever))}
    for at, some in failing.items():
        if at < len(found.asked) and found.asked[at].name in RELAXATIONS:
            yield from _on_more_nodes(question, found.asked[at].name, _cheapest(some), others, keys)


def _cheapest(nodes: list[Node]) -> list[Node]:
    return nsmallest(GANG_NODES_MAX, nodes, key=CHEAPEST_FIRST)


def _on_more_nodes(question: Question, name: str, some: list[Node], others: dict[str, Node], keys: OfferKeys) -> Iterator[Advice]:
    """The least change of one kind after which there are enough of these nodes and the others: now, and else at some time."""
    ask, known = question.ask, dict[str, Tried]()
    for node in some:
        for tried in RELAXATIONS[name](ask, node):
            known.setdefault(tried.flag, tried)
    nodes = sorted((others | {node.node_id: node for node in some}).values(), key=CHEAPEST_FIRST)
    changes = sorted(known.values(), key=LEAST_FIRST)

    def enough(tried: Tried, at_once: bool) -> list[Node]:
        told = verdicts(tried.ask, question.scene, nodes, keys)
        least = len(told.asked) if at_once else sum(condition.static for condition in told.asked)
        there = [node for node in nodes if told.first[node.node_id] >= least]
        return there[: ask.num_nodes] if len(there) >= ask.num_nodes else []

    is_lasting = any(condition.name == name and condition.static for condition in CONDITIONS)
    for at_once in (True, False) if is_lasting else (True,):  # any other node could run it as it is, and need only be free
        least = _least(changes, partial(enough, at_once=at_once))
        if least is not None:
            yield Advice(least, enough(least, at_once), name, at_once)


def _least(changes: list[Tried], does: Callable[[Tried], object]) -> Tried | None:
    """The first that does. Of many they are steps of one quantity, so that halving finds it."""
    if len(changes) <= 8:
        return next((tried for tried in changes if does(tried)), None)
    at = bisect_left(changes, True, key=lambda tried: bool(does(tried)))
    return changes[at] if at < len(changes) else None


# -- the engine's word --


def _is_placed(question: Question, advice: Advice) -> bool:
    """Run the engine on the changed job, queued jobs before it, and the nodes. Where a place is kept is known from the whole market."""
    job, market = question.job, question.scene.market
    own = market.ranks_of(job) or (job,)
    nodes = {node.node_id: node for node in advice.nodes}
    jobs = {other.submitted.job_id: other for other in (*question.ahead, *own)}
    policy = msgspec.structs.replace(market.policy, keep_place=False)
    small = as_changed(msgspec.structs.replace(market, jobs=jobs, nodes=nodes, paused=False, policy=policy), job, advice.tried.ask)
    match = Engine(small).next_match(question.scene.now_ms)
    return match is not None and match.job_id == own[0].submitted.job_id


def as_changed(market: Market, job: Job, ask: Ask) -> Market:
    """The market as it would be had this job, or the gang that it belongs to, asked for this."""
    ranks = market.ranks_of(job) or tuple(_rank_of(job, rank) for rank in range(job.submitted.num_nodes))
    left = dict(market.jobs)
    for rank in ranks:
        left.pop(rank.submitted.job_id, None)
    kept = [
        msgspec.structs.replace(
            rank,
            submitted=msgspec.structs.replace(rank.submitted, requirements=ask.requirements, num_nodes=ask.num_nodes),
            max_price_uusd_per_gpu_hour=ask.max_price_uusd_per_gpu_hour,
            timeout_s=min(rank.timeout_s, ask.timeout_s),
        )
        for rank in ranks[: ask.num_nodes]
    ]
    group = job.submitted.group_id if job.submitted.num_nodes > 1 else None
    gangs = market.gangs if group is None else {**market.gangs, group: tuple(rank.submitted.job_id for rank in kept)}
    return msgspec.structs.replace(market, jobs=left | {rank.submitted.job_id: rank for rank in kept}, gangs=gangs)


def _rank_of(job: Job, rank: int) -> Job:
    """A rank of a gang that is only asked about."""
    name = f"{job.submitted.job_id}-{rank}" if rank else job.submitted.job_id
    return msgspec.structs.replace(job, submitted=msgspec.structs.replace(job.submitted, job_id=name, rank=rank))
