"""What a limit is to a person: which of them keeps a job waiting, and how far it is used up. Pure; `limits.py` decides."""

from __future__ import annotations

from projections.jobs import Job
from projections.market import Limit, Market
from projections.parties import Party, spent_this_month_uusd, spent_today_uusd
from services.matcher.feasibility import Ask, ask_of, usd
from services.matcher.limits import UNLIMITED_UUSD, limits_of, price_cap
from services.matcher.rules import PartyUse


def told(market: Market, job: Job, now_ms: int) -> str:
    """What keeps a job from being matched, for a person; empty when its limits allow it somewhere."""
    return told_of(market, ask_of(job), now_ms)


def told_of(market: Market, ask: Ask, now_ms: int) -> str:
    """The same of what is asked for and not submitted yet."""
    gpus = ask.requirements.num_gpus
    cap = price_cap(
        market,
        ask.buyer,
        ask.org_id,
        num_gpus=gpus,
        timeout_s=ask.timeout_s,
        left_uusd=ask.left_uusd,
        num_nodes=ask.num_nodes,
        now_ms=now_ms,
    )
    if cap == UNLIMITED_UUSD:
        return ""
    found = []
    for name, limit in limits_of(market, ask.buyer, ask.org_id):
        who = "your wallet" if name == ask.buyer else "your organisation"
        party = market.parties.get(name)
        words = _cards(who, limit, gpus * ask.num_nodes, 0 if party is None else party.gpus)
        if words:
            return words
        found += _money(who, limit, party, now_ms)
    return "; ".join(found)


def _cards(who: str, limit: Limit, asked: int, has: int) -> str:
    """Too many cards by themselves, or beside those that it has."""
    if limit.gpus is None or has + asked <= limit.gpus:
        return ""
    if not limit.gpus:
        return f"{who} may have no GPU; only the operator can change that"
    most = f"{who} may have {count(limit.gpus)} at once"
    if asked > limit.gpus:
        return f"{most}, and this job asks for {asked}: ask for fewer, or ask the operator for more"
    return f"{most} and has {has}"


def _money(who: str, limit: Limit, party: Party | None, now_ms: int) -> list[str]:
    committed = 0 if party is None else party.committed_uusd
    today, month = (0, 0) if party is None else (spent_today_uusd(party, now_ms), spent_this_month_uusd(party, now_ms))
    return [
        f"{who} may spend {usd(most)} {span}, and {usd(spent + committed)} are spent or may yet be by what runs"
        for most, spent, span in ((limit.spend_day_uusd, today, "a day"), (limit.spend_month_uusd, month, "a month"))
        if most is not None
    ]


def count(gpus: int) -> str:
    """A number of cards."""
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def beyond(use: PartyUse) -> list[str]:
    """What a party uses already, where its limit is below that: a limit takes nothing away. For the operator."""
    limit, found = use.limit, []
    if limit.gpus is not None and use.gpus > limit.gpus:
        found.append(f"It has {count(use.gpus)} now: what runs goes on, and nothing new starts while it has {limit.gpus or 1} or more")
    for most, spent, span in (
        (limit.spend_day_uusd, use.day_uusd, "today"),
        (limit.spend_month_uusd, use.month_uusd, "this month"),
    ):
        if most is not None and spent + use.committed_uusd > most:
            left = f"and {usd(use.committed_uusd)} may be by what runs" if use.committed_uusd else "and nothing runs"
            found.append(
                f"{usd(spent)} are spent {span} {left}: what runs goes on, and nothing new starts that could cost more than is left"
            )
    return found
