"""Why a job is not running: what each node says, who is ahead, what would change it. Pure, from the very functions that the matcher uses.

It explains a market as it stands after some event, now or at any moment that was folded again; what happened in between is `waits.py`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

from events.reasons import REASONS
from events.why import Ahead, Cause, Nearness, NodeVerdict, PlaceKept, Step, WaitHistory, Why
from projections.job_states import CLAIMED, HELD, MATCHED, QUEUED, STARTING, TERMINAL
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Node, NodeState
from services.matcher.changes import Question, smallest_change
from services.matcher.feasibility import KEPT, Ask, Scene, asks_of
from services.matcher.keeping import Kept
from services.matcher.kept_now import seen_by
from services.matcher.limit_words import told
from services.matcher.limits import cap_for
from services.matcher.policies import POLICIES, order_key
from services.matcher.quotes import node_free_in_s
from services.matcher.shortfalls import shortfall
from services.matcher.verdicts import OfferKeys, Verdicts, tier_of, verdicts

NODES_MAX = 50
AHEAD_MAX = 5
BEFORE_MAX = 200
"""So many queued jobs before this one compete with it when a change is tried."""
HISTORY_JOBS_MAX = 2000
HISTORY_MIN = 3
NEAREST_FIRST = (Nearness.FREE, Nearness.CAPACITY, Nearness.AWAY, Nearness.PRICE, Nearness.NEVER)
CAUSES = {
    Nearness.FREE: Cause.SILENT,
    Nearness.CAPACITY: Cause.CAPACITY,
    Nearness.AWAY: Cause.AWAY,
    Nearness.PRICE: Cause.PRICE,
    Nearness.NEVER: Cause.IMPOSSIBLE,
}


class Moment(NamedTuple):
    """When is asked about, and what is known of it besides the ledger."""

    now_ms: int
    suspects: Container[str] = frozenset()
    """Nodes not heard of lately; of the past nobody knows them."""
    order: Iterable[str] | None = None
    """Queued jobs in the policy's order, where somebody keeps that list; `position`: the job's place there."""
    position: int = 0


def why(market: Market, job: Job, moment: Moment, keys: OfferKeys | None = None) -> Why:
    """The answer for one job."""
    if job.state is not QUEUED:
        return _not_queued(market, job, moment)
    keys = OfferKeys() if keys is None else keys
    scene = Scene(market, moment.now_ms, moment.suspects)
    nodes = nodes_for(market, job)
    keys.sweep(len(nodes))
    position, before = _before(market, job, moment)
    ask, found, tiers = _nearest_choice(job, scene, nodes, keys)
    scene, kept = seen_by(market.ranks_of(job)[0], before, scene, keys)
    if scene.kept:
        ask, found, tiers = _nearest_choice(job, scene, nodes, keys)
    cause, text = cause_of(market, job, tiers, moment.now_ms)
    place = _place(kept, job, found)
    if cause is Cause.CAPACITY and place is not None and _only_kept(place, found, tiers):
        text = "what is free for it is kept for a job ahead"
    steps, before_it = [], len(nodes)
    for row, left in zip(found.asked, found.left_after(), strict=True):
        if left < before_it or not row.quiet:
            steps.append(Step(condition=row.name, asked=row.asked(ask), nodes=left))
        before_it = left
    shown = _nearest(market, ask, scene, found)
    needed = job.submitted.num_nodes
    change = None if tiers.get(Nearness.FREE, 0) >= needed else smallest_change(Question(job, ask, scene, before), found, keys)
    soonest_s = min((one.free_in_s for one in shown if one.free_in_s is not None and needed == 1), default=None)
    return Why(
        job=job.submitted.job_id,
        name=job.submitted.name,
        state=job.state.value,
        time_ms=moment.now_ms,
        summary=_summary(text, position, soonest_s),
        place_kept=place,
        cause=cause,
        steps=steps,
        tiers={tier.value: tiers[tier] for tier in NEAREST_FIRST if tiers.get(tier)},
        nodes=shown,
        queue_position=position,
        ahead=[_because(other, job, market.policy.name) for other in before[:AHEAD_MAX]],
        change=change,
        history=history(market, job),
    )


def _place(kept: Kept | None, job: Job, found: Verdicts) -> PlaceKept | None:
    """What is kept, where that matters to this job: for itself, or where it would be free otherwise."""
    if kept is None or not kept.nodes:
        return None
    failing = {node_id: found.failing(node_id) for node_id in kept.nodes if node_id in found.first}
    if kept.job_id != job.submitted.job_id and not any(condition and condition.name == KEPT for condition in failing.values()):
        return None
    return PlaceKept(job=kept.job_id, nodes=list(kept.nodes), from_ms=max(kept.nodes.values()))


def _only_kept(place: PlaceKept, found: Verdicts, tiers: dict[Nearness, int]) -> bool:
    """Whether every node that could run the job is free for it and kept for another."""
    failing = [found.failing(node_id) for node_id in place.nodes if node_id in found.first]
    return sum(condition is not None and condition.name == KEPT for condition in failing) == tiers.get(Nearness.CAPACITY)


def nodes_for(market: Market, job: Job) -> list[Node]:
    """Nodes to speak of: those on the market, and the job's target wherever that is."""
    target = job.submitted.requirements.target_node
    return [node for node in market.nodes.values() if node.state is not NodeState.WITHDRAWN or node.node_id == target]


