"""What nodes said lately beside the ledger: phases, readings, and when each was last heard of. Never truth; empty after a restart. Pure."""

from __future__ import annotations

from itertools import islice

from events.wire import BeatCard, BeatLease, BeatView
from projections.nodes import Node, NodeState


class Telemetry:
    """The last heartbeat of every node. Times are this process's own clock, as the caller gives it."""

    def __init__(self, since_ms: int = 0) -> None:
        self.since_ms = since_ms
        """When listening began: nobody can have been silent for longer."""
        self._heard: dict[str, tuple[int, BeatView]] = {}
        self._leases: dict[int, BeatLease] = {}
        self._cards: dict[str, dict[str, BeatCard]] = {}
        self._fresh: dict[str, None] = {}
        """Nodes heard of since somebody took what was fresh; whoever waits longest comes first."""

    def note(self, view: BeatView, now_ms: int) -> None:
        """A heartbeat arrived."""
        node_id = view.beat.node_id
        before = self._heard.get(node_id)
        if before is not None:
            for lease in before[1].beat.leases:
                self._leases.pop(lease.epoch, None)
        self._heard[node_id] = (now_ms, view)
        self._fresh[node_id] = None
        self._cards[node_id] = {card.uuid: card for card in view.beat.cards}
        for lease in view.beat.leases:
            self._leases[lease.epoch] = lease

    def forget(self, node_id: str) -> None:
        """The node is no longer on the market."""
        heard = self._heard.pop(node_id, None)
        self._cards.pop(node_id, None)
        self._fresh.pop(node_id, None)
        if heard is not None:
            for lease in heard[1].beat.leases:
                self._leases.pop(lease.epoch, None)

    def take_fresh(self, most: int) -> list[tuple[int, BeatView]]:
        """The last heartbeats of nodes that were heard of since they were last taken, with when; at most so many."""
        taken = list(islice(self._fresh, most))
        for node_id in taken:
            del self._fresh[node_id]
        return [self._heard[node_id] for node_id in taken]

    def heard_ms(self, node_id: str) -> int | None:
        """When the node was last heard of."""
        heard = self._heard.get(node_id)
        return None if heard is None else heard[0]

    def lease(self, epoch: int) -> BeatLease | None:
        """What its node last said of an attempt."""
        return self._leases.get(epoch)

    def card(self, node_id: str, uuid: str) -> BeatCard | None:
        """The last readings of a card."""
        return self._cards.get(node_id, {}).get(uuid)

    def is_suspect(self, node: Node, suspect_s: int, now_ms: int) -> bool:
        """An offered node that has been silent for longer than the policy allows."""
        if node.presence is not NodeState.OFFERED:
            return False
        return now_ms - self.last_ms(node) > suspect_s * 1000

    def last_ms(self, node: Node) -> int:
        """Since when the node can have been silent."""
        return max(self.since_ms, node.offered_ms, self.heard_ms(node.offer.node_id) or 0)

    def suspects(self, nodes: dict[str, Node], suspect_s: int, now_ms: int) -> frozenset[str]:
        """The ids of all such nodes."""
        return frozenset(node_id for node_id, node in nodes.items() if self.is_suspect(node, suspect_s, now_ms))
