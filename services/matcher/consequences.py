"""What follows at once from an event, in the same page: a failure that is tried again, a lost node whose leases end.

Pure: from the market as it stands after the event to the decisions that belong to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events.fact import Event
from events.jobs import JobDeclined, JobFailed, JobRequeued, LeaseExpired
from events.nodes import NodeLost
from events.reasons import Reason
from projections.job_states import QUEUED
from projections.market import Market

BACKOFF_DOUBLINGS_MAX = 8


def _requeued(market: Market, event: JobFailed | JobDeclined | LeaseExpired, now_ms: int) -> list[Event]:
    """The next attempt: not at once, and not on the same node first."""
    job = market.jobs.get(event.job_id)
    if job is None or job.state is not QUEUED or job.run is None or job.run.epoch != event.epoch:
        return []
    policy = market.policy
    backoff_ms = policy.retry_backoff_s * 1000 << min(job.attempts - 1, BACKOFF_DOUBLINGS_MAX)
    return [
        JobRequeued(
            job_id=event.job_id,
            attempt=job.attempts + 1,
            reason=event.reason,
            not_before_ms=now_ms + backoff_ms,
            avoid_node=job.run.node_id,
            avoid_until_ms=now_ms + backoff_ms + policy.avoid_s * 1000,
        )
    ]


def _node_lost(market: Market, event: NodeLost, now_ms: int) -> list[Event]:
    """Every lease of a lost node is over."""
    node = market.nodes[event.node_id]
    return [
        LeaseExpired(node_id=event.node_id, job_id=held.job_id, attempt=held.attempt, epoch=epoch, reason=Reason.NODE_LOST)
        for epoch, held in node.allocations.items()
    ]


CONSEQUENCES: dict[type[Event], Callable[[Market, Any, int], list[Event]]] = {
    JobFailed: _requeued,
    JobDeclined: _requeued,
    LeaseExpired: _requeued,
    NodeLost: _node_lost,
}


def consequences(market: Market, event: Event, now_ms: int) -> list[Event]:
    """The decisions that belong to this event, in order."""
    rule = CONSEQUENCES.get(type(event))
    return [] if rule is None else rule(market, event, now_ms)
