"""What a buyer is told before a job is submitted: who could run it, when, for how much, and what stands in the way. Pure; writes nothing.

What nodes say comes from `verdicts.py`, as in an answer to why a job waits; so neither promises what matching would refuse, and they agree.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from heapq import nsmallest
from itertools import islice, takewhile
from operator import attrgetter
from typing import NamedTuple

import msgspec

from events.jobs import JobSubmitted
from events.values import Card, JobId, Program, Requirements, Wallet, charge_uusd
from events.wire import QuoteAnswer, QuoteOffer, QuoteRequest, QuoteStep
from projections import jobs
from projections.job_states import QUEUED
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Allocation, Node, NodeState, free_cards
from services.matcher.changes import Question, smallest_change
from services.matcher.feasibility import CONDITIONS, Ask, Scene, choose, highest_price, is_free, obstacle, usd
from services.matcher.kept_now import seen_by
from services.matcher.limit_words import told_of
from services.matcher.limits import UNLIMITED_UUSD
from services.matcher.policies import order_key, row_of
from services.matcher.shortfalls import shortfall
from services.matcher.verdicts import LIMIT, OfferKeys, Verdicts, verdicts

BEFORE_MAX = 200
"""So many of the first queued jobs are looked at for one that a place is kept for."""
OFFERS_MAX = 20
CHEAPEST_FIRST = attrgetter("price_uusd_per_gpu_hour", "node_id")
STAYS = next(condition for condition in CONDITIONS if condition.name == "maintenance")
LIMITED = next(condition for condition in CONDITIONS if condition.name == LIMIT)


class Funnel(NamedTuple):
    """Nodes as one condition after another takes some of them away."""

    steps: list[QuoteStep]
    could_run: list[Node]
    free_now: list[Node]
    failing: str | None
    """The first condition at which nobody was left who could ever run it."""
    verdicts: Verdicts


class Known(NamedTuple):
    """What the answerer keeps from one question to the next: the keys of offers, and a queued job's place, where somebody counts it."""

    keys: OfferKeys | None = None
    position: int | None = None
    first: Iterable[Job] = ()
    """The first of the queued jobs, in the policy's order: a place may be kept for one of them."""


NOTHING = Known()


def quote(
    market: Market, request: QuoteRequest, buyer: Wallet, now_ms: int, suspects: Container[str] = frozenset(), *, known: Known = NOTHING
) -> QuoteAnswer:
    """The answer to a buyer's request, as the market stands now. Of several choices the one that is free now, else the one that somebody
    could run, else the first; the cheapest of those."""
    org = None if request.org_id is None else market.identity.orgs.get(request.org_id)
    if org is None or buyer not in org.members:  # who is no member learns nothing of its limits
        request = msgspec.structs.replace(request, org_id=None)
    keys = OfferKeys() if known.keys is None else known.keys
    keys.sweep(len(market.nodes))
    scene = Scene(market, now_ms, suspects)
    best = _nearest_of(request, buyer, scene, keys)
    if best.free_now:
        job = _job_of(request, buyer, scene)
        before = _before(job, market, known.first)
        seen = seen_by(job, before, scene, keys)[0] if before else scene
        best = _nearest_of(request, buyer, seen, keys) if seen.kept else best
    if request.job_id is None:
        return best
    position = queue_position(market, request.job_id) if known.position is None else known.position
    return msgspec.structs.replace(best, queue_position=position)


def _before(job: Job, market: Market, first: Iterable[Job]) -> list[Job]:
    """Those of the first queued jobs that the policy places before this one."""
    policy = market.policy
    if row_of(policy).by_share and not {job.buyer, job.submitted.org_id or job.buyer} <= market.parties.keys():
        return []  # who never had anything goes first
    own = order_key(job, policy, market)
    return list(takewhile(lambda other: order_key(other, policy, market) < own, islice(first, BEFORE_MAX)))


def _nearest_of(request: QuoteRequest, buyer: Wallet, scene: Scene, keys: OfferKeys) -> QuoteAnswer:
    best: QuoteAnswer | None = None
    for variant, requirements in enumerate((request.requirements, *request.variants)):
        found = _quote_one(msgspec.structs.replace(request, requirements=requirements), buyer, scene, keys)
        if best is None or _nearness(found) < _nearness(best):
            best = msgspec.structs.replace(found, variant=variant) if variant else found
    assert best is not None
    return best


def _nearness(answer: QuoteAnswer) -> tuple[bool, bool, int]:
    return (not answer.free_now, not answer.could_run, answer.price_from_uusd or 0)


