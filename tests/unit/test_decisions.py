"""What a node does next about an attempt: one table row a situation, and the walk through a whole life."""

from __future__ import annotations

from typing import Any

import pytest
from builders import BUYER, NODE, SELLER, job_id, job_submitted, make

from events.jobs import (
    GpusReleased,
    JobCancelRequested,
    JobClaimed,
    JobDeclined,
    JobExtended,
    JobFailed,
    JobStarted,
    JobSucceeded,
    LeaseExpired,
)
from events.reasons import Reason, Refusal
from events.values import JobKind, Program
from seller_agent.attempts.attempt import Attempt, Run, Saved, Standing, Stop, Work, hear, refused
from seller_agent.attempts.decisions import Do, Node, decide, guard_until_ms
from seller_agent.runners.runner import RunKey, RunState, RunStatus

CARD = "GPU-1"
SENT_MS = 1_000_000
NOW_MS = SENT_MS + 1000
EPOCH = 7


def attempt(**changes: Any) -> Attempt:
    usual: dict[str, Any] = {"job_id": job_id("job"), "attempt": 1, "epoch": EPOCH, "order": job_submitted(), "buyer": BUYER}
    return Attempt(**(usual | {"cards": (CARD,), "timeout_s": 60, "lease_sent_boot_ms": SENT_MS} | changes))


def node(**changes: Any) -> Node:
    return Node(**({"known_cards": frozenset({CARD})} | changes))


def status(state: RunState = RunState.EXITED, **changes: Any) -> RunStatus:
    key = RunKey(job_id=job_id("job"), attempt=1, epoch=EPOCH)
    return RunStatus(**({"key": key, "state": state, "ran_ms": 10, "exit_code": 0 if state is RunState.EXITED else None} | changes))


def of_epoch(kind: Any, epoch: int = EPOCH, **changes: Any) -> Any:
    return make(kind, job_id=job_id("job"), attempt=1, epoch=epoch, **changes)


CLAIMED: dict[str, Any] = {"standing": Standing.CLAIMED, "answered": True}
READY: dict[str, Any] = CLAIMED | {"prepared": Work.DONE}
RUNNING: dict[str, Any] = READY | {"run": Run.RUNNING, "given_s": 60, "started_told": True, "status": status(RunState.RUNNING)}
EXITED: dict[str, Any] = READY | {"run": Run.EXITED, "started_told": True, "status": status()}
SAVED: dict[str, Any] = EXITED | {"saved": Work.DONE, "saved_as": Saved()}
BUDGET = job_submitted(max_total_uusd=60_000)
"""A minute at 3.60 USD per GPU-hour."""
LAPSED: dict[str, Any] = {"lease_sent_boot_ms": NOW_MS - 120_000}

