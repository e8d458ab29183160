"""How long a node may still be busy, as the API tells it. Pure."""

from __future__ import annotations

from projections.job_states import HELD
from projections.market import Market
from projections.nodes import Node


def backlog_s(node: Node, market: Market, now_ms: int) -> int:
    """Until the last of its attempts is over at the latest, in seconds."""
    latest_ms = now_ms
    for epoch, allocation in node.allocations.items():
        job = market.jobs.get(allocation.job_id)
        if job is None or job.run is None or job.run.epoch != epoch or job.state not in HELD:
            continue
        latest_ms = max(latest_ms, (job.run.started_ms or now_ms) + job.timeout_s * 1000)
    return (latest_ms - now_ms + 999) // 1000