def why_in_words(market: Market, job: Job, moment: Moment, keys: OfferKeys) -> str:
    """What a queued job waits for, in one line, and nothing else."""
    scene = Scene(market, moment.now_ms, moment.suspects)
    nodes = nodes_for(market, job)
    return cause_of(market, job, _nearest_choice(job, scene, nodes, keys)[2], moment.now_ms)[1]


def _nearest_choice(job: Job, scene: Scene, nodes: list[Node], keys: OfferKeys) -> tuple[Ask, Verdicts, dict[Nearness, int]]:
    """Of what the buyer would take the choice that is nearest to a node; the one that was named first among equals."""
    asked = [(ask, verdicts(ask, scene, nodes, keys)) for ask in asks_of(job)]
    counted = [(ask, found, count_tiers(found)) for ask, found in asked]
    return min(counted, key=lambda one: next((at for at, tier in enumerate(NEAREST_FIRST) if one[2].get(tier)), len(NEAREST_FIRST)))


def count_tiers(found: Verdicts) -> dict[Nearness, int]:
    """How many nodes are how near."""
    tiers: dict[Nearness, int] = {}
    of = [tier_of(condition) for condition in (*found.asked, None)]
    for at in found.first.values():
        tiers[of[at]] = tiers.get(of[at], 0) + 1
    return tiers


