"""What a node has earned, from the job JSON of the query API. Pure.

A job counts on the day (UTC) on which it ended, with what its buyer is charged for it. What is not over counts as nothing yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

HOUR_MS = 3_600_000


class Day(msgspec.Struct, kw_only=True):
    """What came together on a day, or in all."""

    jobs: int = 0
    paid_jobs: int = 0
    """Those that were charged something."""
    gpu_ms: int = 0
    charged_uusd: int = 0

    def add(self, job: Mapping[str, Any]) -> None:
        """Count a job that has ended."""
        charged = job.get("charged_uusd") or 0
        self.jobs += 1
        self.paid_jobs += charged > 0
        self.gpu_ms += (job.get("ran_ms") or 0) * len(job.get("gpus") or ())
        self.charged_uusd += charged


def earnings(jobs: Iterable[Mapping[str, Any]], since_ms: int | None = None) -> tuple[dict[str, Day], Day]:
    """By day, newest first, and in all; of jobs that ended at `since_ms` or later."""
    days: dict[str, Day] = {}
    total = Day()
    for job in jobs:
        ended_ms = job.get("ended_ms")
        if not ended_ms or (since_ms is not None and ended_ms < since_ms):
            continue
        day = datetime.fromtimestamp(ended_ms / 1000, UTC).strftime("%Y-%m-%d")
        days.setdefault(day, Day()).add(job)
        total.add(job)
    return dict(sorted(days.items(), reverse=True)), total


def left_ms(job: Mapping[str, Any], now_ms: int) -> int | None:
    """How long a running job may still take; `None` when it does not run."""
    started_ms = job.get("started_ms")
    if not started_ms or job.get("ended_ms"):
        return None
    return max(0, int(started_ms) + 1000 * int(job["timeout_s"]) - now_ms)


def earned_uusd(job: Mapping[str, Any], now_ms: int) -> int:
    """What it was charged; of a job that runs what it comes to so far."""
    started_ms, price = job.get("started_ms"), job.get("price_uusd_per_gpu_hour")
    if job.get("ended_ms") or not started_ms or price is None:
        return int(job.get("charged_uusd") or 0)
    ran_ms = min(max(0, now_ms - int(started_ms)), 1000 * int(job["timeout_s"]))
    return ran_ms * len(job.get("gpus") or ()) * int(price) // HOUR_MS
