"""Who goes first, and where: each policy is a row of key functions. Pure; the engine and quotes read it, nothing else decides order.

A row's `order` gives a number to each queued job, smaller first; ties go to the lower `order_seq`. It may look at the job, the policy and
the market, but must give the same number until the job itself is touched: ageing is a head start in submission time for that reason, not a
sum that grows. A policy whose numbers move with something else (what a wallet uses) has the jobs touched when that moves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from events.market import Policy
from projections.jobs import Job
from projections.market import Market

SEQ_BITS = 62
"""An `order_seq` has no more bits, so that number and tie make one integer."""

Rank = tuple[int, int, int, str]
"""(price, cards left free, VRAM taken, node id): the smallest is the best."""


class PolicyRow(NamedTuple):
    """One policy."""

    order: Callable[[Job, Policy, Market], int]
    sentence: str


def by_priority(job: Job, policy: Policy, market: Market) -> int:
    """When the job came, less a head start for every point of its priority: waiting makes up for it. Without ageing it alone decides."""
    if policy.ageing_s_per_point == 0:
        return -job.priority
    return job.submitted_ms - job.priority * policy.ageing_s_per_point * 1000


def by_arrival(job: Job, policy: Policy, market: Market) -> int:
    """The ledger's order alone."""
    return 0


POLICIES: dict[str, PolicyRow] = {
    "priority": PolicyRow(by_priority, "higher priority first; waiting counts as priority, so nobody waits for ever"),
    "fcfs": PolicyRow(by_arrival, "first come, first served"),
}


def order_key(job: Job, policy: Policy, market: Market) -> int:
    """Where a job stands under the policy: smaller goes first, and no two jobs share a number. An unknown policy is `priority`."""
    row = POLICIES.get(policy.name) or POLICIES["priority"]
    return (row.order(job, policy, market) << SEQ_BITS) | job.order_seq


def rank(price_uusd_per_gpu_hour: int, cards_left: int, vram_taken_mib: int, node_id: str) -> Rank:
    """How good a node is for a job: cheapest, then the tightest fit (fewest cards left free, then the smallest taken), then lowest id."""
    return (price_uusd_per_gpu_hour, cards_left, vram_taken_mib, node_id)
