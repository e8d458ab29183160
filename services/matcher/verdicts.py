"""What every node says to one job: the first of the matcher's conditions that it does not meet. Pure; decides nothing.

The conditions are those of `feasibility.py`, asked in their order. Nodes that are offered alike are asked once about all that hangs on the
offer alone, so ten thousand nodes cost a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from events.nodes import NodeOffered
from events.values import Accept
from events.why import Nearness
from projections.nodes import Node
from services.matcher.feasibility import CONDITIONS, KEPT, Ask, Condition, Scene, is_free

OF_THE_OFFER = frozenset(
    {
        "accepts you",
        "simulated",
        "gpus",
        "min_gpus",
        "vram",
        "model",
        "cuda",
        "cards",
        "total_vram",
        "isolation",
        "network",
        "sessions",
        "image",
        "address",
    }
)
"""Conditions that two nodes with the same `offer_key` answer alike. Any other condition is asked of each node: cores and memory, too, since
of those hardly two machines have the same."""

LIMIT = "limit"
"""The one condition that is about the buyer, not about a node: whoever explains a wait asks it apart."""

TIERS: dict[str, Nearness] = {
    "online": Nearness.AWAY,
    "maintenance": Nearness.AWAY,
    "not avoided": Nearness.AWAY,
    "responding": Nearness.AWAY,
    "price": Nearness.PRICE,
    "free": Nearness.CAPACITY,
    KEPT: Nearness.CAPACITY,
}
"""Condition -> how far a node is that fails it; every other condition: never."""


class Verdicts(NamedTuple):
    """`asked`: the conditions that the job has a word about, in order; `first`: of each node, the place of the first that it fails."""

    asked: tuple[Condition, ...]
    first: dict[str, int]

    def failing(self, node_id: str) -> Condition | None:
        """The first condition that the node does not meet; None when it meets all."""
        at = self.first[node_id]
        return self.asked[at] if at < len(self.asked) else None

    def left_after(self) -> list[int]:
        """How many nodes are left after each condition."""
        fail = [0] * (len(self.asked) + 1)
        for at in self.first.values():
            fail[at] += 1
        left, counts = len(self.first), []
        for failed in fail[:-1]:
            left -= failed
            counts.append(left)
        return counts


def tier_of(condition: Condition | None) -> Nearness:
    """How near a node is whose first failing condition this is."""
    return Nearness.FREE if condition is None else TIERS.get(condition.name, Nearness.NEVER)


def offer_key(offer: NodeOffered, wallet: str) -> Hashable:
    """Everything of an offer that the conditions `OF_THE_OFFER` look at."""
    cards = tuple((card.model, card.vram_mib, card.cuda, card.healthy, card.simulated, card.index) for card in offer.cards)
    own = (wallet, offer.accept_wallets) if offer.accept is Accept.OWN else ()
    terms = (
        offer.isolation,
        offer.egress,
        offer.accept,
        own,
        offer.org_id,
        offer.min_gpus,
        offer.sessions,
        offer.images_allow,
        offer.address is None,
    )
    return (cards, terms)


class OfferKeys:
    """The keys of offers, kept from one question to the next. Holds the offers that it knows, so that an address never means two."""

    def __init__(self) -> None:
        self._keys: dict[int, tuple[NodeOffered, int]] = {}
        self._numbers: dict[Hashable, int] = {}

    def of(self, node: Node) -> int:
        """A number for what this node offers now, the same for all that offer the like."""
        offer = node.offer
        known = self._keys.get(id(offer))
        if known is None:
            number = self._numbers.setdefault(offer_key(offer, node.wallet), len(self._numbers))
            known = self._keys[id(offer)] = (offer, number)
        return known[1]

    def sweep(self, nodes: int) -> None:
        """Forget offers of long ago when they have become many."""
        if len(self._keys) > 2 * nodes + 1024:
            self._keys.clear()
            self._numbers.clear()


def verdicts(ask: Ask, scene: Scene, nodes: Iterable[Node], keys: OfferKeys | None = None) -> Verdicts:
    """Ask all of these nodes. `keys` makes asking again cheaper."""
    keys = OfferKeys() if keys is None else keys
    left_out = (LIMIT,) if scene.kept else (LIMIT, KEPT)
    asked = tuple(condition for condition in CONDITIONS if condition.name not in left_out and condition.asked(ask))
    alike = [(at, condition) for at, condition in enumerate(asked) if condition.name in OF_THE_OFFER]
    each = [(at, _fast(condition)) for at, condition in enumerate(asked) if condition.name not in OF_THE_OFFER]
    known: dict[int, int] = {}
    first: dict[str, int] = {}
    for node in nodes:
        key = keys.of(node)
        found = known.get(key)
        if found is None:
            failing = (at for at, condition in alike if not condition.passes(ask, node, scene))
            found = known[key] = next(failing, len(asked))
        for at, passes in each:
            if at >= found:
                break
            if not passes(ask, node, scene):
                found = at
                break
        first[node.offer.node_id] = found
    return Verdicts(asked, first)


def _fast(condition: Condition) -> Callable[[Ask, Node, Scene], bool]:
    return _is_free if condition.name == "free" else condition.passes


def _is_free(ask: Ask, node: Node, scene: Scene) -> bool:
    """As `is_free`, of a node that is known to pass all that hangs on the offer: most are told by counting."""
    if not node.allocations:
        return True
    wanted, taken, cards = ask.requirements.num_gpus, node.taken, node.offer.cards
    # A card that is held may be none of the offer any more: then counting alone finds too few.
    if wanted and len(cards) - len(taken) < wanted and sum(card.uuid not in taken for card in cards) < wanted:
        return False
    return is_free(node, ask.requirements)