TABLE: list[tuple[str, dict[str, Any], dict[str, Any], list[Do]]] = [
    ("a match is claimed, and prepared meanwhile", {}, {}, [Do.CLAIM, Do.PREPARE]),
    ("a match is declined while the node takes nothing", {}, {"accepting": False}, [Do.DECLINE]),
    ("a match with a card that is not ours is declined", {"cards": ("GPU-9",)}, {}, [Do.DECLINE]),
    ("a match with too few cards is declined", {"cards": ()}, {}, [Do.DECLINE]),
    ("a session is declined where none can be served", {"order": job_submitted(kind=JobKind.NOTEBOOK)}, {}, [Do.DECLINE]),
    ("a job without a command is declined", {"order": job_submitted(program=Program())}, {}, [Do.DECLINE]),
    ("a match is answered once", {"answered": True}, {}, []),
    ("nothing starts before the claim is in the ledger", {"answered": True, "prepared": Work.DONE}, {}, []),
    ("nothing starts before it is prepared", CLAIMED | {"prepared": Work.DOING}, {}, []),
    ("a claimed job that nobody prepares is prepared", CLAIMED, {}, [Do.PREPARE]),
    ("a claimed and prepared job starts", READY, {}, [Do.START]),
    ("a card is used by one run at a time", READY, {"busy": {CARD: 3}}, []),
    ("a run that starts is left alone", READY | {"run": Run.STARTING}, {}, []),
    ("a start is told", RUNNING | {"started_told": False}, {}, [Do.TELL_STARTED]),
    ("a run is left alone", RUNNING, {}, []),
    ("a run that was given more time is told so", RUNNING | {"timeout_s": 90}, {}, [Do.EXTEND]),
    ("but not one that is being stopped", RUNNING | {"timeout_s": 90, "cancelled_by": BUYER}, {}, [Do.STOP]),
    ("nor one that its budget ends before", RUNNING | {"timeout_s": 90, "order": BUDGET, "price_uusd_per_gpu_hour": 3_600_000}, {}, []),
    ("a run over a limit of its buyer is stopped", RUNNING | {"over": Stop.IDLE}, {}, [Do.STOP]),
    ("a cancelled run is stopped", RUNNING | {"cancelled_by": BUYER}, {}, [Do.STOP]),
    ("a run without a lease is stopped", RUNNING | LAPSED, {}, [Do.STOP]),
    ("a run is stopped when the owner wants the node", RUNNING, {"evicting": True}, [Do.STOP]),
    ("a run on a card that fell ill is stopped", RUNNING, {"sick": frozenset({CARD})}, [Do.STOP]),
    ("a stop is told once", RUNNING | {"cancelled_by": BUYER, "stop": Stop.CANCEL, "stop_told": True}, {}, []),
    ("what a run left is saved", EXITED, {}, [Do.SAVE]),
    ("the end waits for what is being saved", EXITED | {"saved": Work.DOING}, {}, []),
    ("the end is reported with the cards", SAVED, {}, [Do.REPORT, Do.REMOVE]),
    ("start and end may be told together", SAVED | {"started_told": False}, {}, [Do.TELL_STARTED, Do.REPORT, Do.REMOVE]),
    ("an end is reported once", SAVED | {"reported": True, "released": True, "removed": Work.DONE}, {}, []),
    (
        "a failed start is not told as a start",
        SAVED | {"started_told": False, "status": status(error="program_not_found", ran_ms=0)},
        {},
        [Do.REPORT, Do.REMOVE],
    ),
    ("a lease that lapsed before the start ends the attempt", READY | LAPSED, {}, [Do.REMOVE]),
    ("what was prepared goes before the cards are free", READY | {"cancelled_by": BUYER}, {}, [Do.REMOVE]),
    ("then the end is reported", READY | {"cancelled_by": BUYER, "removed": Work.DONE}, {}, [Do.REPORT]),
    ("preparing is given up when the job is cancelled", CLAIMED | {"prepared": Work.DOING, "cancelled_by": BUYER}, {}, [Do.ABANDON]),
    ("that is said once", CLAIMED | {"prepared": Work.DOING, "cancelled_by": BUYER, "abandoned": True}, {}, []),
    ("what could not be prepared is cleaned up", CLAIMED | {"failure": Reason.INPUT_CORRUPT}, {}, [Do.REMOVE]),
    ("a run that the ledger took back is stopped", RUNNING | {"standing": Standing.GONE}, {}, [Do.STOP]),
    ("a run that the matcher ended is stopped", RUNNING | {"standing": Standing.ENDED}, {}, [Do.STOP]),
    ("its cards are released when it is gone", EXITED | {"standing": Standing.ENDED}, {}, [Do.REMOVE, Do.RELEASE]),
    ("of an attempt that is gone nothing is reported", EXITED | {"standing": Standing.GONE}, {}, [Do.REMOVE]),
    ("and it is forgotten", EXITED | {"standing": Standing.GONE, "removed": Work.DONE}, {}, [Do.FORGET]),
    ("but not while something is on its way", EXITED | {"standing": Standing.GONE, "removed": Work.DONE, "shipping": True}, {}, []),
    ("a match that is gone is cleaned up", {"standing": Standing.GONE, "answered": True, "prepared": Work.DONE}, {}, [Do.REMOVE]),
    ("a program that is just starting is waited for", READY | {"run": Run.STARTING, "standing": Standing.GONE}, {}, []),
]


