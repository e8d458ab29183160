"""What becomes of a rank that is stopped because another rank of its gang has ended. Pure; who is stopped is the matcher's decision."""

from __future__ import annotations

from events.reasons import REASONS, Reason
from projections.job_states import CANCELLED, FAILED, QUEUED, TIMED_OUT, JobState


def state_after(reason: Reason | None, again: bool) -> JobState:
    """What a stopping job becomes: with a `reason` what the other rank became, without one it was cancelled itself."""
    if again:
        return QUEUED
    return CANCELLED if reason is None else JobState(REASONS[reason].state)


def told(reason: Reason | None) -> Reason | None:
    """What the stopped rank has ended for, given why the other did; None when it was not stopped for another."""
    if reason is None:
        return None
    return Reason.GANG_RANK_FAILED if REASONS[reason].state in (FAILED, TIMED_OUT) else reason
