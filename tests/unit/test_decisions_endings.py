"""How an attempt ended: one row of the table a case, from what the runner saw and who asked."""

from __future__ import annotations

from typing import Any

import pytest
from builders import BUYER, OPERATOR, job_id, job_submitted

from events.codec import decode_event, encode_event
from events.jobs import JobCancelled, JobFailed, JobSucceeded, JobTimedOut
from events.reasons import Reason
from events.values import BlobRef, RunUsage
from projections.run_limits import time_limit
from seller_agent.attempts.attempt import Attempt, Run, Saved, Standing, Stop
from seller_agent.attempts.endings import end_event, plain
from seller_agent.runners.runner import RunKey, RunState, RunStatus, StopReason

KEY = RunKey(job_id=job_id("job"), attempt=1, epoch=7)


def ended(saved: Saved | None = None, **changes: Any) -> Attempt:
    of_run = {name: changes.pop(name) for name in RunStatus.__struct_fields__ if name in changes}
    status = RunStatus(key=KEY, state=RunState.EXITED, **({"ran_ms": 1234} | of_run)) if of_run else None
    return Attempt(
        job_id=KEY.job_id,
        attempt=KEY.attempt,
        epoch=KEY.epoch,
        order=changes.pop("order", job_submitted(timeout_s=60)),
        buyer=BUYER,
        timeout_s=60,
        standing=Standing.CLAIMED,
        run=Run.EXITED if status is not None else Run.NONE,
        status=status,
        saved_as=saved,
        **changes,
    )


ASKED = {"exit_code": 143, "signal": 15, "stop_reason": StopReason.ASKED}
ESTIMATED = job_submitted(timeout_s=60, estimate_s=5, estimate_limit=2)

TABLE: list[tuple[str, Attempt, type, Reason]] = [
    ("0", ended(exit_code=0), JobSucceeded, Reason.EXITED_ZERO),
    ("7", ended(exit_code=7), JobFailed, Reason.EXITED_NONZERO),
    ("a signal", ended(exit_code=139, signal=11), JobFailed, Reason.KILLED_BY_SIGNAL),
    ("137 without a signal is an exit code", ended(exit_code=137), JobFailed, Reason.EXITED_NONZERO),
    ("out of memory", ended(exit_code=137, signal=9, out_of_memory=True), JobFailed, Reason.OUT_OF_MEMORY),
    ("a child out of memory, and 0", ended(exit_code=0, out_of_memory=True), JobSucceeded, Reason.EXITED_ZERO),
    ("no such program", ended(error="program_not_found", exit_code=127, ran_ms=0), JobFailed, Reason.PROGRAM_NOT_FOUND),
    ("the host restarted", ended(error="host_restarted"), JobFailed, Reason.HOST_RESTARTED),
    ("the supervisor was killed", ended(error="runtime_restarted"), JobFailed, Reason.RUNTIME_RESTARTED),
    ("a word that nobody knows", ended(error="exited_zero"), JobFailed, Reason.CONTAINER_ERROR),
    ("its time was over", ended(exit_code=143, signal=15, stop_reason=StopReason.DEADLINE), JobTimedOut, Reason.RUN_TIMEOUT),
    ("its time was over and it left with 0", ended(exit_code=0, stop_reason=StopReason.DEADLINE), JobTimedOut, Reason.RUN_TIMEOUT),
    (
        "its estimate was over",
        ended(exit_code=143, ran_ms=10_100, stop_reason=StopReason.DEADLINE, order=ESTIMATED),
        JobTimedOut,
        Reason.ESTIMATE_EXCEEDED,
    ),
    (
        "its time was over, and an extension came too late",
        ended(exit_code=143, ran_ms=8_000, stop_reason=StopReason.DEADLINE, order=ESTIMATED),
        JobTimedOut,
        Reason.RUN_TIMEOUT,
    ),
    ("nothing happened in it", ended(**ASKED, stop=Stop.IDLE), JobTimedOut, Reason.IDLE),
    ("its cards were idle", ended(**ASKED, stop=Stop.LOW_USE), JobTimedOut, Reason.LOW_UTILISATION),
    ("it took too much of a card's memory", ended(**ASKED, stop=Stop.GPU_MEMORY), JobFailed, Reason.GPU_MEMORY_EXCEEDED),
    ("too much output", ended(exit_code=143, stop_reason=StopReason.OUTPUT), JobFailed, Reason.OUTPUT_TOO_LARGE),
    ("the guard's lease was over", ended(exit_code=143, stop_reason=StopReason.LEASE), JobFailed, Reason.LEASE_EXPIRED),
    ("our lease was over", ended(**ASKED, stop=Stop.LEASE), JobFailed, Reason.LEASE_EXPIRED),
    ("the owner wanted the node", ended(**ASKED, stop=Stop.EVICT), JobFailed, Reason.EVICTED),
    ("a card fell ill", ended(**ASKED, stop=Stop.CARD), JobFailed, Reason.GPU_LOST),
    ("somebody stopped it, and nobody knows who", ended(**ASKED), JobFailed, Reason.EVICTED),
    ("the buyer cancelled", ended(**ASKED, stop=Stop.CANCEL, cancelled_by=BUYER), JobCancelled, Reason.CANCELLED_BY_BUYER),
    ("the operator cancelled", ended(**ASKED, stop=Stop.CANCEL, cancelled_by=OPERATOR), JobCancelled, Reason.CANCELLED_BY_OPERATOR),
    ("the buyer cancelled before it ran", ended(stop=Stop.CANCEL, cancelled_by=BUYER), JobCancelled, Reason.CANCELLED_BY_BUYER),
    ("the owner wanted the node before it ran", ended(stop=Stop.EVICT), JobFailed, Reason.EVICTED),
    ("the buyer closed the session", ended(**ASKED, stop=Stop.CLOSE), JobSucceeded, Reason.SESSION_CLOSED),
    ("it ended while it was being closed", ended(exit_code=1, stop=Stop.CLOSE), JobSucceeded, Reason.SESSION_CLOSED),
    ("it was closed, then cancelled", ended(**ASKED, stop=Stop.CLOSE, cancelled_by=BUYER), JobCancelled, Reason.CANCELLED_BY_BUYER),
    ("its work could not be saved", ended(Saved(failure=Reason.DISK_FULL), **ASKED, stop=Stop.CLOSE), JobFailed, Reason.DISK_FULL),
    ("nobody could connect to the session", ended(**ASKED, stop=Stop.UNREADY), JobFailed, Reason.CONTAINER_ERROR),
    ("an input was damaged", ended(failure=Reason.INPUT_CORRUPT), JobFailed, Reason.INPUT_CORRUPT),
    ("too many results", ended(Saved(too_large=True), exit_code=0), JobFailed, Reason.OUTPUT_TOO_LARGE),
    ("a failure stays one with too many results", ended(Saved(too_large=True), exit_code=3), JobFailed, Reason.EXITED_NONZERO),
    ("the results could not be read", ended(Saved(failure=Reason.DISK_FULL), exit_code=0), JobFailed, Reason.DISK_FULL),
]


