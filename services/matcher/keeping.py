"""When a node has room for a job at the latest, and where a place is kept for the first job that must wait. Pure.

The first queued job that could run somewhere and must wait is the head. On the node that has room for it first, another job may start only
if it is over by then, so the head starts no later than if nobody had passed it. The node is looked for among the cheapest that could run
it; the choice follows from the market alone, so a matcher that starts anew keeps the same place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from events.values import JobId, NodeId, Requirements
from projections.market import Market
from projections.nodes import Allocation, Node, cores_asked
from services.matcher.feasibility import choose, is_free

KEEP_AMONG = 32
"""Of the nodes that could run the head, so many of the cheapest are looked at; in a smaller market all of them."""


class Kept(NamedTuple):
    """Where a place is kept, for which job; each node with the time from which the job has room there."""

    job_id: JobId
    nodes: dict[NodeId, int]


class Option(NamedTuple):
    """A node that could run the head: the soonest is the best, then the cheapest."""

    from_ms: int
    price_uusd_per_gpu_hour: int
    node_id: NodeId


def kept_among(job_id: JobId, options: Iterable[Option], number: int) -> Kept:
    """The so many best of these nodes, all kept until the last of them has room; none where they do not suffice."""
    best: list[Option] = []
    seen: set[NodeId] = set()
    for option in sorted(options):
        if option.node_id not in seen:
            seen.add(option.node_id)
            best.append(option)
            if len(best) == number:
                return Kept(job_id, {one.node_id: option.from_ms for one in best})
    return Kept(job_id, {})


def room_from_ms(market: Market, node: Node, requirements: Requirements) -> int | None:
    """When it has room at the latest, if nothing else starts there: 0 when it has now, None when it never has."""
    if is_free(node, requirements):
        return 0
    cores, memory_mib = node.cores_taken, node.memory_taken_mib
    free = [card for card in node.offer.cards if card.healthy and card.uuid not in node.taken]
    held_by = {card.uuid: card for card in node.offer.cards if card.healthy and card.uuid in node.taken}
    wanted, cores_wanted = requirements.num_gpus, cores_asked(requirements)
    for end_ms, _, held in sorted((_end_ms(market, epoch, held), epoch, held) for epoch, held in node.allocations.items()):
        cores -= held.cores
        memory_mib -= held.memory_mib
        free += [held_by[uuid] for uuid in held.cards if uuid in held_by]
        if len(free) < wanted or node.offer.cores - cores < cores_wanted or node.offer.memory_mib - memory_mib < requirements.memory_mib:
            continue
        if choose(free, requirements) is not None:
            return end_ms
    return None


def _end_ms(market: Market, epoch: int, held: Allocation) -> int:
    """When an attempt ends at the latest: its timeout from its start, or from its match while it has not started; at once when only its
    cleaning up is left."""
    job = market.jobs.get(held.job_id)
    if job is None or job.run is None or job.run.epoch != epoch or job.run.ended_ms:
        return held.since_ms
    return (job.run.started_ms or held.since_ms) + job.timeout_s * 1000
