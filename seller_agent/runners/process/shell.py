"""A program beside a run of plain processes: in the run's folder, with its environment, on a terminal of its own or on pipes.

It is the agent's child, in a session of its own, and is ended with everything in that session when it is closed, when the run ends, and by
the kernel when the agent dies. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable

from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.runner import RunnerError

LAUNCH = """
import ctypes, fcntl, os, signal, sys, termios
ctypes.CDLL(None).prctl(1, signal.SIGHUP, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvpe(sys.argv[2], sys.argv[2:], os.environ)
except OSError as error:
    print(f"bazaar: cannot run {sys.argv[2]!a}: {error.strerror}", file=sys.stderr)
    sys.exit(126 if isinstance(error, PermissionError) else 127)
"""
HANGUP_S = 0.3
"""Between SIGHUP and SIGKILL."""
SHELLS = ("bash", "sh")


def environment_of_run(pid: int) -> dict[str, str]:
    """The environment that the run's program was started with. Raises RunnerError when it is gone."""
    words = proc.read_bytes(f"/proc/{pid}/environ")
    if not words:
        raise RunnerError("container_error", "the job's program is gone: it has just ended")
    found: dict[str, str] = {}
    for entry in words.split(b"\0"):
        name, equals, value = os.fsdecode(entry).partition("=")
        if name and equals:
            found[name] = value
    return found


class ProcessTerminal:
    """See `runner.Terminal`. Made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int, *, is_terminal: bool) -> None:
        self._process = process
        self._reading, self._writing = reading, writing
        self._is_terminal = is_terminal
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._closing: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self.on_closed: Callable[[ProcessTerminal], None] | None = None
        self._pidfd = os.pidfd_open(process.pid)
        self._loop.add_reader(self._pidfd, self._note_end)

    async def read(self, most: int) -> bytes:
        """Some of what it wrote; empty at the end."""
        while self._reading >= 0:
            try:
                return os.read(self._reading, most)
            except BlockingIOError:
                await self._ready(self._reading, self._loop.add_reader, self._loop.remove_reader)
            except OSError:  # a terminal whose last program is gone says EIO
                return b""
        return b""

    async def write(self, data: bytes) -> None:
        """To its terminal or its stdin. Raises ConnectionError."""
        view = memoryview(data)
        while view:
            if self._writing < 0:
                raise ConnectionResetError("the program reads no more")
            try:
                view = view[os.write(self._writing, view) :]
            except BlockingIOError:
                await self._ready(self._writing, self._loop.add_writer, self._loop.remove_writer)
            except OSError as error:
                raise ConnectionResetError("the program reads no more") from error

    async def write_eof(self) -> None:
        """The end of its stdin: on a terminal what Control-D says."""
        if self._is_terminal:
            with contextlib.suppress(ConnectionError):
                await self.write(b"\x04")
        elif self._writing >= 0:
            self._shut({self._writing})

    async def resize(self, columns: int, rows: int) -> None:
        """The window has another size; the programs on it are told by the kernel."""
        if self._is_terminal and self._reading >= 0:
            set_size(self._reading, columns, rows)

    async def exit_code(self) -> int:
        """Once it has ended."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """End it, and everything in its session."""
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            for number in (signal.SIGHUP, signal.SIGKILL):
                if not signal_session(self._process.pid, number):
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HANGUP_S):
                        await self._session_gone()
        finally:
            self._shut({self._reading, self._writing} - {-1})
            await asyncio.shield(self._ended)
            self._process.wait()
            if self.on_closed is not None:
                self.on_closed(self)

    def _shut(self, descriptors: set[int]) -> None:
        """Close these, and wake who waits: the event loop tells nobody about a descriptor that it watches no more."""
        for descriptor in descriptors:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)
            os.close(descriptor)
        if self._reading in descriptors:
            self._reading = -1
        if self._writing in descriptors:
            self._writing = -1
        for waiting in self._waiting:
            _resolve(waiting)

    async def _session_gone(self) -> None:
        while signal_session(self._process.pid, 0):
            await asyncio.sleep(0.01)

    def _note_end(self) -> None:
        """Learn how it ended, but leave it on the process table: while it is there, nobody else's session can have its number."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        if not self._ended.done():
            self._ended.set_result(ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status)

    async def _ready(self, descriptor: int, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        add(descriptor, _resolve, ready)
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if descriptor in (self._reading, self._writing):
                remove(descriptor)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def set_size(descriptor: int, columns: int, rows: int) -> None:
    """Give a terminal this size."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def signal_session(leader: int, number: int) -> bool:
    """Send a signal to every process of a session and what these started; whether there was one."""
    everything = proc.processes()
    members = proc.with_descendants([one.pid for one in everything if one.session == leader], everything)
    for pid in members:
        proc.send_signal(pid, number)
    return bool(members)


def start(folder: str, environment: dict[str, str], argv: tuple[str, ...], columns: int, rows: int) -> ProcessTerminal:
    """Start a program beside a run. Raises RunnerError."""
    path = environment.get("PATH", os.defpath)
    words = list(argv) or [next(filter(None, (shutil.which(name, path=path) for name in SHELLS)), "/bin/sh")]
    is_terminal = columns > 0
    if is_terminal:
        ours, theirs = os.openpty()
        set_size(ours, columns, rows)
        ends, handed = (ours, ours), (theirs, theirs)
        environment = {"TERM": "xterm-256color", **environment}
    else:
        (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
        ends, handed = (our_in, our_out), (their_in, their_out)
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid()), *words],
            stdin=handed[0],
            stdout=handed[1],
            stderr=handed[1],
            cwd=f"{folder}/job",
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        for descriptor in set(ends):
            os.close(descriptor)
        raise RunnerError("program_not_found", f"the program could not be started beside the job: {error}") from error
    finally:
        for descriptor in set(handed):
            os.close(descriptor)
    for descriptor in set(ends):
        os.set_blocking(descriptor, False)
    return ProcessTerminal(process, *ends, is_terminal=is_terminal)
