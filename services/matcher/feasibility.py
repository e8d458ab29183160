"""Which node can run which job: one ordered table of conditions, read by the matcher, by quotes and by whoever explains a wait. Pure.

A condition is static when only a new offer can change it (a node that fails one can never run the job as things stand), else it is about
this moment. Nothing here orders or prefers; that is `policies.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

import msgspec

from events import images
from events.values import ISOLATION_RANK, TIER_RANK, Accept, Card, Isolation, Network, Requirements, Tier
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Node, NodeState, cores_asked, free_cards
from services.matcher.limits import price_cap
from services.matcher.model_names import any_model_matches
from services.matcher.spans import span_s

MIB = 1 << 20
SMALLEST_FIRST = attrgetter("vram_mib", "index")


class Ask(NamedTuple):
    """What a job asks of a node, and for whom."""

    requirements: Requirements
    buyer: str | None
    """None: a stranger, whom only nodes that take anyone take."""
    max_price_uusd_per_gpu_hour: int | None = None
    avoid: Mapping[str, int] = {}
    """Nodes to pass over, each until when."""
    org_id: str | None = None
    timeout_s: int = 0
    left_uusd: int | None = None
    """What the job may cost, if its buyer set a total."""
    num_nodes: int = 1
    """So many nodes like this at once."""


class Scene(NamedTuple):
    """What conditions look at besides the node: the market, the time, and the nodes that have not been heard of lately."""

    market: Market
    now_ms: int
    suspects: Container[str] = frozenset()
    kept: Mapping[str, int] = {}
    """Nodes where a place is kept for a job ahead of the one that asks, each for when (`keeping.py`)."""
    kept_for: str = ""
    """Which job that is, where somebody wants to know."""


class Condition(NamedTuple):
    """One thing that a node must meet."""

    name: str
    passes: Callable[[Ask, Node, Scene], bool]
    asked: Callable[[Ask], str]
    """What was asked, for a person; empty when nothing of the kind was, and then every node passes."""
    static: bool = True
    quiet: bool = False
    """Spoken of only where it takes a node away: it is about the node or the buyer, and nobody asked for it."""


def ask_of(job: Job) -> Ask:
    """What a job asks now."""
    asked = job.submitted
    price, left_uusd = job.max_price_uusd_per_gpu_hour, job.left_uusd
    return Ask(asked.requirements, job.buyer, price, job.avoid or {}, asked.org_id, job.timeout_s, left_uusd, asked.num_nodes)


def asks_of(job: Job) -> tuple[Ask, ...]:
    """What a job asks, and what would do as well, in order of preference."""
    first = ask_of(job)
    return (first, *(first._replace(requirements=other) for other in job.submitted.variants))


def accepts(node: Node, buyer: str | None, market: Market) -> bool:
    """Whether the node takes this buyer's jobs."""
    offer = node.offer
    if offer.accept is Accept.ANYONE:
        return True
    if buyer is None:
        return False
    if offer.accept is Accept.OWN:
        return buyer == node.wallet or buyer in offer.accept_wallets
    org = market.identity.orgs.get(offer.org_id or "")
    return org is not None and buyer in org.members


def tier_now(node: Node, now_ms: int) -> Tier:
    """How well its cards are known at this time; a check counts until it expires."""
    return node.tier if node.tier_until_ms > now_ms else Tier.CLAIMED


def has_simulated(node: Node) -> bool:
    """Whether any of its cards is simulated."""
    return any(card.simulated for card in node.offer.cards)


def choose(cards: Iterable[Card], requirements: Requirements) -> tuple[Card, ...] | None:
    """The cards to take of these, or None when they do not do: exactly the targets, else the smallest that suffice, then the lowest index.
    When a total is asked for, the smallest run of neighbours in that order that reaches it. Indices mean nothing without a target node."""
    wanted, targets = requirements.num_gpus, requirements.target_cards
    if targets and (requirements.target_node is None or len(set(targets)) != wanted):
        return None
    if wanted == 0:
        return ()
    vram_mib, cuda, models = requirements.vram_mib, requirements.min_cuda, requirements.gpu_models
    fitting = [
        card
        for card in cards
        if card.healthy
        and card.vram_mib >= vram_mib
        and card.cuda >= cuda
        and (not models or any_model_matches(models, card.model))
        and (not targets or card.index in targets)
    ]
    if len(fitting) < wanted:
        return None
    fitting.sort(key=SMALLEST_FIRST)
    total_mib = requirements.total_vram_mib
    if not total_mib:
        return tuple(fitting[:wanted])
    for first in range(len(fitting) - wanted + 1):
        chosen = fitting[first : first + wanted]
        if sum(card.vram_mib for card in chosen) >= total_mib:
            return tuple(chosen)
    return None


def choose_cards(node: Node, requirements: Requirements) -> tuple[str, ...] | None:
    """The UUIDs of the free cards that a job would get here now, or None when the free ones do not do."""
    chosen = choose(free_cards(node), requirements)
    return None if chosen is None else tuple(card.uuid for card in chosen)


