"""The watch files of one agent home, by which the guard outside the agent knows what to stop and when (see `guard`).

Only files and the guard's start here: no Docker. One file per run, written before its container exists and deleted after it is gone.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path

from seller_agent.runners.docker_engine import profile
from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.guard import files as guard_files
from seller_agent.runners.docker_engine.guard.files import Watch
from seller_agent.runners.docker_engine.guard.start import ensure_guard, hold_agent_lock
from seller_agent.runners.docker_engine.outcome import RunRecord
from seller_agent.runners.runner import RunKey

UNKNOWN_LEASE_MS = 60_000
"""The lease of a container found without its watch file: time for the agent to renew or stop it."""


class Watches:
    """All of one home. Safe from any thread."""

    def __init__(self, guard_dir: Path, *, socket_path: str, home: str) -> None:
        self.boot = clocks.boot_id()
        self._dir = guard_dir
        self._socket = socket_path
        self._home = home
        self._lock = threading.Lock()
        self._agent_lock: int | None = None

    def path(self, key: RunKey) -> Path:
        """A run's watch file."""
        return self._dir / f"{key.name}.json"

    def files(self) -> list[Path]:
        """Every watch file."""
        return [path for path in sorted(self._dir.glob("*.json")) if path.name != guard_files.CONFIG_NAME]

    def change(self, record: RunRecord, **changes: int | None) -> Watch:
        """Change some fields of a run's watch file, which is made when it is missing."""
        path = self.path(record.key)
        with self._lock:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            before = guard_files.read_watch(path)
            if before is not None and before.boot_id != self.boot:
                before = None  # its times mean nothing any more
            watch = before or Watch(
                container=profile.container_name(record.key),
                folder=record.folder,
                socket=self._socket,
                boot_id=self.boot,
                grace_s=record.grace_s,
                lease_until_boot_ms=clocks.boot_ms() + UNKNOWN_LEASE_MS,
                deadline_boot_ms=record.started_boot_ms + record.timeout_s * 1000 if record.started_boot_ms is not None else None,
            )
            watch = dataclasses.replace(watch, **changes)  # type: ignore[arg-type]
            if watch != before:
                guard_files.write_watch(path, watch)
        return watch

    def forget(self, key: RunKey) -> None:
        """Only when its container is gone."""
        with self._lock:
            self.path(key).unlink(missing_ok=True)

    def ensure_guard(self) -> None:
        """A guard lives, and knows that an agent does."""
        with self._lock:
            if self._agent_lock is None:
                self._agent_lock = hold_agent_lock(self._dir)
        ensure_guard(self._dir, self._socket, self._home)

    def close(self) -> None:
        """The agent ends; what runs is left to the guard."""
        with self._lock:
            if self._agent_lock is not None:
                os.close(self._agent_lock)
                self._agent_lock = None
