"""Facts about jobs. Buyers ask, the matcher decides, sellers report; `subjects.py` says who may publish which."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from events.fact import Event
from events.reasons import Reason
from events.values import (
    DEFAULT_PRIORITY,
    Address,
    Attempt,
    BlobRef,
    Bytes,
    CardUuid,
    DurationMs,
    ExitCode,
    GroupId,
    JobId,
    JobKind,
    Labels,
    Name,
    NodeId,
    OrgId,
    OutputToken,
    Port,
    PriceUusdPerGpuHour,
    Priority,
    Program,
    Requirements,
    RunUsage,
    Seconds,
    Seq,
    Sha256,
    TimeMs,
    Uusd,
)

Retries = Annotated[int, Meta(ge=0, le=20)]
NumNodes = Annotated[int, Meta(ge=1, le=64)]


class JobSubmitted(Event, frozen=True, kw_only=True):
    """A buyer asked for GPUs."""

    job_id: JobId
    kind: JobKind = JobKind.BATCH
    name: Name
    requirements: Requirements = Requirements()
    variants: Annotated[tuple[Requirements, ...], Meta(max_length=4)] = ()
    """What would do as well: other cards, cores or memory, in order of preference."""
    program: Program
    timeout_s: Seconds
    """Run time allowed, counted from JobStarted; resolved by the client at submission."""
    queue_timeout_s: Seconds | None = None
    max_price_uusd_per_gpu_hour: PriceUusdPerGpuHour | None = None
    """The most the buyer pays; `None`: whatever the cheapest node asks."""
    max_total_uusd: Uusd | None = None
    estimate_s: Seconds | None = None
    estimate_limit: Annotated[int, Meta(ge=1, le=100)] | None = None
    """Stop the run at this multiple of the estimate."""
    idle_timeout_s: Seconds | None = None
    min_utilisation_percent: Annotated[int, Meta(ge=1, le=100)] | None = None
    min_utilisation_window_s: Seconds | None = None
    gpu_memory_limit_mib: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None
    priority: Priority = DEFAULT_PRIORITY
    retries: Retries = 3
    labels: Labels = {}
    group_id: GroupId | None = None
    num_nodes: NumNodes = 1
    """More than 1: this is one rank of a gang, whose ranks share the group and stand one after the other in one signed message."""
    rank: Annotated[int, Meta(ge=0, le=63)] = 0
    org_id: OrgId | None = None


class JobMatched(Event, frozen=True, kw_only=True):
    """The matcher gave a job a node. The epoch of this attempt is the sequence of this event."""

    job_id: JobId
    attempt: Attempt
    node_id: NodeId
    cards: Annotated[tuple[CardUuid, ...], Meta(max_length=8)] = ()
    price_uusd_per_gpu_hour: PriceUusdPerGpuHour
    """Locked for this attempt."""
    claim_by_ms: TimeMs
    """Ledger time; not claimed by then, the lease expires."""
    variant: Annotated[int, Meta(ge=0, le=4)] = 0
    """What the job gets: its requirements, or (from 1) one of its variants."""
    master_addr: Address | None = None
    """Of a rank of a gang: where rank 0 is reached; `master_port`: a port that is the same for all ranks."""
    master_port: Port | None = None


class AttemptEvent(Event, frozen=True, kw_only=True, tag=False):
    """What a node reports of one attempt; anything older than the job's present epoch is void."""

    job_id: JobId
    attempt: Attempt
    epoch: Seq
    """The sequence of the JobMatched that this attempt belongs to."""


class JobClaimed(AttemptEvent, frozen=True, kw_only=True, tag="JobClaimed"):
    """The node takes the job and will start it once this stands in the ledger."""

    output_token: OutputToken


class JobDeclined(AttemptEvent, frozen=True, kw_only=True, tag="JobDeclined"):
    """The node will not run the job; it is passed over for this job for a while."""

    reason: Reason = Reason.DECLINED
    detail: Annotated[str, Meta(max_length=200)] = ""


class JobStarted(AttemptEvent, frozen=True, kw_only=True, tag="JobStarted"):
    """The job's own program runs."""

    image_digest: Annotated[str, Meta(max_length=128)] = ""


