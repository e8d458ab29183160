"""What is asked of an event beyond what its fold asks: quotas, limits, and requirements that contradict each other. Pure.

A check looks at the market and changes nothing. What it refuses is told to the sender in words (`detail`) that say what would do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from events.fact import Event
from events.jobs import JobExtended, JobReprioritised, JobSubmitted
from events.market import PolicyChanged
from events.nodes import NodeOffered
from events.reasons import Refusal
from events.values import Accept, JobKind, OrgRole, Requirements
from projections.job_states import HELD
from projections.market import Market
from projections.parties import worst_uusd
from services.matcher.feasibility import usd
from services.matcher.limits import money_left, priority_max
from services.matcher.policies import POLICIES


class Problem(NamedTuple):
    """Why an event cannot be admitted."""

    refusal: Refusal
    detail: str = ""


def check_submission(market: Market, wallet: str, event: JobSubmitted, *, ranks: int = 1) -> Problem | None:
    """Quotas, and requirements that no node could ever meet because they contradict each other."""
    if event.job_id in market.jobs:
        return None  # the fold knows whether it is the same one sent again
    if event.num_nodes != ranks:
        return Problem(Refusal.INVALID_REQUIREMENT, "the ranks of a gang come one after the other, from 0 on, in one message")
    problem = _check_requirements(event) or _check_target(market, event)
    if problem is not None:
        return problem
    if event.org_id is not None:
        org = market.identity.orgs.get(event.org_id)
        role = None if org is None else org.members.get(wallet)
        if role is None:
            return Problem(Refusal.NOT_A_MEMBER)
        if role is OrgRole.VIEWER:
            return Problem(Refusal.NOT_A_MEMBER, "a viewer looks, and submits nothing for the organisation")
    problem = _check_priority(market, wallet, event.org_id, event.priority)
    if problem is not None:
        return problem
    policy = market.policy
    if event.program.inputs_bytes > policy.inputs_bytes_max:
        why = f"inputs may have {policy.inputs_bytes_max} bytes and have {event.program.inputs_bytes}"
        return Problem(Refusal.QUOTA_EXCEEDED, why)
    if market.queued_of.get(wallet, 0) + ranks > policy.max_queue:
        has = market.queued_of.get(wallet, 0)
        more = "" if ranks == 1 else f", which leaves no room for {ranks} ranks"
        return Problem(Refusal.QUEUE_FULL, f"a wallet may have {_jobs(policy.max_queue)} in the queue, and this one has {has}{more}")
    return None


def _check_requirements(event: JobSubmitted) -> Problem | None:
    asked = event.requirements
    told = None
    if event.num_nodes == 1 and event.rank:
        told = "a job that is no gang has no rank but 0"
    elif asked.sessions is not (event.kind is not JobKind.BATCH):
        told = "a notebook or container needs a node that serves sessions, and a batch job does not"
    elif asked.image not in (None, event.program.image):
        told = "the image asked of the node is not the one that the program names"
    elif event.kind is JobKind.BATCH and not event.program.argv:
        told = "there is no command"
    elif event.kind is JobKind.CONTAINER and not (event.program.argv or event.program.image):
        told = "a container needs an image or a command"
    elif (event.program.secrets is None) is not (not event.program.secret_names):
        told = "the names of secrets and their sealed values do not come together"
    elif any("\0" in argument for argument in event.program.argv):
        told = "an argument holds a zero byte"
    elif asked.num_gpus == 0 and (asked.vram_mib or asked.total_vram_mib or asked.gpu_models):
        told = "GPU memory or a GPU model is asked for, but no GPU"
    elif asked.target_cards and (asked.target_node is None or len(set(asked.target_cards)) != asked.num_gpus):
        told = "the target cards are not as many as the GPUs asked for"
    elif not all(_is_variant(other, asked) for other in event.variants) or (asked.target_node and event.variants):
        told = "a variant may differ in cards, cores and memory only, and goes with no target"
    elif len({msgspec.msgpack.encode(one) for one in (asked, *event.variants)}) <= len(event.variants):
        told = "two variants are the same"
    return None if told is None else Problem(Refusal.INVALID_REQUIREMENT, told)


VARYING = ("num_gpus", "vram_mib", "total_vram_mib", "gpu_models", "min_cuda", "cores", "memory_mib", "shm_mib")
"""Fields in which the variants of a job may differ."""


def _is_variant(one: Requirements, asked: Requirements) -> bool:
    if one.num_gpus == 0 and (one.vram_mib or one.total_vram_mib or one.gpu_models):
        return False
    return msgspec.structs.replace(one, **{field: getattr(asked, field) for field in VARYING}) == asked


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number} jobs"


def _check_offer(market: Market, wallet: str, event: NodeOffered) -> Problem | None:
    """A node that takes an organisation's jobs names one that there is, or it would take nobody's."""
    if event.accept is Accept.ORGANISATION and event.org_id not in market.identity.orgs:
        return Problem(Refusal.NOT_A_MEMBER, f"there is no organisation {event.org_id or 'named in the offer'}")
    return None


def _check_target(market: Market, event: JobSubmitted) -> Problem | None:
    target = event.requirements.target_node
    if target is None:
        return None
    node = market.nodes.get(target)
    if node is None:
        return Problem(Refusal.UNKNOWN_TARGET, f"no node {target}")
    there = {card.index for card in node.offer.cards}
    missing = sorted(set(event.requirements.target_cards) - there)
    if missing:
        return Problem(Refusal.UNKNOWN_TARGET, f"node {node.offer.name} has cards {sorted(there)}, not {missing}")
    return None


def _check_priority(market: Market, wallet: str, org_id: str | None, priority: int) -> Problem | None:
    most = priority_max(market, wallet, org_id)
    if most is not None and priority > most:
        why = f"priority {priority} is above {most}, the highest that this wallet or organisation may use: take {most} or less"
        return Problem(Refusal.QUOTA_EXCEEDED, why)
    return None


def _check_reprioritised(market: Market, wallet: str, event: JobReprioritised) -> Problem | None:
    job = market.jobs.get(event.job_id)
    return None if job is None else _check_priority(market, job.buyer, job.submitted.org_id, event.priority)


def _check_extension(market: Market, wallet: str, event: JobExtended) -> Problem | None:
    """A run that may last longer may cost more; its limits hold for that, too."""
    job = market.jobs.get(event.job_id)
    if job is None or job.state not in HELD or job.run is None:
        return None
    asked, price = job.submitted, job.run.price_uusd_per_gpu_hour
    after_uusd = worst_uusd(job.timeout_s + event.extra_s, job.requirements.num_gpus, price, job.left_uusd)
    more_uusd, left_uusd = after_uusd - job.run.stake.uusd, money_left(market, job.buyer, asked.org_id, market.time_ms)
    if more_uusd > left_uusd:
        why = f"the longer run may cost {usd(more_uusd)} more, and the wallet or its organisation may still spend {usd(max(0, left_uusd))}"
        return Problem(Refusal.QUOTA_EXCEEDED, why)
    return None


def _check_policy(market: Market, wallet: str, event: PolicyChanged) -> Problem | None:
    if event.policy.name not in POLICIES:
        return Problem(Refusal.INVALID_REQUIREMENT, f"there is no policy {event.policy.name}; there are {', '.join(POLICIES)}")
    return None


CHECKS: dict[type[Event], Callable[[Market, str, Any], Problem | None]] = {
    JobSubmitted: check_submission,
    NodeOffered: _check_offer,
    JobReprioritised: _check_reprioritised,
    JobExtended: _check_extension,
    PolicyChanged: _check_policy,
}
"""What is asked of an event beyond what its fold asks."""
