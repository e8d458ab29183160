"""The guard outside the agent: stops containers whose lease or deadline is over, also when the agent is dead or hung.

One small detached process per agent home. The Docker runner writes one file per run (see `files`) into a folder; the guard reads
them, talks to the Docker socket by itself, and ends when there is nothing left to guard: a minute later while an agent lives, else at once.
It imports the standard library, `files` and two modules of `daemon` of the same kind, so that nothing else can break it; it must not
start, remove or judge anything.
`python -m seller_agent.runners.docker_engine.guard.guard --reap DIR` does one round and ends, for a timer.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from seller_agent.runners.docker_engine.daemon.asking import ask, quoted
from seller_agent.runners.docker_engine.daemon.clocks import boot_id, boot_ms, process_start_ticks, unix_ms
from seller_agent.runners.docker_engine.guard.files import (
    CONFIG_NAME,
    DEADLINE_LABEL,
    HOME_LABEL,
    Due,
    StopRecord,
    Watch,
    due,
    read_json,
    read_stop,
    read_watch,
    write_stop,
)

TICK_S = 0.5
IDLE_EXIT_MS = 60_000
"""While an agent lives its next run is likely, and starting a guard for it costs time."""
ALONE_EXIT_MS = 1_000
AGENT_LOCK = "agent.lock"
"""Held, shared, by every agent of the folder for as long as it lives."""
REAP_LIMIT_S = 300.0
STRAY_EVERY_MS = 30_000
LOG_LIMIT_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one round over the watches found: still to be guarded; of these being stopped; due but out of reach."""

    active: int
    stopping: int
    unreachable: int


def container_state(socket_path: str, container: str) -> str:
    """`running`, `created`, `exited` ..., or `gone`."""
    status, body = ask(socket_path, "GET", f"/containers/{quoted(container)}/json")
    if status == 404:
        return "gone"
    if status != 200:
        raise OSError(f"Docker answered {status} when asked about {container}")
    return str(body["State"]["Status"])


def send_signal(socket_path: str, container: str, name: str) -> None:
    """TERM or KILL to a container; one that has ended already is no error."""
    status, _ = ask(socket_path, "POST", f"/containers/{quoted(container)}/kill?signal={name}")
    if status not in (204, 404, 409):
        raise OSError(f"Docker answered {status} to {name} for {container}")


class Guard:
    """Rounds over the watch files of one folder. It keeps nothing that a restart of it would miss."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.boot = boot_id()
        self._over: dict[Path, tuple[int, int]] = {}
        """Watch files whose container has ended, with the version (time, inode) of the file that this was seen for."""
        self._seen: dict[Path, tuple[tuple[int, int], Watch]] = {}
        self._checked_ms: dict[Path, int] = {}
        self._termed: set[Path] = set()

    def watches(self) -> list[tuple[Path, Watch]]:
        """Every watch that may still have something running, most urgent first; read again when its file changed."""
        found = []
        for entry in os.scandir(self.directory):
            if not entry.name.endswith(".json") or entry.name.startswith(".") or entry.name == CONFIG_NAME:
                continue
            path = Path(entry.path)
            with contextlib.suppress(OSError):
                version = (entry.stat().st_mtime_ns, entry.inode())
                if self._over.get(path) == version:
                    continue
                known = self._seen.get(path)
                watch = known[1] if known and known[0] == version else read_watch(path)
                if watch is not None:
                    self._seen[path] = (version, watch)
                    found.append((path, watch))
        return sorted(found, key=lambda item: item[1].lease_until_boot_ms)

    def round(self) -> Round:
        """Stop what is due."""
        active = stopping = unreachable = 0
        for path, watch in self.watches():
            now = boot_ms()
            end = due(watch, read_stop(watch.folder), self.boot)
            try:
                if now >= end.term_ms:
                    alive = self._stop(path, watch, end, now)
                    stopping += alive
                else:
                    alive = self._still_there(path, watch, now)
            except (OSError, http.client.HTTPException) as error:
                self.log(f"{watch.container}: {error}")
                self._kill_without_docker(watch, end, now)
                alive = True
                unreachable += now >= end.term_ms
            active += alive
        return Round(active=active, stopping=stopping, unreachable=unreachable)

    def _still_there(self, path: Path, watch: Watch, now: int) -> bool:
        if now - self._checked_ms.get(path, -STRAY_EVERY_MS) >= 10_000:
            self._checked_ms[path] = now
            return self._note_over(path, container_state(watch.socket, watch.container) in ("exited", "dead"))
        return True

    def _note_over(self, path: Path, over: bool) -> bool:
        if over:
            self._over[path] = self._seen[path][0]
            self._termed.discard(path)
        return not over

    def _stop(self, path: Path, watch: Watch, end: Due, now: int) -> bool:
        """TERM or KILL one run whose time is over; False when nothing of it runs any more."""
        if container_state(watch.socket, watch.container) not in ("running", "paused", "restarting"):
            return self._note_over(path, True)
        with contextlib.suppress(OSError):  # a folder that is gone must not save the container
            record = StopRecord(reason=end.reason, boot_id=self.boot, term_boot_ms=now, kill_boot_ms=max(now, end.kill_ms))
            if write_stop(watch.folder, record):
                self.log(f"{watch.container}: stopping, {end.reason} is over")
        if now >= end.kill_ms:
            send_signal(watch.socket, watch.container, "KILL")
            self.log(f"{watch.container}: KILL")
        elif path not in self._termed:
            self._termed.add(path)
            send_signal(watch.socket, watch.container, "TERM")
        return True

    def _kill_without_docker(self, watch: Watch, end: Due, now: int) -> None:
        """Docker itself is away: past the end, kill the container's first process, and with it all others."""
        if now < end.kill_ms or watch.pid is None or watch.boot_id != self.boot:
            return
        if process_start_ticks(watch.pid) != watch.pid_start_ticks:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(watch.pid, signal.SIGKILL)
            self.log(f"{watch.container}: killed pid {watch.pid}, Docker does not answer")

    def strays(self) -> list[tuple[str, str]]:
        """Docker's socket and the name of each container of this home that nobody watches any more and whose latest possible end is
        past. Raises OSError or HTTPException when Docker does not answer."""
        config = read_json(self.directory / CONFIG_NAME)
        if config is None:
            return []
        filters = quoted(json.dumps({"label": [f"{HOME_LABEL}={config['home']}"], "status": ["running"]}))
        watched = {watch.container for _, watch in self.watches()}
        _, containers = ask(config["socket"], "GET", f"/containers/json?filters={filters}")
        late = [found for found in containers or [] if int(found["Labels"].get(DEADLINE_LABEL, "0")) < unix_ms()]
        names = [found["Names"][0].lstrip("/") for found in late]
        return [(config["socket"], name) for name in names if name not in watched]

    def stop_strays(self) -> None:
        """Kill them."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            for socket_path, name in self.strays():
                self.log(f"{name}: KILL, unwatched and past its deadline")
                send_signal(socket_path, name, "KILL")

    def log(self, line: str) -> None:
        """One line into the guard's own small log; a full disk must not stop the guard."""
        path = self.directory / "guard.log"
        with contextlib.suppress(OSError):
            if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
                os.replace(path, path.with_suffix(".log.1"))
            with path.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")


