"""The small values that facts are made of: ids, money, sizes, cards, requirements, and their bounds.

Everything that enters the log is bounded here, by type: lengths, ranges, anchored patterns, integers only.
Nothing in this module decides anything about jobs or nodes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

Wallet = Annotated[str, Meta(pattern=r"\A0x[0-9a-f]{40}\Z", max_length=42)]
"""A party: the address of a wallet, lower case."""
JobId = Annotated[str, Meta(pattern=r"\Aj[a-z2-7]{19}\Z", max_length=20)]
"""Made by the client: `j` and 95 random bits in lower-case base32."""
GroupId = Annotated[str, Meta(pattern=r"\Ag[a-z2-7]{19}\Z", max_length=20)]
NodeId = Annotated[str, Meta(pattern=r"\An[a-z2-7]{15}\Z", max_length=16)]
"""Made from the owner's wallet and the node's name, so fixed for life."""
OrgId = Annotated[str, Meta(pattern=r"\Ao[a-z2-7]{15}\Z", max_length=16)]
Sha256 = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", max_length=64)]
KeyHex = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", max_length=64)]
"""The 32 bytes of an ed25519 public key (an nkey's raw form)."""
MarketId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z", max_length=64)]
OutputToken = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z", max_length=16)]
"""64 random bits that only the parties of an attempt learn; names its live output."""

Name = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}\Z", max_length=64)]
"""A name a person chose. The alphabet holds nothing that a terminal or a page could take for a command."""
LabelKey = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9._-]{0,31}\Z", max_length=32)]
LabelValue = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9 ._@:/+-]{0,63}\Z", max_length=63)]
Labels = Annotated[dict[LabelKey, LabelValue], Meta(max_length=16)]
ModelName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9 ._()/+-]{0,63}\Z", max_length=64)]
CardUuid = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9-]{2,63}\Z", max_length=64)]
Version = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._+-]{0,32}\Z", max_length=32)]
ImageName = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-zA-Z0-9._:/@-]{0,254}\Z", max_length=255)]
Argument = Annotated[str, Meta(max_length=8192)]
EnvName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_]{0,63}\Z", max_length=64)]
EnvValue = Annotated[str, Meta(max_length=4096)]
SecretName = Annotated[str, Meta(pattern=r"\A[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z", max_length=64)]
"""Also the name of the file in which the job finds the secret."""
ImagePattern = Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9*?][a-zA-Z0-9._:/@*?-]{0,254}\Z", max_length=255)]
"""An image name with `*` and `?`, as a shell would match it."""
Address = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9:]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9:])?\Z", max_length=253)]
"""Where a machine is reached by others: an IP address or a host name."""
Port = Annotated[int, Meta(ge=1, le=65535)]
PciAddress = Annotated[str, Meta(pattern=r"\A([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])?\Z", max_length=16)]

Uusd = Annotated[int, Meta(ge=0, le=10**15)]
"""Micro-USD, the market's only unit of money: 1 is the smallest unit of USDC."""
PriceUusdPerGpuHour = Annotated[int, Meta(ge=0, le=10**12)]
TimeMs = Annotated[int, Meta(ge=0, le=10**14)]
"""Milliseconds since 1970; bounded a thousand years on."""
DurationMs = Annotated[int, Meta(ge=0, le=10**12)]
Seconds = Annotated[int, Meta(ge=1, le=365 * 86400)]
Mib = Annotated[int, Meta(ge=0, le=1 << 30)]
Count = Annotated[int, Meta(ge=0, le=10**9)]
Seq = Annotated[int, Meta(ge=0, le=1 << 62)]
"""A position in the ledger; the first event has 1."""
Attempt = Annotated[int, Meta(ge=1, le=1000)]
GpuCount = Annotated[int, Meta(ge=0, le=8)]
CardIndex = Annotated[int, Meta(ge=0, le=63)]
CudaVersion = Annotated[int, Meta(ge=0, le=100_000)]
"""As NVML gives it: 12040 is 12.4."""
Priority = Annotated[int, Meta(ge=0, le=100)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]
Bytes = Annotated[int, Meta(ge=0, le=1 << 40)]

DEFAULT_PRIORITY = 50
PRIORITY_LEVELS = {"low": 25, "normal": 50, "high": 75, "critical": 100}


class JobKind(StrEnum):
    """What a job is: its default timeout and whether somebody connects to it hang on this."""

    BATCH = "batch"
    NOTEBOOK = "notebook"
    CONTAINER = "container"


class Isolation(StrEnum):
    """How a node keeps a job away from itself, weakest first."""

    PROCESS = "process"
    CONTAINER = "container"
    GVISOR = "gvisor"


