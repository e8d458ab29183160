"""The nats-server of a market on this machine: found, started, stopped, and never twice on one store.

Two servers on one store both start and both acknowledge the same sequence. So nats-server inherits a descriptor that holds a
`flock` on `broker.lock`: the lock is held exactly as long as some process serves the store. Who holds it stands in the file,
as process id and start time. Linux only, as the locks and start times come from there.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from events import pinning
from events.errors import BazaarError
from services.broker_program import find_server
from services.certificates import Certificate
from services.market_keys import MarketKeys

READY_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.01
LOG_BYTES_MAX = 10 << 20
_PR_SET_PDEATHSIG = 1


class BrokerRunning(BazaarError):
    """Another broker serves this store."""

    what = "A broker already serves this market."


class BrokerFailed(BazaarError):
    """nats-server did not come up."""

    what = "The broker did not start."


class PortTaken(BrokerFailed):
    """Somebody else listens there."""

    what = "The broker's port is taken."


@dataclass(frozen=True)
class Place:
    """Where a market's broker lives and listens. `folder` is the market's own."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    """0: a free one."""
    tls: Certificate | None = None

    @property
    def store(self) -> Path:
        """The directory that nats-server is started in."""
        return self.folder / "store"

    @property
    def lock(self) -> Path:
        return self.folder / "broker.lock"

    @property
    def log(self) -> Path:
        return self.folder / "broker.log"

    @property
    def ports(self) -> Path:
        """Where nats-server writes the ports it took."""
        return self.folder / "ports"


@dataclass(frozen=True)
class Holder:
    """Who serves a store: a process id is used again, but not with the same start time."""

    pid: int
    started: int

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started


@dataclass(frozen=True)
class Broker:
    """A running nats-server that this process started."""

    url: str
    holder: Holder
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.holder.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it, gently first. Returns when it is gone."""
        if self.is_running:
            self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    async def stop_async(self) -> None:
        """As `stop`, without holding up the event loop."""
        await asyncio.to_thread(self.stop)


# --- starting it ---


def configuration() -> Path:
    """`nats.conf`: packaged beside this module in a wheel, at the root of a checkout otherwise. Raises BrokerFailed."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "nats.conf", here.parent / "nats.conf"):
        if candidate.is_file():
            return candidate
    raise BrokerFailed(why=f"nats.conf lies neither in {here} nor in {here.parent}", hint="install gpubazaar again")


def start(place: Place, keys: MarketKeys, *, die_with_parent: bool = True) -> Broker:
    """A broker that answers. With `die_with_parent` it ends with the *thread* that called (Linux counts threads): call from one
    that stays. Raises BrokerRunning, BrokerMissing, PortTaken, BrokerFailed."""
    process = spawn(place, keys, die_with_parent=die_with_parent)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while (broker := when_ready(place, process, late=time.monotonic() > deadline)) is None:
        time.sleep(POLL_S)
    return broker


async def start_async(place: Place, keys: MarketKeys, *, die_with_parent: bool = True) -> Broker:
    """As `start`, waiting in the event loop."""
    process = spawn(place, keys, die_with_parent=die_with_parent)
    deadline = time.monotonic() + READY_TIMEOUT_S
    try:
        while (broker := when_ready(place, process, late=time.monotonic() > deadline)) is None:
            await asyncio.sleep(POLL_S)
    except asyncio.CancelledError:
        process.kill()
        process.wait()
        raise
    return broker


def take_over(place: Place, keys: MarketKeys, *, die_with_parent: bool = True) -> Broker:
    """A broker that answers; if a left-over one serves the store it is ended first. Raises as `start`."""
    end_left_over(place)
    return start(place, keys, die_with_parent=die_with_parent)


async def take_over_async(place: Place, keys: MarketKeys, *, die_with_parent: bool = True) -> Broker:
    """As `take_over`, waiting in the event loop."""
    await asyncio.to_thread(end_left_over, place)
    return await start_async(place, keys, die_with_parent=die_with_parent)


def spawn(place: Place, keys: MarketKeys, *, die_with_parent: bool) -> subprocess.Popen[bytes]:
    """A nats-server that holds the lock; it may not answer yet. Raises BrokerRunning, BrokerMissing, BrokerFailed."""
    server = find_server()
    for folder in (place.folder, place.store, place.ports):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = configuration() if place.tls is None else _with_tls(place, place.tls)
    command = [str(server), "-c", str(config), "-a", place.host, "-p", str(place.port or -1), "--ports_file_dir", str(place.ports)]
    descriptor = _take_lock(place)
    try:
        for stale in place.ports.glob("*.ports"):  # process ids are used again
            stale.unlink()
        prepare = _Child(descriptor, die_with_parent)
        with _open_log(place.log) as log:
            return subprocess.Popen(
                command,
                cwd=place.store,
                env={"PATH": os.environ.get("PATH", ""), **keys.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(descriptor,),
                preexec_fn=prepare,
                start_new_session=True,  # a Ctrl-C is for the market, which stops its broker last
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise BrokerFailed(why=f"{server}: {error}", hint="see whether the file can be run") from None
    finally:
        os.close(descriptor)  # from here on only the server holds the lock


def _with_tls(place: Place, tls: Certificate) -> Path:
    """`nats.conf` with TLS before the first byte, in a file of the market's own: nobody is greeted in the clear, or talked into it."""
    quoted = [json.dumps(os.path.relpath(configuration(), place.folder)), *(json.dumps(str(file)) for file in (tls.certificate, tls.key))]
    text = 'include {}\ntls {{ cert_file: {}, key_file: {}, handshake_first: true, timeout: 5, min_version: "1.2" }}\n'.format(*quoted)
    file = place.folder / "broker.conf"
    file.write_text(text)
    return file