@pytest.mark.parametrize(("attempt", "kind", "reason"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_end_of(attempt: Attempt, kind: type, reason: Reason) -> None:
    event = end_event(attempt)
    assert (kind, reason) == (type(event), event.reason)
    assert event == decode_event(encode_event(event)), "every end is within the bounds of its event"


def test_an_end_tells_what_the_run_left() -> None:
    results = BlobRef(sha256="ab" * 32, size=10)
    saved = Saved(stdout_bytes=3, stderr_bytes=4, output_sha256="cd" * 32, results=results, results_bytes=99)
    event = end_event(ended(saved, exit_code=0, ran_ms=1234))
    assert (0, 1234, 3, 4, "cd" * 32) == (event.exit_code, event.ran_ms, event.stdout_bytes, event.stderr_bytes, event.output_sha256)
    assert (results, 99) == (event.results, event.results_bytes)


def test_a_run_that_ended_by_itself_just_before_it_was_ended_is_not_blamed() -> None:
    for attempt, told in (
        (ended(**ASKED, over=Stop.IDLE, stop=Stop.IDLE), (Reason.IDLE, "idle for 4 s")),
        (ended(exit_code=0, over=Stop.IDLE, stop=Stop.IDLE), (Reason.EXITED_ZERO, "")),
    ):
        attempt.detail = "idle for 4 s"
        assert told == (end_event(attempt).reason, end_event(attempt).detail)


def test_an_end_tells_what_was_used_of_what_was_given() -> None:
    usage = RunUsage(samples=3, cpu_ms=10, mean_gpu_percent=(5,), max_gpu_percent=(9,), peak_gpu_memory_mib=(100,))
    assert usage == end_event(ended(exit_code=0, usage=usage)).usage


def test_a_failure_whose_last_words_are_known_comes_with_advice() -> None:
    advised = Saved(hint="try another card")
    assert "try another card" == end_event(ended(advised, exit_code=1)).detail
    assert "no such program; try another card" == end_event(ended(advised, error="program_not_found", detail="no such program")).detail
    assert "" == end_event(ended(advised, exit_code=0)).detail, "what succeeded needs none"
    assert "" == end_event(ended(advised, **ASKED, stop=Stop.CANCEL, cancelled_by=BUYER)).detail


def test_words_of_a_runtime_are_harmless_and_short() -> None:
    event = end_event(ended(failure=Reason.CONTAINER_ERROR, detail="\x1b[31mred\nline\u202e" + "x" * 1000))
    assert event.detail.startswith(" [31mred line ")
    assert 300 == len(event.detail)
    assert "caf? au lait" == plain("café au lait")


@pytest.mark.parametrize(
    ("order", "price", "expected"),
    [
        (job_submitted(), 400_000, (60, Reason.RUN_TIMEOUT)),
        (ESTIMATED, 400_000, (10, Reason.ESTIMATE_EXCEEDED)),
        (job_submitted(estimate_s=100, estimate_limit=2), 400_000, (60, Reason.RUN_TIMEOUT)),
        (job_submitted(max_total_uusd=1000), 400_000, (9, Reason.BUDGET_EXHAUSTED)),
        (job_submitted(max_total_uusd=1000, num_gpus=2), 400_000, (4, Reason.BUDGET_EXHAUSTED)),
        (job_submitted(max_total_uusd=0), 400_000, (1, Reason.BUDGET_EXHAUSTED)),
        (job_submitted(max_total_uusd=0), 0, (60, Reason.RUN_TIMEOUT)),
    ],
)
def test_the_time_that_a_run_may_take(order: Any, price: int, expected: tuple[int, Reason]) -> None:
    assert expected == time_limit(order, 60, price)
