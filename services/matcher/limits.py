"""What the operator's limits still allow a wallet and its organisation. Pure; who is limited to what stands in the market.

A limit stops new matches and nothing else. All limits of a moment come down to one number for a kind of job: the highest price at which it
may be matched, so that the matcher can treat them as a price.
"""

from __future__ import annotations

from collections.abc import Iterator

from projections.jobs import Job
from projections.market import Limit, Market
from projections.parties import Party, spent_this_month_uusd, spent_today_uusd

UNLIMITED_UUSD = 1 << 62
NOTHING_UUSD = -1
"""Not even a job that costs nothing."""
HOUR_MS = 3_600_000


def limits_of(market: Market, wallet: str | None, org_id: str | None) -> list[tuple[str, Limit]]:
    """The limits that such a job stands under, each with whose it is."""
    limits = market.limits
    return [(name, limits[name]) for name in (wallet, org_id) if name is not None and name in limits] if limits else []


def is_limited(market: Market, wallet: str, org_id: str | None) -> bool:
    """Whether anything is limited for this wallet or organisation."""
    limits = market.limits
    return bool(limits) and (wallet in limits or org_id in limits)


def limits_money(market: Market, wallet: str, org_id: str | None) -> bool:
    """Whether what may be spent is limited."""
    return any(limit.spend_day_uusd is not None or limit.spend_month_uusd is not None for _, limit in limits_of(market, wallet, org_id))


def priority_max(market: Market, wallet: str, org_id: str | None) -> int | None:
    """The highest priority that a job may have; None: any."""
    return min((limit.priority_max for _, limit in limits_of(market, wallet, org_id) if limit.priority_max is not None), default=None)


def money_left(market: Market, wallet: str | None, org_id: str | None, now_ms: int) -> int:
    """What may still be spent, with all that runs taken at its worst: `UNLIMITED_UUSD`, or less than 0 when it is too much already."""
    return min(
        (room for name, limit in limits_of(market, wallet, org_id) for room in _rooms(market.parties.get(name), limit, now_ms)),
        default=UNLIMITED_UUSD,
    )


def _rooms(party: Party | None, limit: Limit, now_ms: int) -> Iterator[int]:
    committed = 0 if party is None else party.committed_uusd
    if limit.spend_day_uusd is not None:
        yield limit.spend_day_uusd - committed - (0 if party is None else spent_today_uusd(party, now_ms))
    if limit.spend_month_uusd is not None:
        yield limit.spend_month_uusd - committed - (0 if party is None else spent_this_month_uusd(party, now_ms))


def cards_left(market: Market, wallet: str | None, org_id: str | None) -> int | None:
    """How many more cards may be had now; None: any number."""
    parties = market.parties
    found = [
        limit.gpus - (parties[name].gpus if name in parties else 0)
        for name, limit in limits_of(market, wallet, org_id)
        if limit.gpus is not None
    ]
    return min(found, default=None)


def cap_for(market: Market, job: Job, now_ms: int) -> int:
    """The same for a job that is known."""
    asked = job.submitted
    gpus = asked.requirements.num_gpus
    return price_cap(
        market,
        job.buyer,
        asked.org_id,
        num_gpus=gpus,
        timeout_s=job.timeout_s,
        left_uusd=job.left_uusd,
        num_nodes=asked.num_nodes,
        now_ms=now_ms,
    )


def price_cap(
    market: Market,
    wallet: str | None,
    org_id: str | None,
    *,
    num_gpus: int,
    timeout_s: int,
    left_uusd: int | None,
    num_nodes: int = 1,
    now_ms: int,
) -> int:
    """The highest price at which such a job keeps its wallet and its organisation within their limits, at its worst. `left_uusd`: what
    its buyer lets it cost at most, on each of so many nodes."""
    if not market.limits:
        return UNLIMITED_UUSD
    cards = cards_left(market, wallet, org_id)
    if cards is not None and num_gpus * num_nodes > max(0, cards):
        return NOTHING_UUSD
    room = money_left(market, wallet, org_id, now_ms)
    if room == UNLIMITED_UUSD:
        return UNLIMITED_UUSD
    if room < 0:
        return NOTHING_UUSD
    if left_uusd is not None and left_uusd * num_nodes <= room:
        return UNLIMITED_UUSD
    return ((room + 1) * HOUR_MS - 1) // (max(1, timeout_s) * 1000 * max(1, num_gpus) * num_nodes)
