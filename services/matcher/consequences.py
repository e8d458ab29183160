"""What follows at once from an event, in the same page: a failure that is tried again, a lost node whose leases end.

Pure: from the market as it stands after the event to the decisions that belong to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from events.fact import Event
from events.jobs import (
    GangStopped,
    JobCancelled,
    JobCancelRequested,
    JobDeclined,
    JobExpired,
    JobFailed,
    JobRequeued,
    JobSucceeded,
    JobTimedOut,
    LeaseExpired,
)
from events.nodes import NodeLost
from events.reasons import Reason
from projections.job_states import QUEUED, STOPPING, SUCCEEDED, TERMINAL
from projections.jobs import Job
from projections.market import Market

BACKOFF_DOUBLINGS_MAX = 8


def _requeued(market: Market, event: JobFailed | JobDeclined | LeaseExpired, now_ms: int) -> list[Event]:
    """The next attempt: not at once, and not on the same node first."""
    job = market.jobs.get(event.job_id)
    if job is not None and job.submitted.num_nodes > 1:
        return _gang(market, event, now_ms)
    if job is None or job.state is not QUEUED or job.run is None or job.run.epoch != event.epoch:
        return []
    return [_again(market, job, event.reason, job.run.node_id, now_ms)]


def _again(market: Market, job: Job, reason: Reason, avoid_node: str | None, now_ms: int) -> JobRequeued:
    policy = market.policy
    backoff_ms = policy.retry_backoff_s * 1000 << min(job.attempts - 1, BACKOFF_DOUBLINGS_MAX)
    return JobRequeued(
        job_id=job.submitted.job_id,
        attempt=job.attempts + 1,
        reason=reason,
        not_before_ms=now_ms + backoff_ms,
        avoid_node=avoid_node,
        avoid_until_ms=now_ms + backoff_ms + policy.avoid_s * 1000,
    )


def _gang(market: Market, event: Event, now_ms: int) -> list[Event]:
    """One rank has ended, or is about to: so are the others. When all wait again, they begin together."""
    job = market.jobs.get(getattr(event, "job_id", ""))
    if job is None or job.submitted.num_nodes == 1 or job.updated_seq != market.last_seq:
        return []
    ranks, again = market.ranks_of(job), job.state is QUEUED
    reason = _why_all_end(job)
    if reason is not None:
        stopped: list[Event] = [
            GangStopped(job_id=other.submitted.job_id, reason=reason, again=again) for other in ranks if _is_to_stop(other, job, again)
        ]
        if stopped:
            return stopped
    if again and all(rank.state is QUEUED for rank in ranks):
        return _all_again(market, ranks, now_ms)
    return []


def _why_all_end(job: Job) -> Reason | None:
    """Why the other ranks are to be stopped because of this one; None when they are not, or were already."""
    if job.gang_reason is not None or job.state is SUCCEEDED:
        return None
    if job.state is STOPPING:
        return Reason.CANCELLED_BY_BUYER if job.cancelled_by in ("", job.buyer) else Reason.CANCELLED_BY_OPERATOR
    return job.reason if job.state is QUEUED or job.state in TERMINAL else None


def _is_to_stop(other: Job, job: Job, again: bool) -> bool:
    if other is job or other.state in TERMINAL or (again and other.state is QUEUED):
        return False
    return other.state is not STOPPING or other.again is not again


def _all_again(market: Market, ranks: tuple[Job, ...], now_ms: int) -> list[Event]:
    """The next attempt of a gang: not at once, and without the node whose rank ended it."""
    began = next((rank for rank in ranks if rank.gang_reason is None and rank.reason is not None), ranks[0])
    node_id = None if began.run is None else began.run.node_id
    return [_again(market, rank, began.reason or Reason.GANG_RANK_FAILED, node_id, now_ms) for rank in ranks]


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
    **dict.fromkeys((JobTimedOut, JobCancelled, JobSucceeded, JobCancelRequested, JobExpired, GangStopped), _gang),
}


def consequences(market: Market, event: Event, now_ms: int) -> list[Event]:
    """The decisions that belong to this event, in order."""
    rule = CONSEQUENCES.get(type(event))
    return [] if rule is None else rule(market, event, now_ms)
