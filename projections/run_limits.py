"""How long a run may take, and which of its buyer's limits ends it: one rule for the node that enforces it and for who shows it."""

from __future__ import annotations

from events.jobs import JobSubmitted
from events.reasons import Reason

SLACK_MS = 500


def limits(order: JobSubmitted, timeout_s: int, price_uusd_per_gpu_hour: int) -> list[tuple[int, Reason]]:
    """Every limit of the run's time in seconds, with what it means when it is over. `timeout_s`: with its extensions."""
    found = [(timeout_s, Reason.RUN_TIMEOUT)]
    if order.estimate_s is not None and order.estimate_limit is not None:
        found.append((order.estimate_s * order.estimate_limit, Reason.ESTIMATE_EXCEEDED))
    if order.max_total_uusd is not None and price_uusd_per_gpu_hour > 0:
        per_hour = max(1, order.requirements.num_gpus) * price_uusd_per_gpu_hour
        found.append((max(1, order.max_total_uusd * 3600 // per_hour), Reason.BUDGET_EXHAUSTED))
    return found


def time_limit(order: JobSubmitted, timeout_s: int, price_uusd_per_gpu_hour: int) -> tuple[int, Reason]:
    """How many seconds the run may take, and what it means when they are over."""
    return min(limits(order, timeout_s, price_uusd_per_gpu_hour), key=lambda limit: limit[0])


def reached(order: JobSubmitted, timeout_s: int, price_uusd_per_gpu_hour: int, ran_ms: int | None) -> Reason:
    """Which limit ended a run after this time. When none is that short now, the timeout was, before an extension that came too late."""
    limit_s, reason = time_limit(order, timeout_s, price_uusd_per_gpu_hour)
    return reason if ran_ms is None or limit_s * 1000 <= ran_ms + SLACK_MS else Reason.RUN_TIMEOUT
