"""What a buyer could ask for instead: one row for each condition that a node may fail, with the least changes that would meet it. Pure.

Whether such a change places a job is decided elsewhere (`changes.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from events.values import Card, Network
from projections.nodes import Node, free_cards
from services.matcher.feasibility import KEPT, Ask, choose, usd
from services.matcher.spans import SPANS_S


class Tried(NamedTuple):
    """A changed job as the conditions see it. `size`: how much was changed; 1 is all of it."""

    ask: Ask
    flag: str
    size: float


Relax = Callable[[Ask, Node], Iterator[Tried]]


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


def _more_gpus(ask: Ask, node: Node) -> Iterator[Tried]:
    """The smallest part that its owner lets, if that has the cards that are asked for."""
    asked, least = ask.requirements, node.offer.min_gpus
    if 0 < asked.num_gpus < least <= 8:
        yield Tried(_with(ask, num_gpus=least), f"--gpus {least}", (least - asked.num_gpus) / least)


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
    yield Tried(_with(ask, node_labels=kept), f"no --node-label {', '.join(dropped)}", 0.5)


def _any_card_of_it(ask: Ask, node: Node) -> Iterator[Tried]:
    yield Tried(_with(ask, target_cards=()), f"--target {node.offer.name} without cards", 0.3)


def _shorter(ask: Ask, node: Node) -> Iterator[Tried]:
    """A run that is over before the node is wanted for something else."""
    for span_s in reversed(SPANS_S):
        if span_s < ask.timeout_s:
            flag = f"--timeout {span_s // 3600}h" if span_s >= 3600 else f"--timeout {span_s // 60}m"
            yield Tried(ask._replace(timeout_s=span_s), flag, (ask.timeout_s - span_s) / ask.timeout_s / 2)


def _smaller_when_busy(ask: Ask, node: Node) -> Iterator[Tried]:
    """The node would do, but not with what is free of it now."""
    for relax in (_fewer_gpus, _less_vram, _less_total_vram, _fewer_cores, _less_memory):
        yield from relax(ask, node)
    if ask.requirements.target_cards:
        yield from _any_card_of_it(ask, node)


RELAXATIONS: dict[str, Relax] = {
    "simulated": _simulated,
    "gpus": _fewer_gpus,
    "min_gpus": _more_gpus,
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
    "cards": _any_card_of_it,
    "price": _price,
    "free": _smaller_when_busy,
    "maintenance": _shorter,
    KEPT: _shorter,
}
"""Failing condition -> the least changes that would meet it on a given node, and how large each is."""
