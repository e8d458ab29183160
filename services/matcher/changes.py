"""The smallest single change of a queued job that would place it, found by the matcher's conditions and confirmed by its engine. Pure.

Every change is of one thing that the buyer asked for. It is tried on the nodes that fail nothing else, nearest first; whether it would be
placed at once is not computed here but decided by the real engine, run on the changed job, the jobs before it, and that node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from events.values import Card, Network, charge_uusd
from events.why import Change
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Node, free_cards
from services.matcher.engine import Engine
from services.matcher.feasibility import Ask, Scene, choose, could_run, obstacle, usd
from services.matcher.verdicts import OfferKeys, Verdicts

NODES_MAX = 64
"""Of each failing condition so many kinds of nodes are looked at, the cheapest first."""


class Tried(NamedTuple):
    """A changed job as the conditions see it. `size`: how much was changed; 1 is all of it."""

    ask: Ask
    flag: str
    size: float


Relax = Callable[[Ask, Node], Iterator[Tried]]


class Question(NamedTuple):
    """A queued job, what it asks, when, and the first of the queued jobs that the policy places before it."""

    job: Job
    ask: Ask
    scene: Scene
    ahead: Sequence[Job]


class Advice(NamedTuple):
    """The best change that was found, the node it was found on, and what stood in the way there."""

    tried: Tried
    node: Node
    condition: str
    at_once: bool


def advice(question: Question, found: Verdicts, keys: OfferKeys) -> Advice | None:
    """The change that places the job at once, else the one that makes a node able to run it; None when no single one does."""
    ask, scene = question.ask, question.scene
    best: tuple[tuple[Any, ...], Advice] | None = None
    for name, node in _candidates(scene.market, found, keys):
        for tried in RELAXATIONS[name](ask, node):
            now = obstacle(tried.ask, node, scene) is None
            if not now and not could_run(tried.ask, node, scene):
                continue
            key = (not now, tried.size, node.price_uusd_per_gpu_hour, node.node_id)
            if best is None or key < best[0]:
                best = (key, Advice(tried, node, name, now))
    if best is None:
        return None
    chosen = best[1]
    return chosen._replace(at_once=chosen.at_once and _is_placed(question, chosen.tried, chosen.node))


def smallest_change(question: Question, found: Verdicts, keys: OfferKeys) -> Change | None:
    """The same as a buyer is told of it."""
    best = advice(question, found, keys)
    if best is None:
        return None
    tried, node = best.tried, best.node
    price = node.price_uusd_per_gpu_hour
    when = "the matcher would place it at once" if best.at_once else "it could run it once it is free"
    return Change(
        flag=tried.flag,
        condition=best.condition,
        why=f"with {tried.flag}, {node.offer.name} at {usd(price)}: {when}",
        node=node.node_id,
        name=node.offer.name,
        price_uusd_per_gpu_hour=price,
        cost_uusd=charge_uusd(question.job.timeout_s * 1000, tried.ask.requirements.num_gpus, price),
        at_once=best.at_once,
    )


def _candidates(market: Market, found: Verdicts, keys: OfferKeys) -> Iterator[tuple[str, Node]]:
    """Nodes worth a try, each with what it fails first: of every kind of offer the cheapest, those with something free before others."""
    kinds: dict[tuple[str, object, bool], Node] = {}
    for node_id, at in found.first.items():
        if at >= len(found.asked) or found.asked[at].name not in RELAXATIONS:
            continue
        node = market.nodes[node_id]
        kind = (found.asked[at].name, keys.of(node), bool(node.allocations))
        known = kinds.get(kind)
        if known is None or (node.price_uusd_per_gpu_hour, node_id) < (known.price_uusd_per_gpu_hour, known.node_id):
            kinds[kind] = node
    left = dict.fromkeys(RELAXATIONS, NODES_MAX)
    for (name, _, _), node in sorted(kinds.items(), key=lambda item: (item[0][2], item[1].price_uusd_per_gpu_hour, item[1].node_id)):
        if left[name]:
            left[name] -= 1
            yield name, node


def changed(job: Job, ask: Ask) -> Job:
    """The job as it would be, had it asked for this."""
    submitted = msgspec.structs.replace(job.submitted, requirements=ask.requirements)
    return msgspec.structs.replace(job, submitted=submitted, max_price_uusd_per_gpu_hour=ask.max_price_uusd_per_gpu_hour)


def _is_placed(question: Question, tried: Tried, node: Node) -> bool:
    """Run the engine on the changed job, queued jobs before it, and the node."""
    job, market = question.job, question.scene.market
    jobs = {other.submitted.job_id: other for other in (*question.ahead, changed(job, tried.ask))}
    small = msgspec.structs.replace(market, jobs=jobs, nodes={node.node_id: node}, paused=False)
    match = Engine(small).next_match(question.scene.now_ms)
    return match is not None and match.job_id == job.submitted.job_id


# -- the changes, one row each --


def _with(ask: Ask, **changes: Any) -> Ask:
    return ask._replace(requirements=msgspec.structs.replace(ask.requirements, **changes))


def _cards(node: Node) -> list[list[Card]]:
    """The cards to reckon with: what is free now, and all that it has."""
    return [free_cards(node), [card for card in node.offer.cards if card.healthy]]


def _price(ask: Ask, node: Node) -> Iterator[Tried]:
    most, price = ask.max_price_uusd_per_gpu_hour, node.price_uusd_per_gpu_hour
    if most is not None:
        yield Tried(ask._replace(max_price_uusd_per_gpu_hour=price), f"--max-price {usd(price)[:-4]}", (price - most) / max(1, most))


def _simulated(ask: Ask, node: Node) -> Iterator[Tried]:
    yield Tried(_with(ask, allow_simulated=True), "--allow-simulated", 2.0)


def _fewer_gpus(ask: Ask, node: Node) -> Iterator[Tried]:
    asked = ask.requirements
    for cards in _cards(node):
        for number in range(min(asked.num_gpus - 1, len(cards)), 0, -1):
            tried = _with(ask, num_gpus=number)
            if choose(cards, tried.requirements) is not None:
                yield Tried(tried, f"--gpus {number}", (asked.num_gpus - number) / asked.num_gpus)
                break


def _less_vram(ask: Ask, node: Node) -> Iterator[Tried]:
    asked = ask.requirements
    for cards in _cards(node):
        sizes = sorted((card.vram_mib for card in cards), reverse=True)
        if 0 < asked.num_gpus <= len(sizes):
            mib = sizes[asked.num_gpus - 1]
            if mib < asked.vram_mib:
                less_mib, text = _size(mib)
                yield Tried(_with(ask, vram_mib=less_mib), f"--vram {text}", (asked.vram_mib - mib) / asked.vram_mib)


def _less_total_vram(ask: Ask, node: Node) -> Iterator[Tried]:
    asked = ask.requirements
    for cards in _cards(node):
        mib = sum(sorted((card.vram_mib for card in cards), reverse=True)[: asked.num_gpus])
        if 0 < mib < asked.total_vram_mib:
            size = (asked.total_vram_mib - mib) / asked.total_vram_mib
            less_mib, text = _size(mib)
            yield Tried(_with(ask, total_vram_mib=less_mib), f"--total-vram {text}", size)


def _size(mib: int) -> tuple[int, str]:
    """The round size under which so much memory is sold, in MiB and as a flag's value: never more than there is."""
    gigabytes = (mib * 20 + 1024) // (1024 * 20)
    sold_mib = gigabytes * 10**9 // (1 << 20)
    return (sold_mib, f"{gigabytes}GB") if 0 < sold_mib <= mib else (mib, f"{mib}MiB")


