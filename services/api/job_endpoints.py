"""Jobs, the queue, and what is said of a job: unfinished ones from memory, ended ones from the read model, as one list.

What is unfinished and the rows not yet on disk are taken in one moment; rows that were written since are told apart by their sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from events.page import decode_page, records_of
from projections.job_states import HELD
from projections.jobs import Job
from services.api import queries
from services.api.asking import Asked, Endpoint, Reply, job_in_memory, job_that_ended
from services.api.event_feed import EventView, event_view
from services.api.paging import LIMIT_DEFAULT, BySeq
from services.api.paging import read as read_cursor
from services.api.paging import write as write_cursor
from services.api.read_model import TERMINAL_STATES, JobFilter
from services.api.views import JobView, shown_run, without_secrets

QUEUE_MAX = 500


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, newest first."""

    items: list[msgspec.Raw]
    next_cursor: str | None


class JobPageShape(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs, newest first."""

    items: list[JobView]
    next_cursor: str | None


async def jobs(asked: Asked) -> Reply:
    """Jobs that pass the filters, newest first."""
    wanted, limit = _filter(asked), asked.value("limit", LIMIT_DEFAULT)
    cursor = read_cursor(asked.value("cursor"), BySeq)
    before_seq = None if cursor is None else cursor.seq
    mirror, as_of_seq = asked.mirror, asked.as_of_seq
    found: dict[int, bytes] = {}
    if not wanted.states or wanted.states - TERMINAL_STATES:
        passing = (job for job in _unfinished(asked, wanted, before_seq) if _passes(job, wanted))
        found = {job.submitted_seq: mirror.row_of(job) for job in islice(passing, limit + 1)}
    if not wanted.states or wanted.states & TERMINAL_STATES:
        unwritten = [row for row in mirror.unwritten() if wanted.passes(row) and (before_seq is None or row.submitted_seq < before_seq)]
        # who has a page of newer ones already needs none that is older than all of them
        above_seq = min(found) if len(found) > limit else 0
        rows = await asked.source.read_model.jobs(wanted, before_seq=before_seq, above_seq=above_seq, as_of_seq=as_of_seq, limit=limit + 1)
        for row in (*rows, *unwritten):
            found.setdefault(row.submitted_seq, row.body)
    newest = sorted(found, reverse=True)
    shown = newest[:limit]
    next_cursor = write_cursor(BySeq(shown[-1])) if len(newest) > limit else None
    return Reply(as_of_seq, JobPage(items=[msgspec.Raw(found[seq]) for seq in shown], next_cursor=next_cursor))


def _filter(asked: Asked) -> JobFilter:
    return JobFilter(
        states=frozenset(asked.value("state", ())),
        buyer=asked.value("buyer"),
        node=asked.value("node"),
        org=asked.value("org"),
        group=asked.value("group"),
        labels=asked.value("label", ()),
        since_ms=asked.value("since_ms"),
        until_ms=asked.value("until_ms"),
        seen_by=None if _is_own_node(asked) else asked.viewer.bounds,
    )


def _is_own_node(asked: Asked) -> bool:
    """Whether only one node's jobs are asked for, by its owner, who has run them."""
    node = asked.mirror.market.nodes.get(asked.value("node") or "")
    return node is not None and node.wallet == asked.viewer.wallet


def _unfinished(asked: Asked, wanted: JobFilter, before_seq: int | None) -> Iterator[Job]:
    market = asked.mirror.market
    return (market.jobs[name] for name in asked.mirror.standing.unfinished.newest_first(wanted, before_seq))


def _passes(job: Job, wanted: JobFilter) -> bool:
    """As `JobFilter.passes`, of a job in memory. The node is that of a job's present attempt."""
    asked, run = job.submitted, shown_run(job)
    return (
        (not wanted.states or job.state.value in wanted.states)
        and wanted.buyer in (None, job.buyer)
        and (wanted.node is None or (run is not None and run.node_id == wanted.node))
        and wanted.org in (None, asked.org_id)
        and wanted.group in (None, asked.group_id)
        and all(_is_labelled(job, label) for label in wanted.labels)
        and (wanted.since_ms is None or job.submitted_ms >= wanted.since_ms)
        and (wanted.until_ms is None or job.submitted_ms < wanted.until_ms)
        and (wanted.seen_by is None or job.buyer == wanted.seen_by[0] or asked.org_id in wanted.seen_by[1])
    )


def _is_labelled(job: Job, label: str) -> bool:
    key, _, value = label.partition("=")
    return job.submitted.labels.get(key) == value


async def job(asked: Asked) -> Reply:
    """One job."""
    found = job_in_memory(asked)
    if found is not None:
        return Reply(asked.as_of_seq, asked.mirror.view_of(found))
    as_of_seq = asked.as_of_seq
    ended = await job_that_ended(asked)
    return Reply(max(as_of_seq, ended.ended_seq), ended.body)


class JobEvents(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says of one job, oldest first."""

    items: list[EventView]
    next_cursor: str | None


async def job_events(asked: Asked) -> Reply:
    """The events of one job, read back from the ledger, oldest first."""
    if job_in_memory(asked) is None:
        await job_that_ended(asked)
    as_of_seq, limit = asked.as_of_seq, asked.value("limit", LIMIT_DEFAULT)
    cursor = read_cursor(asked.value("cursor"), BySeq)
    after_seq = 0 if cursor is None else cursor.seq
    unwritten = asked.mirror.unwritten_places(asked.name)
    places = sorted({*await asked.source.read_model.places(asked.name), *unwritten})
    items: list[EventView] = []
    for place in places:
        stored = await asked.source.ledger.read(place)
        assert stored is not None, f"the ledger has lost page {place}"
        page = decode_page(stored.data)
        if page.first_seq + len(page.entries) <= after_seq:
            continue
        about = [record for record in records_of(page) if getattr(record.event, "job_id", None) == asked.name]
        items += [event_view(record, private=True) for record in about if after_seq < record.seq <= as_of_seq]
        if len(items) > limit:
            break
    next_cursor = write_cursor(BySeq(items[limit - 1].seq)) if len(items) > limit else None
    return Reply(as_of_seq, JobEvents(items=items[:limit], next_cursor=next_cursor))


class QueueView(msgspec.Struct, frozen=True, kw_only=True):
    """What waits, first to be placed first, and what runs, oldest first; the first 500 of each."""

    queued: list[JobView]
    running: list[JobView]
    queued_total: int
    running_total: int


async def queue(asked: Asked) -> Reply:
    """What waits and what runs."""
    mirror, market = asked.mirror, asked.mirror.market
    waiting = [market.jobs[name] for name in islice(mirror.standing.queue.in_order(), QUEUE_MAX)]
    running_total, running = held_jobs(asked, QUEUE_MAX)
    view = QueueView(
        queued=[seen(asked, job) for job in waiting],
        running=[seen(asked, job) for job in running],
        queued_total=len(mirror.standing.queue),
        running_total=running_total,
    )
    return Reply(asked.as_of_seq, view)


def held_jobs(asked: Asked, most: int) -> tuple[int, list[Job]]:
    """How many jobs a node has, and the oldest of them."""
    total, names = asked.mirror.standing.unfinished.among(state.value for state in HELD)
    return total, [asked.mirror.market.jobs[name] for name in islice(names, most)]


def seen(asked: Asked, job: Job) -> JobView:
    """A job as this reader may see it."""
    view = asked.mirror.view_of(job)
    return view if asked.viewer.may_see_job(job) else without_secrets(view)


JOB_ENDPOINTS = (
    Endpoint("/v1/jobs", jobs, JobPageShape, "Jobs, newest first.", queries.JOBS, past=True),
    Endpoint("/v1/jobs/{name}", job, JobView, "One job.", past=True),
    Endpoint("/v1/jobs/{name}/events", job_events, JobEvents, "What the ledger says of a job.", queries.PAGE, past=True),
    Endpoint("/v1/queue", queue, QueueView, "What waits and what runs.", past=True),
)
