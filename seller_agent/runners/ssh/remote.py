"""What runs on the far side of an SSH connection, uploaded there: the way to the supervisor, the output of runs, shells, housekeeping.

Standard library only. Everything ends with its channel, except the supervisor, which is put into a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from seller_agent.runners.process.supervisor import proc

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); "
    "from seller_agent.runners.process.supervisor.daemon import main; sys.exit(main(sys.argv[2], float(sys.argv[3])))"
)
PIECE_BYTES = 1 << 18
BUSY_S, IDLE_S = 0.02, 0.1
LOOK_S = 0.5
LOG_MAX_BYTES = 1_000_000
CHANNELS = ("stdout", "stderr")
TRIES = 5
PR_SET_CHILD_SUBREAPER = 36

Message = dict[str, Any]


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def pump(local: socket.socket, *, until_both: bool) -> int:
    """Bytes between our standard streams and a socket, until its end, or until both have ended."""
    sources: list[int] = [0, local.fileno()]
    while local.fileno() in sources or (until_both and sources):
        for ready in select.select(sources, [], [])[0]:
            try:
                data = os.read(ready, 1 << 16)
                if data and ready == 0:
                    local.sendall(data)
                elif data:
                    write_all(1, data)
            except OSError:
                return 0
            if data:
                continue
            sources.remove(ready)
            if ready != 0:
                os.close(1)
            elif not until_both:
                return 0
            else:
                with contextlib.suppress(OSError):
                    local.shutdown(socket.SHUT_WR)
    return 0


def connect_below(folder: str, name: str) -> socket.socket:
    """Connect to a socket by a short name, because a socket's may not be long. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        connection.connect(f"/proc/self/fd/{descriptor}/{name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(descriptor)
    return connection


def link(code: str, root: str, idle_s: str) -> int:
    """The way to the supervisor of `root`, which is started where none answers. First a line with this machine's clock."""
    state = os.path.join(root, ".supervisor")
    os.makedirs(state, mode=0o700, exist_ok=True)
    for _ in range(TRIES):
        try:
            supervisor = connect_below(state, "socket")
        except OSError:
            launch(code, root, idle_s, f"{state}/log")
            continue
        write_all(1, json.dumps({"boot_ms": proc.boot_ms(), "boot_id": proc.boot_id()}).encode() + b"\n")
        return pump(supervisor, until_both=False)
    print(f"no supervisor answers: see {state}/log", file=sys.stderr)
    return 1


def launch(code: str, root: str, idle_s: str, log_path: str) -> None:
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", PROGRAM, code, root, idle_s]
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    with open(log_path, "ab") as log:
        if log.tell() > LOG_MAX_BYTES:
            log.truncate(0)
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True, env=environment, cwd="/"
        )


class Followed:
    """A run whose output is sent as it grows."""

    def __init__(self, root: str, name: str, offsets: list[int]) -> None:
        self.name = name
        self.out = f"{root}/{name}/out"
        self.paths = [f"{root}/{name}/log/{channel}" for channel in CHANNELS]
        self.offsets = list(offsets)
        self.is_last = False

    def send(self) -> bool:
        """The next piece of each file; whether there was any."""
        moved = False
        for channel, path in enumerate(self.paths):
            try:
                size = os.stat(path).st_size
            except OSError:
                size = 0
            if size < self.offsets[channel]:
                say({"name": self.name, "channel": channel, "cut": size})
                self.offsets[channel] = size
            elif size > self.offsets[channel]:
                moved = self.piece(channel, path) or moved
        return moved

    def piece(self, channel: int, path: str) -> bool:
        try:
            with open(path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), PIECE_BYTES, self.offsets[channel])
        except OSError:
            return False
        if data:
            say({"name": self.name, "channel": channel, "offset": self.offsets[channel], "size": len(data)}, data)
            self.offsets[channel] += len(data)
        return bool(data)


def say(message: Message, data: bytes = b"") -> None:
    write_all(1, json.dumps(message).encode() + b"\n" + data)


def follow(_: str, root: str) -> int:
    """Send the output of the runs that are asked for, from the bytes asked for; `last` asks for the rest and where it ends."""
    runs: dict[str, Followed] = {}
    asked, moved = b"", False
    while True:
        if select.select([0], [], [], 0.0 if moved else BUSY_S if any(run.is_last for run in runs.values()) else IDLE_S)[0]:
            data = os.read(0, 1 << 16)
            if not data:
                return 0
            *lines, asked = (asked + data).split(b"\n")
            for line in lines:
                note(runs, root, json.loads(line))
        moved = False
        for run in list(runs.values()):
            sent = run.send()
            moved = moved or sent
            if run.is_last and not sent:
                say({"name": run.name, "last": run.offsets, "results": has_entries(run.out)})
                del runs[run.name]


