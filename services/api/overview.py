"""`/v1/state` and `/v1/prices`: everything that one look at the market needs, in one answer of bounded size; and prices over time."""

from __future__ import annotations

from itertools import islice

import msgspec

from projections.jobs import Job
from projections.nodes import NodeState
from services.api import queries
from services.api.asking import Asked, Endpoint, Reply
from services.api.candles import MINUTE_MS, POINTS_MAX, Point, series
from services.api.job_endpoints import held_jobs, seen
from services.api.market_views import MarketView, StatsView, market_view, stats_view
from services.api.tallies import Tallies, is_there
from services.api.views import JobView, NodeView, node_view

NODES_MAX = 200
JOBS_MAX = 100
DAY_MS = 86_400_000
STEPS_MINUTES = (1, 5, 15, 60, 240, 1440, 10_080)


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """The cards of one model that are on offer now."""

    model: str
    nodes: int
    gpus: int
    gpus_free: int
    low_uusd: int
    """The lowest and the highest price of a GPU-hour that is asked."""
    high_uusd: int


class StateView(msgspec.Struct, frozen=True, kw_only=True):
    """The market at one moment. Lists are cut off; the totals are not."""

    market: MarketView
    stats: StatsView
    models: list[ModelView]
    nodes: list[NodeView]
    """Offered ones first, by name; at most 200."""
    nodes_total: int
    queued: list[JobView]
    queued_total: int
    running: list[JobView]
    running_total: int
    reasons: dict[str, str]
    """Why the first of the queued jobs wait, by their ids."""
    now_ms: int
    """The API's own clock, or the moment that was asked for."""


async def state(asked: Asked) -> Reply:
    """The market at one moment."""
    mirror, market = asked.mirror, asked.mirror.market
    mirror.tallies.settle(asked.now_ms)
    await mirror.words.prepare(_first_queued(asked), asked.now_ms)
    mirror.tallies.settle(asked.now_ms)
    shown = list(islice((node for node in mirror.by_name() if node.state is NodeState.OFFERED), NODES_MAX))
    if len(shown) < NODES_MAX:
        others = (node for node in mirror.by_name() if node.state is not NodeState.OFFERED and is_there(node))
        shown += islice(others, NODES_MAX - len(shown))
    running_total, running = held_jobs(asked, JOBS_MAX)
    view = StateView(
        market=market_view(market, mirror.follower.void, None),
        stats=stats_view(market, mirror.tallies, mirror.hour, asked.now_ms),
        models=models(mirror.tallies),
        nodes=[node_view(node, market, mirror.telemetry, asked.now_ms) for node in shown],
        nodes_total=mirror.tallies.there,
        queued=[seen(asked, market.jobs[name]) for name in islice(mirror.standing.queue.in_order(), JOBS_MAX)],
        queued_total=len(mirror.standing.queue),
        running=[seen(asked, job) for job in running],
        running_total=running_total,
        reasons=mirror.words.tell(_first_queued(asked), asked.now_ms),
        now_ms=asked.now_ms,
    )
    return Reply(asked.as_of_seq, view)


def _first_queued(asked: Asked) -> list[tuple[int, Job]]:
    """The first of the queued jobs that the reader may see, as far as reasons are told, each with its place."""
    mirror = asked.mirror
    first = enumerate(islice(mirror.standing.queue.in_order(), mirror.words.most()))
    found = ((place, mirror.market.jobs[name]) for place, name in first)
    return [(place, job) for place, job in found if asked.viewer.may_see_job(job)]


def models(tallies: Tallies) -> list[ModelView]:
    """What is on offer, by model, the most cards first."""
    views = [
        ModelView(
            model=model,
            nodes=len(tally.prices_uusd),
            gpus=tally.gpus,
            gpus_free=tally.free,
            low_uusd=tally.prices_uusd[0],
            high_uusd=tally.prices_uusd[-1],
        )
        for model, tally in tallies.models.items()
    ]
    return sorted(views, key=lambda view: (-view.gpus, view.model))


class SeriesView(msgspec.Struct, frozen=True, kw_only=True):
    """The matches of one model over time."""

    model: str
    points: list[Point]
    """[when the step began, lowest, mean and highest price of a GPU-hour, matches] each; steps without a match are left out."""


class PricesView(msgspec.Struct, frozen=True, kw_only=True):
    """Matches over time."""

    items: list[SeriesView]
    step_ms: int
    since_ms: int
    until_ms: int


async def prices(asked: Asked) -> Reply:
    """What was paid, by model, in steps that fit the time asked for: a day up to now when nothing is said."""
    as_of_seq = asked.as_of_seq
    until_ms = min(asked.value("until_ms", asked.now_ms + MINUTE_MS), asked.now_ms + MINUTE_MS)
    since_ms = asked.value("since_ms", until_ms - DAY_MS)
    minutes = max(1, (until_ms - since_ms) // MINUTE_MS)
    step = next((step for step in STEPS_MINUTES if minutes <= step * POINTS_MAX), -(-minutes // POINTS_MAX))
    model = asked.value("model")
    first, last = since_ms // MINUTE_MS, -(-until_ms // MINUTE_MS)
    rows, pages = await asked.source.read_model.candles(model, first, last)
    newer = [row for row in asked.mirror.candles.beyond(pages) if first <= row[0][1] < last and model in (None, row[0][0])]
    found = series([*rows, *newer], step)
    items = [SeriesView(model=name, points=points) for name, points in found.items()]
    return Reply(as_of_seq, PricesView(items=items, step_ms=step * MINUTE_MS, since_ms=since_ms, until_ms=until_ms))


OVERVIEW_ENDPOINTS = (
    Endpoint("/v1/state", state, StateView, "The market at one moment.", past=True),
    Endpoint("/v1/prices", prices, PricesView, "What was paid over time, by model.", queries.PRICES, public=True),
)
