"""The life of one run in Docker, step by step, as plain blocking code: what the runner's threads do.

It knows Docker only through `Engine`, so that no library's exceptions appear here, and the agent not at all.
Every step may be repeated after a crash at any point; what it needs to know it reads from labels and the run's small files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from seller_agent.runners.docker_engine import profile
from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.daemon.host import container_pid, daemon_started_unix_ms
from seller_agent.runners.docker_engine.daemon.streams import EngineStream, Follower, StreamFailed
from seller_agent.runners.docker_engine.guard import files as guard_files
from seller_agent.runners.docker_engine.guard.files import StopRecord
from seller_agent.runners.docker_engine.images.logins import Login
from seller_agent.runners.docker_engine.images.store import ImageHere, ImageStore, Wish
from seller_agent.runners.docker_engine.logs import LogSink, logs_target
from seller_agent.runners.docker_engine.outcome import RunRecord, Sight, parse_time_ms, status_of, vanished
from seller_agent.runners.docker_engine.profile import Host
from seller_agent.runners.docker_engine.records import open_folders, read_exit, read_record, read_tail, write_exit, write_record
from seller_agent.runners.docker_engine.use import use_of
from seller_agent.runners.docker_engine.watches import Watches
from seller_agent.runners.runner import RunKey, RunnerError, RunSpec, RunState, RunStatus, RunUse, StopReason

START_ALLOWANCE_MS = 30_000
"""Added to a run's deadline until the moment of its start is known, in case nobody lives to correct it."""
HOST_FRESH_MS = 60_000
SETTLE_S = 3.0
RETRY_S = 0.5
KILL_WAIT_S = 30.0

Inspection = dict[str, Any]


class EngineGone(RunnerError):
    """Docker does not answer."""


class Engine(Protocol):
    """What of Docker's API the runs need. Every method raises RunnerError when refused, EngineGone when nobody answers."""

    def info(self) -> dict[str, Any]:
        """The daemon and its machine."""

    def inspect(self, name: str) -> Inspection | None:
        """A container, or None."""

    def create(self, name: str, body: dict[str, Any]) -> bool:
        """Create a container; False when the name is taken."""

    def start(self, name: str) -> None:
        """Start it; a running one is no error."""

    def signal(self, name: str, signal: str) -> None:
        """Send a signal; an ended or absent container is no error."""

    def wait_end(self, name: str, timeout_s: float) -> bool:
        """Whether it has ended within that time."""

    def with_label(self, label: str) -> list[dict[str, str]]:
        """The labels of every container, ended ones too, that carries this one."""

    def remove(self, name: str) -> None:
        """Kill and remove it with its volumes; an absent one is no error."""


class Dropped(Exception):
    """The follower was let go before the run ended."""


