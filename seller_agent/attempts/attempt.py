"""One attempt on this node, from both sides: how it stands in the ledger, and what has been done about it here.

`hear` and `refused` fold what the ledger says of it; `decisions.py` says what is to be done; the journal keeps it over a restart. Pure.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from events.fact import Event
from events.jobs import (
    AttemptEvent,
    GangStopped,
    GpusReleased,
    JobCancelled,
    JobCancelRequested,
    JobClaimed,
    JobDeclined,
    JobExtended,
    JobFailed,
    JobStarted,
    JobSubmitted,
    JobSucceeded,
    JobTimedOut,
    LeaseExpired,
    SessionCloseRequested,
    SessionReady,
    UsageRecorded,
)
from events.reasons import Reason, Refusal
from events.values import BlobRef, RunUsage
from seller_agent.runners.runner import RunKey, RunStatus


class Standing(StrEnum):
    """How the attempt stands in the ledger."""

    MATCHED = "matched"  # given to us; our claim is not in the ledger
    CLAIMED = "claimed"  # our claim is in the ledger, the attempt has not ended there
    ENDED = "ended"  # the attempt is over, the cards are still ours
    GONE = "gone"  # the ledger holds nothing for this epoch any more


class Work(StrEnum):
    """How far a piece of work here is."""

    NONE = "none"
    DOING = "doing"
    DONE = "done"


class Run(StrEnum):
    """The job's own program."""

    NONE = "none"
    STARTING = "starting"
    RUNNING = "running"
    EXITED = "exited"


class Stop(StrEnum):
    """Why we end a run; recorded before any signal."""

    CANCEL = "cancel"  # somebody asked in the ledger
    CLOSE = "close"  # the buyer ends a session with its work saved
    UNREADY = "unready"  # a session that nobody could connect to in time
    EVICT = "evict"  # the node's owner wants it back
    LEASE = "lease"  # no beat was answered for too long
    CARD = "card"  # a card of it does not answer any more
    IDLE = "idle"  # nothing happened for longer than the buyer allows
    LOW_USE = "low_use"  # its cards did less than the buyer wants
    GPU_MEMORY = "gpu_memory"  # it uses more of a card's memory than the buyer allows
    GANG = "gang"  # another rank of the gang has ended
    LOST = "lost"  # the ledger does not hold it for us any more


class Saved(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run left: its output and its result files."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    output_sha256: str | None = None
    results: BlobRef | None = None
    results_bytes: int = 0
    too_large: bool = False
    """Results were kept up to the cap only."""
    failure: Reason | None = None
    """Saving itself failed, as on a full disk."""
    detail: str = ""
    hint: str = ""
    """What to try, when its last words on stderr are known."""


class Attempt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One attempt on this node. `decide`, `hear` and the agent that carries orders out change it."""

    job_id: str
    attempt: int
    epoch: int
    order: JobSubmitted
    buyer: str
    cards: tuple[str, ...] = ()
    price_uusd_per_gpu_hour: int = 0
    timeout_s: int
    # how it stands in the ledger
    standing: Standing = Standing.MATCHED
    cancelled_by: str = ""
    closing: bool = False
    """The buyer asked for the session to be closed."""
    gang_stopped: bool = False
    """Another rank of the gang has ended."""
    master_addr: str | None = None
    """Of a rank of a gang: where rank 0 is reached."""
    master_port: int | None = None
    # what has been done about it here
    answered: bool = False
    """A claim or a refusal of the match is under way."""
    output_token: str = ""
    lease_sent_boot_ms: int = 0
    """When the last answered beat (or the claim) was sent."""
    prepared: Work = Work.NONE
    abandoned: bool = False
    """The preparing was told to end."""
    run: Run = Run.NONE
    started_told: bool = False
    ready_told: bool = False
    """The market knows that the session may be connected to."""
    given_s: int = 0
    """The run time that the runner was told last; 0: none that we know of."""
    over: Stop | None = None
    """Which of its buyer's limits of use the run has passed, after a warning."""
    usage: RunUsage | None = None
    stop: Stop | None = None
    stop_told: bool = False
    failure: Reason | None = None
    """Why there is no run to report of."""
    detail: str = ""
    status: RunStatus | None = None
    saved: Work = Work.NONE
    saved_as: Saved | None = None
    """What there was to save, once that is known."""
    shipped: tuple[int, int] = (0, 0)
    """How much of stdout and stderr the gateway has recorded."""
    shipping: bool = False
    """Output or results are still on their way although the end has been reported."""
    reported: bool = False
    released: bool = False
    removed: Work = Work.NONE
    disowned: bool = False
    """The market takes neither our end nor our release: the lease is left to lapse."""
    forgotten: bool = False

    @property
    def key(self) -> RunKey:
        """Its name for the runner."""
        return RunKey(job_id=self.job_id, attempt=self.attempt, epoch=self.epoch)

    @property
    def is_active(self) -> bool:
        """Whether a program of it may be running."""
        return self.run is Run.STARTING or self.run is Run.RUNNING


def hear(attempt: Attempt, event: Event, sender: str) -> None:
    """Fold one event of the ledger; what is not about this attempt changes nothing."""
    if isinstance(event, AttemptEvent):
        if event.epoch == attempt.epoch:
            _hear_attempt(attempt, event)
    elif isinstance(event, JobExtended) and event.job_id == attempt.job_id:
        attempt.timeout_s += event.extra_s
    elif isinstance(event, JobCancelRequested) and event.job_id == attempt.job_id:
        if attempt.standing is Standing.MATCHED:
            attempt.standing = Standing.GONE  # final in that very turn: a claim that comes later is void
        elif attempt.standing is Standing.CLAIMED:
            attempt.cancelled_by = sender
    elif isinstance(event, GangStopped) and event.job_id == attempt.job_id:
        if attempt.standing is Standing.MATCHED:
            attempt.standing = Standing.GONE  # as with a request to cancel
        elif attempt.standing is Standing.CLAIMED:
            attempt.gang_stopped = True
    elif isinstance(event, SessionCloseRequested) and event.job_id == attempt.job_id:
        attempt.closing = attempt.standing is Standing.CLAIMED


def _hear_attempt(attempt: Attempt, event: AttemptEvent) -> None:
    match event:
        case JobClaimed():
            if attempt.standing is Standing.MATCHED:
                attempt.standing = Standing.CLAIMED
        case JobStarted():
            attempt.started_told = True
        case SessionReady():
            attempt.ready_told = True
        case JobDeclined() | LeaseExpired() | GpusReleased():
            attempt.standing = Standing.GONE
        case JobSucceeded() | JobFailed() | JobTimedOut() | JobCancelled():
            if attempt.standing is not Standing.GONE:
                attempt.standing = Standing.ENDED


def refused(attempt: Attempt, event: AttemptEvent, refusal: Refusal) -> None:
    """Fold the market's no to one of our own reports, once it is final."""
    match event:
        case JobClaimed() | JobDeclined():
            if attempt.standing is Standing.MATCHED:
                attempt.standing = Standing.GONE
        case GpusReleased():
            if refusal is Refusal.ILLEGAL_IN_STATE:
                attempt.disowned = True
            else:
                attempt.standing = Standing.GONE
        case JobStarted() | SessionReady() | UsageRecorded():
            pass
        case _:
            if attempt.standing is Standing.CLAIMED:
                attempt.standing = Standing.ENDED