def cause_of(market: Market, job: Job, tiers: dict[Nearness, int], now_ms: int) -> tuple[Cause, str]:
    """What a queued job waits for, given how near its nodes are; and the same in words."""
    if market.paused:
        return Cause.PAUSED, "the operator has paused the market"
    if job.not_before_ms > now_ms:
        left_s = -(-(job.not_before_ms - now_ms) // 1000)
        return Cause.RETRY, f"the last attempt failed; the next one begins in {left_s} s at the earliest"
    most = market.policy.max_concurrent
    if most is not None and sum(market.states.get(state, 0) for state in HELD) >= most:
        return Cause.MARKET_FULL, f"the market runs {'1 job' if most == 1 else f'{most} jobs'} at once, and so many run"
    limit = told(market, job, now_ms)
    if limit and (tiers.get(Nearness.FREE) or cap_for(market, job, now_ms) < 0):
        return Cause.LIMIT, limit
    needed = job.submitted.num_nodes
    if needed > 1:
        return _cause_of_gang(needed, tiers)
    nearest = next((tier for tier in NEAREST_FIRST if tiers.get(tier)), Nearness.NEVER)
    number = tiers.get(nearest, 0)
    return CAUSES[nearest], _nearness(nearest, number, sum(tiers.values()))


def _cause_of_gang(needed: int, tiers: dict[Nearness, int]) -> tuple[Cause, str]:
    """The nearest of the nodes that make it enough decides. Nodes that ask too much do not fit, as in a quote."""
    free, dear = tiers.get(Nearness.FREE, 0), tiers.get(Nearness.PRICE, 0)
    fit = free + tiers.get(Nearness.CAPACITY, 0) + tiers.get(Nearness.AWAY, 0)
    fits = f"{fit} fits" if fit == 1 else f"{fit} fit"
    more = f"; {dear} more {'asks' if dear == 1 else 'ask'} more than it may cost" if dear else ""
    counted = 0
    for tier in NEAREST_FIRST[:-1]:
        counted += tiers.get(tier, 0)
        if counted >= needed:
            return CAUSES[tier], f"it needs {needed} nodes at once, {fits} and {free} {'is' if free == 1 else 'are'} free{more}"
    return Cause.IMPOSSIBLE, f"it needs {needed} nodes, {fits}{more}"


def _nearness(tier: Nearness, number: int, nodes: int) -> str:
    nodes_text = "1 node" if number == 1 else f"{number} nodes"
    match tier:
        case Nearness.FREE:
            return f"{nodes_text} free for it in the ledger, but not heard of lately, or kept for a job ahead"
        case Nearness.CAPACITY:
            return f"{nodes_text} could run it and {'is' if number == 1 else 'are all'} taken"
        case Nearness.AWAY:
            return f"{nodes_text} could run it and {'takes' if number == 1 else 'take'} nothing at present"
        case Nearness.PRICE:
            return f"{nodes_text} could run it and {'asks' if number == 1 else 'all ask'} more than it may cost"
        case Nearness.NEVER:
            return "no node is on offer" if not nodes else f"none of {nodes} nodes could ever run it as they are offered"


def _summary(text: str, position: int | None, soonest_s: int | None) -> str:
    parts = [f"It waits: {text}"]
    if position:
        parts.append(f"{position} {'job is' if position == 1 else 'jobs are'} before it")
    if soonest_s:
        parts.append(f"the first has room in {_span(soonest_s)} at the latest")
    return "; ".join(parts) + "."


def _span(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{-(-seconds // 60)} min" if seconds < 7200 else f"{-(-seconds // 3600)} h"


def _not_queued(market: Market, job: Job, moment: Moment) -> Why:
    run, state = job.run, job.state
    node = None if run is None else market.nodes.get(run.node_id)
    where = "" if node is None else f" on {node.offer.name}"
    cause: Cause | None = None
    if state in TERMINAL:
        sentence = "" if job.reason is None else f": {REASONS[job.reason].sentence}"
        text = f"It has ended, {state.value.replace('_', ' ')}{sentence}."
    elif state is MATCHED:
        cause, text = Cause.CLAIM, f"It has been given a place{where}, which has not answered yet."
    elif state is CLAIMED:
        cause, text = Cause.PREPARING, f"It is being prepared{where}: inputs, image, container."
    elif state is STARTING:
        text = f"Its program has started{where} and does not answer yet."
    else:
        text = f"It is {state.value}{where}."
    return Why(job=job.submitted.job_id, name=job.submitted.name, state=state.value, time_ms=moment.now_ms, summary=text, cause=cause)


def _nearest(market: Market, ask: Ask, scene: Scene, found: Verdicts) -> list[NodeVerdict]:
    """One line a node, nearest first, then cheapest."""
    rank = {tier: at for at, tier in enumerate(NEAREST_FIRST)}
    places = [rank[tier_of(condition)] for condition in (*found.asked, None)]
    prices = {node_id: market.nodes[node_id].price_uusd_per_gpu_hour for node_id in found.first}
    ordered = sorted(found.first, key=lambda node_id: (places[found.first[node_id]], -found.first[node_id], prices[node_id], node_id))
    return [_line(market.nodes[node_id], found, ask, scene) for node_id in ordered[:NODES_MAX]]


def _line(node: Node, found: Verdicts, ask: Ask, scene: Scene) -> NodeVerdict:
    condition = found.failing(node.node_id)
    tier = tier_of(condition)
    if condition is None:
        text = "it could run the job now"
    else:
        asked = condition.asked(ask)
        text = shortfall(condition.name, ask, node, scene)
        text = text if tier in (Nearness.AWAY, Nearness.CAPACITY) else f"{asked} asked, {text}"
    return NodeVerdict(
        node=node.node_id,
        name=node.offer.name,
        tier=tier,
        condition="free" if condition is None else condition.name,
        why=text,
        price_uusd_per_gpu_hour=node.price_uusd_per_gpu_hour,
        free_in_s=node_free_in_s(node, ask.requirements, scene) if condition is not None and condition.name == "free" else None,
    )


def _before(market: Market, job: Job, moment: Moment) -> tuple[int, list[Job]]:
    """How many queued jobs the policy places first, and the first of them; the other ranks of its gang aside, which are placed with it."""
    policy, group = market.policy, job.submitted.group_id if job.submitted.num_nodes > 1 else None
    own = order_key(job, policy, market)
    if moment.order is not None:
        names = islice(moment.order, min(moment.position, BEFORE_MAX))
        found = [market.jobs[name] for name in names if name in market.jobs]
        position = moment.position
        if group is not None:
            position -= sum(order_key(rank, policy, market) < own for rank in market.ranks_of(job))
            found = [other for other in found if other.submitted.group_id != group]
        return position, found
    keyed = [(order_key(other, policy, market), other) for other in market.jobs.values() if other.state is QUEUED and other is not job]
    before = [
        other for key, other in sorted(keyed, key=itemgetter(0)) if key < own and (group is None or other.submitted.group_id != group)
    ]
    return len(before), before[:BEFORE_MAX]


def _because(other: Job, job: Job, policy: str) -> Ahead:
    if policy in ("priority", "") and other.priority > job.priority:
        text = f"its priority is {other.priority}, this one's {job.priority}"
    elif policy in ("priority", "fcfs", "") or policy not in POLICIES:
        earlier_s = max(0, job.submitted_ms - other.submitted_ms) // 1000
        text = f"it came {_span(earlier_s)} earlier" if earlier_s else "it came earlier"
    else:
        text = POLICIES[policy].sentence
    return Ahead(job=other.submitted.job_id, why=text)


def history(market: Market, job: Job) -> WaitHistory | None:
    """How long jobs with as many cards waited that ended lately and ran at their first attempt; None when they are few."""
    wanted = job.submitted.requirements.num_gpus
    waits = []
    for name in islice(reversed(market.finished), HISTORY_JOBS_MAX):
        other = market.jobs[name]
        run = other.run
        if run is not None and run.attempt == 1 and other.submitted.requirements.num_gpus == wanted:
            waits.append(run.matched_ms - other.submitted_ms)
    if len(waits) < HISTORY_MIN:
        return None
    waits.sort()
    p50, p90 = waits[len(waits) // 2], waits[min(len(waits) - 1, len(waits) * 9 // 10)]
    return WaitHistory(jobs=len(waits), p50_s=-(-p50 // 1000), p90_s=-(-p90 // 1000))
