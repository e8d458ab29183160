"""`/v1/state` and `/v1/prices`: everything that one look at the market needs, in one answer of bounded size; and prices over time."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import msgspec

from projections.nodes import Node, NodeState, free_cards
from services.api import queries
from services.api.asking import Asked, Endpoint, Reply
from services.api.candles import MINUTE_MS, NO_CARD, POINTS_MAX, Point, series
from services.api.job_endpoints import held_jobs, seen
from services.api.market_views import MarketView, StatsView, market_view, stats_view
from services.api.mirror import Mirror, Reason
from services.api.views import JobView, NodeView, node_view
from services.matcher.why import Moment, why_in_words

NODES_MAX = 200
JOBS_MAX = 100
DAY_MS = 86_400_000
LOOKS_MAX = 10_000
"""Nodes that are asked for the reasons of one answer, over all jobs."""
FEW_NODES = 200
"""As long as there are no more, every reason is found anew for every answer;"""
REASON_SERVES_MS_PER_NODE = 1
"""beyond, one serves for so long."""
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
    nodes = [node for node in market.nodes.values() if _is_there(node)]
    shown = list(islice((node for node in mirror.by_name() if node.state is NodeState.OFFERED), NODES_MAX))
    if len(shown) < NODES_MAX:
        others = (node for node in mirror.by_name() if node.state is not NodeState.OFFERED and _is_there(node))
        shown += islice(others, NODES_MAX - len(shown))
    running = held_jobs(market)
    view = StateView(
        market=market_view(market, mirror.follower.void, None),
        stats=stats_view(market, mirror.telemetry, mirror.hour, asked.now_ms),
        models=models(mirror, nodes),
        nodes=[node_view(node, market, mirror.telemetry, asked.now_ms) for node in shown],
        nodes_total=len(nodes),
        queued=[seen(asked, market.jobs[name]) for name in islice(mirror.standing.queue.in_order(), JOBS_MAX)],
        queued_total=len(mirror.standing.queue),
        running=[seen(asked, job) for job in running[:JOBS_MAX]],
        running_total=len(running),
        reasons=reasons(asked, len(nodes)),
        now_ms=asked.now_ms,
    )
    return Reply(asked.as_of_seq, view)


def _is_there(node: Node) -> bool:
    return node.state is not NodeState.WITHDRAWN or bool(node.allocations)


def reasons(asked: Asked, nodes: int) -> dict[str, str]:
    """Why queued jobs wait, for the first of them. What was found out lately is told again where there are many nodes to look at."""
    mirror, market = asked.mirror, asked.mirror.market
    most = max(3, min(JOBS_MAX, LOOKS_MAX // max(1, nodes)))
    serves_ms = nodes * REASON_SERVES_MS_PER_NODE if nodes > FEW_NODES else 0
    looks, suspects, found = LOOKS_MAX, None, {}
    for place, name in enumerate(islice(mirror.standing.queue.in_order(), most)):
        job = market.jobs[name]
        if not asked.viewer.may_see_job(job):
            continue
        reason = mirror.reasons.get(name)
        if reason is None or (asked.now_ms - reason.at_ms >= serves_ms and looks > 0):
            if suspects is None:
                suspects = mirror.telemetry.suspects(market.nodes, market.policy.suspect_s, asked.now_ms)
            moment = Moment(max(asked.now_ms, market.time_ms), suspects, (), place)
            reason = mirror.reasons[name] = Reason(why_in_words(market, job, moment, mirror.offer_keys), asked.now_ms)
            looks -= nodes
        found[name] = reason.words
    return found


def models(mirror: Mirror, nodes: list[Node]) -> list[ModelView]:
    """What is on offer, by model, the most cards first."""
    found: dict[str, list[int]] = {}
    for node in nodes:
        if node.state is not NodeState.OFFERED:
            continue
        price = node.price_uusd_per_gpu_hour
        for model, gpus, free in _free_by_model(mirror, node) or ((NO_CARD, 0, 0),):
            row = found.setdefault(model, [0, 0, 0, price, price])
            row[0] += 1
            row[1] += gpus
            row[2] += free
            if price < row[3]:
                row[3] = price
            elif price > row[4]:
                row[4] = price
    views = [
        ModelView(model=model, nodes=row[0], gpus=row[1], gpus_free=row[2], low_uusd=row[3], high_uusd=row[4])
        for model, row in found.items()
    ]
    return sorted(views, key=lambda view: (-view.gpus, view.model))


def _free_by_model(mirror: Mirror, node: Node) -> tuple[tuple[str, int, int], ...]:
    """(model, cards, free ones) of a node."""
    supply = mirror.supply(node)
    if not node.taken:
        return supply.models
    free = Counter(card.model for card in free_cards(node))
    return tuple((model, gpus, free[model]) for model, gpus, _ in supply.models)


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
