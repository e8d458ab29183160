"""The life of a job, as one function over the table of `job_states.py`. Nothing outside this file changes a job.

`evolve` folds one event into one job, in place (ADR 0007), and never raises: what does not apply is answered with the refusal that its
sender would read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from events.fact import Event
from events.jobs import (
    AttemptEnded,
    AttemptEvent,
    GangStopped,
    JobCancelled,
    JobCancelRequested,
    JobClaimed,
    JobDeclined,
    JobExpired,
    JobExtended,
    JobFailed,
    JobMatched,
    JobRepriced,
    JobReprioritised,
    JobRequeued,
    JobStarted,
    JobSubmitted,
    JobSucceeded,
    JobTimedOut,
    LeaseExpired,
    SessionCloseRequested,
    SessionReady,
    UsageRecorded,
)
from events.reasons import REASONS, Payer, Reason, Refusal
from events.values import BlobRef, JobKind, Requirements, RunUsage, charge_uusd
from projections import bills, gang_stops
from projections.job_states import (
    CANCELLED,
    FAILED,
    HELD,
    MATCHED,
    QUEUED,
    RUNNING,
    STARTING,
    STOPPING,
    TERMINAL,
    TRANSITIONS,
    After,
    JobState,
)
from projections.parties import Stake, worst_uusd


class Run(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One attempt: the node that has it, and what became of it."""

    attempt: int
    epoch: int
    node_id: str
    node_wallet: str
    cards: tuple[str, ...]
    price_uusd_per_gpu_hour: int
    matched_ms: int
    claim_by_ms: int
    claimed_ms: int = 0
    started_ms: int = 0
    ready_ms: int = 0
    ended_ms: int = 0
    usage_ms: int = 0
    ran_ms: int = 0
    exit_code: int | None = None
    reason: Reason | None = None
    output_token: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    output_sha256: str | None = None
    results: BlobRef | None = None
    results_bytes: int = 0
    image_digest: str = ""
    detail: str = ""
    usage: RunUsage | None = None
    variant: int = 0
    """What of its buyer's choice it got: the requirements, or from 1 a variant."""
    master_addr: str | None = None
    master_port: int | None = None
    stake: Stake = Stake()
    """What its buyer and organisation are counted for while the node has it."""


