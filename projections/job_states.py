"""The states of a job, and the one table that says which event means something in which of them; everything not in it is void.

What an event changes besides the state stands in `jobs.py`.
"""

from __future__ import annotations

from enum import StrEnum

from events.fact import Event
from events.jobs import (
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
    JobSucceeded,
    JobTimedOut,
    LeaseExpired,
    SessionCloseRequested,
    SessionReady,
    UsageRecorded,
)


class JobState(StrEnum):
    """Where a job is. A phase beside it (pulling, fetching) comes from heartbeats and is no state."""

    QUEUED = "queued"
    MATCHED = "matched"
    CLAIMED = "claimed"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class After(StrEnum):
    """A transition whose target hangs on the event."""

    FAILURE = "after_failure"  # queued again when the reason and the retries allow it, else failed
    GANG = "after_gang"  # as the rank that ended the gang did, or queued again
    STOP = "after_stop"  # cancelled, or as GANG when that is why it is stopping
    START = "after_start"  # running for a batch job, starting for a session


QUEUED, MATCHED, CLAIMED, STARTING, RUNNING, STOPPING = (
    JobState.QUEUED,
    JobState.MATCHED,
    JobState.CLAIMED,
    JobState.STARTING,
    JobState.RUNNING,
    JobState.STOPPING,
)
SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, EXPIRED = (
    JobState.SUCCEEDED,
    JobState.FAILED,
    JobState.TIMED_OUT,
    JobState.CANCELLED,
    JobState.EXPIRED,
)
TERMINAL = frozenset({SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, EXPIRED})
HELD = frozenset({MATCHED, CLAIMED, STARTING, RUNNING, STOPPING})
"""A node has the job."""

Target = JobState | After

TRANSITIONS: dict[JobState, dict[type[Event], Target]] = {
    QUEUED: {
        JobMatched: MATCHED,
        JobRequeued: QUEUED,
        JobReprioritised: QUEUED,
        JobRepriced: QUEUED,
        JobExtended: QUEUED,
        JobCancelRequested: CANCELLED,
        JobExpired: EXPIRED,
        GangStopped: After.GANG,
    },
    MATCHED: {
        JobClaimed: CLAIMED,
        JobDeclined: After.FAILURE,
        LeaseExpired: After.FAILURE,
        JobExtended: MATCHED,
        JobCancelRequested: CANCELLED,
        GangStopped: After.GANG,
    },
    CLAIMED: {
        JobStarted: After.START,
        JobFailed: After.FAILURE,
        LeaseExpired: After.FAILURE,
        JobExtended: CLAIMED,
        JobCancelRequested: STOPPING,
        GangStopped: STOPPING,
    },
    STARTING: {
        SessionReady: RUNNING,
        UsageRecorded: STARTING,
        JobSucceeded: SUCCEEDED,
        JobFailed: After.FAILURE,
        JobTimedOut: TIMED_OUT,
        LeaseExpired: After.FAILURE,
        JobExtended: STARTING,
        JobCancelRequested: STOPPING,
        GangStopped: STOPPING,
        SessionCloseRequested: STARTING,
    },
    RUNNING: {
        UsageRecorded: RUNNING,
        JobSucceeded: SUCCEEDED,
        JobFailed: After.FAILURE,
        JobTimedOut: TIMED_OUT,
        LeaseExpired: After.FAILURE,
        JobExtended: RUNNING,
        JobCancelRequested: STOPPING,
        GangStopped: STOPPING,
        SessionCloseRequested: RUNNING,
    },
    STOPPING: {
        JobStarted: STOPPING,
        UsageRecorded: STOPPING,
        JobCancelled: After.STOP,
        JobSucceeded: After.STOP,
        JobFailed: After.STOP,
        JobTimedOut: After.STOP,
        LeaseExpired: After.STOP,
        JobCancelRequested: STOPPING,
        GangStopped: STOPPING,
    },
    SUCCEEDED: {},
    FAILED: {},
    TIMED_OUT: {},
    CANCELLED: {},
    EXPIRED: {},
}
