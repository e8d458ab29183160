"""Quotes, the same over HTTP and over NATS: who could run this, by the matcher's own conditions."""

from __future__ import annotations

import msgspec

from events.why import Step
from events.wire import QuoteAnswer, QuoteOffer, QuoteRequest
from services.api.access import Viewer
from services.api.mirror import Mirror
from services.matcher.quotes import Known, quote


class QuoteView(msgspec.Struct, frozen=True, kw_only=True):
    """Who could run a job. The words are those of `rpc.quote`."""

    steps: list[Step]
    offers: list[QuoteOffer]
    could_run: int
    free_now: int
    free_in_s: int | None
    failing: str | None
    only_simulated: bool
    paused: bool
    price_from_uusd: int | None
    queue_position: int | None
    change: str


def quoted(mirror: Mirror, request: QuoteRequest, viewer: Viewer, now_ms: int) -> QuoteAnswer:
    """The quote for who asks; a stranger is told of nodes that take anyone's jobs."""
    market = mirror.market
    job = None if request.job_id is None else market.jobs.get(request.job_id)
    if job is not None and not viewer.may_see_job(job):
        request = msgspec.structs.replace(request, job_id=None)
    suspects = mirror.telemetry.suspects(market.nodes, market.policy.suspect_s, now_ms)
    position = None if request.job_id is None else mirror.standing.queue.position(request.job_id)
    first = (market.jobs[name] for name in mirror.standing.queue.in_order() if name in market.jobs)
    return quote(market, request, viewer.wallet or "", now_ms, suspects, known=Known(mirror.offer_keys, position, first))


def quote_view(answer: QuoteAnswer) -> QuoteView:
    """The JSON of a quote."""
    return QuoteView(
        steps=[Step(condition=step.condition, asked=step.asked, nodes=step.nodes) for step in answer.steps],
        offers=list(answer.offers),
        could_run=answer.could_run,
        free_now=answer.free_now,
        free_in_s=answer.free_in_s,
        failing=answer.failing,
        only_simulated=answer.only_simulated,
        paused=answer.paused,
        price_from_uusd=answer.price_from_uusd,
        queue_position=answer.queue_position,
        change=answer.change,
    )
