"""Nodes, their offers, and which of their cards are taken. Nothing outside this file changes a node.

A card is taken from JobMatched until the node says that it is clean (GpusReleased), a LeaseExpired stands in the ledger, or the match
came to nothing before it was claimed. The lease belongs to the allocation, not to the job: a job may have ended long before.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from events.nodes import NodeDrained, NodeMaintenancePlanned, NodeOffered, NodeVerified
from events.values import Card, Requirements, Tier


class NodeState(StrEnum):
    """Whether new jobs may be matched to a node."""

    OFFERED = "offered"
    DRAINING = "draining"
    WITHDRAWN = "withdrawn"
    LOST = "lost"
    BANNED = "banned"


class Allocation(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Cards (and cores, memory) that one attempt holds. Its key in the node is the epoch."""

    job_id: str
    attempt: int
    cards: tuple[str, ...]
    cores: int = 0
    memory_mib: int = 0
    since_ms: int
    expected_ms: int = 0
    """How long the run is thought to take, counted from the match."""


class Node(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A machine as the market knows it."""

    offer: NodeOffered
    wallet: str
    price_uusd_per_gpu_hour: int
    offered_seq: int
    offered_ms: int
    first_ms: int
    updated_ms: int
    updated_seq: int
    presence: NodeState = NodeState.OFFERED
    """Offered, withdrawn or lost; draining and banned stand beside it."""
    draining: bool = False
    drain_reason: str = ""
    drain_deadline_ms: int | None = None
    maintenance: tuple[int, int, str] | None = None
    """From when until when the machine will be away, and why; past ones are forgotten with the next plan or offer."""
    banned: bool = False
    tier: Tier = Tier.CLAIMED
    tier_until_ms: int = 0
    allocations: dict[int, Allocation] = {}
    taken: dict[str, int] = {}
    """Card UUID -> epoch of the allocation that holds it."""
    cores_taken: int = 0
    memory_taken_mib: int = 0
    ended: dict[str, int] = {}
    """How many of its attempts ended in which way."""

    @property
    def node_id(self) -> str:
        """The node's id."""
        return self.offer.node_id

    @property
    def state(self) -> NodeState:
        """The one word for it."""
        if self.banned:
            return NodeState.BANNED
        if self.presence is NodeState.OFFERED and self.draining:
            return NodeState.DRAINING
        return self.presence


def offer(node: Node | None, event: NodeOffered, wallet: str, seq: int, now_ms: int) -> Node:
    """A new node, or the same one offered again: allocations, bans and history stay, and so does a drain: only its owner's word
    ends it, or a restarted agent would take jobs on a machine that is being emptied."""
    if node is None:
        return Node(
            offer=event,
            wallet=wallet,
            price_uusd_per_gpu_hour=event.price_uusd_per_gpu_hour,
            offered_seq=seq,
            offered_ms=now_ms,
            first_ms=now_ms,
            updated_ms=now_ms,
            updated_seq=seq,
        )
    node.offer = event
    node.price_uusd_per_gpu_hour = event.price_uusd_per_gpu_hour
    node.offered_seq, node.offered_ms = seq, now_ms
    node.presence = NodeState.OFFERED
    return node


def drain(node: Node, event: NodeDrained) -> None:
    """No new jobs there, until the owner says otherwise; it may be said of a node that is away."""
    node.draining, node.drain_reason, node.drain_deadline_ms = True, event.reason, event.deadline_ms


def plan_maintenance(node: Node, event: NodeMaintenancePlanned) -> None:
    """When it will be away; an empty time takes the plan back."""
    node.maintenance = None if event.until_ms <= event.from_ms else (event.from_ms, event.until_ms, event.reason)


def planned(node: Node, now_ms: int) -> tuple[int, int, str] | None:
    """The maintenance that is still to come, or lasts: from when until when, and why."""
    plan = node.maintenance
    return plan if plan is not None and now_ms < plan[1] else None


def state_at(node: Node, now_ms: int) -> NodeState:
    """The one word for it at this time: while a maintenance lasts it is draining."""
    plan = planned(node, now_ms)
    if plan is not None and plan[0] <= now_ms and node.state is NodeState.OFFERED:
        return NodeState.DRAINING
    return node.state


def verify(node: Node, event: NodeVerified) -> None:
    """How far its cards were checked, and until when that counts."""
    node.tier, node.tier_until_ms = event.tier, event.expires_ms


def free_cards(node: Node) -> list[Card]:
    """Healthy cards that nobody holds, lowest index first."""
    taken = node.taken
    return [card for card in node.offer.cards if card.healthy and card.uuid not in taken]


def are_free(node: Node, uuids: tuple[str, ...]) -> bool:
    """Whether all of these are cards of the node, healthy, held by nobody, and named once."""
    if len(set(uuids)) != len(uuids):
        return False
    taken = node.taken
    cards = {card.uuid: card.healthy for card in node.offer.cards} if uuids else {}
    return all(uuid not in taken and cards.get(uuid, False) for uuid in uuids)


def backlog_ms(node: Node, now_ms: int) -> int:
    """The work that is expected to be left there: of every attempt that holds something, what is left of its expected time."""
    return sum(max(0, held.since_ms + held.expected_ms - now_ms) for held in node.allocations.values())


def cores_asked(requirements: Requirements) -> int:
    """A job without a card takes at least one core, so that a machine without cards is not let without end."""
    if requirements.num_gpus == 0:
        return max(1, requirements.cores)
    return requirements.cores


def allocate(node: Node, epoch: int, allocation: Allocation) -> None:
    """Take the cards."""
    node.allocations[epoch] = allocation
    for uuid in allocation.cards:
        node.taken[uuid] = epoch
    node.cores_taken += allocation.cores
    node.memory_taken_mib += allocation.memory_mib


def release(node: Node, epoch: int) -> bool:
    """Free what this epoch holds; whether it held anything."""
    allocation = node.allocations.pop(epoch, None)
    if allocation is None:
        return False
    for uuid in allocation.cards:
        if node.taken.get(uuid) == epoch:
            del node.taken[uuid]
    node.cores_taken -= allocation.cores
    node.memory_taken_mib -= allocation.memory_mib
    return True
