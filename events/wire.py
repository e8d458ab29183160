"""Questions and answers beside the log: what travels on `rpc.*`, `live.*` and `output.*`. None of it is a fact.

All of it is msgpack of these structs. Readers ignore fields they do not know. `verb`s are documented in `docs/architecture.md`.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from events.codec import HOSTILE_DECODE_ERRORS, Malformed
from events.jobs import JobSubmitted
from events.market import Policy
from events.reasons import Refusal
from events.values import DEFAULT_PRIORITY, Attempt, BlobRef, Bytes, JobId, Mib, NodeId, Requirements, Seq, Sha256

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """The bytes of a question or an answer."""
    return msgspec.msgpack.encode(value)


_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


def decode(data: bytes, shape: type[T]) -> T:
    """A question or an answer of this shape. Raises Malformed, whatever the bytes are."""
    decoder = _decoders.get(shape)
    if decoder is None:
        decoder = _decoders[shape] = msgspec.msgpack.Decoder(shape)
    try:
        return decoder.decode(data)  # type: ignore[no-any-return]
    except HOSTILE_DECODE_ERRORS as error:
        raise Malformed(str(error)[:200]) from None


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A refused question: `code` is a refusal of `events/reasons.py`."""

    code: str
    detail: str = ""


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """`rpc.hello`: what a stranger needs to make a delegation. No question."""

    market_id: str
    name: str
    matcher_key: str
    time_ms: int
    seq: int
    page_hash: bytes
    version: str


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one numbered event ended: at `seq` in the ledger, or refused for `reason`.

    A refusal with `seq` > 0 is recorded there and has used its number up. A refusal with `seq` 0 has not: the next event takes that number;
    `out_of_sequence` (send again from `expected`) and `rate_limited` (send again later) are the ones after which the same event goes again.
    """

    number: int
    hash: bytes
    seq: int = 0
    reason: Refusal | None = None
    expected: int = 0
    """With `out_of_sequence`: the number that the market waits for."""
    detail: str = ""


class LiveEvent(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One event that concerns the receiver: its place, who sent it, its own bytes; with a match for a seller, what to run."""

    seq: int
    sender: str
    body: msgspec.Raw
    order: JobSubmitted | None = None
    buyer: str = ""


class LiveFrame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one page means for one wallet. `prev` is the last sequence that concerned it before: a gap becomes visible."""

    page_hash: bytes
    time_ms: int
    last_seq: int
    """Of the page."""
    prev: int
    events: tuple[LiveEvent, ...] = ()
    key: bytes = b""
    """Whose outcomes follow; a frame carries those of one key."""
    outcomes: tuple[Outcome, ...] = ()


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """On `live.market.tick` every 5 s: where the ledger stands."""

    seq: int
    page_hash: bytes
    time_ms: int


class SyncRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`rpc.sync`: where do I stand? `key`: whose numbers; `job_ids`: jobs to be told of; `node_id`: a node, with what holds its cards."""

    key: Annotated[bytes, Meta(max_length=32)] = b""
    job_ids: Annotated[tuple[JobId, ...], Meta(max_length=100)] = ()
    node_id: NodeId | None = None


class SyncJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as the fold has it now, as far as its buyer or its present node needs it."""

    job_id: JobId
    state: str
    reason: str | None = None
    attempt: int = 0
    epoch: int = 0
    node_id: str | None = None
    node_wallet: str | None = None
    cards: tuple[str, ...] = ()
    price_uusd_per_gpu_hour: int = 0
    timeout_s: int = 0
    output_token: str = ""
    exit_code: int | None = None
    charged_uusd: int | None = None
    updated_seq: int = 0
    buyer: str = ""
    closing: bool = False
    """The buyer asked for the session to be closed."""
    cancelled_by: str = ""
    """Who asked for the end, while it is stopping."""
    ready: bool = False
    """A session that may be connected to."""
    order: JobSubmitted | None = None
    """For the node only: what to run."""
    detail: str = ""
    stdout_bytes: int = 0
    """Of the last attempt, as its node told at the end; likewise the next three."""
    stderr_bytes: int = 0
    results: BlobRef | None = None
    """The manifest of the result files."""
    results_bytes: int = 0
    master_addr: str | None = None
    """Of a rank of a gang: where rank 0 is reached."""
    master_port: int | None = None
    gang_stopped: bool = False
    """It is stopping because another rank has ended."""


class SyncNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A node as the fold has it now, for its owner: every allocation that holds cards."""

    node_id: str
    state: str
    price_uusd_per_gpu_hour: int
    jobs: tuple[SyncJob, ...]
    """Of its allocations, also of jobs that have ended but whose cards are not released."""
    draining: bool = False
    """The owner's standing order, also while the node is withdrawn or lost; likewise the rest."""
    drain_reason: str = ""
    drain_deadline_ms: int | None = None
    maintenance: tuple[int, int, str] | None = None
    """From when until when, and why."""
    banned: bool = False


class SyncAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `rpc.sync`, from the fold at `as_of_seq`."""

    as_of_seq: int
    page_hash: bytes
    time_ms: int
    live_token: str
    prev: int
    """The last sequence that concerned this wallet."""
    key_known: bool = False
    key_last_number: int = 0
    outcomes: tuple[Outcome, ...] = ()
    """Of the key's last 256 numbers."""
    jobs: tuple[SyncJob, ...] = ()
    node: SyncNode | None = None
    policy: Policy = Policy()
    secret_key: bytes = b""
    """The key for sealing secrets (ed25519 public), whose other half only the file gateway has; empty: this market takes none."""


class BeatLease(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One allocation that the node still holds, with what is going on."""

    job_id: JobId
    attempt: Attempt
    epoch: Seq
    phase: Annotated[str, Meta(max_length=40)] = ""
    ran_ms: int = 0
    gpu_percent: int = -1
    memory_mib: int = 0
    gpu_memory_mib: int = -1
    warning: Annotated[str, Meta(max_length=120)] = ""
    """What will end the run soon, and when, in words for its buyer; empty: nothing."""


class BeatCard(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Live readings of one card; -1: unknown."""

    uuid: Annotated[str, Meta(max_length=64)]
    healthy: bool = True
    gpu_percent: int = -1
    memory_used_mib: Mib = 0
    temperature_c: int = -1
    power_w: int = -1
    ecc_errors: int = -1
    """Uncorrected ones since the driver was loaded."""
    processes: int = -1
    """Programs that use the card."""
    unhealthy: Annotated[str, Meta(max_length=120)] = ""
    """Why it is not healthy, in words."""


class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """`rpc.beat`, every 5 s from each node."""

    node_id: NodeId
    boot: Annotated[str, Meta(max_length=64)]
    """A random id kept in the agent's journal: the same after a restart, another for a second agent with the same node id."""
    leases: Annotated[tuple[BeatLease, ...], Meta(max_length=512)] = ()
    cards: Annotated[tuple[BeatCard, ...], Meta(max_length=64)] = ()
    version: Annotated[str, Meta(max_length=32)] = ""


class BeatAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer renews exactly the epochs that it names; `gone` are epochs that the ledger no longer knows on this node."""

    time_ms: int
    """The market's clock, now: a node keeps the owner's times by it."""
    seq: int
    page_hash: bytes
    prev: int
    renewed: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    offered: bool = False
    """Whether the node's offer stands; `False` after NodeLost: reconcile, then offer again."""
    other_boot: str = ""
    """Another agent, still alive, answers for this node id; this one must refuse to go on."""


class QuoteRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`rpc.quote`: who could run this? Nothing is written."""

    requirements: Requirements = Requirements()
    num_nodes: Annotated[int, Meta(ge=1, le=64)] = 1
    """So many nodes at once; counts of nodes in the answer are 0 while they are too few."""
    variants: Annotated[tuple[Requirements, ...], Meta(max_length=4)] = ()
    """What would do as well; the answer is about the nearest of all."""
    max_price_uusd_per_gpu_hour: int | None = None
    max_total_uusd: int | None = None
    priority: int = DEFAULT_PRIORITY
    estimate_s: int | None = None
    timeout_s: int = 3600
    org_id: str | None = None
    job_id: JobId | None = None
    """A queued job whose place is asked for as well."""


class QuoteStep(msgspec.Struct, frozen=True, array_like=True):
    """How many nodes are left after one more condition."""

    condition: str
    """The matcher's word: `online`, `accepts you`, `gpus`, `vram`, `total_vram`, `model`, `cuda`, `price`, `free`, ..."""
    asked: str
    """What was asked, for a person: `2 GPUs`, `24 GB a card`, `at most 0.40 USD`."""
    nodes: int


class QuoteOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A node that could run the job, cheapest first."""

    node_id: str
    name: str
    price_uusd_per_gpu_hour: int
    gpus: int
    gpus_free: int
    model: str
    vram_mib: int
    isolation: str
    simulated: bool
    default_image: str | None = None
    free_now: bool = False
    image_there: bool = False
    """The image that the job would run in need not be pulled."""


class QuoteAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `rpc.quote` and `/v1/quotes`, from the matcher's own conditions. `change`: the smallest that would help, in words."""

    as_of_seq: int
    steps: tuple[QuoteStep, ...] = ()
    offers: tuple[QuoteOffer, ...] = ()
    """Those that could run it at some time, at most 20."""
    could_run: int = 0
    free_now: int = 0
    free_in_s: int | None = None
    """When the first of the busy ones is free at the latest, by the timeouts of what runs there."""
    failing: str | None = None
    """The condition at which no node was left, `None` when at least one could run it."""
    only_simulated: bool = False
    """Only simulated cards would do, and the request does not allow them."""
    paused: bool = False
    price_from_uusd: int | None = None
    """What the cheapest run costs if it takes its whole timeout."""
    queue_position: int | None = None
    variant: int = 0
    """Which of the buyer's choices this is about: 0 the requirements, from 1 a variant."""
    change: str = ""
    failure: Failure | None = None


class BeatView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What the matcher passes on of a beat, on `live.beats` inside MARKET, for the read model: telemetry, never truth."""

    beat: Beat
    wallet: str
    time_ms: int


class OldJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `market.job` inside MARKET: a job that only the read model still knows, for the gateway's doors. Empty: unknown."""

    buyer: str = ""
    node_wallet: str = ""
    attempt: int = 0
    results_sha256: str = ""


class FilesRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`rpc.files`. `op`: `have` (hashes -> which are missing), `put` (one chunk), `get` (one chunk), `output` (recorded output),
    `secrets` (of a job, the one at `cursor` of its names, sealed to `key`, for the node that has it)."""

    op: Annotated[str, Meta(pattern=r"\A(have|put|get|output|secrets)\Z", max_length=8)]
    key: Annotated[bytes, Meta(max_length=32)] = b""
    """With `secrets`: the asker's session key (ed25519 public)."""
    hashes: Annotated[tuple[Sha256, ...], Meta(max_length=1000)] = ()
    sizes: Annotated[tuple[Bytes, ...], Meta(max_length=1000)] = ()
    sha256: Sha256 | None = None
    size: Bytes = 0
    """Of the whole file."""
    offset: Bytes = 0
    data: Annotated[bytes, Meta(max_length=128 * 1024)] = b""
    job_id: JobId | None = None
    """The job on whose behalf a file is read or a result is written."""
    attempt: Attempt | None = None
    cursor: Seq = 0


class FilesAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to `rpc.files`."""

    failure: Failure | None = None
    missing: tuple[str, ...] = ()
    next_offset: int = 0
    stored: bool = False
    size: int = 0
    data: bytes = b""
    chunks: tuple[OutputChunk, ...] = ()
    cursor: int = 0
    """Ask again from here."""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    attempt: int = 0


class OutputChunk(msgspec.Struct, frozen=True, array_like=True):
    """A piece of a job's output, at its place in its channel (1 stdout, 2 stderr)."""

    channel: Annotated[int, Meta(ge=1, le=2)]
    offset: Annotated[int, Meta(ge=0)]
    data: Annotated[bytes, Meta(max_length=128 * 1024)]


class OutputFrame(msgspec.Struct, frozen=True, kw_only=True):
    """What a seller publishes on `output.*`: pieces in order. The buyer reads the same bytes live."""

    attempt: Attempt
    epoch: Seq
    chunks: tuple[OutputChunk, ...]


class OutputAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far each channel is recorded; the seller goes on from there."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    failure: Failure | None = None
    full: bool = False
    """The attempt's quota is used up: nothing more is recorded, and that is no error."""