def _quote_one(request: QuoteRequest, buyer: Wallet, scene: Scene, keys: OfferKeys) -> QuoteAnswer:
    """Too few nodes for a gang are none."""
    requirements, needed, market = request.requirements, request.num_nodes, scene.market
    ask = Ask(requirements, buyer, request.max_price_uusd_per_gpu_hour, org_id=request.org_id, timeout_s=request.timeout_s)
    ask = ask._replace(num_nodes=needed, left_uusd=request.max_total_uusd)
    found = funnel(ask, scene, keys)
    fit, free = len(found.could_run), len(found.free_now)
    failing = found.failing if found.failing is not None or fit >= needed else "nodes"
    able = nsmallest(max(OFFERS_MAX, needed), found.could_run, key=CHEAPEST_FIRST)
    free_ids = {node.node_id for node in found.free_now}
    steps, free_s = tuple(found.steps), None
    if needed > 1:
        steps += (QuoteStep("nodes", f"{needed} nodes needed, {fit} {'fits' if fit == 1 else 'fit'}, {free} free", free),)
    elif not free:
        free_s = free_in_s(found, ask, scene)
    lasts_ms = request.timeout_s * 1000
    return QuoteAnswer(
        as_of_seq=market.last_seq,
        steps=steps,
        offers=tuple(_offer(node, requirements, node.node_id in free_ids) for node in able[:OFFERS_MAX]),
        could_run=fit if fit >= needed else 0,
        free_now=free if free >= needed else 0,
        free_in_s=free_s,
        failing=failing,
        only_simulated=fit < needed and _would_do_simulated(ask, scene, keys),
        paused=market.paused,
        price_from_uusd=None
        if failing is not None
        else sum(charge_uusd(lasts_ms, requirements.num_gpus, node.price_uusd_per_gpu_hour) for node in able[:needed]),
        change=_change(request, ask, scene, found.verdicts, keys)
        if (failing is not None or (scene.kept and free < needed)) and not request.variants
        else "",
    )


def funnel(ask: Ask, scene: Scene, keys: OfferKeys | None = None) -> Funnel:
    """How many nodes are left after each condition that the ask has a word about, limits among them."""
    nodes = scene.market.nodes
    there = [node for node in nodes.values() if node.state is not NodeState.WITHDRAWN]
    found = verdicts(ask, scene, there, keys)
    cap, last = limit_of(ask, scene), len(found.asked)
    static = sum(condition.static for condition in found.asked)
    able = [nodes[node_id] for node_id, at in found.first.items() if at >= static]
    within = [at for node_id, at in found.first.items() if at >= static and nodes[node_id].price_uusd_per_gpu_hour <= cap]
    free = [node for node in able if found.first[node.node_id] == last and node.price_uusd_per_gpu_hour <= cap]
    steps, failing, before, is_limited = [], None, len(there), False
    for place, (condition, left) in enumerate(zip(found.asked, found.left_after(), strict=True)):
        if condition.name == "free":
            is_limited = True
            allowed = sum(at >= place for at in within)
            if allowed < before:
                steps.append(QuoteStep(LIMIT, told_of(scene.market, ask, scene.now_ms) or LIMITED.asked(ask), allowed))
            before = allowed
        left = sum(at > place for at in within) if is_limited else left
        if left < before or not condition.quiet:
            words = _target(ask, scene) if condition.name == "target" and not left else condition.asked(ask)
            steps.append(QuoteStep(condition.name, words, left))
        if not left and failing is None and condition.static:
            failing = condition.name
        before = left
    return Funnel(steps, able, free, failing, found)


def _target(ask: Ask, scene: Scene) -> str:
    """What is wrong with the one node that would do."""
    target = ask.requirements.target_node or ""
    node = scene.market.nodes.get(target)
    if node is None:
        return f"there is no node {target}"
    found = obstacle(ask, node, scene)
    return f"node {node.offer.name} ({target})" + ("" if found is None else f": {shortfall(found.name, ask, node, scene)}")


def limit_of(ask: Ask, scene: Scene) -> int:
    """The highest price that the limits of its wallet and its organisation leave it."""
    return highest_price(ask, scene) if scene.market.limits else UNLIMITED_UUSD


def _change(request: QuoteRequest, ask: Ask, scene: Scene, found: Verdicts, keys: OfferKeys) -> str:
    """The smallest change that makes somebody able to run it, for a person; empty when no single one does."""
    job = _job_of(request, ask.buyer or "", scene)
    change = smallest_change(Question(job, ask, scene, ()), found, keys)
    return "" if change is None else f"{change.flag}: then {change.name} at {usd(change.price_uusd_per_gpu_hour)} per GPU-hour"


def _job_of(request: QuoteRequest, buyer: Wallet, scene: Scene) -> Job:
    """The job that is asked about: the queued one, or one as it would be, submitted now."""
    queued = scene.market.jobs.get(request.job_id or "")
    if queued is not None and queued.state is QUEUED:
        return queued
    asked = JobSubmitted(
        job_id="quoted",
        name="quoted",
        requirements=request.requirements,
        variants=request.variants,
        program=Program(),
        timeout_s=request.timeout_s,
        estimate_s=request.estimate_s,
        max_price_uusd_per_gpu_hour=request.max_price_uusd_per_gpu_hour,
        priority=request.priority,
        num_nodes=request.num_nodes,
        group_id="quoted" if request.num_nodes > 1 else None,
        org_id=request.org_id,
    )
    return jobs.submit(asked, buyer, scene.market.last_seq + 1, scene.now_ms)


