"""The buyer's end of a shell: a terminal in raw mode whose every key goes to the job, or stdin and stdout where there is no terminal.

Shell. stdin and stdout are read and written by threads, because a file or a stopped pager would hold up the event loop. Whatever
happens, the terminal is left as it was found. What the job's terminal says goes to ours as it is: that is what a shell is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any

from events.stepping import end_all
from events.tunnel import Tunnel
from events.tunnel_frames import Target

READ_BYTES = 32 * 1024
LEAVE_MODES = b"\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?25h\x1b[0m"
"""For a terminal whose program was cut off: back from the other screen, no mouse, no bracketed paste, a cursor, no colour."""
STDIN, STDOUT = 0, 1


def is_terminal() -> bool:
    """Whether a person sits at both ends of this process."""
    return os.isatty(STDIN) and os.isatty(STDOUT)


def window() -> tuple[int, int]:
    """Columns and rows of our own terminal."""
    size = shutil.get_terminal_size()
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(STDOUT)
    return max(1, size.columns), max(1, size.lines)


@contextlib.contextmanager
def raw_mode() -> Iterator[None]:
    """Every key as it is pressed; as it was before, afterwards."""
    sys.stdout.flush()
    before = termios.tcgetattr(STDIN)
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


class Interrupted(Exception):
    """A signal asked us to leave."""


class ShellEnd:
    """This process as the end of a stream."""

    def __init__(self, tunnel: Tunnel, argv: tuple[str, ...], *, terminal: bool) -> None:
        columns, rows = window() if terminal else (0, 0)
        self._tunnel = tunnel
        self._terminal = terminal
        self._loop = asyncio.get_running_loop()
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._outcome: asyncio.Future[int] = self._loop.create_future()
        self._code: int | None = None
        self._number = tunnel.open(Target(argv=argv, columns=columns, rows=rows), self)
        self.granted()

    async def run(self) -> int:
        """Until the program has ended: its exit code. Raises ConnectionError when the stream is cut, Interrupted."""
        if not self._terminal:
            return await self._moved()
        signals = {signal.SIGWINCH: self._resized, signal.SIGTERM: self._interrupt, signal.SIGHUP: self._interrupt}
        with raw_mode():
            for number, callback in signals.items():
                self._loop.add_signal_handler(number, callback)
            try:
                return await self._moved()
            except (ConnectionError, Interrupted):
                with contextlib.suppress(OSError):
                    os.write(STDOUT, LEAVE_MODES)
                raise
            finally:
                for number in signals:
                    self._loop.remove_signal_handler(number)

    async def _moved(self) -> int:
        outgoing: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        reading = threading.Thread(target=self._read_stdin, args=(outgoing,), daemon=True)
        sending, writing = (self._loop.create_task(part) for part in (self._send(outgoing), self._write()))
        reading.start()
        try:
            waited: list[asyncio.Future[Any]] = [writing, self._outcome]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
            return await self._outcome
        finally:
            await end_all((sending, writing))
            self._tunnel.reset(self._number, "the buyer left")

    # ---- from us to the job

    def _read_stdin(self, outgoing: asyncio.Queue[bytes | None]) -> None:
        """In a thread: a piece of stdin whenever the last one has left."""
        data = b"first"
        while data:
            try:
                data = os.read(STDIN, READ_BYTES)
            except OSError:
                data = b""
            try:
                asyncio.run_coroutine_threadsafe(outgoing.put(data or None), self._loop).result()
            except Exception:  # the loop has ended
                return

    async def _send(self, outgoing: asyncio.Queue[bytes | None]) -> None:
        while (data := await outgoing.get()) is not None:
            while data:
                await self._room.wait()
                room = self._tunnel.room(self._number)
                if room:
                    self._tunnel.send(self._number, data[:room])
                    data = data[room:]
                if not self._tunnel.room(self._number):
                    self._room.clear()
        self._tunnel.eof(self._number)

    def _resized(self) -> None:
        self._tunnel.resize(self._number, *window())

    def _interrupt(self) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(Interrupted())

    # ---- from the job to us

    async def _write(self) -> None:
        """Everything that comes, then the outcome."""
        while (data := await self._incoming.get()) is not None:
            try:
                await self._loop.run_in_executor(None, _write_all, data)
            except BrokenPipeError:  # `bazaar shell JOB -- dmesg | head`: the reader has seen enough
                self._finish(0)
                return
            self._tunnel.consumed(self._number, len(data))
        self._finish(self._code)

    def _finish(self, code: int | None) -> None:
        if self._outcome.done():
            return
        if code is None:
            self._outcome.set_exception(ConnectionResetError("the program's end was not told"))
        else:
            self._outcome.set_result(code)

    def opened(self) -> None:
        self.granted()

    def data(self, data: memoryview) -> None:
        self._incoming.put_nowait(bytes(data))

    def granted(self) -> None:
        if self._tunnel.room(self._number):
            self._room.set()

    def eof(self) -> None:
        self._incoming.put_nowait(None)

    def over(self, reason: str) -> None:
        if self._code is not None:
            self._incoming.put_nowait(None)
        elif not self._outcome.done():
            self._outcome.set_exception(ConnectionResetError(reason or "the stream was cut"))

    def resized(self, columns: int, rows: int) -> None:
        """The job's end has no window."""

    def exited(self, code: int) -> None:
        self._code = code


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(STDOUT, view) :]