def has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def note(runs: dict[str, Followed], root: str, asked: Message) -> None:
    name = asked["name"]
    if not NAME.match(name):
        return
    if asked.get("drop"):
        runs.pop(name, None)
        return
    if "offsets" in asked:
        runs[name] = Followed(root, name, asked["offsets"])
    if name in runs:
        runs[name].is_last = bool(asked.get("last"))


def reach(_: str, kind: str, place: str, name: str) -> int:
    """Connect to a port of the loopback, or to a socket in a folder, where the SSH server forwards nothing."""
    try:
        connection = socket.create_connection(("127.0.0.1", int(place))) if kind == "tcp" else connect_below(place, name)
    except OSError as error:
        say({"refused": error.strerror or str(error)})
        return 1
    say({"refused": None})
    return pump(connection, until_both=True)


def shell(_: str, folder: str, *argv: str) -> int:
    """A program on our terminal, in the run's folder and with its environment; everything of it ends with the run, or the terminal."""
    run = running(folder)
    if run is None:
        print("the run has ended", file=sys.stderr)
        return 1
    entries = proc.read_bytes(f"/proc/{run['pid']}/environ").split(b"\0")
    environment = {os.fsdecode(name): os.fsdecode(value) for name, _, value in (entry.partition(b"=") for entry in entries) if name}
    environment["TERM"] = os.environ.get("TERM", "xterm-256color")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(end_all()))
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    try:
        child = subprocess.Popen(argv, cwd=f"{folder}/job", env=environment, restore_signals=True, preexec_fn=reset_signals)
    except OSError as error:
        print(f"cannot run {argv[0]!a}: {error.strerror}", file=sys.stderr)
        return 127
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = child.wait(LOOK_S)
            end_all()
            return code if code >= 0 else 128 - code
        if running(folder) is None or os.getppid() == 1:
            return end_all()


def reset_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_DFL)


def running(folder: str) -> Message | None:
    """The record of the run while its own process is there."""
    record: Message = {}
    for line in proc.read_bytes(f"{folder}/run.jsonl").split(b"\n"):
        with contextlib.suppress(ValueError):
            record.update(json.loads(line))
    found = proc.process(record["pid"]) if isinstance(record.get("pid"), int) and record.get("state") != "exited" else None
    return record if found is not None and found.start_ticks == record.get("start_ticks") and found.state != "Z" else None


def end_all() -> int:
    """Kill everything that we started, and what that left behind, until nothing is there."""
    me = os.getpid()
    until = time.monotonic() + 10.0
    while time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        found = proc.with_descendants([me], proc.processes()) - {me}
        if not found:
            break
        for pid in found:
            proc.send_signal(pid, signal.SIGKILL)
        time.sleep(0.005)
    return 129


def make(_: str, *folders: str) -> int:
    """Folders for us alone; one that another user made before is not trusted."""
    for folder in folders:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            print(f"{folder} is not ours", file=sys.stderr)
            return 1
        os.chmod(folder, 0o700)
    return 0


def point(_: str, link_path: str, target: str) -> int:
    """A link to a folder, in place of an earlier one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(link_path)
    os.symlink(target, link_path)
    return 0


def delete(_: str, *folders: str) -> int:
    """Take folders away; a job may have taken the rights to its own, which are given back first. Links are not followed."""
    for folder in folders:
        for parent, inside, _files in os.walk(folder):
            for path in (os.path.join(parent, name) for name in inside):
                if not os.path.islink(path):
                    with contextlib.suppress(OSError):
                        os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.lexists(folder):
            print(f"{folder} cannot be deleted", file=sys.stderr)
            return 1
    return 0


def names(_: str, *folders: str) -> int:
    """What lies in folders; one that is not there is empty."""
    found: set[str] = set()
    for folder in folders:
        with contextlib.suppress(OSError):
            found.update(name for name in os.listdir(folder) if NAME.match(name))
    say({"names": sorted(found), "unix_s": int(time.time())})
    return 0


ACTS: dict[str, Callable[..., int]] = {
    "link": link,
    "follow": follow,
    "reach": reach,
    "shell": shell,
    "make": make,
    "point": point,
    "delete": delete,
    "names": names,
}


def main(code: str, act: str, *words: str) -> int:
    """Do one of the above; `code` is where we were uploaded to."""
    os.umask(0o077)
    try:
        return ACTS[act](code, *words)
    except BrokenPipeError:
        return 0