def queue_position(market: Market, job_id: JobId) -> int | None:
    """How many queued jobs the policy would place before this one; None when it is not queued. Looks at every job."""
    job = market.jobs.get(job_id)
    if job is None or job.state is not QUEUED:
        return None
    policy = market.policy
    own = order_key(job, policy, market)
    return sum(other.state is QUEUED and order_key(other, policy, market) < own for other in market.jobs.values())


def free_in_s(found: Funnel, ask: Ask, scene: Scene) -> int | None:
    """When the first of these nodes has room at the latest, by the timeouts of what runs there and the end of its maintenance; 0 when one
    has, but is silent. None when nobody can tell: a limit is in the way, or the place is kept for another. Looks closely only at nodes
    that may be the first."""
    cap, best = limit_of(ask, scene), None
    able = [node for node in found.could_run if node.price_uusd_per_gpu_hour <= cap and node.node_id not in scene.kept]
    bounds = [(_at_least_ms(node, found.verdicts, ask, scene), node) for node in able]
    bounds.sort(key=lambda one: one[0])
    for least_ms, node in bounds:
        least_s = -(-(least_ms - scene.now_ms) // 1000)
        if best is not None and least_s >= best:
            break
        wait_s = node_free_in_s(node, ask.requirements, scene)
        if wait_s is not None and (best is None or max(wait_s, least_s) < best):
            best = max(wait_s, least_s)
    return best


def _at_least_ms(node: Node, found: Verdicts, ask: Ask, scene: Scene) -> int:
    """Before then the node takes nothing: while it is away, and before the first attempt ends there when it has no room now."""
    least_ms, failing = scene.now_ms, found.failing(node.node_id)
    if node.maintenance is not None and not STAYS.passes(ask, node, scene):
        least_ms = node.maintenance[1]
    if failing is not None and failing.name == "free" and node.allocations:
        least_ms = max(least_ms, min([_ends_ms(held, epoch, scene) for epoch, held in node.allocations.items()]))
    return least_ms


def node_free_in_s(node: Node, requirements: Requirements, scene: Scene) -> int | None:
    """Let the attempts end in the order of their deadlines until the job has room."""
    emptied = msgspec.structs.replace(node, taken=dict(node.taken))
    ends = sorted((_ends_ms(held, epoch, scene), epoch) for epoch, held in node.allocations.items())
    end_ms = scene.now_ms
    for ends_ms, epoch in [(scene.now_ms, 0), *ends]:
        if epoch:
            held = node.allocations[epoch]
            end_ms = max(end_ms, ends_ms)
            emptied.taken = {uuid: holder for uuid, holder in emptied.taken.items() if holder != epoch}
            emptied.cores_taken -= held.cores
            emptied.memory_taken_mib -= held.memory_mib
        if is_free(emptied, requirements):
            return -(-(end_ms - scene.now_ms) // 1000)
    return None


def _ends_ms(held: Allocation, epoch: int, scene: Scene) -> int:
    """When an attempt ends at the latest: its run timeout from its start, or from now when it has not started; at once when only its
    cleaning up is left."""
    job = scene.market.jobs.get(held.job_id)
    if job is None or job.run is None or job.run.epoch != epoch or job.run.ended_ms:
        return scene.now_ms
    return max(scene.now_ms, (job.run.started_ms or scene.now_ms) + job.timeout_s * 1000)


def _would_do_simulated(ask: Ask, scene: Scene, keys: OfferKeys) -> bool:
    """Whether enough nodes could run it if simulated cards did."""
    if ask.requirements.allow_simulated:
        return False
    allowed = ask._replace(requirements=msgspec.structs.replace(ask.requirements, allow_simulated=True))
    found = verdicts(allowed, scene, scene.market.nodes.values(), keys)
    static = sum(condition.static for condition in found.asked)
    return sum(at >= static for at in found.first.values()) >= ask.num_nodes


def _offer(node: Node, requirements: Requirements, free_now: bool) -> QuoteOffer:
    """What a buyer sees of a node; its cards are those that the job could get."""
    cards: list[Card] = [card for card in node.offer.cards if card.healthy]
    shown = choose(cards, requirements) or cards
    return QuoteOffer(
        node_id=node.node_id,
        name=node.offer.name,
        price_uusd_per_gpu_hour=node.price_uusd_per_gpu_hour,
        gpus=len(cards),
        gpus_free=len(free_cards(node)),
        model=shown[0].model if shown else "",
        vram_mib=shown[0].vram_mib if shown else 0,
        isolation=node.offer.isolation,
        simulated=any(card.simulated for card in cards),
        default_image=node.offer.default_image,
        free_now=free_now,
        image_there=(requirements.image or node.offer.default_image) in node.offer.images_warm,
    )
