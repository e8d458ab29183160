"""What every way of running a job promises the agent: seven verbs over one job's attempt.

A runner knows processes and containers; it knows nothing of matching, leases as facts, money or NATS.
It keeps no truth in memory: whatever it starts can be found again by `adopt` after the agent was killed.
All output of a run ends up, append-only and complete, in two files: `folder/log/stdout` and `folder/log/stderr`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import msgspec


class RunKey(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one job on this node; `epoch` is the ledger sequence of its match and makes it unique."""

    job_id: str
    attempt: int
    epoch: int

    @property
    def name(self) -> str:
        """A name for folders, containers and sockets, the same after every restart."""
        return f"{self.job_id}-{self.attempt}-{self.epoch}"


class RunCard(msgspec.Struct, frozen=True, kw_only=True):
    """A card that this run may use."""

    index: int
    uuid: str
    model: str
    vram_mib: int
    simulated: bool = False


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to run one attempt. Made by the agent from the match; files already lie in `folder/job`."""

    key: RunKey
    folder: str
    """Absolute path of this run's own folder: `job/` (working directory with the inputs), `out/` (results), `log/` (output)."""
    argv: tuple[str, ...]
    """The command; for a script `("python", "train.py", ...)` or `("./train.sh", ...)`. Never passed through a shell by the runner."""
    env: dict[str, str]
    """The complete environment that the job is to see besides what the runner itself adds (CUDA_VISIBLE_DEVICES and the like)."""
    cards: tuple[RunCard, ...] = ()
    image: str | None = None
    cores: int | None = None
    memory_mib: int | None = None
    shm_mib: int | None = None
    network: str = "none"
    session: bool = False
    """People will connect: the run must be reachable by `dial` and `shell`."""
    has_secrets: bool = False
    """Secret files lie in `folder/secrets`; the job sees them, read-only, at `/run/secrets` (`BAZAAR_SECRETS` names the place)."""
    registry_auth: tuple[str, str] | None = None
    """User and password for pulling the image; never kept, never shown."""
    timeout_s: int
    """Run time allowed, counted from the start of the job's own process."""
    grace_s: int = 10
    """Between TERM and KILL."""
    output_limit_bytes: int = 50_000_000
    lease_until_boot_ms: int
    """On CLOCK_BOOTTIME: past this the run must be stopped (grace included it is gone) unless `renew` moved it, whoever is alive."""


class StopReason(StrEnum):
    """Why a run was stopped by us; `None` in a status means that it ended by itself."""

    ASKED = "asked"  # the agent said stop (cancel, eviction, shutdown)
    DEADLINE = "deadline"  # timeout_s was over
    LEASE = "lease"  # the lease was not renewed in time
    OUTPUT = "output"  # wrote more than output_limit_bytes and ignores it


class RunState(StrEnum):
    """Where a run is; a runner reports exactly one of these."""

    PREPARED = "prepared"  # everything is ready but the job's own program has not started
    RUNNING = "running"
    EXITED = "exited"  # the job's own process is gone, so is every descendant, and the output files are complete


class RunStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner knows about a run, found again after any crash of the agent."""

    key: RunKey
    state: RunState
    started_unix_ms: int | None = None
    ran_ms: int | None = None
    """Measured on the monotonic clock by whoever guards the run, from the program's start to its end (or until now)."""
    exit_code: int | None = None
    """0-255 as the program returned it; 128+N when signal N ended it."""
    signal: int | None = None
    out_of_memory: bool = False
    stop_reason: StopReason | None = None
    error: str | None = None
    """A runner's own failure to start the program: one of the reasons `program_not_found`, `image_not_found`, `image_refused`,
    `container_error`, `disk_full`, `runtime_restarted`, `host_restarted`."""
    detail: str = ""
    image_digest: str = ""
    """Exactly which image it was made of, once it was made of one."""


class RunUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a run uses at this moment, and has used so far."""

    cpu_ms: int
    """Processor time of all its processes since its start."""
    memory_mib: int
    peak_memory_mib: int
    pids: tuple[int, ...] = ()
    """Its processes as the host numbers them, for telling whose GPU memory is whose; empty when they cannot be seen."""


class Stream(Protocol):
    """Two-way bytes with one end inside a run."""

    async def read(self, most: int) -> bytes:
        """Some bytes; empty at the end."""

    async def write(self, data: bytes) -> None:
        """All of them, waiting while the other side is slow. Raises ConnectionError when there is no other side any more."""

    async def write_eof(self) -> None:
        """No more will be written; reading goes on."""

    async def close(self) -> None:
        """Let go of it. Never raises."""


class Terminal(Stream, Protocol):
    """A program on a terminal inside a run."""

    async def resize(self, columns: int, rows: int) -> None:
        """The window has another size now."""

    async def exit_code(self) -> int:
        """Return once the program has ended; 0-255."""


class RunnerError(Exception):
    """The runtime refused or failed: `reason` is one word of the reasons table, the message says what, why and what to try."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


Progress = Callable[[str], None]
"""Called with a phase such as `pulling 43%`, `creating`."""


class Runner(Protocol):
    """The seven verbs. Every call may be repeated: doing what is done already is no error."""

    name: str

    def job_path(self, spec: RunSpec) -> str:
        """The working directory with the inputs as the job sees it: `/job` in a container, `folder/job` for a process."""

    def out_path(self, spec: RunSpec) -> str:
        """Where the job writes its results, as the job sees it (`BAZAAR_OUT`); on the host that is always `folder/out`."""

    async def prepare(self, spec: RunSpec, progress: Progress) -> None:
        """Do all that costs nothing to undo (pull, create). Raises RunnerError."""

    async def start(self, spec: RunSpec) -> RunStatus:
        """Start the prepared run; returns when the program runs or has already failed to. Raises RunnerError."""

    async def adopt(self) -> list[RunStatus]:
        """Every run of this node that still exists in any form, whoever started it. The first call after a start of the agent."""

    async def wait(self, key: RunKey) -> RunStatus:
        """Return once the run has exited and its output files are complete; at once if it already has."""

    async def renew(self, key: RunKey, lease_until_boot_ms: int) -> None:
        """Move the lease that guards the run outside the agent."""

    async def stop(self, key: RunKey, reason: StopReason, grace_s: int) -> None:
        """TERM, after `grace_s` KILL, for the whole tree; `wait` returns afterwards. No error when it is gone."""

    async def extend(self, key: RunKey, timeout_s: int) -> None:
        """The run may take so long from its start on, also by whoever guards it. No error when it is gone. Raises RunnerError."""

    async def use(self, key: RunKey) -> RunUse | None:
        """What it uses now; None when it does not run or that cannot be told."""

    async def dial(self, key: RunKey, place: str) -> Stream:
        """Connect to something that listens inside the run: `tcp:8888` (on its loopback) or `unix:NAME` (a socket `folder/job/NAME`).
        Raises ConnectionError when nothing listens there, RunnerError when this runner cannot reach into runs."""

    async def shell(self, key: RunKey, argv: tuple[str, ...], columns: int, rows: int) -> Terminal:
        """A program on a terminal inside the run, in its working directory, with its environment; it ends with the run, and when the
        terminal is closed. No argv: a shell, whichever there is. No columns and rows: pipes, with stderr in stdout. Raises RunnerError."""

    async def remove(self, key: RunKey) -> None:
        """Forget the run and free what it holds, but leave `folder` to the agent. No error when it is unknown."""

    async def close(self) -> None:
        """Let go of connections and followers; runs go on."""


def run_folder(root: str, key: RunKey) -> str:
    """Where the agent keeps the run's files."""
    return f"{root}/{key.name}"
