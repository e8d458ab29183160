"""What became of a container, from Docker's words and our own records."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from seller_agent.runners.docker_engine.guard.files import StopRecord
from seller_agent.runners.docker_engine.outcome import RunRecord, Sight, classify_failure, parse_time_ms, status_of
from seller_agent.runners.runner import RunKey, RunState, StopReason

KEY = RunKey(job_id="j", attempt=1, epoch=2)
START_MS = 1_700_000_000_000
RECORD = RunRecord(
    key=KEY,
    folder="/x",
    timeout_s=60,
    grace_s=10,
    output_limit_bytes=1000,
    boot_id="boot",
    starting_boot_ms=1000,
    started_boot_ms=1100,
    started_unix_ms=START_MS,
)
SIGHT = Sight(boot_id="boot", now_boot_ms=31_100, now_unix_ms=START_MS + 30_000, ended_boot_ms=21_150)


def state(code: int = 0, **changes: Any) -> dict[str, Any]:
    times = {"StartedAt": "2023-11-14T22:13:20.000000000Z", "FinishedAt": "2023-11-14T22:13:40.123456789Z"}
    return {"Status": "exited", "ExitCode": code, "OOMKilled": False, "Error": "", **times, **changes}


def stopped(reason: StopReason) -> StopRecord:
    return StopRecord(reason=reason.value, boot_id="boot", term_boot_ms=5, kill_boot_ms=6)


def test_an_ordinary_end_is_told_with_code_and_measured_time() -> None:
    status = status_of(RECORD, state(7), None, SIGHT)
    assert (RunState.EXITED, 7, None, 20_123, START_MS) == (
        status.state,
        status.exit_code,
        status.signal,
        status.ran_ms,
        status.started_unix_ms,
    )
    assert (None, None, False) == (status.error, status.stop_reason, status.out_of_memory)


@pytest.mark.parametrize(
    ("code", "oom_flag", "out_of_memory", "signal"),
    [(137, True, True, 9), (137, False, False, 9), (0, True, False, None), (1, True, True, None)],
)
def test_out_of_memory_is_the_flag_and_a_failure_never_the_code_alone(
    code: int, oom_flag: bool, out_of_memory: bool, signal: int | None
) -> None:
    status = status_of(RECORD, state(code, OOMKilled=oom_flag), None, SIGHT)
    assert (out_of_memory, signal, None) == (status.out_of_memory, status.signal, status.error)


def test_a_wall_clock_set_back_meanwhile_does_not_shorten_the_bill() -> None:
    set_back = msgspec.structs.replace(SIGHT, now_unix_ms=SIGHT.now_unix_ms - 3_600_000)
    finished_before_it_started = state(FinishedAt="2023-11-14T21:13:40Z")
    assert 20_050 == status_of(RECORD, finished_before_it_started, None, set_back).ran_ms


def test_a_wall_clock_set_forward_meanwhile_does_not_lengthen_the_bill() -> None:
    set_forward = msgspec.structs.replace(SIGHT, now_unix_ms=SIGHT.now_unix_ms + 3_600_000)
    assert 20_050 == status_of(RECORD, state(FinishedAt="2023-11-14T23:13:40Z"), None, set_forward).ran_ms
    unseen = msgspec.structs.replace(set_forward, ended_boot_ms=None)
    assert 30_000 == status_of(RECORD, state(FinishedAt="2023-11-14T23:13:40Z"), None, unseen).ran_ms


def test_what_runs_is_measured_on_the_boot_clock() -> None:
    status = status_of(RECORD, state(Status="running"), None, SIGHT)
    assert (RunState.RUNNING, 30_000) == (status.state, status.ran_ms)


@pytest.mark.parametrize("code", [137, 143, 255])
def test_a_death_that_nobody_asked_for_around_a_daemon_restart_is_the_daemons(code: int) -> None:
    finished = START_MS + 20_123
    near = msgspec.structs.replace(SIGHT, daemon_started_unix_ms=finished + 5_000)
    assert "runtime_restarted" == status_of(RECORD, state(code), None, near).error
    assert "runtime_restarted" == status_of(RECORD, state(code), None, msgspec.structs.replace(SIGHT, daemon_lost=True)).error
    assert None is status_of(RECORD, state(code), None, msgspec.structs.replace(SIGHT, daemon_started_unix_ms=finished + 600_000)).error
    assert None is status_of(RECORD, state(code), None, msgspec.structs.replace(SIGHT, daemon_started_unix_ms=START_MS - 5_000)).error
    assert None is status_of(RECORD, state(code), stopped(StopReason.ASKED), near).error
    assert None is status_of(RECORD, state(3), None, near).error


def test_a_restart_of_the_machine_is_told_from_one_of_the_daemon() -> None:
    other_boot = msgspec.structs.replace(SIGHT, boot_id="another")
    assert "host_restarted" == status_of(RECORD, state(255), None, other_boot).error
    assert None is status_of(RECORD, state(3), None, other_boot).error


def test_only_the_containers_init_says_that_a_program_is_missing() -> None:
    line = "[FATAL tini (7)] exec nosuch failed: No such file or directory\n"
    status = status_of(RECORD, state(127), None, msgspec.structs.replace(SIGHT, stderr_tail=f"noise\n{line}"))
    assert ("program_not_found", "exec nosuch failed: No such file or directory") == (status.error, status.detail)
    assert None is status_of(RECORD, state(127), None, msgspec.structs.replace(SIGHT, stderr_tail="sh: x: not found\n")).error
    assert None is status_of(RECORD, state(1), None, msgspec.structs.replace(SIGHT, stderr_tail=line)).error


def test_a_container_that_never_started_says_whether_it_failed_was_stopped_or_waits() -> None:
    assert RunState.PREPARED == status_of(RECORD, state(Status="created"), None, SIGHT).state
    asked = status_of(RECORD, state(Status="created"), stopped(StopReason.ASKED), SIGHT)
    assert (RunState.EXITED, StopReason.ASKED, None) == (asked.state, asked.stop_reason, asked.exit_code)
    failed = status_of(RECORD, state(Status="created", Error='could not select device driver "" with capabilities: [[gpu]]'), None, SIGHT)
    assert (RunState.EXITED, "container_error") == (failed.state, failed.error)
    assert "nvidia-container-toolkit" in failed.detail


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("mkdir /var/lib/docker/overlay2/x: no space left on device", "disk_full"),
        ('exec: "x": executable file not found in $PATH', "program_not_found"),
        ("invalid reference format", "image_refused"),
        ("anything else", "container_error"),
    ],
)
def test_dockers_words_become_a_reason(message: str, reason: str) -> None:
    assert reason == classify_failure(message)[0]


def test_times_are_read_with_nanoseconds_and_zones_and_without_a_value() -> None:
    assert START_MS == parse_time_ms("2023-11-14T22:13:20.000999999Z")
    assert START_MS == parse_time_ms("2023-11-15T00:13:20+02:00")
    assert None is parse_time_ms("0001-01-01T00:00:00Z")
    assert None is parse_time_ms(None)