def is_free(node: Node, requirements: Requirements) -> bool:
    """Whether cards, cores and memory are free for it now."""
    offer = node.offer
    return (
        offer.cores - node.cores_taken >= cores_asked(requirements)
        and offer.memory_mib - node.memory_taken_mib >= requirements.memory_mib
        and choose(free_cards(node), requirements) is not None
    )


def gigabytes(mib: int) -> str:
    """A size for a person, as cards are sold: `24 GB`."""
    tenths = round(mib * MIB / 10**8)
    return f"{tenths // 10} GB" if tenths % 10 == 0 or tenths >= 1000 else f"{tenths // 10}.{tenths % 10} GB"


def usd(uusd: int) -> str:
    """Money for a person: `0.40 USD`, with as many decimals as it takes and at least two."""
    decimals = f"{uusd % 10**6:06d}".rstrip("0").ljust(2, "0")
    return f"{uusd // 10**6}.{decimals} USD"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


CARD_FIELDS = frozenset({"vram_mib", "gpu_models", "min_cuda", "target_node", "target_cards", "total_vram_mib"})


def _cards_with(*fields: str) -> Callable[[Ask, Node, Scene], bool]:
    """Whether enough cards meet these of the requirements and no others, so that each row of the table adds one of them."""
    plain = {field: getattr(Requirements(), field) for field in CARD_FIELDS.difference(fields)}

    def passes(ask: Ask, node: Node, scene: Scene) -> bool:
        return choose(node.offer.cards, msgspec.structs.replace(ask.requirements, **plain)) is not None

    return passes


def _asks_gpus(ask: Ask) -> str:
    return _count(ask.requirements.num_gpus, "GPU") if ask.requirements.num_gpus else ""


def _asks_card(show: Callable[[Requirements], str]) -> Callable[[Ask], str]:
    """Words for a condition that means nothing to a job without cards."""
    return lambda ask: show(ask.requirements) if ask.requirements.num_gpus else ""


def _isolated(ask: Ask, node: Node, scene: Scene) -> bool:
    least = ask.requirements.isolation
    return least is None or ISOLATION_RANK[node.offer.isolation] >= ISOLATION_RANK[least]


def _verified(ask: Ask, node: Node, scene: Scene) -> bool:
    least = ask.requirements.min_tier
    return least is None or TIER_RANK[tier_now(node, scene.now_ms)] >= TIER_RANK[least]


def _labelled(ask: Ask, node: Node, scene: Scene) -> bool:
    return ask.requirements.node_labels.items() <= node.offer.labels.items()


def _runs_image(ask: Ask, node: Node, scene: Scene) -> bool:
    """An image needs a container, and must be one of those that the owner lets run."""
    image, offer = ask.requirements.image, node.offer
    return image is None or (offer.isolation is not Isolation.PROCESS and images.allowed(offer.images_allow, image))


def _stays(ask: Ask, node: Node, scene: Scene) -> bool:
    """A run that uses its whole timeout is over before the node is away; it takes nothing while it is."""
    if node.maintenance is None:
        return True
    from_ms, until_ms, _ = node.maintenance
    return scene.now_ms >= until_ms or (scene.now_ms < from_ms and scene.now_ms + ask.timeout_s * 1000 <= from_ms)


def highest_price(ask: Ask, scene: Scene) -> int:
    """The highest price at which limits let it be matched now."""
    return price_cap(
        scene.market,
        ask.buyer,
        ask.org_id,
        num_gpus=ask.requirements.num_gpus,
        timeout_s=ask.timeout_s,
        left_uusd=ask.left_uusd,
        num_nodes=ask.num_nodes,
        now_ms=scene.now_ms,
    )


def _within_limits(ask: Ask, node: Node, scene: Scene) -> bool:
    return node.price_uusd_per_gpu_hour <= highest_price(ask, scene)


def _affordable(ask: Ask, node: Node, scene: Scene) -> bool:
    most = ask.max_price_uusd_per_gpu_hour
    return most is None or node.price_uusd_per_gpu_hour <= most


def _is_over_in_time(ask: Ask, node: Node, scene: Scene) -> bool:
    until_ms = scene.kept.get(node.node_id)
    return until_ms is None or (ask.num_nodes == 1 and scene.now_ms + span_s(ask.timeout_s) * 1000 <= until_ms)


KEPT = "kept"

