"""The life of a job, told as what happened and what is then true."""

from __future__ import annotations

import pytest
from builders import BUYER, JOB, NODE, START_MS, By, History, Later, job_submitted, make, node_offered, wallet

from events.jobs import (
    AttemptEvent,
    GpusReleased,
    JobCancelled,
    JobCancelRequested,
    JobClaimed,
    JobDeclined,
    JobExtended,
    JobFailed,
    JobMatched,
    JobRepriced,
    JobReprioritised,
    JobRequeued,
    JobStarted,
    JobSucceeded,
    JobTimedOut,
    LeaseExpired,
    SessionCloseRequested,
    SessionReady,
    UsageRecorded,
)
from events.nodes import NodeWithdrawn
from events.reasons import REASONS, Reason, Refusal
from events.values import BlobRef, JobKind
from projections.job_states import TERMINAL, TRANSITIONS, JobState


def begun(*, retries: int = 3, price: int = 3_600_000) -> History:
    """A job that one node has been given; 3.60 USD an hour is 1 micro-USD a millisecond."""
    history = History()
    history.happen(node_offered(price=price), job_submitted(retries=retries))
    history.happen(make(JobMatched, price_uusd_per_gpu_hour=price))
    return history


def of_run(history: History, kind: type[AttemptEvent], **changes: object) -> AttemptEvent:
    run = history.market.jobs[JOB].run
    assert run is not None
    return make(kind, attempt=run.attempt, epoch=run.epoch, **changes)


def running(**options: int) -> History:
    history = begun(**options)
    history.happen(of_run(history, JobClaimed))
    history.happen(of_run(history, JobStarted))
    return history


def test_a_job_goes_from_queued_to_succeeded_and_frees_its_card() -> None:
    history = History()
    history.happen(node_offered(), job_submitted())
    states = [history.market.jobs[JOB].state]
    for kind in (JobMatched, JobClaimed, JobStarted, JobSucceeded):
        history.happen(make(kind) if kind is JobMatched else of_run(history, kind))  # type: ignore[type-abstract,arg-type]
        states.append(history.market.jobs[JOB].state)
    assert ["queued", "matched", "claimed", "running", "succeeded"] == states
    assert 1 == len(history.market.nodes[NODE].taken)
    history.happen(of_run(history, GpusReleased))
    assert {} == history.market.nodes[NODE].taken
    assert {} == history.market.leases


def test_the_bill_is_price_times_measured_time_rounded_down_once() -> None:
    history = running(price=1_000_001)
    history.happen(Later(10_000))
    history.happen(of_run(history, JobSucceeded, ran_ms=9_999, exit_code=0))
    assert 9_999 * 1_000_001 // 3_600_000 == history.market.jobs[JOB].charged_uusd


def test_nobody_pays_for_longer_than_the_ledger_saw() -> None:
    history = running()
    history.happen(Later(1_000))
    history.happen(of_run(history, JobSucceeded, ran_ms=3_600_000, exit_code=0))
    assert 3_000 == history.market.jobs[JOB].charged_uusd, "one second, and two of slack for the reports"


def test_nobody_pays_for_the_grace_after_a_deadline() -> None:
    history = History()
    history.happen(node_offered(price=3_600_000), job_submitted(timeout_s=1), make(JobMatched, price_uusd_per_gpu_hour=3_600_000))
    history.happen(of_run(history, JobClaimed))
    history.happen(of_run(history, JobStarted), Later(1_400))
    history.happen(of_run(history, JobTimedOut, ran_ms=1_400))
    assert 1_000 == history.market.jobs[JOB].charged_uusd


def test_a_bill_never_passes_the_buyers_total() -> None:
    history = History()
    history.happen(node_offered(price=3_600_000), job_submitted(max_total_uusd=500))
    history.happen(make(JobMatched, price_uusd_per_gpu_hour=3_600_000))
    history.happen(of_run(history, JobClaimed))
    history.happen(of_run(history, JobStarted), Later(10_000))
    history.happen(of_run(history, JobSucceeded, ran_ms=9_000))
    assert 500 == history.market.jobs[JOB].charged_uusd


def test_a_queued_job_is_cancelled_without_a_node_ever_having_been_named() -> None:
    """Defect 1 of a system this replaces: its own schema forbade that."""
    history = History()
    history.happen(job_submitted(), make(JobCancelRequested))
    job = history.market.jobs[JOB]
    assert (JobState.CANCELLED, Reason.CANCELLED_BY_BUYER, None, 0) == (job.state, job.reason, job.run, job.charged_uusd)


