"""What a node has where a job asks for more, in words: one row for each of the matcher's conditions. Pure; for people only."""

from __future__ import annotations

from collections.abc import Callable

from projections.nodes import Node, NodeState, free_cards
from services.matcher.feasibility import KEPT, Ask, Scene, gigabytes, tier_now, usd

Words = Callable[[Ask, Node, Scene], str]


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _models(node: Node) -> str:
    names = list(dict.fromkeys(card.model for card in node.offer.cards if card.healthy))
    return " and ".join(names) or "no card"


def _vram(ask: Ask, node: Node, scene: Scene) -> str:
    sizes = sorted({card.vram_mib for card in node.offer.cards if card.healthy}, reverse=True)
    return f"its cards have {' and '.join(gigabytes(mib) for mib in sizes)}" if sizes else "it has no card"


def _total_vram(ask: Ask, node: Node, scene: Scene) -> str:
    largest = sorted((card.vram_mib for card in node.offer.cards if card.healthy), reverse=True)[: ask.requirements.num_gpus]
    return f"{_count(len(largest), 'card')} of it have {gigabytes(sum(largest))} together at most"


def _cuda(ask: Ask, node: Node, scene: Scene) -> str:
    newest = max((card.cuda for card in node.offer.cards), default=0)
    return f"its driver has CUDA {newest // 1000}.{newest % 1000 // 10}" if newest else "its CUDA version is not known"


def _gpus(ask: Ask, node: Node, scene: Scene) -> str:
    healthy = sum(card.healthy for card in node.offer.cards)
    sick = len(node.offer.cards) - healthy
    return f"it has {_count(healthy, 'GPU')}" + (f" and {sick} that do not answer" if sick else "")


def _online(ask: Ask, node: Node, scene: Scene) -> str:
    said = f": {node.drain_reason}" if node.state is NodeState.DRAINING and node.drain_reason else ""
    words = {
        NodeState.DRAINING: "it takes no new jobs (draining",
        NodeState.WITHDRAWN: "its owner took it off the market",
        NodeState.LOST: "it was not heard of for a whole lease",
        NodeState.BANNED: "the operator took it off the market",
    }
    text = words.get(node.state, "it takes no new jobs")
    return f"{text}{said})" if node.state is NodeState.DRAINING else text


def _free(ask: Ask, node: Node, scene: Scene) -> str:
    wanted, free = ask.requirements.num_gpus, len(free_cards(node))
    held = list(dict.fromkeys(allocation.job_id for allocation in node.allocations.values()))
    holders = _count(len(held), "job") + f" on it ({', '.join(held[:2])}{', ...' if len(held) > 2 else ''})"
    targets = ask.requirements.target_cards
    taken = [card.index for card in node.offer.cards if card.index in targets and card.uuid in node.taken]
    if taken:
        return f"{'card' if len(taken) == 1 else 'cards'} {', '.join(map(str, taken))} of it taken, {holders}"
    if wanted and free < wanted:
        return f"{free} of its {_count(len(node.offer.cards), 'card')} free, {holders}"
    if node.offer.cores - node.cores_taken < ask.requirements.cores:
        return f"{_count(node.offer.cores - node.cores_taken, 'core')} free"
    if node.offer.memory_mib - node.memory_taken_mib < ask.requirements.memory_mib:
        return f"{gigabytes(node.offer.memory_mib - node.memory_taken_mib)} of memory free"
    return f"what is free of it does not do, {holders}"


def _avoided(ask: Ask, node: Node, scene: Scene) -> str:
    left_s = -(-max(0, ask.avoid.get(node.node_id, 0) - scene.now_ms) // 1000)
    return f"it has just failed or declined this job, and is passed over for {left_s} s more"


def _kept(ask: Ask, node: Node, scene: Scene) -> str:
    minutes = -(-max(0, scene.kept.get(node.node_id, 0) - scene.now_ms) // 60_000)
    until = f"which has room there in {minutes} min at the latest" if minutes else "which may start there any moment"
    return f"kept for {scene.kept_for or 'a job'} ahead of it, {until}; only a job that is over by then may pass"


SHORTFALLS: dict[str, Words] = {
    "online": _online,
    "accepts you": lambda ask, node, scene: f"it takes {'jobs of its organisation' if node.offer.org_id else 'its own jobs'} only",
    "target": lambda ask, node, scene: "it is another node",
    "simulated": lambda ask, node, scene: "its cards are simulated",
    "gpus": _gpus,
    "min_gpus": lambda ask, node, scene: f"it lets {_count(node.offer.min_gpus, 'GPU')} or more at once",
    "vram": _vram,
    "model": lambda ask, node, scene: f"it has {_models(node)}",
    "cuda": _cuda,
    "cards": lambda ask, node, scene: f"it has cards {', '.join(str(card.index) for card in node.offer.cards if card.healthy) or 'none'}",
    "total_vram": _total_vram,
    "cores": lambda ask, node, scene: f"it has {_count(node.offer.cores, 'core')}",
    "memory": lambda ask, node, scene: f"it has {gigabytes(node.offer.memory_mib)} of memory",
    "isolation": lambda ask, node, scene: f"its isolation is {node.offer.isolation}",
    "tier": lambda ask, node, scene: f"its cards are {tier_now(node, scene.now_ms)}",
    "network": lambda ask, node, scene: "it gives jobs no network",
    "sessions": lambda ask, node, scene: "it serves no sessions",
    "image": lambda ask, node, scene: "it runs no images" if node.offer.isolation == "process" else "its owner does not run that image",
    "address": lambda ask, node, scene: "it offers no address, as one whose jobs run in containers",
    "labels": lambda ask, node, scene: "it does not have these labels",
    "price": lambda ask, node, scene: f"it asks {usd(node.price_uusd_per_gpu_hour)}",
    "not avoided": _avoided,
    "responding": lambda ask, node, scene: "it has not been heard of lately",
    "free": _free,
    KEPT: _kept,
    "limit": lambda ask, node, scene: "its price is more than your limits allow now",
    "maintenance": lambda ask, node, scene: "it will be away for maintenance before the job could end, or is",
}


def shortfall(condition: str, ask: Ask, node: Node, scene: Scene) -> str:
    """What the node has instead."""
    words = SHORTFALLS.get(condition)
    return condition if words is None else words(ask, node, scene)
