"""Child processes that end with their parent, are started again when they die, and are never left behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.broker import Holder, start_time

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 5.0
STABLE_S = 10.0
STOP_TIMEOUT_S = 15.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Child:
    """One program that is kept running. `death_signal` is what it gets when this process dies without a word."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: dict[str, str],
        stderr: Path,
        pass_fds: tuple[int, ...] = (),
        death_signal: int = signal.SIGTERM,
        gives_up_on: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.restarts = 0
        self.given_up: int | None = None
        """The exit code after which it is not started again."""
        self._command = list(command)
        self._environment = environment
        self._stderr = stderr
        self._pass_fds = pass_fds
        self._death_signal = death_signal
        self._gives_up_on = gives_up_on
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._backoff_s = BACKOFF_S_MIN
        self._not_before_s = 0.0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def holder(self) -> Holder | None:
        """Process id and start time, to end it again from a later process."""
        pid = self.pid
        started = None if pid is None else start_time(pid)
        return None if pid is None or started is None else Holder(pid, started)

    def start(self) -> None:
        """Start it now."""
        self._stderr.parent.mkdir(parents=True, exist_ok=True)
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                pass_fds=self._pass_fds,
                start_new_session=True,  # a Ctrl-C is for the parent, which ends its children in order
                preexec_fn=_tied_to_parent(os.getpid(), self._death_signal),
            )
        self._started_s = time.monotonic()

    def look_after(self) -> bool:
        """Start it again if it has died; whether it died since the last look."""
        if self._process is None or self.given_up is not None:
            return False
        code = self._process.poll()
        if code is None:
            if time.monotonic() - self._started_s > STABLE_S:
                self._backoff_s = BACKOFF_S_MIN
            return False
        if code in self._gives_up_on:
            self.given_up = code
            return True
        if self._not_before_s == 0.0 and time.monotonic() - self._started_s > STABLE_S:
            self._start_again()  # everybody waits for it, and it will not die again at once
            return True
        if self._not_before_s == 0.0:
            self._not_before_s = time.monotonic() + self._backoff_s
            self._backoff_s = min(BACKOFF_S_MAX, self._backoff_s * 2)
            return True
        if time.monotonic() >= self._not_before_s:
            self._start_again()
        return False

    def _start_again(self) -> None:
        self._not_before_s = 0.0
        self.restarts += 1
        self.start()

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it, gently first; returns when it is gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tied_to_parent(parent: int, number: int) -> Callable[[], None] | None:
    libc = _libc
    if libc is None:
        return None

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def write_running(file: Path, children: Sequence[Child]) -> None:
    """Note who runs, for a later process that finds them left behind."""
    holders = {child.name: holder for child in children if (holder := child.holder) is not None}
    text = json.dumps({name: {"pid": holder.pid, "started": holder.started} for name, holder in holders.items()})
    draft = file.with_suffix(".new")
    draft.write_text(text)
    os.replace(draft, file)


def end_left_over(file: Path) -> list[str]:
    """End what an earlier process left running; the names of what was found."""
    try:
        noted = json.loads(file.read_text())
        holders = {name: Holder(int(entry["pid"]), int(entry["started"])) for name, entry in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    found = {name: holder for name, holder in holders.items() if holder.is_alive}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for holder in found.values():
            if holder.is_alive:
                os.kill(holder.pid, number)
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline and any(holder.is_alive for holder in found.values()):
            time.sleep(0.02)
    file.unlink(missing_ok=True)
    return sorted(found)
