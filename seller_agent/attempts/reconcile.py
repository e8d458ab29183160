"""What is true about a node after a restart or a gap: journal, runner and ledger laid side by side. Pure.

The ledger says what the node holds, the runner what exists, the journal what was meant. Where they differ the ledger wins about
holding, the runner about existing; the journal only explains.
"""

from __future__ import annotations

from collections.abc import Iterable

from events.jobs import JobMatched, JobSubmitted
from events.reasons import Reason
from events.values import Program
from events.wire import SyncJob
from seller_agent.attempts.attempt import Attempt, Run, Standing, Work
from seller_agent.runners.runner import RunKey, RunState, RunStatus

CLAIMED_STATES = frozenset({"claimed", "starting", "running", "stopping"})
STARTED_STATES = frozenset({"starting", "running", "stopping"})
"""The ledger knows that the program was started (of a stopping one it may not: then it is not told either)."""
_RANK = {Standing.MATCHED: 0, Standing.CLAIMED: 1, Standing.ENDED: 2, Standing.GONE: 3}


def standing_of(job: SyncJob) -> Standing:
    """How an allocation stands by the state of its job."""
    if job.state == "matched":
        return Standing.MATCHED
    return Standing.CLAIMED if job.state in CLAIMED_STATES else Standing.ENDED


def attempt_of(job: SyncJob) -> Attempt:
    """The attempt of an allocation that is new to us."""
    return Attempt(
        job_id=job.job_id,
        attempt=job.attempt,
        epoch=job.epoch,
        order=job.order or _nothing(job.job_id),
        buyer=job.buyer,
        cards=job.cards,
        price_uusd_per_gpu_hour=job.price_uusd_per_gpu_hour,
        timeout_s=job.timeout_s or 1,
        standing=standing_of(job),
        output_token=job.output_token,
        closing=job.closing,
        gang_stopped=job.gang_stopped,
        master_addr=job.master_addr,
        master_port=job.master_port,
        answered=job.state != "matched",
    )


def attempt_of_match(event: JobMatched, epoch: int, order: JobSubmitted, buyer: str) -> Attempt:
    """The attempt that a match begins; its epoch is the match's place in the ledger."""
    return Attempt(
        job_id=event.job_id,
        attempt=event.attempt,
        epoch=epoch,
        order=order,
        buyer=buyer,
        cards=event.cards,
        price_uusd_per_gpu_hour=event.price_uusd_per_gpu_hour,
        timeout_s=order.timeout_s,
        master_addr=event.master_addr,
        master_port=event.master_port,
    )


def _nothing(job_id: str) -> JobSubmitted:
    """Stands for an order that nobody knows any more: only its cards are still to be released."""
    return JobSubmitted(job_id=job_id, name="gone", program=Program(), timeout_s=1)


def restore(
    kept: Iterable[Attempt], found: Iterable[RunStatus], held: Iterable[SyncJob], *, same_boot: bool, now_boot_ms: int
) -> list[Attempt]:
    """Every attempt that there is something left to do about, after a start of the agent."""
    attempts = {attempt.epoch: attempt for attempt in kept}
    runs = {status.key.epoch: status for status in found}
    jobs = {job.epoch: job for job in held}
    for epoch, job in jobs.items():
        attempt = attempts.get(epoch)
        if attempt is None:
            attempt = attempts[epoch] = attempt_of(job)
            attempt.lease_sent_boot_ms = now_boot_ms
        _hold(attempt, job)
    for status in runs.values():
        if status.key.epoch not in attempts:
            attempts[status.key.epoch] = _stray(status.key)
    for attempt in attempts.values():
        if attempt.epoch not in jobs:
            attempt.standing = Standing.GONE
        if not same_boot:
            attempt.lease_sent_boot_ms = now_boot_ms  # another boot's clock: nothing of then runs any more
        _begin_anew(attempt)
        _find_run(attempt, runs.get(attempt.epoch), same_boot)
    return sorted(attempts.values(), key=lambda attempt: attempt.epoch)