ISOLATION_RANK = {Isolation.PROCESS: 0, Isolation.CONTAINER: 1, Isolation.GVISOR: 2}


class Tier(StrEnum):
    """How well a node's cards have been checked, weakest first."""

    CLAIMED = "claimed"
    CONSISTENT = "consistent"
    BENCHMARKED = "benchmarked"


TIER_RANK = {Tier.CLAIMED: 0, Tier.CONSISTENT: 1, Tier.BENCHMARKED: 2}


class Network(StrEnum):
    """What of the network a job sees."""

    NONE = "none"
    EGRESS = "egress"


class Accept(StrEnum):
    """Whose jobs a node takes."""

    OWN = "own"  # its owner's, and those of the wallets its offer names
    ORGANISATION = "organisation"
    ANYONE = "anyone"


class Role(StrEnum):
    """What a session key may do."""

    BUYER = "buyer"
    SELLER = "seller"
    OPERATOR = "operator"


class OrgRole(StrEnum):
    """What a member may do in an organisation."""

    OWNER = "owner"
    MEMBER = "member"
    VIEWER = "viewer"


class BlobRef(msgspec.Struct, frozen=True, kw_only=True):
    """A file in the content-addressed store."""

    sha256: Sha256
    size: Bytes


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One GPU of a node as its owner declares it."""

    index: CardIndex
    uuid: CardUuid
    model: ModelName
    vram_mib: Mib
    driver: Version = ""
    cuda: CudaVersion = 0
    simulated: bool = False
    healthy: bool = True
    pci: PciAddress = ""
    """Where it sits; two cards of one model differ in this."""
    compute_capability: Version = ""
    """Such as `8.9`."""
    mig: bool = False
    """A slice of a card, not a whole one."""


class Requirements(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job asks of a node. A node without one of these can never run it, whatever it costs."""

    num_gpus: GpuCount = 1
    vram_mib: Mib = 0
    """Of each card."""
    total_vram_mib: Mib = 0
    """Of the cards together."""
    gpu_models: Annotated[tuple[ModelName, ...], Meta(max_length=16)] = ()
    """Any of these; empty: any model."""
    min_cuda: CudaVersion = 0
    cores: Annotated[int, Meta(ge=0, le=4096)] = 0
    memory_mib: Mib = 0
    shm_mib: Mib = 0
    isolation: Isolation | None = None
    min_tier: Tier | None = None
    network: Network = Network.NONE
    allow_simulated: bool = False
    target_node: NodeId | None = None
    target_cards: Annotated[tuple[CardIndex, ...], Meta(max_length=8)] = ()
    """Exact cards of the target node, by index."""
    node_labels: Labels = {}
    sessions: bool = False
    """The node must serve people who connect: set for every notebook and container."""
    image: ImageName | None = None
    """The image that the node must let run: that of the program, when it names one."""


class RunUsage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run used of what it was given, as its node measured it. Lists are in the order of the match's cards; -1: could not be read."""

    samples: Count = 0
    """How often it was looked at; with 0 nothing else means anything."""
    cpu_ms: DurationMs = 0
    """Processor time of all its processes."""
    peak_memory_mib: Mib = 0
    mean_gpu_percent: Annotated[tuple[Annotated[int, Meta(ge=-1, le=100)], ...], Meta(max_length=8)] = ()
    max_gpu_percent: Annotated[tuple[Annotated[int, Meta(ge=-1, le=100)], ...], Meta(max_length=8)] = ()
    peak_gpu_memory_mib: Annotated[tuple[Annotated[int, Meta(ge=-1, le=1 << 30)], ...], Meta(max_length=8)] = ()


class Program(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job runs. Files are referenced by hash; secrets never stand here."""

    argv: Annotated[tuple[Argument, ...], Meta(max_length=256)] = ()
    env: Annotated[dict[EnvName, EnvValue], Meta(max_length=64)] = {}
    image: ImageName | None = None
    inputs: BlobRef | None = None
    """The manifest of the input files (`events/files.py`); `None`: there are none."""
    inputs_bytes: Bytes = 0
    """All input files together."""
    secret_names: Annotated[tuple[SecretName, ...], Meta(max_length=16)] = ()
    """What the job finds under /run/secrets."""
    secrets: BlobRef | None = None
    """Their values, sealed to the market's key (`events/sealing.py`); kept in the file store, never here."""


def charge_uusd(ran_ms: int, num_gpus: int, price_uusd_per_gpu_hour: int) -> int:
    """The price of a run, rounded once, down, that is: in the buyer's favour. A job without a card pays as one."""
    return ran_ms * max(1, num_gpus) * price_uusd_per_gpu_hour // 3_600_000
