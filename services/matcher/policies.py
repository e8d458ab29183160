"""Who goes first, and where: each policy is a row of key functions. Pure; the engine and quotes read it, nothing else decides order.

A row's `order` gives a number to each queued job, smaller first; ties go to the lower `order_seq`. It may look at the job, the policy and
the market, but must give the same number until the job itself is touched: ageing is a head start in submission time for that reason, not a
sum that grows. The one exception is a row with `by_share`: its number hangs on the job's parties alone (`share_rank`), so that all jobs of
a wallet move at once when what it uses changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from events.market import Policy
from projections.jobs import Job
from projections.market import Market
from projections.nodes import Node, backlog_ms

SEQ_BITS = 62
"""An `order_seq` has no more bits, so that number and tie make one integer."""
SEQ_MASK = (1 << SEQ_BITS) - 1
LEVEL_BITS, NUMBER_BITS = 40, 40
NO_ESTIMATE_S = 1 << 40
"""Longer than any estimate: who gives none comes last."""

Rank = tuple[int, int, int, str]
"""(price, cards left free, VRAM taken, node id): the smallest is the best."""


class PolicyRow(NamedTuple):
    """One policy."""

    order: Callable[[Job, Policy, Market], int]
    sentence: str
    by_share: bool = False
    """The number is `share_rank` of the job's parties."""
    by_backlog: bool = False
    """Of the nodes that a job can pay, the one with the least work left gets it; else the cheapest."""


def by_priority(job: Job, policy: Policy, market: Market) -> int:
    """When the job came, less a head start for every point of its priority: waiting makes up for it. Without ageing it alone decides."""
    if policy.ageing_s_per_point == 0:
        return -job.priority
    return job.submitted_ms - job.priority * policy.ageing_s_per_point * 1000


def by_arrival(job: Job, policy: Policy, market: Market) -> int:
    """The ledger's order alone."""
    return 0


def by_estimate(job: Job, policy: Policy, market: Market) -> int:
    """How long its buyer thinks that it runs."""
    estimate_s = job.submitted.estimate_s
    return NO_ESTIMATE_S if estimate_s is None else estimate_s


def by_share(job: Job, policy: Policy, market: Market) -> int:
    """How little its wallet has used, then its organisation; among equals, whoever has waited longest for a turn."""
    return share_rank(market, job.buyer, job.submitted.org_id)


def share_rank(market: Market, wallet: str, org_id: str | None) -> int:
    """Where the jobs of this wallet for this organisation stand among those of others; nobody else has the same number. A job for no
    organisation counts its wallet as one."""
    party = market.parties[wallet]
    org = party if org_id is None else market.parties[org_id]
    return ((party.level << LEVEL_BITS | org.level) << SEQ_BITS | party.turn_seq) << NUMBER_BITS | org.number


POLICIES: dict[str, PolicyRow] = {
    "priority": PolicyRow(by_priority, "higher priority first; waiting counts as priority, so nobody waits for ever"),
    "fcfs": PolicyRow(by_arrival, "first come, first served"),
    "sjf": PolicyRow(by_estimate, "shortest estimate first; jobs without an estimate last"),
    "fair-share": PolicyRow(by_share, "who has used least GPU time lately goes first: wallets, then organisations", by_share=True),
    "least-backlog": PolicyRow(
        by_arrival, "first come, first served, each job on the node that expects the least work, whatever it costs", by_backlog=True
    ),
}


def row_of(policy: Policy) -> PolicyRow:
    """The row in force. An unknown policy is `priority`."""
    return POLICIES.get(policy.name) or POLICIES["priority"]


def orders_otherwise(policy: Policy, other: Policy) -> bool:
    """Whether two policies order jobs differently, or let others pass; their other numbers are looked at when they count."""
    return policy is not other and _decisive(policy) != _decisive(other)


def _decisive(policy: Policy) -> tuple[object, ...]:
    return policy.name, policy.ageing_s_per_point, policy.keep_place


def order_key(job: Job, policy: Policy, market: Market) -> int:
    """Where a job stands under the policy: smaller goes first, and no two jobs share a number."""
    return (row_of(policy).order(job, policy, market) << SEQ_BITS) | job.order_seq


Place = tuple[int, int, int, Rank]
"""(work left in ms, cost in micro-USD an hour, which of the buyer's choices, rank): the smallest is the best."""


def place(backlog_ms: int, num_gpus: int, variant: int, rank: Rank) -> Place:
    """How good a node is for one of a buyer's choices: the cheapest choice as a whole, then the one that was named first. A job without a
    card pays as one."""
    return (backlog_ms, max(1, num_gpus) * rank[0], variant, rank)


def rank(price_uusd_per_gpu_hour: int, cards_left: int, vram_taken_mib: int, node_id: str) -> Rank:
    """How good a node is for a job: cheapest, then the tightest fit (fewest cards left free, then the smallest taken), then lowest id."""
    return (price_uusd_per_gpu_hour, cards_left, vram_taken_mib, node_id)


def backlog_of(policy: Policy, node: Node, now_ms: int) -> int:
    """What counts before the rank: the work that a node expects, under a policy that asks for it."""
    return backlog_ms(node, now_ms) if row_of(policy).by_backlog else 0
