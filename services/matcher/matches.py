"""What the engine decides, and what of it is about gangs: K ranks as one job that wants K nodes. Pure; decides no order."""

from __future__ import annotations

from typing import NamedTuple

from events.values import JobId, NodeId, PriceUusdPerGpuHour, Requirements
from projections.job_states import QUEUED
from projections.jobs import Job
from projections.market import Market
from services.matcher.feasibility import Ask, asks_of, choose_cards
from services.matcher.policies import Rank
from services.matcher.price_index import ANY_PRICE

NOBODY: frozenset[NodeId] = frozenset()


class Match(NamedTuple):
    """A decision: the job, its node and cards, and the price that is locked."""

    job_id: JobId
    node_id: NodeId
    cards: tuple[str, ...]
    price_uusd_per_gpu_hour: PriceUusdPerGpuHour
    variant: int = 0
    """Which of the buyer's choices it gets."""
    others: tuple[Match, ...] = ()
    """Of a gang, whose rank 0 this is: the other ranks, to be matched with it, or none of them."""


class Gang(NamedTuple):
    """A gang all of whose ranks wait, as the one job that it is to the matcher."""

    ranks: tuple[Job, ...]
    not_before_ms: int
    price_uusd: int
    """The most that each rank pays."""
    timeout_s: int
    left_uusd: int | None
    """What a rank may still cost, where each has a limit."""


def match_of(market: Market, job_id: JobId, place: Rank, requirements: Requirements, variant: int = 0) -> Match:
    """The match of a job that is known to fit this node."""
    node = market.nodes[place[3]]
    cards = choose_cards(node, requirements)
    assert cards is not None, (job_id, place)
    return Match(job_id, node.node_id, cards, node.price_uusd_per_gpu_hour, variant)


def match_gang(market: Market, job_id: JobId, places: list[Rank]) -> Match:
    """The match of a gang whose rank 0 this is, with a node for each rank."""
    asked = market.jobs[job_id].submitted.requirements
    ranks = market.ranks_of(market.jobs[job_id])
    found = [match_of(market, rank.submitted.job_id, place, asked) for rank, place in zip(ranks, places, strict=True)]
    return found[0]._replace(others=tuple(found[1:]))


def gang_of(market: Market, job: Job) -> Gang | None:
    """The gang that this rank belongs to; None while not all of its ranks wait, and of a job that is no rank."""
    if job.submitted.num_nodes == 1:
        return None
    ranks = market.ranks_of(job)
    if len(ranks) < job.submitted.num_nodes or any(rank.state is not QUEUED for rank in ranks):
        return None
    prices = [rank.max_price_uusd_per_gpu_hour for rank in ranks]
    left = [rank.left_uusd for rank in ranks if rank.left_uusd is not None]
    return Gang(
        ranks,
        not_before_ms=max(rank.not_before_ms for rank in ranks),
        price_uusd=min(ANY_PRICE if price is None else price for price in prices),
        timeout_s=max(rank.timeout_s for rank in ranks),
        left_uusd=max(left) if len(left) == len(ranks) else None,
    )


def asks_as_one(market: Market, job: Job) -> tuple[Ask, ...]:
    """What a job asks, and what would do as well; of a gang, what all of its ranks ask as one."""
    asks, gang = asks_of(job), gang_of(market, job)
    if gang is None:
        return asks
    price = None if gang.price_uusd == ANY_PRICE else gang.price_uusd
    return (asks[0]._replace(max_price_uusd_per_gpu_hour=price, timeout_s=gang.timeout_s, left_uusd=gang.left_uusd),)


def first_rank(market: Market, job: Job | None) -> JobId | None:
    """The job that stands for the whole gang of this one, if it is another rank of a gang."""
    if job is None or job.submitted.rank == 0:
        return None
    first = market.ranks_of(job)[0].submitted
    return first.job_id if first.rank == 0 else None


def avoided(job: Job, now_ms: int) -> frozenset[NodeId]:
    """The nodes that it passes over now."""
    return frozenset(node_id for node_id, until_ms in job.avoid.items() if until_ms > now_ms) if job.avoid else NOBODY
