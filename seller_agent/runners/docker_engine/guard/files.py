"""What runner and guard tell each other through small files: which runs to watch, and who asked for an end.

Standard library only, because the guard imports it. Files are replaced or created in one step, so that no reader sees half of one; all
times are on CLOCK_BOOTTIME of the boot that is named beside them. When a run is due is decided here, and acted on by the guard.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

KILL_MARGIN_MS = 3_000
"""A lease's KILL comes this long before the lease is over, so that the container is gone by then."""

HOME_LABEL = "gpubazaar.home"
DEADLINE_LABEL = "gpubazaar.deadline_unix_ms"
CONFIG_NAME = "guard.json"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a small file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def write_json_once(path: Path, value: Mapping[str, Any]) -> bool:
    """Create a small file in one step; False when it is there already, which then stays as it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(json.dumps(value))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """A small file's object, or None when it is absent or not whole."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What the guard needs to know of one run; all times on CLOCK_BOOTTIME of the boot named."""

    container: str
    folder: str
    socket: str
    boot_id: str
    grace_s: int
    lease_until_boot_ms: int
    deadline_boot_ms: int | None = None
    pid: int | None = None
    pid_start_ticks: int | None = None


@dataclass(frozen=True, kw_only=True)
class StopRecord:
    """Who asked for a run's end, written before any signal. The first to write it is right."""

    reason: str
    boot_id: str
    term_boot_ms: int
    kill_boot_ms: int


def stop_path(folder: str | Path) -> Path:
    """Where a run's stop record lies."""
    return Path(folder) / "runner" / "stop.json"


def read_watch(path: Path) -> Watch | None:
    """A watch file's content, or None when it is absent or not whole."""
    value = read_json(path)
    try:
        return Watch(**{f.name: value[f.name] for f in fields(Watch)}) if value else None
    except KeyError:
        return None


def write_watch(path: Path, watch: Watch) -> None:
    """Replace a watch file."""
    write_json(path, asdict(watch))


def read_stop(folder: str | Path) -> StopRecord | None:
    """A run's stop record, if anybody asked for its end."""
    value = read_json(stop_path(folder))
    try:
        return StopRecord(**{f.name: value[f.name] for f in fields(StopRecord)}) if value else None
    except KeyError:
        return None


def write_stop(folder: str | Path, record: StopRecord) -> bool:
    """Say why a run is about to be stopped; False when that is said already."""
    return write_json_once(stop_path(folder), asdict(record))


@dataclass(frozen=True, kw_only=True)
class Due:
    """When a run gets TERM and KILL, and for what."""

    reason: str
    term_ms: int
    kill_ms: int


def due(watch: Watch, stop: StopRecord | None, this_boot: str) -> Due:
    """The earliest end that a run has coming. A run of an earlier boot has no lease left."""
    if watch.boot_id != this_boot:
        return Due(reason="lease", term_ms=0, kill_ms=0)
    grace_ms = watch.grace_s * 1000
    lease_kill_ms = watch.lease_until_boot_ms - KILL_MARGIN_MS
    ends = [Due(reason="lease", term_ms=lease_kill_ms - grace_ms, kill_ms=lease_kill_ms)]
    if watch.deadline_boot_ms is not None:
        ends.append(Due(reason="deadline", term_ms=watch.deadline_boot_ms, kill_ms=watch.deadline_boot_ms + grace_ms))
    if stop is not None and stop.boot_id == this_boot:
        ends.append(Due(reason=stop.reason, term_ms=stop.term_boot_ms, kill_ms=stop.kill_boot_ms))
    first = min(ends, key=lambda end: end.term_ms)
    return Due(reason=first.reason, term_ms=first.term_ms, kill_ms=min(end.kill_ms for end in ends))
