"""What became of a container: from Docker's inspection and our own small records to one status.

Pure: every clock reading and file content comes in as an argument. It decides nothing about the job, only says what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from seller_agent.runners.docker_engine.guard.files import StopRecord
from seller_agent.runners.runner import RunKey, RunState, RunStatus, StopReason

AROUND_RESTART_MS = 60_000
CLOCK_STEP_MS = 1_000
KILLED_CODES = (137, 143, 255)
"""What a container ends with when its daemon or its machine goes away under it."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the runner keeps of a run beside its container, in the run's folder."""

    key: RunKey
    folder: str
    timeout_s: int
    grace_s: int
    output_limit_bytes: int
    boot_id: str
    starting_boot_ms: int | None = None
    """Set before Docker is asked to start it; a container missing after that has vanished."""
    started_boot_ms: int | None = None
    started_unix_ms: int | None = None
    image_digest: str = ""


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """The circumstances under which a container was looked at."""

    boot_id: str
    now_boot_ms: int
    now_unix_ms: int
    ended_boot_ms: int | None = None
    """When its end was noticed, if somebody was watching."""
    daemon_lost: bool = False
    """The daemon's connection broke while the run was being watched."""
    daemon_started_unix_ms: int | None = None
    stderr_tail: str = ""


def parse_time_ms(text: str | None) -> int | None:
    """Docker's timestamps as Unix milliseconds; None for none and for its zero time."""
    if not text or text.startswith("0001-"):
        return None
    moment = datetime.fromisoformat(text)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def status_of(record: RunRecord, state: Mapping[str, Any], stop: StopRecord | None, sight: Sight) -> RunStatus:
    """The status of a run from `State` of Docker's inspection."""
    started = parse_time_ms(state.get("StartedAt"))
    stop_reason = StopReason(stop.reason) if stop else None
    docker_status = state.get("Status")
    if docker_status == "created":
        return _never_started(record.key, state, stop_reason)
    if docker_status in ("running", "paused", "restarting"):
        ran = sight.now_boot_ms - record.started_boot_ms if record.started_boot_ms is not None else sight.now_unix_ms - (started or 0)
        return RunStatus(
            key=record.key,
            state=RunState.RUNNING,
            started_unix_ms=started,
            ran_ms=max(0, ran),
            stop_reason=stop_reason,
            image_digest=record.image_digest,
        )
    code = int(state.get("ExitCode") or 0)
    oom = bool(state.get("OOMKilled"))
    error, detail = _infrastructure_error(record, state, stop, sight) if not oom else (None, "")
    if error is None and code in (126, 127):
        error, detail = _launch_error(sight.stderr_tail)
    if oom and code == 0:
        detail = "one of the job's processes was killed for memory, but the job itself returned 0"
    return RunStatus(
        key=record.key,
        state=RunState.EXITED,
        started_unix_ms=started,
        ran_ms=_ran_ms(record, state, sight),
        exit_code=code,
        signal=code - 128 if 128 < code <= 128 + 64 else None,
        out_of_memory=oom and code != 0,
        stop_reason=stop_reason,
        error=error,
        detail=detail,
        image_digest=record.image_digest,
    )


def vanished(record: RunRecord, stop: StopRecord | None) -> RunStatus:
    """A run that was started and whose container somebody else removed."""
    return RunStatus(
        key=record.key,
        state=RunState.EXITED,
        started_unix_ms=record.started_unix_ms,
        stop_reason=StopReason(stop.reason) if stop else None,
        error="container_error",
        detail="The container is gone and its exit code with it: somebody removed it while it was ours.",
        image_digest=record.image_digest,
    )


def _never_started(key: RunKey, state: Mapping[str, Any], stop_reason: StopReason | None) -> RunStatus:
    message = str(state.get("Error") or "")
    if message:
        reason, detail = classify_failure(message)
        return RunStatus(key=key, state=RunState.EXITED, stop_reason=stop_reason, error=reason, detail=detail)
    if stop_reason is not None:
        return RunStatus(key=key, state=RunState.EXITED, stop_reason=stop_reason, detail="stopped before it started")
    return RunStatus(key=key, state=RunState.PREPARED)


def _ran_ms(record: RunRecord, state: Mapping[str, Any], sight: Sight) -> int | None:
    """Docker's own two timestamps, unless the wall clock was set meanwhile: then CLOCK_BOOTTIME as far as it was read."""
    started, finished = parse_time_ms(state.get("StartedAt")), parse_time_ms(state.get("FinishedAt"))
    if started is None:
        return None
    wall = max(0, finished - started) if finished is not None else 0
    if record.started_boot_ms is None or record.started_unix_ms is None or record.boot_id != sight.boot_id:
        return wall
    drift = (sight.now_unix_ms - sight.now_boot_ms) - (record.started_unix_ms - record.started_boot_ms)
    longest = max(0, (sight.ended_boot_ms or sight.now_boot_ms) - record.started_boot_ms)
    if abs(drift) <= CLOCK_STEP_MS:
        return wall
    return longest if sight.ended_boot_ms is not None else min(wall, longest)


def _infrastructure_error(record: RunRecord, state: Mapping[str, Any], stop: StopRecord | None, sight: Sight) -> tuple[str | None, str]:
    """Whether an end that nobody asked for was the machine's or the daemon's doing."""
    code = int(state.get("ExitCode") or 0)
    if stop is not None or code not in KILLED_CODES:
        return None, ""
    if record.boot_id != sight.boot_id:
        return "host_restarted", "The machine restarted while the job ran."
    if sight.daemon_lost or _ended_around_restart(state, sight.daemon_started_unix_ms):
        return "runtime_restarted", "Docker was restarted under the job; with live-restore switched on it would have survived."
    return None, ""


def _ended_around_restart(state: Mapping[str, Any], daemon_started_unix_ms: int | None) -> bool:
    started, finished = parse_time_ms(state.get("StartedAt")), parse_time_ms(state.get("FinishedAt"))
    if daemon_started_unix_ms is None or started is None or finished is None or daemon_started_unix_ms < started:
        return False
    return abs(finished - daemon_started_unix_ms) <= AROUND_RESTART_MS


def _launch_error(stderr_tail: str) -> tuple[str | None, str]:
    """The container's init says when it could not start the program; the program's own 127 has no such line."""
    for line in reversed(stderr_tail.splitlines()):
        if line.startswith("[FATAL tini") and "exec " in line:
            return "program_not_found", line.partition("] ")[2][:500]
    return None, ""


def classify_failure(message: str) -> tuple[str, str]:
    """Docker's words for not creating or not starting a container, as one of our reasons and a sentence."""
    text = message.lower()
    if "no space left" in text or "disk quota exceeded" in text:
        return "disk_full", f"The disk is full: {message[:300]}"
    if "executable file not found" in text or ("exec:" in text and "no such file" in text):
        return "program_not_found", f"The image has no such program: {message[:300]}"
    if "invalid reference format" in text:
        return "image_refused", f"That is no name of an image: {message[:300]}"
    if "could not select device driver" in text:
        return "container_error", (
            "Docker cannot hand out NVIDIA cards: install nvidia-container-toolkit and restart Docker, or provide CDI specifications. "
            f"Docker said: {message[:200]}"
        )
    return "container_error", message[:500]