def test_a_matched_job_is_cancelled_at_once_its_card_is_free_and_a_late_claim_is_void() -> None:
    history = begun()
    late = of_run(history, JobClaimed)
    history.happen(make(JobCancelRequested))
    assert JobState.CANCELLED is history.market.jobs[JOB].state
    assert {} == history.market.nodes[NODE].taken
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(late)


def test_a_cancelled_run_keeps_its_cards_until_the_node_says_they_are_clean() -> None:
    """Freeing them at the request leases a card twice; a simulation found that."""
    history = running()
    history.happen(make(JobCancelRequested))
    assert JobState.STOPPING is history.market.jobs[JOB].state
    assert 1 == len(history.market.nodes[NODE].taken)
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(of_run(history, GpusReleased))
    history.happen(of_run(history, JobCancelled))
    assert JobState.CANCELLED is history.market.jobs[JOB].state
    assert 1 == len(history.market.nodes[NODE].taken)
    history.happen(of_run(history, GpusReleased))
    assert {} == history.market.nodes[NODE].taken


def test_billing_stops_at_the_request_to_cancel() -> None:
    history = running()
    history.happen(Later(5_000), make(JobCancelRequested), Later(60_000))
    history.happen(of_run(history, JobCancelled, ran_ms=65_000))
    assert 7_000 == history.market.jobs[JOB].charged_uusd


def test_a_success_that_arrives_while_stopping_stays_cancelled_and_keeps_its_exit_code() -> None:
    history = running()
    history.happen(make(JobCancelRequested))
    history.happen(of_run(history, JobSucceeded, exit_code=0))
    job = history.market.jobs[JOB]
    assert (JobState.CANCELLED, Reason.CANCELLED_BY_BUYER) == (job.state, job.reason)
    assert job.run is not None
    assert 0 == job.run.exit_code


@pytest.mark.parametrize("reason", [reason for reason, row in REASONS.items() if row.state == "failed"])
def test_only_what_is_not_the_jobs_fault_is_tried_again(reason: Reason) -> None:
    history = running()
    history.happen(of_run(history, JobFailed, reason=reason))
    expected = JobState.QUEUED if REASONS[reason].retried else JobState.FAILED
    assert expected is history.market.jobs[JOB].state
    assert reason is history.market.jobs[JOB].reason


@pytest.mark.parametrize("reason", [reason for reason, row in REASONS.items() if row.state == "failed"])
def test_who_pays_stands_in_the_table(reason: Reason) -> None:
    history = running()
    history.happen(Later(1000))
    history.happen(of_run(history, JobFailed, reason=reason, ran_ms=1000))
    assert (1000 if REASONS[reason].payer == "buyer" else 0) == history.market.jobs[JOB].charged_uusd


def test_after_its_last_retry_a_job_has_failed() -> None:
    history = begun(retries=1)
    for attempt in (1, 2):
        assert JobState.MATCHED is history.market.jobs[JOB].state
        history.happen(of_run(history, LeaseExpired, reason=Reason.CLAIM_LATE))
        if attempt == 1:
            history.happen(make(JobMatched, attempt=2))
    assert (JobState.FAILED, 2) == (history.market.jobs[JOB].state, history.market.jobs[JOB].attempts)


def test_reports_of_an_older_attempt_are_void() -> None:
    history = running()
    old = of_run(history, JobSucceeded, exit_code=0)
    history.happen(of_run(history, LeaseExpired), make(JobMatched, attempt=2))
    assert Refusal.STALE_EPOCH == history.try_event(old)
    assert JobState.MATCHED is history.market.jobs[JOB].state


def test_a_lease_that_expires_after_the_end_only_frees_the_card() -> None:
    history = running()
    history.happen(of_run(history, JobSucceeded, exit_code=0))
    history.happen(of_run(history, LeaseExpired))
    assert JobState.SUCCEEDED is history.market.jobs[JOB].state
    assert {} == history.market.nodes[NODE].taken


def test_a_lease_that_expires_while_stopping_ends_the_job_cancelled() -> None:
    history = running()
    history.happen(make(JobCancelRequested), of_run(history, LeaseExpired))
    assert JobState.CANCELLED is history.market.jobs[JOB].state


def test_a_declined_match_frees_the_card_and_names_the_node_to_avoid() -> None:
    history = begun()
    history.happen(of_run(history, JobDeclined))
    assert {} == history.market.nodes[NODE].taken
    history.happen(make(JobRequeued, attempt=2, avoid_node=NODE, avoid_until_ms=START_MS + 90_000))
    assert {NODE: START_MS + 90_000} == history.market.jobs[JOB].avoid