@pytest.mark.parametrize(("changes", "of_node", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_due(changes: dict[str, Any], of_node: dict[str, Any], expected: list[Do]) -> None:
    assert expected == decide(attempt(**changes), node(**of_node), NOW_MS)


@pytest.mark.parametrize("changes", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_nothing_is_ordered_twice(changes: dict[str, Any]) -> None:
    one, place = attempt(**changes), node()
    decide(one, place, NOW_MS)
    assert [] == decide(one, place, NOW_MS)


def test_a_whole_life() -> None:
    one, place = attempt(lease_sent_boot_ms=0), node()
    assert [Do.CLAIM, Do.PREPARE] == decide(one, place, SENT_MS)
    assert SENT_MS == one.lease_sent_boot_ms, "the lease counts from the claim"
    one.prepared = Work.DONE
    hear(one, of_epoch(JobClaimed), SELLER)
    assert [Do.START] == decide(one, place, NOW_MS)
    assert {CARD: EPOCH} == place.busy
    one.run, one.status = Run.RUNNING, status(RunState.RUNNING)
    assert [Do.TELL_STARTED] == decide(one, place, NOW_MS)
    one.run, one.status = Run.EXITED, status()
    assert [Do.SAVE] == decide(one, place, NOW_MS)
    assert {} == place.busy
    one.saved, one.saved_as = Work.DONE, Saved()
    assert [Do.REPORT, Do.REMOVE] == decide(one, place, NOW_MS)
    one.removed = Work.DONE
    hear(one, of_epoch(JobSucceeded), SELLER)
    hear(one, of_epoch(GpusReleased), SELLER)
    assert [Do.FORGET] == decide(one, place, NOW_MS)


def test_the_lease_is_the_markets_and_the_node_is_always_first() -> None:
    place = node(lease_s=180)
    assert SENT_MS + 145_000 == guard_until_ms(place, SENT_MS)
    one = attempt(**RUNNING)
    assert [] == decide(one, place, SENT_MS + 119_999)
    assert [Do.STOP] == decide(one, place, SENT_MS + 120_000)
    assert Stop.LEASE is one.stop
    assert [Do.STOP] == decide(attempt(**RUNNING), node(lease_s=30), SENT_MS + 20_000)


def test_the_first_reason_to_stop_stays() -> None:
    one, place = attempt(**RUNNING | {"cancelled_by": BUYER}), node()
    decide(one, place, NOW_MS)
    decide(one, node(evicting=True), NOW_MS)
    assert Stop.CANCEL is one.stop


HEARD: list[tuple[str, Standing, Any, Standing]] = [
    ("our claim counts when it is in the ledger", Standing.MATCHED, of_epoch(JobClaimed), Standing.CLAIMED),
    ("of another epoch nothing counts", Standing.MATCHED, of_epoch(JobClaimed, 6), Standing.MATCHED),
    ("a claim after the end is void", Standing.GONE, of_epoch(JobClaimed), Standing.GONE),
    ("a declined match is gone", Standing.MATCHED, of_epoch(JobDeclined), Standing.GONE),
    ("a match that was cancelled is gone", Standing.MATCHED, JobCancelRequested(job_id=job_id("job")), Standing.GONE),
    ("a claimed job that is cancelled is still ours", Standing.CLAIMED, JobCancelRequested(job_id=job_id("job")), Standing.CLAIMED),
    ("another job's cancel is another's", Standing.MATCHED, JobCancelRequested(job_id=job_id("other")), Standing.MATCHED),
    ("the matcher may end an attempt", Standing.CLAIMED, of_epoch(JobFailed), Standing.ENDED),
    ("an expired lease is gone", Standing.CLAIMED, of_epoch(LeaseExpired, node_id=NODE), Standing.GONE),
    ("released cards are gone", Standing.ENDED, of_epoch(GpusReleased), Standing.GONE),
]


@pytest.mark.parametrize(("before", "event", "after"), [row[1:] for row in HEARD], ids=[row[0] for row in HEARD])
def test_what_the_ledger_says(before: Standing, event: Any, after: Standing) -> None:
    one = attempt(standing=before, answered=True)
    hear(one, event, BUYER)
    assert after is one.standing


def test_a_cancel_names_who_asked_and_an_extension_adds_time() -> None:
    one = attempt(**RUNNING)
    hear(one, JobCancelRequested(job_id=one.job_id), BUYER)
    hear(one, JobExtended(job_id=one.job_id, extra_s=30), BUYER)
    hear(one, of_epoch(JobStarted), SELLER)
    assert (BUYER, 90) == (one.cancelled_by, one.timeout_s)


REFUSED: list[tuple[str, Standing, Any, Refusal, Standing]] = [
    ("a claim that came too late is gone", Standing.MATCHED, JobClaimed, Refusal.STALE_EPOCH, Standing.GONE),
    ("a claim sent twice is no harm", Standing.CLAIMED, JobClaimed, Refusal.ILLEGAL_IN_STATE, Standing.CLAIMED),
    ("an end that is not ours to report leaves the cards", Standing.CLAIMED, JobSucceeded, Refusal.ILLEGAL_IN_STATE, Standing.ENDED),
    ("cards that the market took back are gone", Standing.CLAIMED, GpusReleased, Refusal.STALE_EPOCH, Standing.GONE),
    ("cards of a job that has not ended are still ours", Standing.CLAIMED, GpusReleased, Refusal.ILLEGAL_IN_STATE, Standing.CLAIMED),
    ("a start told twice is no harm", Standing.CLAIMED, JobStarted, Refusal.ILLEGAL_IN_STATE, Standing.CLAIMED),
]


@pytest.mark.parametrize(("before", "kind", "refusal", "after"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_a_refusal_means(before: Standing, kind: Any, refusal: Refusal, after: Standing) -> None:
    one = attempt(standing=before, answered=True)
    refused(one, of_epoch(kind), refusal)
    assert after is one.standing
