"""After a restart: what the journal, the runner and the ledger say of one attempt, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest
from builders import BUYER, job_id, job_submitted

from events.reasons import Reason
from events.wire import SyncJob
from seller_agent.attempts.attempt import Attempt, Run, Saved, Standing, Stop, Work
from seller_agent.attempts.decisions import Do, Node, decide
from seller_agent.attempts.reconcile import catch_up, restore
from seller_agent.runners.runner import RunKey, RunState, RunStatus

NOW_MS = 10**6
CARD = "GPU-1"
KEY = RunKey(job_id=job_id("job"), attempt=1, epoch=7)


def kept(**changes: Any) -> Attempt:
    usual: dict[str, Any] = {"job_id": KEY.job_id, "attempt": 1, "epoch": 7, "order": job_submitted(), "buyer": BUYER, "timeout_s": 60}
    standing = {"standing": Standing.CLAIMED, "answered": True, "output_token": "ab" * 8, "lease_sent_boot_ms": NOW_MS - 1000}
    return Attempt(**(usual | standing | {"cards": (CARD,)} | changes))


def held(state: str, **changes: Any) -> SyncJob:
    usual = {"job_id": KEY.job_id, "attempt": 1, "epoch": 7, "cards": (CARD,), "buyer": BUYER, "order": job_submitted(), "timeout_s": 60}
    return SyncJob(state=state, **(usual | changes))


def found(state: RunState, **changes: Any) -> RunStatus:
    return RunStatus(key=KEY, state=state, ran_ms=5, **changes)


RUNNING, EXITED, PREPARED = found(RunState.RUNNING), found(RunState.EXITED, exit_code=0), found(RunState.PREPARED)
STARTED = {"run": Run.RUNNING, "prepared": Work.DONE, "started_told": True}
REPORTED = {
    "run": Run.EXITED,
    "status": EXITED,
    "prepared": Work.DONE,
    "saved": Work.DONE,
    "saved_as": Saved(),
    "reported": True,
    "released": True,
    "removed": Work.DONE,
}

TABLE: list[tuple[str, Attempt | None, RunStatus | None, SyncJob | None, list[Do]]] = [
    ("a match that came while the agent was away is taken", None, None, held("matched"), [Do.CLAIM, Do.PREPARE]),
    ("a claim that never got there is made again", kept(standing=Standing.MATCHED), None, held("matched"), [Do.CLAIM, Do.PREPARE]),
    ("a claimed job that never started is prepared again", kept(prepared=Work.DOING), None, held("claimed"), [Do.PREPARE]),
    ("also when the journal does not know it", None, None, held("claimed"), [Do.PREPARE]),
    ("a prepared one starts", kept(), PREPARED, held("claimed"), [Do.START]),
    ("a start that nobody was told of is told", kept(), RUNNING, held("claimed"), [Do.TELL_STARTED, Do.EXTEND]),
    ("a run goes on, for as long as it may now", kept(**STARTED), RUNNING, held("running"), [Do.EXTEND]),
    ("also when the journal does not know it", None, RUNNING, held("running"), [Do.EXTEND]),
    ("a session that was closed meanwhile is stopped", kept(**STARTED), RUNNING, held("running", closing=True), [Do.STOP]),
    ("a run that ended meanwhile is saved", kept(**STARTED), EXITED, held("running"), [Do.SAVE]),
    ("also one that nobody knew to have started", None, EXITED, held("claimed"), [Do.TELL_STARTED, Do.SAVE]),
    ("a run that is gone is cleaned up, then reported", kept(**STARTED), None, held("running"), [Do.REMOVE]),
    (
        "a stop is ordered again",
        kept(**STARTED, stop=Stop.CANCEL, stop_told=True, cancelled_by=BUYER),
        RUNNING,
        held("stopping"),
        [Do.STOP],
    ),
    ("a cancel that came meanwhile stops the run", kept(**STARTED), RUNNING, held("stopping"), [Do.STOP]),
    ("an end that the ledger never got is reported again", kept(**REPORTED), None, held("running"), [Do.REPORT]),
    ("cards of a job that ended there are released", kept(**REPORTED), None, held("succeeded"), [Do.RELEASE]),
    ("cards of a job that is elsewhere now are released", None, None, held("gone", order=None), [Do.REMOVE]),
    ("what was reported and taken is forgotten", kept(**REPORTED), None, None, [Do.FORGET]),
    ("but not while its output is on its way", kept(**REPORTED, shipping=True), None, None, []),
    ("a run whose epoch the ledger no longer holds is stopped", kept(**STARTED), RUNNING, None, [Do.STOP]),
    ("a run that nobody knows is stopped", None, RUNNING, None, [Do.STOP]),
    ("what is left of one is removed", None, EXITED, None, [Do.REMOVE]),
]


@pytest.mark.parametrize(("journal", "runner", "ledger", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_after_a_restart(journal: Attempt | None, runner: RunStatus | None, ledger: SyncJob | None, expected: list[Do]) -> None:
    [attempt] = restored(journal, runner, ledger)
    assert expected == decide(attempt, Node(known_cards=frozenset({CARD})), NOW_MS)


def restored(journal: Attempt | None, runner: RunStatus | None, ledger: SyncJob | None, *, same_boot: bool = True) -> list[Attempt]:
    return restore(
        [journal] if journal else [], [runner] if runner else [], [ledger] if ledger else [], same_boot=same_boot, now_boot_ms=NOW_MS
    )


@pytest.mark.parametrize(("same_boot", "reason"), [(True, Reason.RUNTIME_RESTARTED), (False, Reason.HOST_RESTARTED)])
def test_a_run_that_is_gone_says_why(same_boot: bool, reason: Reason) -> None:
    [attempt] = restored(kept(**STARTED), None, held("running"), same_boot=same_boot)
    assert reason is attempt.failure


def test_a_crash_loop_renews_nothing() -> None:
    old = kept(**STARTED, lease_sent_boot_ms=NOW_MS - 120_000)
    [attempt] = restored(old, RUNNING, held("running"))
    assert [Do.STOP] == decide(attempt, Node(known_cards=frozenset({CARD})), NOW_MS)
    assert Stop.LEASE is attempt.stop


def test_catching_up_takes_new_matches_and_lets_go_of_what_is_gone() -> None:
    attempts = {7: kept(**STARTED), 9: kept(epoch=9, standing=Standing.MATCHED)}
    changed = catch_up(attempts, [held("matched", epoch=8)], as_of_seq=8)
    assert [(7, Standing.GONE), (8, Standing.MATCHED)] == [(attempt.epoch, attempt.standing) for attempt in changed]
    assert Standing.MATCHED is attempts[9].standing, "it is newer than the answer"


def test_catching_up_never_goes_back() -> None:
    attempts = {7: kept(standing=Standing.ENDED)}
    assert [] == catch_up(attempts, [held("running")], as_of_seq=20)
    assert Standing.ENDED is attempts[7].standing


def test_catching_up_hears_a_cancel() -> None:
    attempts = {7: kept(**STARTED)}
    assert [attempts[7]] == catch_up(attempts, [held("stopping")], as_of_seq=20)
    assert BUYER == attempts[7].cancelled_by