CONDITIONS: tuple[Condition, ...] = (
    Condition("online", lambda ask, node, scene: node.state is NodeState.OFFERED, lambda ask: "offered, not draining"),
    Condition("accepts you", lambda ask, node, scene: accepts(node, ask.buyer, scene.market), lambda ask: "takes your jobs"),
    Condition(
        "target",
        lambda ask, node, scene: ask.requirements.target_node in (None, node.node_id),
        lambda ask: f"node {ask.requirements.target_node}" if ask.requirements.target_node else "",
    ),
    Condition(
        "simulated",
        lambda ask, node, scene: ask.requirements.num_gpus == 0 or ask.requirements.allow_simulated or not has_simulated(node),
        _asks_card(lambda asked: "" if asked.allow_simulated else "real cards, not simulated ones"),
    ),
    Condition("gpus", _cards_with(), _asks_gpus),
    Condition(
        "min_gpus",
        lambda ask, node, scene: ask.requirements.num_gpus >= node.offer.min_gpus,
        lambda ask: f"lets as few as {_count(ask.requirements.num_gpus, 'GPU')}",
    ),
    Condition("vram", _cards_with("vram_mib"), _asks_card(lambda asked: f"{gigabytes(asked.vram_mib)} a card" if asked.vram_mib else "")),
    Condition("model", _cards_with("vram_mib", "gpu_models"), _asks_card(lambda asked: " or ".join(asked.gpu_models))),
    Condition(
        "cuda",
        _cards_with("vram_mib", "gpu_models", "min_cuda"),
        _asks_card(lambda asked: f"CUDA {asked.min_cuda // 1000}.{asked.min_cuda % 1000 // 10} or newer" if asked.min_cuda else ""),
    ),
    Condition(
        "cards",
        _cards_with("vram_mib", "gpu_models", "min_cuda", "target_node", "target_cards"),
        lambda ask: "cards " + ", ".join(map(str, ask.requirements.target_cards)) if ask.requirements.target_cards else "",
    ),
    Condition(
        "total_vram",
        _cards_with(*CARD_FIELDS),
        _asks_card(lambda asked: f"{gigabytes(asked.total_vram_mib)} together" if asked.total_vram_mib else ""),
    ),
    Condition(
        "cores",
        lambda ask, node, scene: node.offer.cores >= cores_asked(ask.requirements),
        lambda ask: _count(ask.requirements.cores, "core") if ask.requirements.cores else "",
    ),
    Condition(
        "memory",
        lambda ask, node, scene: node.offer.memory_mib >= ask.requirements.memory_mib,
        lambda ask: f"{gigabytes(ask.requirements.memory_mib)} of memory" if ask.requirements.memory_mib else "",
    ),
    Condition(
        "isolation", _isolated, lambda ask: f"isolation {ask.requirements.isolation} or stronger" if ask.requirements.isolation else ""
    ),
    Condition("tier", _verified, lambda ask: f"cards {ask.requirements.min_tier} or better" if ask.requirements.min_tier else ""),
    Condition(
        "network",
        lambda ask, node, scene: ask.requirements.network is not Network.EGRESS or node.offer.egress,
        lambda ask: "network egress" if ask.requirements.network is Network.EGRESS else "",
    ),
    Condition(
        "sessions",
        lambda ask, node, scene: node.offer.sessions or not ask.requirements.sessions,
        lambda ask: "people may connect" if ask.requirements.sessions else "",
    ),
    Condition("image", _runs_image, lambda ask: f"runs the image {ask.requirements.image}" if ask.requirements.image else ""),
    Condition(
        "address",
        lambda ask, node, scene: ask.num_nodes == 1 or node.offer.address is not None,
        lambda ask: "can be reached by other nodes" if ask.num_nodes > 1 else "",
    ),
    Condition("labels", _labelled, lambda ask: ", ".join(f"{key}={value}" for key, value in sorted(ask.requirements.node_labels.items()))),
    Condition(
        "price",
        _affordable,
        lambda ask: "" if ask.max_price_uusd_per_gpu_hour is None else f"at most {usd(ask.max_price_uusd_per_gpu_hour)}",
    ),
    Condition(
        "not avoided",
        lambda ask, node, scene: ask.avoid.get(node.node_id, 0) <= scene.now_ms,
        lambda ask: "did not just fail this job" if ask.avoid else "",
        static=False,
    ),
    Condition("responding", lambda ask, node, scene: node.node_id not in scene.suspects, lambda ask: "heard of lately", static=False),
    Condition("maintenance", _stays, lambda ask: "stays up for the whole timeout", static=False, quiet=True),
    Condition("limit", _within_limits, lambda ask: "within the limits of your wallet and organisation", static=False, quiet=True),
    Condition("free", lambda ask, node, scene: is_free(node, ask.requirements), lambda ask: "free now", static=False),
    Condition(KEPT, _is_over_in_time, lambda ask: "not kept for a job ahead", static=False, quiet=True),
)
"""Every condition, in the order in which a person is told of them. A job runs on a node when all of them hold."""

AS_IF_EMPTY = tuple(condition for condition in CONDITIONS if condition.name not in ("free", KEPT))
"""Those that would be left if nothing ran."""

STATIC = tuple(condition for condition in CONDITIONS if condition.static)


def obstacle(ask: Ask, node: Node, scene: Scene, conditions: Iterable[Condition] = CONDITIONS) -> Condition | None:
    """The first condition that the node does not meet, or None when it can run the job now."""
    for condition in conditions:
        if not condition.passes(ask, node, scene):
            return condition
    return None


def could_run(ask: Ask, node: Node, scene: Scene) -> bool:
    """Whether the node could run it at some time, as it is offered now."""
    return obstacle(ask, node, scene, STATIC) is None