class Job(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A job as it is now. `submitted` is what the buyer asked; the rest is what happened since."""

    submitted: JobSubmitted
    buyer: str
    submitted_seq: int
    submitted_ms: int
    state: JobState = QUEUED
    priority: int
    max_price_uusd_per_gpu_hour: int | None
    timeout_s: int
    order_seq: int
    """Where it stands among jobs of equal rank: its submission, or the change of its priority."""
    reason: Reason | None = None
    attempts: int = 0
    """Matches so far."""
    run: Run | None = None
    """The present attempt, or the last one."""
    not_before_ms: int = 0
    avoid: dict[str, int] | None = None
    """Nodes passed over, each until when."""
    cancel_ms: int = 0
    cancelled_by: str = ""
    gang_reason: Reason | None = None
    """Why another rank of its gang ended, while or because this one is stopped for it."""
    again: bool = False
    """It is stopped to be tried again together with the other ranks."""
    closing: bool = False
    ended_ms: int = 0
    updated_ms: int
    updated_seq: int
    charged_uusd: int = 0

    @property
    def requirements(self) -> Requirements:
        """What its present or last attempt was given of what its buyer asked; before the first, what was asked first."""
        run, asked = self.run, self.submitted
        return asked.variants[run.variant - 1] if run is not None and run.variant else asked.requirements

    @property
    def order(self) -> JobSubmitted:
        """What its node has to run: the submission, as it has become."""
        asked = self.submitted
        if asked.variants:
            return msgspec.structs.replace(asked, requirements=self.requirements, variants=(), timeout_s=self.timeout_s)
        return asked if self.timeout_s == asked.timeout_s else msgspec.structs.replace(asked, timeout_s=self.timeout_s)

    @property
    def left_uusd(self) -> int | None:
        """What its buyer still lets it cost; None: there is no limit."""
        most = self.submitted.max_total_uusd
        return None if most is None else max(0, most - self.charged_uusd)

    @property
    def expected_s(self) -> int:
        """How long a run of it is thought to take: its estimate, else its timeout."""
        estimate_s = self.submitted.estimate_s
        return self.timeout_s if estimate_s is None else min(estimate_s, self.timeout_s)


def choice(job: Job, variant: int) -> Requirements | None:
    """What a buyer will take: the requirements (0), or a variant; None when there is none of that number."""
    asked = job.submitted
    if variant == 0:
        return asked.requirements
    return asked.variants[variant - 1] if variant <= len(asked.variants) else None


def stake_of(job: Job, gpus: int, price_uusd_per_gpu_hour: int) -> Stake:
    """What the job counts for while a node has it on so many cards at this price."""
    worst = worst_uusd(job.timeout_s, gpus, price_uusd_per_gpu_hour, job.left_uusd)
    return Stake(gpus=gpus, uusd=worst, gpu_ms=job.expected_s * 1000 * max(1, gpus))


def submit(event: JobSubmitted, buyer: str, seq: int, now_ms: int) -> Job:
    """The job that this event brings into the world."""
    return Job(
        submitted=event,
        buyer=buyer,
        submitted_seq=seq,
        submitted_ms=now_ms,
        priority=event.priority,
        max_price_uusd_per_gpu_hour=event.max_price_uusd_per_gpu_hour,
        timeout_s=event.timeout_s,
        order_seq=seq,
        updated_ms=now_ms,
        updated_seq=seq,
    )


def refusal(job: Job, event: Event) -> Refusal | None:
    """Why this event means nothing for this job now, or None when it applies."""
    if isinstance(event, AttemptEvent):
        run = job.run
        if run is None or event.epoch != run.epoch or event.attempt != run.attempt:
            return Refusal.STALE_EPOCH
    if type(event) not in TRANSITIONS[job.state]:
        return Refusal.ILLEGAL_IN_STATE
    if job.state is STOPPING and job.cancel_ms and not job.again and isinstance(event, JobCancelRequested | GangStopped):
        return Refusal.ILLEGAL_IN_STATE  # it is stopping for good already
    if isinstance(event, SessionCloseRequested) and job.submitted.kind is JobKind.BATCH:
        return Refusal.ILLEGAL_IN_STATE  # there is nobody to leave
    return None


def evolve(job: Job, event: Event, seq: int, now_ms: int, *, sender: str = "", auto_retry: bool = True) -> None:
    """Fold one event that `refusal` let pass."""
    kind = type(event)
    target = TRANSITIONS[job.state][kind]
    change = CHANGES.get(kind)
    if change is not None:
        change(job, event, sender, now_ms)
    if type(target) is JobState:
        job.state = target
    elif target is After.START:
        job.state = RUNNING if job.submitted.kind is JobKind.BATCH else STARTING
    elif target is After.GANG or target is After.STOP:
        job.state = gang_stops.state_after(job.gang_reason, job.again)
    else:
        job.state = after_failure(job, getattr(event, "reason", Reason.CONTAINER_ERROR), auto_retry)
    if kind is JobReprioritised:
        job.order_seq = seq
    job.updated_ms, job.updated_seq = now_ms, seq
    if job.state in TERMINAL:
        _end(job, now_ms)


def match(job: Job, event: JobMatched, seq: int, now_ms: int, node_wallet: str) -> None:
    """Fold the match of a queued job; the epoch of the attempt is its sequence."""
    requirements = choice(job, event.variant)
    assert requirements is not None, "the handler looked"
    job.attempts = event.attempt
    job.run = Run(
        attempt=event.attempt,
        epoch=seq,
        node_id=event.node_id,
        node_wallet=node_wallet,
        cards=event.cards,
        price_uusd_per_gpu_hour=event.price_uusd_per_gpu_hour,
        matched_ms=now_ms,
        claim_by_ms=event.claim_by_ms,
        variant=event.variant,
        master_addr=event.master_addr,
        master_port=event.master_port,
        stake=stake_of(job, requirements.num_gpus, event.price_uusd_per_gpu_hour),
    )
    job.reason = job.gang_reason = None
    job.again, job.cancel_ms = False, 0
    job.state = MATCHED
    job.updated_ms, job.updated_seq = now_ms, seq


def after_failure(job: Job, reason: Reason, auto_retry: bool) -> JobState:
    """Queued again when the reason is not the job's fault and an attempt is left, else failed."""
    if auto_retry and REASONS[reason].retried and job.attempts <= job.submitted.retries and not job.closing:
        return QUEUED
    return FAILED


def _claim(job: Job, event: JobClaimed, sender: str, now_ms: int) -> None:
    assert job.run is not None
    job.run.claimed_ms, job.run.output_token = now_ms, event.output_token


def _start(job: Job, event: JobStarted, sender: str, now_ms: int) -> None:
    assert job.run is not None
    job.run.started_ms, job.run.image_digest = now_ms, event.image_digest


def _ready(job: Job, event: SessionReady, sender: str, now_ms: int) -> None:
    assert job.run is not None
    job.run.ready_ms = now_ms


def _usage(job: Job, event: UsageRecorded, sender: str, now_ms: int) -> None:
    assert job.run is not None
    run = job.run
    run.usage_ms = max(run.usage_ms, min(event.ran_ms, _ledger_ms(job, now_ms)))
    if event.results is not None:
        run.results, run.results_bytes = event.results, event.results_bytes


def _report(job: Job, event: AttemptEnded, sender: str, now_ms: int) -> None:
    """The node's last word on the attempt, and its bill."""
    run = job.run
    assert run is not None
    run.ended_ms = now_ms
    run.exit_code = event.exit_code
    run.ran_ms = min(event.ran_ms, _ledger_ms(job, now_ms))
    run.stdout_bytes, run.stderr_bytes, run.output_sha256 = event.stdout_bytes, event.stderr_bytes, event.output_sha256
    if event.results is not None or run.results is None:  # a session's last saved work is better than none
        run.results, run.results_bytes = event.results, event.results_bytes
    run.detail, run.usage = event.detail, event.usage
    run.reason = job.reason = gang_stops.told(job.gang_reason) or getattr(event, "reason", None)
    _charge(job, run)


def _decline(job: Job, event: JobDeclined, sender: str, now_ms: int) -> None:
    assert job.run is not None
    job.run.ended_ms, job.run.detail = now_ms, event.detail
    job.run.reason = job.reason = event.reason


def _lose(job: Job, event: LeaseExpired, sender: str, now_ms: int) -> None:
    run = job.run
    assert run is not None
    run.ended_ms, run.ran_ms = now_ms, run.usage_ms
    run.reason = job.reason = gang_stops.told(job.gang_reason) or event.reason
    _charge(job, run)


def _cancel(job: Job, event: JobCancelRequested, sender: str, now_ms: int) -> None:
    job.cancel_ms, job.cancelled_by = job.cancel_ms or now_ms, sender
    job.again, job.gang_reason = False, None


def _stop_rank(job: Job, event: GangStopped, sender: str, now_ms: int) -> None:
    job.gang_reason, job.again = event.reason, event.again
    if job.state is QUEUED or job.state is MATCHED:
        job.reason = gang_stops.told(job.gang_reason)
        if job.state is MATCHED and job.run is not None:
            job.run.ended_ms, job.run.reason = now_ms, job.reason
    else:
        job.cancel_ms = job.cancel_ms or now_ms


def _requeue(job: Job, event: JobRequeued, sender: str, now_ms: int) -> None:
    job.not_before_ms, job.cancel_ms = event.not_before_ms, 0
    if event.avoid_node is not None:
        kept = {node: until for node, until in (job.avoid or {}).items() if until > now_ms}
        kept[event.avoid_node] = event.avoid_until_ms
        job.avoid = kept


def _reprioritise(job: Job, event: JobReprioritised, sender: str, now_ms: int) -> None:
    job.priority = event.priority


def _reprice(job: Job, event: JobRepriced, sender: str, now_ms: int) -> None:
    job.max_price_uusd_per_gpu_hour = event.max_price_uusd_per_gpu_hour


def _extend(job: Job, event: JobExtended, sender: str, now_ms: int) -> None:
    job.timeout_s += event.extra_s
    if job.run is not None and job.state in HELD:
        job.run.stake = stake_of(job, job.requirements.num_gpus, job.run.price_uusd_per_gpu_hour)


def _close(job: Job, event: SessionCloseRequested, sender: str, now_ms: int) -> None:
    job.closing = True


def _expire(job: Job, event: JobExpired, sender: str, now_ms: int) -> None:
    job.reason = event.reason


CHANGES: dict[type[Event], Callable[[Job, Any, str, int], None]] = {
    JobCancelRequested: _cancel,
    JobClaimed: _claim,
    JobStarted: _start,
    SessionReady: _ready,
    UsageRecorded: _usage,
    JobSucceeded: _report,
    JobFailed: _report,
    JobTimedOut: _report,
    JobCancelled: _report,
    JobDeclined: _decline,
    LeaseExpired: _lose,
    JobRequeued: _requeue,
    JobReprioritised: _reprioritise,
    JobRepriced: _reprice,
    JobExtended: _extend,
    SessionCloseRequested: _close,
    JobExpired: _expire,
    GangStopped: _stop_rank,
}


def _end(job: Job, now_ms: int) -> None:
    job.ended_ms = now_ms
    if job.state is CANCELLED and job.gang_reason is None:
        job.reason = Reason.CANCELLED_BY_BUYER if job.cancelled_by in ("", job.buyer) else Reason.CANCELLED_BY_OPERATOR


def _ledger_ms(job: Job, now_ms: int) -> int:
    run = job.run
    assert run is not None
    return bills.longest_ms(run.started_ms, job.cancel_ms, now_ms)


def _charge(job: Job, run: Run) -> None:
    """Add what this attempt costs its buyer."""
    payer = Payer.BUYER if job.state is STOPPING or run.reason is None else REASONS[run.reason].payer
    if job.gang_reason is not None:
        payer = REASONS[job.gang_reason].payer
    billed_ms = bills.billed_ms(payer, job.submitted.kind, run.ran_ms, run.usage_ms, job.timeout_s)
    cost = charge_uusd(billed_ms, job.requirements.num_gpus, run.price_uusd_per_gpu_hour)
    job.charged_uusd = bills.capped(job.charged_uusd + cost, job.submitted.max_total_uusd)