def _other_model(ask: Ask, node: Node) -> Iterator[Tried]:
    for model in dict.fromkeys(card.model for card in node.offer.cards if card.healthy):
        yield Tried(_with(ask, gpu_models=(*ask.requirements.gpu_models, model)[-16:]), f"--gpu-model '{model}' as well", 0.5)


def _older_cuda(ask: Ask, node: Node) -> Iterator[Tried]:
    newest = min((card.cuda for card in node.offer.cards if card.healthy), default=0)
    yield Tried(_with(ask, min_cuda=newest), f"--min-cuda {newest // 1000}.{newest % 1000 // 10}" if newest else "no --min-cuda", 0.3)


def _fewer_cores(ask: Ask, node: Node) -> Iterator[Tried]:
    for cores in dict.fromkeys((node.offer.cores - node.cores_taken, node.offer.cores)):
        if 0 < cores < ask.requirements.cores:
            yield Tried(_with(ask, cores=cores), f"--cores {cores}", (ask.requirements.cores - cores) / ask.requirements.cores / 2)


def _less_memory(ask: Ask, node: Node) -> Iterator[Tried]:
    asked_mib = ask.requirements.memory_mib
    for mib in dict.fromkeys((node.offer.memory_mib - node.memory_taken_mib, node.offer.memory_mib)):
        if 0 < mib < asked_mib:
            less_mib, text = _size(mib)
            yield Tried(_with(ask, memory_mib=less_mib), f"--memory {text}", (asked_mib - mib) / asked_mib / 2)


def _one(flag: str, size: float, **changes: Any) -> Relax:
    def relax(ask: Ask, node: Node) -> Iterator[Tried]:
        yield Tried(_with(ask, **changes), flag, size)

    return relax


def _weaker_isolation(ask: Ask, node: Node) -> Iterator[Tried]:
    yield Tried(_with(ask, isolation=node.offer.isolation), f"--isolation {node.offer.isolation}", 1.0)


def _fewer_labels(ask: Ask, node: Node) -> Iterator[Tried]:
    kept = dict(ask.requirements.node_labels.items() & node.offer.labels.items())
    dropped = sorted(set(ask.requirements.node_labels) - set(kept))
    yield Tried(_with(ask, node_labels=kept), f"no label {', '.join(dropped)}", 0.5)


def _smaller_when_busy(ask: Ask, node: Node) -> Iterator[Tried]:
    """The node would do, but not with what is free of it now."""
    for relax in (_fewer_gpus, _less_vram, _less_total_vram, _fewer_cores, _less_memory):
        yield from relax(ask, node)


RELAXATIONS: dict[str, Relax] = {
    "simulated": _simulated,
    "gpus": _fewer_gpus,
    "vram": _less_vram,
    "model": _other_model,
    "cuda": _older_cuda,
    "total_vram": _less_total_vram,
    "cores": _fewer_cores,
    "memory": _less_memory,
    "isolation": _weaker_isolation,
    "tier": _one("no --min-tier", 0.6, min_tier=None),
    "network": _one("--network none", 1.0, network=Network.NONE),
    "labels": _fewer_labels,
    "target": _one("no --target", 0.5, target_node=None, target_cards=()),
    "cards": _one("the node alone as --target", 0.3, target_cards=()),
    "price": _price,
    "free": _smaller_when_busy,
}
"""Failing condition -> the least changes that would meet it on a given node, and how large each is."""