class Runs:
    """All runs of one agent home on one Docker."""

    def __init__(
        self,
        engine: Engine,
        images: ImageStore,
        *,
        socket_path: str,
        guard_dir: Path,
        home: str,
        node_id: str,
        egress_network: Callable[[], str | None],
    ) -> None:
        self._engine = engine
        self._images = images
        self._socket = socket_path
        self._home = home
        self._node_id = node_id
        self._egress_network = egress_network
        self._watches = Watches(guard_dir, socket_path=socket_path, home=home)
        self._boot = self._watches.boot
        self._host: Host | None = None
        self._host_asked_ms = 0

    # ---- prepare

    def host(self, *, afresh: bool = True) -> Host:
        """The daemon and its machine; an answer of the last minute will do when not `afresh`."""
        now = clocks.boot_ms()
        if afresh or self._host is None or now - self._host_asked_ms > HOST_FRESH_MS:
            self._host, self._host_asked_ms = Host.from_info(self._engine.info(), os.geteuid()), now
        return self._host

    def open(self, spec: RunSpec) -> None:
        """The run's folders, record and watch. A job that has run owns its files: nothing of them is touched again."""
        host = self.host(afresh=False)
        if not host.seccomp:
            raise RunnerError("container_error", "Docker runs without seccomp here: jobs would see the whole kernel. Switch it on.")
        folder = Path(spec.folder)
        record, was_there = read_record(folder), self._watches.path(spec.key).exists()
        if record is None or record.starting_boot_ms is None:
            open_folders(folder, None if host.maps_users else host.job_uid)
            record = RunRecord(
                key=spec.key,
                folder=spec.folder,
                timeout_s=spec.timeout_s,
                grace_s=spec.grace_s,
                output_limit_bytes=spec.output_limit_bytes,
                boot_id=self._boot,
            )
            write_record(record)
        lease_until_boot_ms = max(spec.lease_until_boot_ms, self._watches.change(record).lease_until_boot_ms if was_there else 0)
        self._watches.change(record, lease_until_boot_ms=lease_until_boot_ms)
        self._watches.ensure_guard()

    def prepare(self, spec: RunSpec, wish: Wish) -> None:
        """The image, held while the container is made of it. Raises RunnerError."""
        buyer = Login(user=spec.registry_auth[0], password=spec.registry_auth[1]) if spec.registry_auth is not None else None
        here = self._images.ensure(spec.image, buyer, wish)
        try:
            if not wish.dropped.is_set():
                wish.tell("creating")
                self._create(spec, here)
        finally:
            self._images.release(here)

    def _create(self, spec: RunSpec, image: ImageHere) -> None:
        """The container, checked against the table of controls. One that is there already must be this very run's."""
        host = self.host(afresh=False)
        volumes = sorted(image.config.get("Volumes") or {})
        if len(volumes) > profile.MAX_IMAGE_VOLUMES:
            raise RunnerError("image_refused", f"The image declares {len(volumes)} volumes, more than {profile.MAX_IMAGE_VOLUMES}.")
        name = profile.container_name(spec.key)
        table = profile.controls(spec, host, volumes, self._network(spec))
        marks = profile.labels(spec, home=self._home, node=self._node_id, created_unix_ms=clocks.unix_ms(), image_digest=image.digest)
        created = self._engine.create(name, profile.create_body(spec, host, table, marks, image.image_id))
        inspected = self._engine.inspect(name)
        if inspected is None:
            raise RunnerError("container_error", f"{name} vanished as soon as it was created.")
        found = inspected["Config"].get("Labels") or {}
        if profile.key_of(found) != spec.key or found.get(guard_files.HOME_LABEL) != self._home:
            raise RunnerError("container_error", f"Another agent on this Docker already has a container {name}.")
        missing = profile.missing_controls(inspected, table)
        if missing and (created or inspected["State"]["Status"] == "created"):
            self._engine.remove(name)
            raise RunnerError("container_error", "Docker did not take over how the job is to be confined: " + "; ".join(missing))

    def _network(self, spec: RunSpec) -> str:
        if spec.network == "none":
            return "none"
        network = self._egress_network()
        if network is None:
            raise RunnerError("container_error", f"The job wants network {spec.network!r}; this node cannot offer it now.")
        return network

    # ---- run

    def start(self, spec: RunSpec) -> RunStatus:
        """Start the prepared container, unless it has been started, stopped, or its lease is over."""
        name = profile.container_name(spec.key)
        record, inspected = self._record_of(spec.key, Path(spec.folder)), self._engine.inspect(name)
        if inspected is None:
            raise RunnerError("container_error", f"There is no container {name} to start: it was not prepared, or somebody removed it.")
        status = self._status(record, inspected["State"])
        if status.state is not RunState.PREPARED:
            return status
        now = clocks.boot_ms()
        watch = self._watches.change(record)
        if now >= watch.lease_until_boot_ms - guard_files.KILL_MARGIN_MS:
            self._say_stop(record, StopReason.LEASE, 0)
            return self._status(record, inspected["State"])
        record = msgspec.structs.replace(
            record,
            starting_boot_ms=now,
            timeout_s=spec.timeout_s,
            boot_id=self._boot,
            image_digest=(inspected["Config"].get("Labels") or {}).get(profile.DIGEST_LABEL, ""),
        )
        write_record(record)
        self._watches.change(record, deadline_boot_ms=now + spec.timeout_s * 1000 + START_ALLOWANCE_MS)
        self._watches.ensure_guard()
        self._engine.start(name)
        inspected = self._engine.inspect(name)
        if inspected is None:
            return vanished(record, guard_files.read_stop(spec.folder))
        return self._status(self._note_started(record, inspected), inspected["State"])

    def _note_started(self, record: RunRecord, inspected: Inspection) -> RunRecord:
        """Fix the moment of the start on both clocks, and with it the deadline."""
        state = inspected["State"]
        started_unix = parse_time_ms(state.get("StartedAt"))
        if started_unix is None or record.starting_boot_ms is None:
            return record
        now = clocks.boot_ms()
        started_boot = min(now, max(record.starting_boot_ms, now - (clocks.unix_ms() - started_unix)))
        record = msgspec.structs.replace(record, started_boot_ms=started_boot, started_unix_ms=started_unix)
        write_record(record)
        pid = container_pid(inspected)
        self._watches.change(
            record,
            deadline_boot_ms=started_boot + record.timeout_s * 1000,
            pid=pid,
            pid_start_ticks=clocks.process_start_ticks(pid) if pid is not None else None,
        )
        return record

    def adopt(self) -> list[tuple[RunRecord, RunStatus]]:
        """Everything of this home that exists in any form."""
        found: dict[str, tuple[RunRecord, RunStatus]] = {}
        for marks in self._engine.with_label(f"{guard_files.HOME_LABEL}={self._home}"):
            key = profile.key_of(marks)
            inspected = self._engine.inspect(profile.container_name(key)) if key is not None else None
            if key is None or inspected is None:
                continue
            record = self._record_of(key, Path(marks["gpubazaar.folder"]))
            if inspected["State"]["Running"] and record.started_boot_ms is None:
                record = self._note_started(record, inspected)
            self._watches.change(record)
            found[key.name] = (record, read_exit(Path(record.folder)) or self._status(record, inspected["State"]))
        for path in self._watches.files():
            if path.stem not in found:
                found.update(self._left_behind(path))
        if found:
            self._watches.ensure_guard()
        return list(found.values())

    def _left_behind(self, path: Path) -> dict[str, tuple[RunRecord, RunStatus]]:
        """A watch file without a container: either that was never created, or it has been taken from us."""
        watch = guard_files.read_watch(path)
        record = read_record(Path(watch.folder)) if watch is not None else None
        if watch is None or record is None or record.starting_boot_ms is None:
            path.unlink(missing_ok=True)
            return {}
        status = read_exit(Path(watch.folder)) or vanished(record, guard_files.read_stop(watch.folder))
        return {record.key.name: (record, status)}

    def follow(self, key: RunKey, folder: Path, follower: Follower) -> RunStatus:
        """Copy the run's output until it has ended and the copy is whole. Raises Dropped when let go before."""
        record, lost = self._record_of(key, folder), False
        known = read_exit(folder)
        while known is None:
            if follower.dropped.is_set():
                raise Dropped
            try:
                self._copy(record, follower, live=True)
                ended_boot_ms = clocks.boot_ms()
                known = self._conclude(record, follower, Sight(**self._clocks(), ended_boot_ms=ended_boot_ms, daemon_lost=lost))
            except (EngineGone, ConnectionError, FileNotFoundError):
                lost = True
                follower.dropped.wait(RETRY_S)
        return known

    def _conclude(self, record: RunRecord, follower: Follower, sight: Sight) -> RunStatus | None:
        """The run's end, if it has come; None when it still runs (a daemon with live-restore came back, say)."""
        name, folder = profile.container_name(record.key), Path(record.folder)
        self._engine.wait_end(name, SETTLE_S)
        inspected = self._engine.inspect(name)
        if inspected is not None and self._status(record, inspected["State"]).state is not RunState.EXITED:
            follower.dropped.wait(RETRY_S)
            return None
        stop = guard_files.read_stop(folder)
        if inspected is None:
            status = vanished(read_record(folder) or record, stop)
        else:
            self._copy(record, follower, live=False)
            sight = msgspec.structs.replace(
                sight, stderr_tail=read_tail(folder / "log" / "stderr"), daemon_started_unix_ms=daemon_started_unix_ms(self._socket)
            )
            status = status_of(read_record(folder) or record, inspected["State"], stop, sight)
        if follower.dropped.is_set():
            raise Dropped
        write_exit(folder, status)
        return status

    def _copy(self, record: RunRecord, follower: Follower, *, live: bool) -> None:
        """Bring the output files up to what Docker's log holds; `live` stays until the log ends. Too much output ends the run."""
        folder = Path(record.folder)
        name = profile.container_name(record.key)
        with contextlib.closing(LogSink(folder / "log", folder / "runner" / "cursor.json", record.output_limit_bytes)) as sink:
            try:
                with contextlib.closing(EngineStream(self._socket, "GET", logs_target(name, follow=live), follower=follower)) as stream:
                    for data in stream:
                        sink.feed(data)
                        if sink.over_limit:
                            break
            except StreamFailed as error:
                if error.status != 404:
                    raise EngineGone("container_error", f"Docker refuses the output of {name}: {error}") from error
            sink.sync()
        if sink.over_limit:
            self._say_stop(record, StopReason.OUTPUT, record.grace_s)
            self.stop(record.key, StopReason.OUTPUT, record.grace_s)

    def renew(self, key: RunKey, lease_until_boot_ms: int) -> None:
        """Move the lease. A run that nobody knows is no error: it may just have been removed."""
        folder = self.folder_of(key)
        if folder is not None:
            self._watches.change(self._record_of(key, folder), lease_until_boot_ms=lease_until_boot_ms)
            self._watches.ensure_guard()

    def extend(self, key: RunKey, timeout_s: int) -> None:
        """Another run time, in the record for whoever reads that after a crash, and for the guard. Not while the run is being started."""
        folder = self.folder_of(key)
        record = read_record(folder) if folder is not None else None
        if record is None:
            return
        record = msgspec.structs.replace(record, timeout_s=timeout_s)
        write_record(record)
        if record.started_boot_ms is not None and record.boot_id == self._boot:
            self._watches.change(record, deadline_boot_ms=record.started_boot_ms + timeout_s * 1000)
            self._watches.ensure_guard()

    def use(self, key: RunKey) -> RunUse | None:
        """What its container uses."""
        watch = guard_files.read_watch(self._watches.path(key))
        return None if watch is None else use_of(watch)

    def stop(self, key: RunKey, reason: StopReason, grace_s: int) -> None:
        """Say why, TERM, wait, KILL, wait. The guard goes on from the record if we die in between."""
        folder, name = self.folder_of(key), profile.container_name(key)
        if folder is None:
            return
        inspected = self._engine.inspect(name)
        if inspected is None or inspected["State"]["Status"] in ("exited", "dead"):
            return
        self._say_stop(self._record_of(key, folder), reason, grace_s)
        if inspected["State"]["Status"] == "created":
            return
        if grace_s > 0:
            self._engine.signal(name, "SIGTERM")
            if self._engine.wait_end(name, grace_s):
                return
        self._engine.signal(name, "SIGKILL")
        if not self._engine.wait_end(name, KILL_WAIT_S):
            inspected = self._engine.inspect(name)
            if inspected is not None and inspected["State"]["Running"]:
                raise RunnerError("container_error", f"{name} did not end although it was killed: a device or file system hangs.")

    def remove(self, key: RunKey) -> None:
        """Container, then watch: in this order, so that nothing ever runs unwatched."""
        self._engine.remove(profile.container_name(key))
        self._watches.forget(key)

    # ---- what is known

    def folder_of(self, key: RunKey) -> Path | None:
        """The run's folder, from its watch file or its container."""
        watch = guard_files.read_watch(self._watches.path(key))
        if watch is not None:
            return Path(watch.folder)
        inspected = self._engine.inspect(profile.container_name(key))
        return Path(inspected["Config"]["Labels"]["gpubazaar.folder"]) if inspected is not None else None

    def _record_of(self, key: RunKey, folder: Path) -> RunRecord:
        record = read_record(folder)
        if record is None:  # somebody emptied the folder: be strict with what is left
            open_folders(folder, None)
            record = RunRecord(key=key, folder=str(folder), timeout_s=0, grace_s=10, output_limit_bytes=50_000_000, boot_id=self._boot)
            write_record(record)
        return record

    def _clocks(self) -> dict[str, Any]:
        return {"boot_id": self._boot, "now_boot_ms": clocks.boot_ms(), "now_unix_ms": clocks.unix_ms()}

    def _status(self, record: RunRecord, state: Inspection) -> RunStatus:
        return status_of(record, state, guard_files.read_stop(record.folder), Sight(**self._clocks()))

    def _say_stop(self, record: RunRecord, reason: StopReason, grace_s: int) -> None:
        now = clocks.boot_ms()
        said = StopRecord(reason=reason.value, boot_id=self._boot, term_boot_ms=now, kill_boot_ms=now + grace_s * 1000)
        guard_files.write_stop(record.folder, said)

    def close(self) -> None:
        """Leave what runs to the guard."""
        self._watches.close()
