"""What is over in ledger time: claims not made, leases not renewed, waits and runs past their limit, nodes not heard of.

Pure. A deadline is only a reason to look; whether something expires is decided on the market as it stands, and no fold computes an expiry.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from events.fact import Event
from events.jobs import JobExpired, JobTimedOut, LeaseExpired
from events.nodes import NodeLost
from events.reasons import Reason
from projections.job_states import CLAIMED, MATCHED, QUEUED, RUNNING, STARTING, STOPPING
from projections.jobs import Job
from projections.market import Market
from projections.nodes import NodeState
from services.matcher.memory import Deadline, Memory


def expired(market: Market, memory: Memory, now_ms: int) -> list[Event]:
    """The events that are due. Each deadline is looked at once, and set again if its time has moved."""
    due: list[Event] = []
    waiting: list[Deadline] = []
    while memory.deadlines and memory.deadlines[0].due_ms <= now_ms:
        deadline = heapq.heappop(memory.deadlines)
        if deadline.kind != "queue" and deadline.kind != "suspect" and now_ms < memory.patient_until_ms:
            waiting.append(deadline._replace(due_ms=memory.patient_until_ms))
            continue
        event = RULES[deadline.kind](market, memory, deadline, now_ms)
        if event is not None:
            due.append(event)
    for deadline in waiting:
        heapq.heappush(memory.deadlines, deadline)
    return due


def _queue(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    job = market.jobs.get(deadline.subject)
    if job is None or job.ended_ms:
        return None
    if job.state is QUEUED:
        return JobExpired(job_id=deadline.subject)
    memory.after(now_ms + 1000 * market.policy.lease_s, "queue", deadline.subject, 0)  # it may come back to the queue
    return None


def _claim(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    job = _present(market, deadline)
    if job is None or job.state is not MATCHED:
        return None
    return _lease_over(market, deadline.epoch, Reason.CLAIM_LATE)


def _prepare(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    """The node reports a slow pull itself; this is for one that does not."""
    job = _present(market, deadline)
    if job is None or job.state is not CLAIMED:
        return None
    assert job.run is not None
    due_ms = job.run.claimed_ms + (market.policy.prepare_s + market.policy.lease_s) * 1000
    if now_ms < due_ms:
        memory.after(due_ms, "prepare", deadline.subject, deadline.epoch)
        return None
    return _lease_over(market, deadline.epoch, Reason.LEASE_EXPIRED)


def _run(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    """The run timeout is the node's to enforce; this is for one that does not."""
    job = _present(market, deadline)
    if job is None or job.state not in (RUNNING, STARTING, STOPPING):
        return None
    run = job.run
    assert run is not None
    due_ms = run.started_ms + (job.timeout_s + market.policy.run_slack_s) * 1000
    if now_ms < due_ms:
        memory.after(due_ms, "run", deadline.subject, deadline.epoch)
        return None
    return JobTimedOut(job_id=deadline.subject, attempt=run.attempt, epoch=run.epoch, ran_ms=job.timeout_s * 1000)


def _lease(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    if deadline.epoch not in market.leases:
        memory.renewed_ms.pop(deadline.epoch, None)
        return None
    due_ms = memory.renewed_ms.get(deadline.epoch, 0) + market.policy.lease_s * 1000
    if now_ms < due_ms:
        memory.after(due_ms, "lease", deadline.subject, deadline.epoch)
        return None
    return _lease_over(market, deadline.epoch, Reason.LEASE_EXPIRED)


def _suspect(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    """No new matches on a node that is silent; no event: it may speak again."""
    heard_ms = memory.heard_ms.get(deadline.subject)
    if heard_ms is None:
        return None
    due_ms = heard_ms + market.policy.suspect_s * 1000
    if now_ms < due_ms:
        memory.after(due_ms, "suspect", deadline.subject, 0)
    else:
        memory.engine.suspect(deadline.subject, True)
        memory.after(now_ms + market.policy.suspect_s * 1000, "suspect", deadline.subject, 0)
    return None


def _node(market: Market, memory: Memory, deadline: Deadline, now_ms: int) -> Event | None:
    node = market.nodes.get(deadline.subject)
    heard_ms = memory.heard_ms.get(deadline.subject)
    if node is None or heard_ms is None or node.presence is not NodeState.OFFERED:
        memory.heard_ms.pop(deadline.subject, None)
        return None
    due_ms = heard_ms + market.policy.lease_s * 1000
    if now_ms < due_ms:
        memory.after(due_ms, "node", deadline.subject, 0)
        return None
    del memory.heard_ms[deadline.subject]
    return NodeLost(node_id=deadline.subject)


RULES: dict[str, Callable[[Market, Memory, Deadline, int], Event | None]] = {
    "queue": _queue,
    "claim": _claim,
    "prepare": _prepare,
    "run": _run,
    "lease": _lease,
    "suspect": _suspect,
    "node": _node,
}


def _present(market: Market, deadline: Deadline) -> Job | None:
    """The job, if the attempt that the deadline was set for is still its present one."""
    job = market.jobs.get(deadline.subject)
    if job is None or job.run is None or job.run.epoch != deadline.epoch:
        return None
    return job


def _lease_over(market: Market, epoch: int, reason: Reason) -> LeaseExpired | None:
    node_id = market.leases.get(epoch)
    if node_id is None:
        return None
    held = market.nodes[node_id].allocations[epoch]
    return LeaseExpired(node_id=node_id, job_id=held.job_id, attempt=held.attempt, epoch=epoch, reason=reason)