def take_lock(directory: Path) -> int | None:
    """The descriptor that makes its holder this folder's only guard, or None while another holds it."""
    descriptor = os.open(directory / "guard.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def has_agent(directory: Path) -> bool:
    """Whether an agent that uses this folder lives."""
    try:
        descriptor = os.open(directory / AGENT_LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def watch(directory: Path, descriptor: int | None) -> None:
    """Guard until nothing has been left to guard for a while. The lock's file holds our pid."""
    guard = Guard(directory)
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    guard.log(f"guard {os.getpid()} began")
    last_active = last_strays = boot_ms()
    while True:
        active = guard.round().active
        now = boot_ms()
        if active:
            last_active = now
        if now - last_strays >= STRAY_EVERY_MS:
            guard.stop_strays()
            last_strays = now
        if now - last_active >= (IDLE_EXIT_MS if has_agent(directory) else ALONE_EXIT_MS):
            # Whoever adds a run writes its file first and then tries the lock: free it, then look once more.
            if descriptor is not None:
                os.close(descriptor)
            if guard.round().active == 0 or (descriptor := take_lock(directory)) is None:
                guard.log(f"guard {os.getpid()} ended")
                return
            last_active = now
        time.sleep(TICK_S)


def reap(directory: Path) -> bool:
    """Stop everything that is past its end, grace included; whether all of it is gone."""
    guard = Guard(directory)
    guard.stop_strays()
    end = time.monotonic() + REAP_LIMIT_S
    while (found := guard.round()).stopping and time.monotonic() < end:
        time.sleep(TICK_S)
    return not found.stopping and not found.unreachable


def _detach() -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    for name in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> int:
    """The command line of the guard."""
    parser = argparse.ArgumentParser(prog="guard", description="Stop containers whose lease or deadline is over.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--watch", type=Path, metavar="DIR", help="detach and guard the runs of this folder")
    action.add_argument("--reap", type=Path, metavar="DIR", help="do one round over this agent home and end")
    parser.add_argument("--lock-fd", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.watch is not None:
        _detach()
        watch(options.watch, options.lock_fd)
        return 0
    directory: Path = options.reap
    if (directory / "guard").is_dir():
        directory = directory / "guard"
    if not directory.is_dir():
        print(f"{directory}: no such folder; give the agent's home", file=sys.stderr)
        return 2
    if not reap(directory):
        print(f"something past its end could not be stopped; see {directory / 'guard.log'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
