"""The agent's end of the connection to a supervisor: its messages, one link over a socket, and the start of the daemon itself.

Requests are in flight together on one link and written out once a turn of the event loop; exits are pushed. Knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Any, Protocol

import msgspec

from seller_agent.runners.process.supervisor.proc import MARK
from seller_agent.runners.process.supervisor.worker import PROTOCOL
from seller_agent.runners.runner import RunnerError, RunState, StopReason

PACKAGE_ROOT = Path(__file__).resolve().parents[3]
PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from seller_agent.runners.process.supervisor.daemon import main; sys.exit(main(sys.argv[2], float(sys.argv[3])))"
)
STARTING_MAX_S = 40.0
HELLO_MAX_S = 10.0
LOG_MAX_BYTES = 1_000_000


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the supervisor tells of it."""

    name: str
    state: RunState
    started_unix_ms: int | None = None
    ran_ms: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    out_of_memory: bool = False
    stop_reason: StopReason | None = None
    error: str | None = None
    detail: str = ""


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of a run use."""

    cpu_ms: int
    memory_mib: int
    peak_memory_mib: int
    pids: tuple[int, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A line from the supervisor: the answer to a request, or news."""

    id: int | None = None
    run: Report | None = None
    runs: tuple[Report, ...] = ()
    use: Use | None = None
    refused: str | None = None
    message: str = ""
    hello: int | None = None
    exit: Report | None = None


class Listener(Protocol):
    """Who is told what comes unasked."""

    def note_exit(self, report: Report) -> None:
        """A run has exited, or was found to have."""

    def note_loss(self) -> None:
        """The link is gone."""


class LinkLost(Exception):
    """The connection to the supervisor ended; what was asked may or may not have been done."""


def lose(future: asyncio.Future[Any]) -> None:
    """Fail a future with LinkLost; whoever waited for it may be gone, which is no error."""
    if not future.done():
        future.set_exception(LinkLost())
        future.exception()


class Link(asyncio.Protocol):
    """One connection to the supervisor."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._decoder = msgspec.json.Decoder(Answer)
        self._encoder = msgspec.json.Encoder()
        self._transport: asyncio.Transport | None = None
        self._incoming = b""
        self._outgoing: list[bytes] = []
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._number = 0
        self._gone = asyncio.Event()
        self.followed: set[str] = set()
        """Runs whose exit will be pushed over this link."""
        self.greeting: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            self._hear(self._decoder.decode(line))

    def _hear(self, answer: Answer) -> None:
        for report in (answer.run, *answer.runs):
            if report is not None and report.state is not RunState.EXITED:
                self.followed.add(report.name)
            elif report is not None:
                self._listener.note_exit(report)
        if answer.id is not None:
            future = self._asked.pop(answer.id, None)
            if future is not None and not future.done():
                future.set_result(answer)
        elif answer.exit is not None and answer.exit.name in self.followed:
            self.followed.discard(answer.exit.name)
            self._listener.note_exit(answer.exit)
        elif answer.hello is not None and not self.greeting.done():
            self.greeting.set_result(answer.hello)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._gone.set()
        lose(self.greeting)
        for future in self._asked.values():
            lose(future)
        self._asked.clear()
        self._listener.note_loss()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            await self._gone.wait()

    async def ask(self, request: dict[str, Any]) -> Answer:
        """Send one request and wait for its answer. Raises LinkLost."""
        if self._transport is None:
            raise LinkLost
        self._number += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._asked[self._number] = future
        self._outgoing.append(self._encoder.encode({"id": self._number, **request}))
        if len(self._outgoing) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        return await future

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"\n".join([*self._outgoing, b""]))
        self._outgoing.clear()


def supervisor_command(package_root: str, folder: str, idle_s: float, *, python: str) -> list[str]:
    """The command that starts the supervisor of `folder` on a machine where `supervisor.FILES` lie under `package_root/seller_agent`."""
    return [python, "-I", "-S", "-X", "utf8", "-c", PROGRAM, package_root, folder, str(idle_s)]


async def dial(state: Path, listener: Listener) -> Link | None:
    """A link to the supervisor; None when nobody answers. Through the folder's descriptor, because a socket's name may not be long."""
    try:
        folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    connection = socket.socket(socket.AF_UNIX)
    connection.setblocking(False)
    try:
        connection.connect(f"/proc/self/fd/{folder}/socket")
    except OSError:
        connection.close()
        return None
    finally:
        os.close(folder)
    _, link = await asyncio.get_running_loop().create_unix_connection(lambda: Link(listener), sock=connection)
    try:
        async with asyncio.timeout(HELLO_MAX_S):
            spoken = await link.greeting
    except (LinkLost, TimeoutError):
        await link.close()
        return None
    if spoken != PROTOCOL:
        await link.close()
        raise RunnerError(
            "container_error", f"the supervisor speaks version {spoken}, this agent {PROTOCOL}: let its runs end, then start again"
        )
    return link


async def launch(root: Path, idle_s: float) -> None:
    """Start a supervisor and return when it, or another, answers. Raises RunnerError."""
    state = root / ".supervisor"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = supervisor_command(str(PACKAGE_ROOT), str(root), idle_s, python=sys.executable)
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH", MARK) if name in os.environ}
    with open(state / "log", "ab") as log:
        if log.tell() > LOG_MAX_BYTES:
            log.truncate(0)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=DEVNULL, stderr=log, start_new_session=True, env=environment, cwd="/"
        )
    try:
        async with asyncio.timeout(STARTING_MAX_S):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        code = -1
    if code != 0:
        raise RunnerError("container_error", f"the supervisor of processes did not start: see {state / 'log'}")
