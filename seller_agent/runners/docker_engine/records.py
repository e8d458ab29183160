"""The small files that a containerised run leaves in its own folder, so that nothing about it is known only in memory.

`runner/run.json` what was asked, `runner/stop.json` who ended it (see guard), `runner/exit.json` how it ended, `runner/cursor.json` where
its output stands. Only files here: no Docker, no decisions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from seller_agent.runners.docker_engine.guard.files import write_json
from seller_agent.runners.docker_engine.outcome import RunRecord
from seller_agent.runners.runner import RunStatus

T = TypeVar("T")


def open_folders(folder: Path, job_uid: int | None) -> None:
    """Make the run's folders, `job` and `out` writable for the container's user and the rest for nobody else.

    With `job_uid` (user ids mean the same in containers) they are given to it, unless it is our own; else everybody may write there,
    and the folder around them keeps everybody out. Links are never followed.
    """
    for name in ("job", "out", "log", "runner"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    for name in ("stdout", "stderr"):
        (folder / "log" / name).touch(mode=0o600)
    if job_uid == os.geteuid():
        return
    for top in (folder / "job", folder / "out", *_secrets_of(folder)):
        for path in (top, *_below(top)):
            if job_uid is not None:
                os.chown(path, job_uid, job_uid, follow_symlinks=False)
            elif not path.is_symlink():
                path.chmod(0o777 if path.is_dir() or path.stat().st_mode & 0o100 else 0o666)


def _secrets_of(folder: Path) -> list[Path]:
    """Where the run's secrets really lie: `secrets` may be a link of the agent's own into memory. The job has never been near it."""
    return [Path(os.path.realpath(folder / "secrets"))] if (folder / "secrets").is_dir() else []


def _below(top: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(top, followlinks=False):
        found += [Path(parent) / name for name in (*folders, *files)]
    return found


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def read_record(folder: Path) -> RunRecord | None:
    """What was asked of the run; None when it was never prepared."""
    return _read(folder / "runner" / "run.json", RunRecord)


def write_record(record: RunRecord) -> None:
    """Replace it."""
    write_json(Path(record.folder) / "runner" / "run.json", msgspec.to_builtins(record))


def read_exit(folder: Path) -> RunStatus | None:
    """The run's end as it was once told; None before."""
    return _read(folder / "runner" / "exit.json", RunStatus)


def write_exit(folder: Path, status: RunStatus) -> None:
    """Fix the run's end: whatever happens to daemon or machine later changes nothing about it."""
    write_json(folder / "runner" / "exit.json", msgspec.to_builtins(status))


def read_tail(path: Path, size: int = 4096) -> str:
    """The last bytes of a file as text; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
