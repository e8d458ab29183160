"""What a buyer is told before a job is submitted: who could run it, when, for how much, and what stands in the way. Pure; writes nothing.

The answer comes from the matcher's own conditions, so it never promises what matching would refuse. It looks at every node once.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

import msgspec

from events.values import Card, JobId, Requirements, Wallet, charge_uusd
from events.wire import QuoteAnswer, QuoteOffer, QuoteRequest, QuoteStep
from projections.job_states import QUEUED
from projections.market import Market
from projections.nodes import Allocation, Node, free_cards
from services.matcher.feasibility import CONDITIONS, STATIC, Ask, Condition, Scene, choose, could_run, is_free, obstacle
from services.matcher.policies import order_key

OFFERS_MAX = 20


class Funnel(NamedTuple):
    """Nodes as one condition after another takes some of them away."""

    steps: tuple[QuoteStep, ...]
    could_run: list[Node]
    free_now: list[Node]
    failing: str | None


def quote(market: Market, request: QuoteRequest, buyer: Wallet, now_ms: int, suspects: Container[str] = frozenset()) -> QuoteAnswer:
    """The answer to a buyer's request, as the market stands now. Of several choices the one that is free now, else the one that somebody
    could run, else the first; the cheapest of those."""
    best: QuoteAnswer | None = None
    for variant, requirements in enumerate((request.requirements, *request.variants)):
        found = _quote_one(market, msgspec.structs.replace(request, requirements=requirements), buyer, now_ms, suspects)
        if best is None or _nearness(found) < _nearness(best):
            best = msgspec.structs.replace(found, variant=variant) if variant else found
    assert best is not None
    return best


def _nearness(answer: QuoteAnswer) -> tuple[bool, bool, int]:
    return (not answer.free_now, not answer.could_run, answer.price_from_uusd or 0)


def _quote_one(market: Market, request: QuoteRequest, buyer: Wallet, now_ms: int, suspects: Container[str]) -> QuoteAnswer:
    requirements = request.requirements
    ask = Ask(requirements, buyer, request.max_price_uusd_per_gpu_hour, org_id=request.org_id, timeout_s=request.timeout_s)
    ask = ask._replace(num_nodes=request.num_nodes)
    scene = Scene(market, now_ms, suspects)
    found = funnel(ask, scene)
    able = sorted(found.could_run, key=lambda node: (node.price_uusd_per_gpu_hour, node.node_id))
    free_ids = {node.node_id for node in found.free_now}
    price_from = None
    if able:
        price_from = charge_uusd(request.timeout_s * 1000, requirements.num_gpus, able[0].price_uusd_per_gpu_hour)
    if request.num_nodes > 1:
        return _quote_gang(market, request, found, able)
    return QuoteAnswer(
        as_of_seq=market.last_seq,
        steps=found.steps,
        offers=tuple(_offer(node, requirements, node.node_id in free_ids) for node in able[:OFFERS_MAX]),
        could_run=len(able),
        free_now=len(free_ids),
        free_in_s=None if free_ids else free_in_s(able, ask, scene),
        failing=found.failing,
        only_simulated=not able and _would_do_simulated(ask, scene),
        paused=market.paused,
        price_from_uusd=price_from,
        queue_position=None if request.job_id is None else queue_position(market, request.job_id),
    )


def _quote_gang(market: Market, request: QuoteRequest, found: Funnel, able: list[Node]) -> QuoteAnswer:
    """As for one node, but too few nodes are none."""
    needed, free_ids, requirements = request.num_nodes, {node.node_id for node in found.free_now}, request.requirements
    fit, free = len(able), len(free_ids)
    enough = fit >= needed
    return QuoteAnswer(
        as_of_seq=market.last_seq,
        steps=(*found.steps, QuoteStep("nodes", f"{needed} nodes needed, {fit} fit, {free} free", free)),
        offers=tuple(_offer(node, requirements, node.node_id in free_ids) for node in able[:OFFERS_MAX]),
        could_run=fit if enough else 0,
        free_now=free if free >= needed else 0,
        failing=found.failing if found.failing is not None or enough else "nodes",
        paused=market.paused,
        price_from_uusd=sum(
            charge_uusd(request.timeout_s * 1000, requirements.num_gpus, node.price_uusd_per_gpu_hour) for node in able[:needed]
        )
        if enough
        else None,
        queue_position=None if request.job_id is None else queue_position(market, request.job_id),
    )


def funnel(ask: Ask, scene: Scene) -> Funnel:
    """How many nodes are left after each condition that the ask has a word about."""
    left = list(scene.market.nodes.values())
    steps, failing = [], None
    could: list[Node] = []
    for condition in CONDITIONS:
        words = condition.asked(ask)
        if words:
            before = len(left)
            left = [node for node in left if condition.passes(ask, node, scene)]
            if len(left) < before or not condition.quiet:
                steps.append(QuoteStep(condition.name, words, len(left)))
            if not left and failing is None and condition.static:
                failing = condition.name
        if condition is LAST_STATIC:
            could = left
    return Funnel(tuple(steps), could, left, failing)


LAST_STATIC: Condition = STATIC[-1]
assert CONDITIONS[: len(STATIC)] == STATIC, "conditions of this moment come after those of the offer"


def queue_position(market: Market, job_id: JobId) -> int | None:
    """How many queued jobs the policy would place before this one; None when it is not queued."""
    job = market.jobs.get(job_id)
    if job is None or job.state is not QUEUED:
        return None
    policy = market.policy
    own = order_key(job, policy, market)
    return sum(other.state is QUEUED and order_key(other, policy, market) < own for other in market.jobs.values())


def free_in_s(able: list[Node], ask: Ask, scene: Scene) -> int | None:
    """When the first of these nodes has room at the latest, by the timeouts of what runs there and the end of its maintenance; 0 when one
    has, but is silent. None when nobody can tell: a limit is in the way."""
    waits = []
    for node in able:
        found = obstacle(ask, node, scene, TIMELY)
        wait_s = node_free_in_s(node, ask.requirements, scene)
        if wait_s is None or (found is not None and found.name == "limit"):
            continue
        if found is not None and node.maintenance is not None:
            wait_s = max(wait_s, -(-(node.maintenance[1] - scene.now_ms) // 1000))
        waits.append(wait_s)
    return min(waits, default=None)


TIMELY = tuple(condition for condition in CONDITIONS if condition.name in ("maintenance", "limit"))


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


def _would_do_simulated(ask: Ask, scene: Scene) -> bool:
    if ask.requirements.allow_simulated:
        return False
    allowed = ask._replace(requirements=msgspec.structs.replace(ask.requirements, allow_simulated=True))
    return any(could_run(allowed, node, scene) for node in scene.market.nodes.values())


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
