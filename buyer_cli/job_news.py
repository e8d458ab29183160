"""What changed between two looks at a job, in sentences for the person who waits. Pure."""

from __future__ import annotations

from buyer_cli.render import price, reason_sentence
from events.wire import SyncJob


def news(before: SyncJob | None, now: SyncJob, node_name: str) -> list[str]:
    """The sentences, in order; none when nothing that matters has changed."""
    told = []
    if before is not None and before.state != "queued" and now.state == "queued":
        told.append(f"attempt {before.attempt} ended: {reason_sentence(now.reason or before.reason)}; queued again")
    is_new_attempt = before is None or (now.attempt, now.epoch) != (before.attempt, before.epoch)
    if now.attempt and is_new_attempt and now.state != "queued":
        again = f", attempt {now.attempt}" if now.attempt > 1 else ""
        told.append(f"matched: {node_name} at {price(now.price_uusd_per_gpu_hour)}{again}")
    if now.state != (before.state if before else None) or is_new_attempt:
        told += {"starting": ["starting"], "running": ["running"], "stopping": ["stopping: somebody asked for its end"]}.get(now.state, [])
    return told