class SessionReady(AttemptEvent, frozen=True, kw_only=True, tag="SessionReady"):
    """A notebook or container answers and may be connected to."""


class UsageRecorded(AttemptEvent, frozen=True, kw_only=True, tag="UsageRecorded"):
    """Run time so far, measured by the node; what a lost session is billed by."""

    ran_ms: DurationMs
    results: BlobRef | None = None
    """The manifest of the work as last saved: what is left if the node is lost."""
    results_bytes: Bytes = 0


class AttemptEnded(AttemptEvent, frozen=True, kw_only=True, tag=False):
    """What every end of an attempt tells."""

    exit_code: ExitCode | None = None
    ran_ms: DurationMs = 0
    """On the node's monotonic clock, from the program's start to its end."""
    stdout_bytes: Bytes = 0
    stderr_bytes: Bytes = 0
    output_sha256: Sha256 | None = None
    """Over stdout, then stderr."""
    results: BlobRef | None = None
    """The manifest of the result files."""
    results_bytes: Bytes = 0
    detail: Annotated[str, Meta(max_length=300)] = ""
    usage: RunUsage | None = None


class JobSucceeded(AttemptEnded, frozen=True, kw_only=True, tag="JobSucceeded"):
    """The program ended with 0, or a session was closed with its work saved."""

    reason: Reason = Reason.EXITED_ZERO


class JobFailed(AttemptEnded, frozen=True, kw_only=True, tag="JobFailed"):
    """The attempt failed; the reason says whether it is tried again and who pays."""

    reason: Reason


class JobTimedOut(AttemptEnded, frozen=True, kw_only=True, tag="JobTimedOut"):
    """A limit of time or use ended the run."""

    reason: Reason = Reason.RUN_TIMEOUT


class JobCancelled(AttemptEnded, frozen=True, kw_only=True, tag="JobCancelled"):
    """The node has ended the run that somebody asked to cancel."""

    reason: Reason = Reason.CANCELLED_BY_BUYER


class GpusReleased(AttemptEvent, frozen=True, kw_only=True, tag="GpusReleased"):
    """The container is gone and the cards are clean: they are free again."""


class LeaseExpired(AttemptEvent, frozen=True, kw_only=True, tag="LeaseExpired"):
    """The matcher took the cards back in ledger time: not claimed, not renewed, or the node is lost."""

    node_id: NodeId
    reason: Reason = Reason.LEASE_EXPIRED


class JobCancelRequested(Event, frozen=True, kw_only=True):
    """A person asked for the end of a job; the only way to the state `cancelled`."""

    job_id: JobId


class SessionCloseRequested(Event, frozen=True, kw_only=True):
    """The buyer ends a session with its work saved; it will count as succeeded."""

    job_id: JobId


class JobReprioritised(Event, frozen=True, kw_only=True):
    """The buyer changed the priority of a queued job."""

    job_id: JobId
    priority: Priority


class JobRepriced(Event, frozen=True, kw_only=True):
    """The buyer changed what a queued job may cost."""

    job_id: JobId
    max_price_uusd_per_gpu_hour: PriceUusdPerGpuHour | None = None


class JobExtended(Event, frozen=True, kw_only=True):
    """The buyer added run time to a job that has not ended."""

    job_id: JobId
    extra_s: Seconds


class JobRequeued(Event, frozen=True, kw_only=True):
    """The matcher put a job back after a failure that was not its own: when and where it may be tried again."""

    job_id: JobId
    attempt: Attempt
    """The next attempt."""
    reason: Reason
    not_before_ms: TimeMs
    avoid_node: NodeId | None = None
    avoid_until_ms: TimeMs = 0


class GangStopped(Event, frozen=True, kw_only=True):
    """Another rank of the gang has ended, so the matcher stops this one, too."""

    job_id: JobId
    reason: Reason
    """Why the other rank ended."""
    again: bool = False
    """Whether all ranks are to be tried once more, together."""


class JobExpired(Event, frozen=True, kw_only=True):
    """The job waited longer than its buyer allowed."""

    job_id: JobId
    reason: Reason = Reason.QUEUE_TIMEOUT