def test_another_sellers_report_is_refused() -> None:
    history = begun()
    thief = wallet("thief")
    history.happen(By(thief, node_offered("other", owner=thief)))
    assert Refusal.NOT_YOURS == history.try_event(By(thief, of_run(history, JobClaimed)))


def test_another_buyers_cancel_is_refused() -> None:
    history = running()
    assert Refusal.NOT_YOURS == history.try_event(By(wallet("stranger"), make(JobCancelRequested)))


def test_a_job_id_is_taken_once_and_the_same_submission_twice_is_one_job() -> None:
    history = History()
    history.happen(job_submitted(), job_submitted())
    assert 1 == len(history.market.jobs)
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(job_submitted(timeout_s=60))
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(By(wallet("stranger"), job_submitted()))
    assert {BUYER: 1} == history.market.queued_of


def test_priority_and_price_change_while_queued_and_not_after() -> None:
    history = History()
    history.happen(node_offered(), job_submitted(), make(JobReprioritised, priority=100), make(JobRepriced, max_price_uusd_per_gpu_hour=7))
    job = history.market.jobs[JOB]
    assert (100, 7) == (job.priority, job.max_price_uusd_per_gpu_hour)
    history.happen(make(JobMatched))
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(make(JobReprioritised))
    history.happen(make(JobExtended, extra_s=60))
    assert 3660 == job.timeout_s


def started_session(*, retries: int = 3) -> History:
    history = History()
    history.happen(node_offered(price=3_600_000), job_submitted(kind=JobKind.NOTEBOOK, retries=retries))
    history.happen(make(JobMatched, price_uusd_per_gpu_hour=3_600_000))
    history.happen(of_run(history, JobClaimed))
    history.happen(of_run(history, JobStarted))
    return history


def test_a_session_is_starting_until_it_is_ready_and_a_lost_one_pays_to_its_last_usage() -> None:
    history = started_session()
    assert JobState.STARTING is history.market.jobs[JOB].state
    history.happen(of_run(history, SessionReady), Later(10_000))
    history.happen(of_run(history, UsageRecorded, ran_ms=4_000), Later(10_000))
    history.happen(of_run(history, LeaseExpired, reason=Reason.NODE_LOST))
    assert 4_000 == history.market.jobs[JOB].charged_uusd


def test_a_lost_session_leaves_what_it_saved_last() -> None:
    history = started_session(retries=0)
    first, last = BlobRef(sha256="ab" * 32, size=10), BlobRef(sha256="cd" * 32, size=10)
    for saved in (first, last, None):
        history.happen(of_run(history, UsageRecorded, ran_ms=4_000, results=saved, results_bytes=7 if saved else 0))
    history.happen(of_run(history, LeaseExpired, reason=Reason.NODE_LOST))
    job = history.market.jobs[JOB]
    assert job.run is not None
    assert (JobState.FAILED, last, 7) == (job.state, job.run.results, job.run.results_bytes)


def test_a_session_that_is_being_closed_is_not_started_again_elsewhere() -> None:
    history = started_session()
    history.happen(make(SessionCloseRequested))
    assert history.market.jobs[JOB].closing
    history.happen(of_run(history, LeaseExpired, reason=Reason.NODE_LOST))
    assert JobState.FAILED is history.market.jobs[JOB].state


def test_a_batch_job_cannot_be_closed() -> None:
    history = running()
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(make(SessionCloseRequested))


def test_a_card_is_never_given_twice_whatever_the_matcher_says() -> None:
    history = begun()
    history.happen(job_submitted("second"))
    second = history.market.jobs[job_submitted("second").job_id].submitted.job_id
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(make(JobMatched, job_id=second))


def test_a_node_that_is_not_offered_is_given_nothing() -> None:
    history = History()
    history.happen(node_offered(), job_submitted(), make(NodeWithdrawn))
    assert Refusal.ILLEGAL_IN_STATE == history.try_event(make(JobMatched))


def test_what_is_over_stays_over() -> None:
    assert {state: {} for state in TERMINAL} == {state: rows for state, rows in TRANSITIONS.items() if state in TERMINAL}
    assert set(JobState) == set(TRANSITIONS)


def test_a_timeout_is_not_a_failure() -> None:
    history = running()
    history.happen(of_run(history, JobTimedOut))
    assert (JobState.TIMED_OUT, Reason.RUN_TIMEOUT) == (history.market.jobs[JOB].state, history.market.jobs[JOB].reason)
