"""Why a job ended as it did, and why an event was refused: two closed lists, one row each.

The rows are the only place that maps a reason to state, retry and payer, or a refusal to its sentences; the documentation,
the CLI and the API read them. What happens to a job is decided by `projections/jobs.py`, by looking here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """How an attempt or a job came to its end."""

    EXITED_ZERO = "exited_zero"
    SESSION_CLOSED = "session_closed"
    EXITED_NONZERO = "exited_nonzero"
    OUT_OF_MEMORY = "out_of_memory"
    KILLED_BY_SIGNAL = "killed_by_signal"
    PROGRAM_NOT_FOUND = "program_not_found"
    GPU_MEMORY_EXCEEDED = "gpu_memory_exceeded"
    RUN_TIMEOUT = "run_timeout"
    ESTIMATE_EXCEEDED = "estimate_exceeded"
    IDLE = "idle"
    LOW_UTILISATION = "low_utilisation"
    BUDGET_EXHAUSTED = "budget_exhausted"
    IMAGE_NOT_FOUND = "image_not_found"
    IMAGE_REFUSED = "image_refused"
    IMAGE_AUTH = "image_auth"
    INPUT_MISSING = "input_missing"
    INPUT_CORRUPT = "input_corrupt"
    SECRET_MISSING = "secret_missing"
    IMAGE_PULL_TIMEOUT = "image_pull_timeout"
    INPUT_TIMEOUT = "input_timeout"
    CONTAINER_ERROR = "container_error"
    DISK_FULL = "disk_full"
    GPU_LOST = "gpu_lost"
    HOST_RESTARTED = "host_restarted"
    RUNTIME_RESTARTED = "runtime_restarted"
    EVICTED = "evicted"
    LEASE_EXPIRED = "lease_expired"
    NODE_LOST = "node_lost"
    CLAIM_LATE = "claim_late"
    DECLINED = "declined"
    OUTPUT_TOO_LARGE = "output_too_large"
    GANG_RANK_FAILED = "gang_rank_failed"
    CANCELLED_BY_BUYER = "cancelled_by_buyer"
    CANCELLED_BY_OPERATOR = "cancelled_by_operator"
    QUEUE_TIMEOUT = "queue_timeout"


class Payer(StrEnum):
    """Who bears the cost of an attempt."""

    BUYER = "buyer"
    NOBODY = "nobody"
    SELLER = "seller"  # the seller's loss for batch; sessions pay to the last usage record


class ReasonRow(NamedTuple):
    """What a reason means for the job."""

    state: str
    retried: bool
    payer: Payer
    sentence: str


_B, _N, _S = Payer.BUYER, Payer.NOBODY, Payer.SELLER

REASONS: dict[Reason, ReasonRow] = {
    Reason.EXITED_ZERO: ReasonRow("succeeded", False, _B, "the program ended with exit code 0"),
    Reason.SESSION_CLOSED: ReasonRow("succeeded", False, _B, "the session was closed and its work saved"),
    Reason.EXITED_NONZERO: ReasonRow("failed", False, _B, "the program ended with an exit code other than 0"),
    Reason.OUT_OF_MEMORY: ReasonRow("failed", False, _B, "the program used more memory than it was given; ask for more with --memory"),
    Reason.KILLED_BY_SIGNAL: ReasonRow("failed", False, _B, "a signal ended the program"),
    Reason.PROGRAM_NOT_FOUND: ReasonRow("failed", False, _B, "the command does not exist where the job ran"),
    Reason.GPU_MEMORY_EXCEEDED: ReasonRow("failed", False, _B, "the program used more GPU memory than --gpu-memory-limit allows"),
    Reason.RUN_TIMEOUT: ReasonRow("timed_out", False, _B, "the run timeout was over; ask for more with --timeout"),
    Reason.ESTIMATE_EXCEEDED: ReasonRow("timed_out", False, _B, "the run took longer than its estimate times --estimate-limit"),
    Reason.IDLE: ReasonRow("timed_out", False, _B, "nothing happened for longer than --idle-timeout"),
    Reason.LOW_UTILISATION: ReasonRow("timed_out", False, _B, "the cards were used less than --min-utilisation"),
    Reason.BUDGET_EXHAUSTED: ReasonRow("timed_out", False, _B, "the run reached --max-total"),
    Reason.IMAGE_NOT_FOUND: ReasonRow("failed", False, _N, "the image does not exist"),
    Reason.IMAGE_REFUSED: ReasonRow("failed", False, _N, "the node does not run this image"),
    Reason.IMAGE_AUTH: ReasonRow("failed", False, _N, "the registry asks for credentials for this image"),
    Reason.INPUT_MISSING: ReasonRow("failed", False, _N, "an input file is no longer stored; submit again"),
    Reason.INPUT_CORRUPT: ReasonRow("failed", False, _N, "an input file does not have the hash that was submitted"),
    Reason.SECRET_MISSING: ReasonRow("failed", False, _N, "a secret of the job could not be opened on the node"),
    Reason.IMAGE_PULL_TIMEOUT: ReasonRow(
        "failed", True, _S, "the image could not be pulled: its registry did not answer, or it took longer than 20 minutes"
    ),
    Reason.INPUT_TIMEOUT: ReasonRow("failed", True, _S, "fetching the inputs took longer than 20 minutes"),
    Reason.CONTAINER_ERROR: ReasonRow("failed", True, _S, "the node could not create or start the job"),
    Reason.DISK_FULL: ReasonRow("failed", True, _S, "the node's disk is full"),
    Reason.GPU_LOST: ReasonRow("failed", True, _S, "a card stopped answering during the run"),
    Reason.HOST_RESTARTED: ReasonRow("failed", True, _S, "the node restarted during the run"),
    Reason.RUNTIME_RESTARTED: ReasonRow("failed", True, _S, "the node's container engine or supervisor restarted during the run"),
    Reason.EVICTED: ReasonRow("failed", True, _S, "the seller stopped the run (drain deadline, maintenance, or its agent was ended)"),
    Reason.LEASE_EXPIRED: ReasonRow("failed", True, _S, "the node stopped renewing its lease"),
    Reason.NODE_LOST: ReasonRow("failed", True, _S, "the node was not heard of for a whole lease"),
    Reason.CLAIM_LATE: ReasonRow("failed", True, _S, "the node did not claim the job in time"),
    Reason.DECLINED: ReasonRow("failed", True, _S, "the node declined the job"),
    Reason.OUTPUT_TOO_LARGE: ReasonRow("failed", False, _B, "the job wrote more output or results than the market keeps; kept up to that"),
    Reason.GANG_RANK_FAILED: ReasonRow("failed", False, _B, "another rank of the gang failed; state and payer are those of its reason"),
    Reason.CANCELLED_BY_BUYER: ReasonRow("cancelled", False, _B, "the buyer cancelled the job"),
    Reason.CANCELLED_BY_OPERATOR: ReasonRow("cancelled", False, _B, "the operator cancelled the job"),
    Reason.QUEUE_TIMEOUT: ReasonRow("expired", False, _N, "the job waited longer than --queue-timeout"),
}


class Refusal(StrEnum):
    """Why an event, a request or a question was refused, in order of precedence."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    UNKNOWN_KEY = "unknown_key"
    KEY_EXPIRED = "key_expired"
    KEY_REVOKED = "key_revoked"
    WRONG_MARKET = "wrong_market"
    BAD_SIGNATURE = "bad_signature"
    OUT_OF_SEQUENCE = "out_of_sequence"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    QUEUE_FULL = "queue_full"
    TOO_MANY = "too_many"
    NOT_YOURS = "not_yours"
    NOT_A_MEMBER = "not_a_member"
    UNKNOWN_JOB = "unknown_job"
    UNKNOWN_NODE = "unknown_node"
    ILLEGAL_IN_STATE = "illegal_in_state"
    STALE_EPOCH = "stale_epoch"
    INVALID_REQUIREMENT = "invalid_requirement"
    UNKNOWN_TARGET = "unknown_target"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    CAP_EXCEEDED = "cap_exceeded"
    MARKET_PAUSED = "market_paused"


