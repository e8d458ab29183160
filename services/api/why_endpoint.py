"""`/v1/jobs/{id}/why`: why a job is not running, now or at a past moment, and its whole wait as intervals; the same over `rpc.why`."""

from __future__ import annotations

import msgspec

from events.why import Why
from projections.jobs import Job
from services.api import queries
from services.api.asking import Asked, Endpoint, Reply, job_that_ended
from services.api.past import Until, moment
from services.api.problems import bad_query
from services.matcher.waits import WaitWatch
from services.matcher.why import Moment, why


async def job_why(asked: Asked) -> Reply:
    """Why a job is not running."""
    as_of, wants_waits = asked.value("as_of"), asked.value("waits", False)
    live = asked.mirror.market.jobs.get(asked.name)
    if live is None or not asked.viewer.may_see_job(live):
        await job_that_ended(asked)  # says who may see it, and whether there is one
        live = None
    if as_of is None and live is not None and not wants_waits:
        return Reply(asked.as_of_seq, _now(asked, live))
    return await _then(asked, as_of, wants_waits=wants_waits)


def _now(asked: Asked, job: Job) -> Why:
    mirror = asked.mirror
    market, queue = mirror.market, mirror.standing.queue
    mirror.tallies.settle(asked.now_ms)
    position = queue.position(job.submitted.job_id)
    moment = Moment(max(asked.now_ms, market.time_ms), mirror.tallies.silent, None if position is None else queue.in_order(), position or 0)
    return why(market, job, moment, mirror.offer_keys)


async def _then(asked: Asked, as_of: int | None, *, wants_waits: bool) -> Reply:
    """From the ledger folded again, up to the moment; without one, up to where the mirror stands."""
    past = asked.source.past
    until = Until(seq=asked.as_of_seq) if as_of is None else moment(as_of, asked.as_of_seq, asked.now_ms)
    now_ms = asked.now_ms if as_of is None else until.time_ms or 0
    watch = WaitWatch(asked.name) if wants_waits else None
    market = (await past.mirror(until, asked.viewer)).market if watch is None else await past.watched(until, watch, asked.viewer)
    job = market.jobs.get(asked.name)
    if job is None:
        raise bad_query("as_of", "the job did not exist then, or had ended long before")
    live = asked.mirror.market.jobs.get(asked.name)
    is_now = as_of is None and live is not None and live.updated_seq == job.updated_seq
    answer = _now(asked, live) if is_now and live is not None else why(market, job, Moment(max(market.time_ms, now_ms)))
    if watch is not None:
        intervals = watch.end(answer.time_ms if not job.ended_ms else market.time_ms)
        wait_ms = sum(interval.until_ms - interval.from_ms for interval in intervals)
        answer = msgspec.structs.replace(answer, waits=intervals, wait_ms=wait_ms)
    return Reply(market.last_seq, answer)


WHY = Endpoint("/v1/jobs/{name}/why", job_why, Why, "Why a job is not running.", queries.WHY)