def _hold(attempt: Attempt, job: SyncJob) -> None:
    """What the ledger says, whatever we meant: the outbox was empty when it was asked."""
    attempt.standing = standing_of(job)
    attempt.timeout_s = job.timeout_s or attempt.timeout_s
    attempt.output_token = job.output_token or attempt.output_token
    attempt.answered = attempt.standing is not Standing.MATCHED
    _stop_if_told(attempt, job)
    attempt.started_told = job.state in STARTED_STATES
    attempt.ready_told = job.ready
    if attempt.standing is Standing.CLAIMED:
        attempt.reported = False
    if attempt.standing is not Standing.GONE:
        attempt.released = False


def _stop_if_told(attempt: Attempt, job: SyncJob) -> None:
    if job.gang_stopped:
        attempt.gang_stopped = True
    elif job.state == "stopping":
        attempt.cancelled_by = attempt.cancelled_by or job.buyer
    attempt.closing = attempt.closing or job.closing


def _stray(key: RunKey) -> Attempt:
    return Attempt(
        job_id=key.job_id, attempt=key.attempt, epoch=key.epoch, order=_nothing(key.job_id), buyer="", timeout_s=1, standing=Standing.GONE
    )


def _begin_anew(attempt: Attempt) -> None:
    """What was in the agent's hands when it died is in nobody's."""
    attempt.abandoned = attempt.stop_told = attempt.disowned = attempt.forgotten = False
    attempt.given_s = 0
    if attempt.prepared is Work.DOING:
        attempt.prepared = Work.NONE
    if attempt.saved is Work.DOING:
        attempt.saved = Work.NONE
    if attempt.removed is Work.DOING:
        attempt.removed = Work.NONE


def _find_run(attempt: Attempt, status: RunStatus | None, same_boot: bool) -> None:
    if status is not None and status.state is not RunState.PREPARED:
        attempt.status, attempt.prepared, attempt.failure = status, Work.DONE, None
        attempt.run = Run.RUNNING if status.state is RunState.RUNNING else Run.EXITED
        attempt.removed = Work.NONE
    elif attempt.run is Run.EXITED or attempt.failure is not None:
        pass  # the runner has forgotten it already; the journal knows how it ended
    elif attempt.is_active or (attempt.standing is Standing.CLAIMED and attempt.started_told):
        attempt.run = Run.NONE
        attempt.failure = Reason.RUNTIME_RESTARTED if same_boot else Reason.HOST_RESTARTED
        attempt.detail = "the run was gone when the node's program came back"
    else:
        attempt.run = Run.NONE
        attempt.prepared = Work.DONE if status is not None else Work.NONE
        attempt.removed = Work.NONE


def catch_up(attempts: dict[int, Attempt], held: Iterable[SyncJob], as_of_seq: int) -> list[Attempt]:
    """Fold an answer of the ledger into what is known, after a gap. New attempts are added; all that changed are returned."""
    jobs = {job.epoch: job for job in held}
    changed = []
    for epoch, attempt in attempts.items():
        job = jobs.pop(epoch, None)
        before = _told(attempt)
        if job is not None:
            _advance(attempt, job)
        elif epoch <= as_of_seq:
            attempt.standing = Standing.GONE
        if before != _told(attempt):
            changed.append(attempt)
    for job in jobs.values():
        attempt = attempts[job.epoch] = attempt_of(job)
        changed.append(attempt)
    return changed


def _told(attempt: Attempt) -> tuple[object, ...]:
    return attempt.standing, attempt.cancelled_by, attempt.gang_stopped, attempt.closing, attempt.timeout_s


def _advance(attempt: Attempt, job: SyncJob) -> None:
    """Only forward: what we heard since the answer was written may be newer."""
    standing = standing_of(job)
    if _RANK[standing] > _RANK[attempt.standing]:
        attempt.standing = standing
    attempt.timeout_s = max(attempt.timeout_s, job.timeout_s)
    _stop_if_told(attempt, job)
    if job.output_token and not attempt.output_token:
        attempt.output_token = job.output_token