class _Child:
    """What the new process does before it becomes nats-server: says who it is in the lock file, and ties its life to ours."""

    def __init__(self, descriptor: int, die_with_parent: bool) -> None:
        self._descriptor = descriptor
        self._parent = os.getpid() if die_with_parent else 0
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def __call__(self) -> None:
        if self._parent:
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
            if os.getppid() != self._parent:
                os._exit(1)
        pid = os.getpid()
        record = json.dumps({"pid": pid, "started": start_time(pid)}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, record, 0)


def when_ready(place: Place, process: subprocess.Popen[bytes], *, late: bool) -> Broker | None:
    """The broker, once it listens; None while it does not. Raises PortTaken, BrokerFailed when it never will."""
    if process.poll() is not None:
        raise _failure(place, f"it ended with {process.returncode}")
    if late:
        process.kill()
        process.wait()
        raise _failure(place, f"it did not answer within {READY_TIMEOUT_S:g} s")
    port = _port(place.ports / f"nats-server_{process.pid}.ports")
    started = start_time(process.pid)
    if port is None or started is None or not _answers(place, port):
        return None
    url = f"{'nats' if place.tls is None else 'tls'}://{in_url(reachable(place.host))}:{port}"
    return Broker(pinning.pinned(url, None if place.tls is None else place.tls.fingerprint), Holder(process.pid, started), process)


def reachable(host: str) -> str:
    """Where this machine reaches what listens there."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def in_url(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def _port(file: Path) -> int | None:
    """The port in a ports file, None while it is not there or half written."""
    try:
        addresses = json.loads(file.read_bytes())["nats"]
        return int(str(addresses[0]).rpartition(":")[2])
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _answers(place: Place, port: int) -> bool:
    host = reachable(place.host)
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            if place.tls is None:
                return connection.recv(4) == b"INFO"
            with pinning.trusting([place.tls.der]).wrap_socket(connection, server_hostname=host) as secure:
                return secure.recv(4) == b"INFO"
    except OSError:
        return False


def _failure(place: Place, why: str) -> BrokerFailed:
    with place.log.open("rb") as log:
        log.seek(max(0, place.log.stat().st_size - 2000))
        tail = [line for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    if any("address already in use" in line for line in tail[-5:]):
        return PortTaken(why=f"somebody listens on {place.host}:{place.port}", hint="choose another port, or `--port 0` for a free one")
    last = re.sub(r"[^\x20-\x7e]", "?", tail[-1])[:300] if tail else ""
    return BrokerFailed(why=f"{why}: {last}", hint=f"see {place.log}")


def _open_log(file: Path) -> IO[bytes]:
    if file.exists() and file.stat().st_size > LOG_BYTES_MAX:
        file.replace(file.with_suffix(".log.1"))
    return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


# --- the lock ---


def _take_lock(place: Place) -> int:
    """A descriptor that holds the lock. Raises BrokerRunning."""
    descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT, 0o600)
    if _lock(descriptor):
        return descriptor
    os.close(descriptor)
    holder = holder_of(place)
    raise BrokerRunning(
        why=f"process {holder.pid} serves {place.store}" if holder else f"somebody holds {place.lock}",
        hint="`bazaar-market down` ends it",
    )


def _lock(descriptor: int) -> bool:
    """Whether the lock is ours now. Who only asks `is_served` holds it for a moment, so a few tries."""
    for _ in range(3):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(POLL_S)
        else:
            return True
    return False


def is_served(place: Place) -> bool:
    """Whether some process holds the store."""
    try:
        os.close(_take_lock(place))
    except BrokerRunning:
        return True
    except FileNotFoundError:
        return False
    return False


def holder_of(place: Place) -> Holder | None:
    """Who wrote itself into the lock file and still lives; None when that is nobody."""
    try:
        record = json.loads(place.lock.read_bytes())
        holder = Holder(int(record["pid"]), int(record["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return holder if holder.is_alive else None


def end_left_over(place: Place) -> None:
    """End the broker that serves this store, if one does, and return when the store is free. Raises BrokerRunning."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_TIMEOUT_S
        asked: Holder | None = None
        while time.monotonic() < deadline:
            if not is_served(place):
                return
            holder = holder_of(place)
            if holder is not None and holder != asked:
                os.kill(holder.pid, number)
                asked = holder
            time.sleep(POLL_S)
    raise BrokerRunning(why=f"{place.lock} is held and its holder does not end", hint=f"fuser {place.lock} names the process")


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is no such process, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name in front may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
