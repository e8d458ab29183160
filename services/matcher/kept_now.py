"""Where a place is kept at a moment, told without an engine: for whoever explains a wait. Pure; the rule itself is `keeping.py`."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest

from projections.job_states import HELD
from projections.jobs import Job
from projections.nodes import Node, NodeState, planned
from services.matcher.feasibility import AS_IF_EMPTY, Ask, Scene, choose, highest_price, obstacle
from services.matcher.keeping import KEEP_AMONG, Kept, Option, kept_among, room_from_ms
from services.matcher.matches import asks_as_one, gang_of
from services.matcher.node_index import door_of
from services.matcher.policies import Rank, rank
from services.matcher.verdicts import OF_THE_OFFER, OfferKeys, verdicts

NODES_MAX = 30_000
"""So many nodes are asked, kinds of offers aside, in the search for the head; if none was found by then, nothing is known."""
ALIKE = tuple(condition for condition in AS_IF_EMPTY if condition.name in OF_THE_OFFER)
EACH = tuple(condition for condition in AS_IF_EMPTY if condition.name not in OF_THE_OFFER)


class Kinds:
    """All nodes by the kind of their offer, so that most jobs that none could run are told by asking one of each kind."""

    def __init__(self, scene: Scene, keys: OfferKeys) -> None:
        self._scene = scene
        self._left = NODES_MAX
        self._nodes: dict[int, list[Node]] = {}
        for node in scene.market.nodes.values():
            if node.state is NodeState.OFFERED:
                self._nodes.setdefault(keys.of(node), []).append(node)
        self._least = {kind: min(node.price_uusd_per_gpu_hour for node in nodes) for kind, nodes in self._nodes.items()}

    def are_asked_out(self) -> bool:
        """Whether so many were asked that no more may be."""
        return self._left <= 0

    def could_run(self, ask: Ask) -> bool:
        """Whether as many nodes as it needs could run it if nothing else ran."""
        most, found = ask.max_price_uusd_per_gpu_hour, 0
        for kind, nodes in self._nodes.items():
            if (most is not None and self._least[kind] > most) or obstacle(ask, nodes[0], self._scene, ALIKE) is not None:
                continue
            for node in nodes:
                self._left -= 1
                found += obstacle(ask, node, self._scene, EACH) is None
                if found == ask.num_nodes or self._left <= 0:
                    return found == ask.num_nodes
        return False


def kept_now(queued: Iterable[Job], scene: Scene, keys: OfferKeys) -> Kept | None:
    """The place kept for the first of these jobs, which stand in the policy's order, that could run if nothing else ran; None when it need
    not wait, or nothing is kept."""
    if not scene.market.policy.keep_place:
        return None
    kinds = Kinds(scene._replace(kept={}), keys)
    for job in queued:
        number = job.submitted.num_nodes
        if job.not_before_ms > scene.now_ms or (number > 1 and not _may_start(job, scene)):
            continue
        asks = [ask for ask in asks_as_one(scene.market, job) if kinds.could_run(ask)]
        if kinds.are_asked_out():
            return None
        if asks:
            able = [(ask, *_able(ask, scene, keys)) for ask in asks]
            if any(free >= number for _, _, free in able):
                return None
            return kept_among(job.submitted.job_id, _options(scene, [(ask, nodes) for ask, nodes, _ in able], number), number)
    return None


def _may_start(job: Job, scene: Scene) -> bool:
    """Whether a gang waits as a whole, for nodes and nothing else."""
    market, gang = scene.market, gang_of(scene.market, job)
    if gang is None or job.submitted.rank or gang.not_before_ms > scene.now_ms:
        return False
    most = market.policy.max_concurrent
    return most is None or sum(market.states.get(state, 0) for state in HELD) + job.submitted.num_nodes <= most


def _able(ask: Ask, scene: Scene, keys: OfferKeys) -> tuple[list[Node], int]:
    """The nodes that could run it, and how many of them could at once."""
    nodes, cap = scene.market.nodes, highest_price(ask, scene)
    found = verdicts(ask, scene._replace(kept={}), nodes.values(), keys)
    whole, free = len(found.asked), next(at for at, condition in enumerate(found.asked) if condition.name == "free")
    able = [node_id for node_id, at in found.first.items() if at >= free and nodes[node_id].price_uusd_per_gpu_hour <= cap]
    return [nodes[node_id] for node_id in able], sum(found.first[node_id] == whole for node_id in able)


def _options(scene: Scene, able: list[tuple[Ask, list[Node]]], number: int) -> list[Option]:
    options = []
    for ask, nodes in able:
        groups = [nodes]
        if number == 1 and ask.requirements.target_node is None:
            staying = [node for node in nodes if planned(node, scene.now_ms) is None]
            groups = [[node for node in staying if (door_of(node) is None) is is_open] for is_open in (True, False)]
        for group in groups:
            for node in _cheapest(group, ask, max(KEEP_AMONG, number)):
                from_ms = room_from_ms(scene.market, node, ask.requirements)
                if from_ms is not None and planned(node, scene.now_ms) is None:
                    options.append(Option(from_ms, node.price_uusd_per_gpu_hour, node.node_id))
    return options


def _cheapest(nodes: list[Node], ask: Ask, number: int) -> list[Node]:
    """The best of these if nothing ran there. The price alone tells most of them apart."""
    if len(nodes) > number:
        most = nsmallest(number, (node.price_uusd_per_gpu_hour for node in nodes))[-1]
        nodes = [node for node in nodes if node.price_uusd_per_gpu_hour <= most]
    return sorted(nodes, key=lambda node: _rank(node, ask))[:number]


def _rank(node: Node, ask: Ask) -> Rank:
    """How good it would be if nothing ran there."""
    cards = [card for card in node.offer.cards if card.healthy]
    taken = choose(cards, ask.requirements) or ()
    return rank(node.price_uusd_per_gpu_hour, len(cards) - len(taken), sum(card.vram_mib for card in taken), node.node_id)


def seen_by(job: Job, before: Iterable[Job], scene: Scene, keys: OfferKeys) -> tuple[Scene, Kept | None]:
    """What a queued job sees of the market, with `before` it in the policy's order: its own place is open to it, no other's is."""
    kept = kept_now((*before, job), scene, keys)
    if kept is None or kept.job_id == job.submitted.job_id:
        return scene, kept
    return scene._replace(kept=kept.nodes, kept_for=kept.job_id), kept
