"""How long a job counts where it may pass another: its timeout, rounded up to one of a few lengths, so that jobs are of few kinds. Pure."""

from __future__ import annotations

from bisect import bisect_left

SPANS_S = (600, 3600, 7200, 10_800, 43_200, 86_400)
"""Ten minutes; the default timeouts of the three kinds of job; half a day; a day."""
LONGER_S = 1 << 40
"""What is longer passes nobody."""


def span_s(timeout_s: int) -> int:
    """How many seconds a job with this timeout counts."""
    at = bisect_left(SPANS_S, timeout_s)
    return SPANS_S[at] if at < len(SPANS_S) else LONGER_S
