"""What a limit is to a person: which of them keeps a job waiting, and how far it is used up. Pure; `limits.py` decides."""

from __future__ import annotations

from projections.jobs import Job
from projections.market import Market
from projections.parties import spent_this_month_uusd, spent_today_uusd
from services.matcher.feasibility import usd
from services.matcher.limits import UNLIMITED_UUSD, cap_for, limits_of


def told(market: Market, job: Job, now_ms: int) -> str:
    """What keeps a job from being matched, for a person; empty when its limits allow it somewhere."""
    if cap_for(market, job, now_ms) == UNLIMITED_UUSD:
        return ""
    asked, found = job.submitted, []
    for name, limit in limits_of(market, job.buyer, asked.org_id):
        who = "your wallet" if name == job.buyer else "your organisation"
        party = market.parties[name]
        if limit.gpus is not None and party.gpus + asked.requirements.num_gpus * asked.num_nodes > limit.gpus:
            return f"{who} may have {limit.gpus} GPUs at once and has {party.gpus}"
        for most, spent_uusd, span in (
            (limit.spend_day_uusd, spent_today_uusd(party, now_ms), "a day"),
            (limit.spend_month_uusd, spent_this_month_uusd(party, now_ms), "a month"),
        ):
            if most is not None:
                used = usd(spent_uusd + party.committed_uusd)
                found.append(f"{who} may spend {usd(most)} {span}, and {used} are spent or may yet be by what runs")
    return "; ".join(found)
