"""How an attempt ended: from what the runner saw and who asked, the one event that reports it. A table and pure functions."""

from __future__ import annotations

from events.jobs import JobCancelled, JobFailed, JobSucceeded, JobTimedOut
from events.reasons import Reason
from projections.run_limits import reached
from seller_agent.attempts.attempt import Attempt, Saved, Stop
from seller_agent.runners.runner import RunStatus, StopReason

FAILED_TO_START = frozenset(
    {
        Reason.PROGRAM_NOT_FOUND,
        Reason.IMAGE_NOT_FOUND,
        Reason.IMAGE_REFUSED,
        Reason.IMAGE_AUTH,
        Reason.IMAGE_PULL_TIMEOUT,
        Reason.INPUT_MISSING,
        Reason.INPUT_CORRUPT,
        Reason.INPUT_TIMEOUT,
        Reason.SECRET_MISSING,
        Reason.CONTAINER_ERROR,
        Reason.DISK_FULL,
        Reason.GPU_LOST,
        Reason.HOST_RESTARTED,
        Reason.RUNTIME_RESTARTED,
        Reason.LEASE_EXPIRED,
    }
)
"""What a runner, or fetching the inputs, may give as the reason of a failure."""
STOPPED_FOR = {
    Stop.EVICT: Reason.EVICTED,
    Stop.LEASE: Reason.LEASE_EXPIRED,
    Stop.LOST: Reason.LEASE_EXPIRED,
    Stop.CARD: Reason.GPU_LOST,
    Stop.IDLE: Reason.IDLE,
    Stop.LOW_USE: Reason.LOW_UTILISATION,
    Stop.GPU_MEMORY: Reason.GPU_MEMORY_EXCEEDED,
    Stop.GANG: Reason.GANG_RANK_FAILED,
    Stop.UNREADY: Reason.CONTAINER_ERROR,
}
TIMED_OUT = frozenset({Reason.RUN_TIMEOUT, Reason.ESTIMATE_EXCEEDED, Reason.BUDGET_EXHAUSTED, Reason.IDLE, Reason.LOW_UTILISATION})

HINTED = frozenset({Reason.EXITED_NONZERO, Reason.KILLED_BY_SIGNAL, Reason.OUT_OF_MEMORY, Reason.PROGRAM_NOT_FOUND})
"""Ends of which the program's last words on stderr may say what to try."""


def failure_reason(word: str) -> Reason:
    """The reason that a runner's word names; anything unknown is the node's fault."""
    return Reason(word) if word in FAILED_TO_START else Reason.CONTAINER_ERROR


def ended_for(attempt: Attempt) -> Reason:
    """Why the attempt ended: who asked first, then what the runner saw."""
    if attempt.cancelled_by:
        return Reason.CANCELLED_BY_BUYER if attempt.cancelled_by == attempt.buyer else Reason.CANCELLED_BY_OPERATOR
    status = attempt.status
    if attempt.failure is not None:
        return attempt.failure
    if attempt.stop is Stop.CLOSE:
        return (attempt.saved_as or Saved()).failure or Reason.SESSION_CLOSED
    if status is None:
        return STOPPED_FOR.get(attempt.stop or Stop.LOST, Reason.EVICTED)
    if status.error is not None:
        return failure_reason(status.error)
    match status.stop_reason:
        case StopReason.DEADLINE:
            return reached(attempt.order, attempt.timeout_s, attempt.price_uusd_per_gpu_hour, status.ran_ms)
        case StopReason.LEASE:
            return Reason.LEASE_EXPIRED
        case StopReason.OUTPUT:
            return Reason.OUTPUT_TOO_LARGE
        case StopReason.ASKED:
            return STOPPED_FOR.get(attempt.stop, Reason.EVICTED) if attempt.stop is not None else Reason.EVICTED
        case None:
            return _exited_for(attempt, status)


def _exited_for(attempt: Attempt, status: RunStatus) -> Reason:
    """It ended by itself."""
    saved = attempt.saved_as or Saved()
    if status.exit_code == 0:
        if saved.failure is not None:
            return saved.failure
        return Reason.OUTPUT_TOO_LARGE if saved.too_large else Reason.EXITED_ZERO
    if status.out_of_memory:
        return Reason.OUT_OF_MEMORY
    return Reason.EXITED_NONZERO if status.signal is None else Reason.KILLED_BY_SIGNAL


Ending = JobSucceeded | JobFailed | JobTimedOut | JobCancelled


def end_event(attempt: Attempt) -> Ending:
    """The one report of how the attempt ended."""
    reason, status, saved = ended_for(attempt), attempt.status, attempt.saved_as or Saved()
    if reason in (Reason.EXITED_ZERO, Reason.SESSION_CLOSED):
        kind: type[Ending] = JobSucceeded
    elif reason in (Reason.CANCELLED_BY_BUYER, Reason.CANCELLED_BY_OPERATOR):
        kind = JobCancelled
    else:
        kind = JobTimedOut if reason in TIMED_OUT else JobFailed
    overtaken = attempt.over is not None and reason is not STOPPED_FOR[attempt.over]  # it ended otherwise before it was ended
    told = ("" if overtaken else attempt.detail) or (status.detail if status is not None else "") or saved.detail
    hint = saved.hint if reason in HINTED else ""
    return kind(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        epoch=attempt.epoch,
        reason=reason,
        exit_code=status.exit_code if status is not None and status.exit_code is not None and 0 <= status.exit_code <= 255 else None,
        ran_ms=max(0, status.ran_ms or 0) if status is not None else 0,
        stdout_bytes=saved.stdout_bytes,
        stderr_bytes=saved.stderr_bytes,
        output_sha256=saved.output_sha256,
        results=saved.results,
        results_bytes=saved.results_bytes,
        detail=plain(f"{told}; {hint}" if told and hint else told or hint),
        usage=attempt.usage,
    )


def plain(text: str, length: int = 300) -> str:
    """Words that may stand in an event for ever and reach any terminal: printable ASCII."""
    return "".join(letter if " " <= letter <= "~" else "?" if letter.isprintable() else " " for letter in text)[:length]