class RefusalRow(NamedTuple):
    """One sentence each: what, why, and what to try; HTTP status, exit code, and whether asking again can help."""

    what: str
    why: str
    hint: str
    status: int
    exit_code: int
    transient: bool = False


REFUSALS: dict[Refusal, RefusalRow] = {
    Refusal.MALFORMED: RefusalRow(
        "The market could not read the event.", "Its bytes are not a known event within its bounds.", "Update the client.", 400, 2
    ),
    Refusal.TOO_LARGE: RefusalRow(
        "The event is too large.", "An event may have 16 KiB.", "Put long arguments into an input file (--in).", 413, 2
    ),
    Refusal.UNKNOWN_KEY: RefusalRow(
        "The market does not know this session key.", "No delegation for it is in the ledger.", "Run `bazaar login`.", 401, 4
    ),
    Refusal.KEY_EXPIRED: RefusalRow("The session key has expired.", "Its delegation is over.", "Run `bazaar login`.", 401, 4),
    Refusal.KEY_REVOKED: RefusalRow("The session key was revoked.", "Its wallet ended it.", "Run `bazaar login`.", 401, 4),
    Refusal.WRONG_MARKET: RefusalRow(
        "The signature is for another market.", "The delegation names another market id.", "Run `bazaar login` for this market.", 401, 4
    ),
    Refusal.BAD_SIGNATURE: RefusalRow(
        "The signature does not fit the event.",
        "The bytes were changed, or signed by another key.",
        "Send it again; if it stays, run `bazaar login`.",
        401,
        4,
    ),
    Refusal.OUT_OF_SEQUENCE: RefusalRow(
        "The event's number does not follow the last one of its key.",
        "Events of a key are numbered without a gap, and each number is used once.",
        "Send again from the number that the answer names; if two machines share a key, log in on one of them.",
        409,
        1,
        True,
    ),
    Refusal.RATE_LIMITED: RefusalRow(
        "Too many events at once.", "A wallet has a budget of events per second.", "Wait a second and send again.", 429, 1, True
    ),
    Refusal.QUOTA_EXCEEDED: RefusalRow(
        "A limit of this wallet or organisation does not allow that.",
        "The operator set a limit.",
        "Ask for less, wait for jobs to end, or ask the operator.",
        403,
        5,
        True,
    ),
    Refusal.QUEUE_FULL: RefusalRow(
        "This wallet has as many queued jobs as the market allows.",
        "The policy limits queued jobs of one wallet.",
        "Wait for some to start, or cancel some.",
        429,
        5,
        True,
    ),
    Refusal.TOO_MANY: RefusalRow(
        "There are as many of these as one wallet or organisation may have.",
        "The market remembers each of them, so their number is bounded.",
        "Use one that is there, or end one that is not needed: `bazaar token revoke`, `bazaar org remove`.",
        403,
        5,
    ),
    Refusal.NOT_YOURS: RefusalRow("This belongs to another wallet.", "Only its owner may do that.", "Check --wallet.", 403, 4),
    Refusal.NOT_A_MEMBER: RefusalRow(
        "This wallet is not a member of the organisation, or its role does not allow it.",
        "Organisations decide who acts for them.",
        "Ask one of its owners.",
        403,
        4,
    ),
    Refusal.UNKNOWN_JOB: RefusalRow("There is no such job.", "No job has this id.", "Look with `bazaar ps -a`.", 404, 3),
    Refusal.UNKNOWN_NODE: RefusalRow("There is no such node.", "No node has this id.", "Look with `bazaar nodes`.", 404, 3),
    Refusal.ILLEGAL_IN_STATE: RefusalRow(
        "The job or node is not in a state that allows this.", "It has moved on.", "Look with `bazaar show`.", 409, 1
    ),
    Refusal.STALE_EPOCH: RefusalRow(
        "The report belongs to an earlier attempt.", "The job was given to another node since.", "Nothing; the run is void.", 409, 1
    ),
    Refusal.INVALID_REQUIREMENT: RefusalRow(
        "The job asks for something impossible.", "Its requirements contradict each other or a limit.", "Check the flags.", 422, 2
    ),
    Refusal.UNKNOWN_TARGET: RefusalRow(
        "The target node or card does not exist.", "No offered node has it.", "Look with `bazaar nodes`.", 422, 5
    ),
    Refusal.INSUFFICIENT_FUNDS: RefusalRow(
        "The balance does not cover the job's cap.",
        "The cap is held before a job starts.",
        "Lower --max-price or --timeout, or add funds.",
        402,
        5,
        True,
    ),
    Refusal.CAP_EXCEEDED: RefusalRow(
        "The job would cost more than its --max-total.", "Price times timeout is above it.", "Lower --timeout or raise --max-total.", 422, 5
    ),
    Refusal.MARKET_PAUSED: RefusalRow("The market is paused.", "The operator paused it.", "Try later; what runs goes on.", 503, 1, True),
}
