"""What a reader sees of jobs and nodes: the contract's JSON, field by field, from the fold and the last heartbeats. Pure.

Names here are the API's, so they change only with the contract. `None` is written as `null`; nothing is left out.
"""

from __future__ import annotations

import msgspec

from events.values import Isolation, RunUsage
from events.wire import BeatLease
from projections.job_states import HELD, QUEUED, TERMINAL
from projections.jobs import Job, Run
from projections.market import Market
from projections.nodes import Node, NodeState, free_cards, planned, state_at
from projections.run_limits import time_limit
from services.api.backlogs import backlog_s
from services.api.telemetry import Telemetry

OUTPUT_KEPT_MS = 30 * 86_400_000


class GpuView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A card that a job has."""

    index: int | None
    uuid: str
    model: str | None
    vram_mib: int | None


class UsingView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a run does at present, by the last heartbeat of its node."""

    ran_ms: int
    gpu_percent: int | None
    """In the mean of its cards."""
    memory_mib: int
    gpu_memory_mib: int | None
    """Of the card with the most."""


class UsageView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an ended attempt used, as its node measured it. Lists are in the order of `gpus`; `null`: could not be read."""

    gpus: list[str]
    """UUIDs of its cards."""
    samples: int
    """How often it was looked at; with 0 nothing else means anything."""
    cpu_ms: int
    peak_memory_mib: int
    mean_gpu_percent: list[int | None]
    max_gpu_percent: list[int | None]
    peak_gpu_memory_mib: list[int | None]


class JobView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job. What belongs to an attempt is that of the present one, or of the last; a queued job has none."""

    id: str
    state: str
    reason: str | None
    detail: str | None
    phase: str | None
    kind: str
    name: str | None
    buyer: str
    buyer_alias: str | None
    org: str | None
    group: str | None
    labels: dict[str, str]
    node: str | None
    node_name: str | None
    gpus: list[GpuView]
    num_gpus: int
    num_nodes: int
    """More than 1: it is a rank of a gang; all ranks share the group."""
    rank: int
    image: str | None
    image_digest: str | None
    """Exactly which image it is or was run in."""
    price_uusd_per_gpu_hour: int | None
    max_price_uusd_per_gpu_hour: int | None
    priority: int
    queue_position: int | None
    attempt: int
    epoch: int | None
    exit_code: int | None
    submitted_ms: int
    matched_ms: int | None
    started_ms: int | None
    ended_ms: int | None
    updated_ms: int
    timeout_s: int
    estimate_s: int | None
    charged_uusd: int | None
    ran_ms: int | None
    stdout_bytes: int | None
    stderr_bytes: int | None
    results_bytes: int | None
    results_sha256: str | None
    kept_until_ms: int | None
    closing: bool
    cores: int
    memory_mib: int
    """Asked for; 0: nothing was said, likewise of `cores`."""
    limit_s: int
    """How long the run may take: the timeout, or what its estimate or its budget allows."""
    warning: str | None
    """What will end the run soon, as its node says."""
    using: UsingView | None
    usage: UsageView | None
    submitted_seq: int
    updated_seq: int


def job_view(job: Job, market: Market, *, lease: BeatLease | None = None, queue_position: int | None = None) -> JobView:
    """The JSON of a job. `lease`: what its node last said is going on."""
    asked, run, is_over = job.submitted, shown_run(job), job.state in TERMINAL
    node = None if run is None else market.nodes.get(run.node_id)
    has_reported = is_over and run is not None and run.ended_ms > 0
    return JobView(
        id=asked.job_id,
        state=job.state.value,
        reason=None if job.reason is None else job.reason.value,
        detail=(None if job.run is None else job.run.detail) or None,
        phase=lease.phase or None if lease is not None and job.state in HELD else None,
        kind=asked.kind.value,
        name=asked.name,
        buyer=job.buyer,
        buyer_alias=_alias(market, asked.org_id, job.buyer),
        org=asked.org_id,
        group=asked.group_id,
        labels=asked.labels,
        node=None if run is None else run.node_id,
        node_name=None if node is None else node.offer.name,
        gpus=[] if run is None else _gpus(run, node),
        num_gpus=job.requirements.num_gpus,
        num_nodes=asked.num_nodes,
        rank=asked.rank,
        image=_image(job, node),
        image_digest=None if job.run is None else job.run.image_digest or None,
        price_uusd_per_gpu_hour=None if run is None else run.price_uusd_per_gpu_hour,
        max_price_uusd_per_gpu_hour=job.max_price_uusd_per_gpu_hour,
        priority=job.priority,
        queue_position=queue_position,
        attempt=job.attempts,
        epoch=None if run is None else run.epoch,
        exit_code=run.exit_code if is_over and run is not None else None,
        submitted_ms=job.submitted_ms,
        matched_ms=None if run is None else run.matched_ms,
        started_ms=(None if run is None else run.started_ms) or None,
        ended_ms=job.ended_ms or None,
        updated_ms=job.updated_ms,
        timeout_s=job.timeout_s,
        estimate_s=asked.estimate_s,
        charged_uusd=job.charged_uusd if is_over or job.charged_uusd else None,
        ran_ms=run.ran_ms if has_reported and run is not None else None,
        stdout_bytes=run.stdout_bytes if has_reported and run is not None else None,
        stderr_bytes=run.stderr_bytes if has_reported and run is not None else None,
        results_bytes=run.results_bytes if has_reported and run is not None else None,
        results_sha256=None if run is None or run.results is None else run.results.sha256,
        kept_until_ms=job.ended_ms + OUTPUT_KEPT_MS if has_reported else None,
        closing=job.closing,
        cores=job.requirements.cores,
        memory_mib=job.requirements.memory_mib,
        limit_s=time_limit(asked, job.timeout_s, 0 if run is None else run.price_uusd_per_gpu_hour)[0],
        warning=lease.warning or None if lease is not None and job.state in HELD else None,
        using=_using(lease) if lease is not None and job.state in HELD else None,
        usage=None if run is None or run.usage is None else _usage(run, run.usage),
        submitted_seq=job.submitted_seq,
        updated_seq=job.updated_seq,
    )


def _using(lease: BeatLease) -> UsingView:
    return UsingView(
        ran_ms=lease.ran_ms, gpu_percent=known(lease.gpu_percent), memory_mib=lease.memory_mib, gpu_memory_mib=known(lease.gpu_memory_mib)
    )


def _usage(run: Run, usage: RunUsage) -> UsageView:
    return UsageView(
        gpus=list(run.cards),
        samples=usage.samples,
        cpu_ms=usage.cpu_ms,
        peak_memory_mib=usage.peak_memory_mib,
        mean_gpu_percent=[known(value) for value in usage.mean_gpu_percent],
        max_gpu_percent=[known(value) for value in usage.max_gpu_percent],
        peak_gpu_memory_mib=[known(value) for value in usage.peak_gpu_memory_mib],
    )


def shown_run(job: Job) -> Run | None:
    """The attempt that a reader is told of: while a job is queued again, none."""
    return None if job.state is QUEUED else job.run


def without_secrets(view: JobView) -> JobView:
    """The same job for a stranger: that it is there and what it holds, not what it is called or what it says."""
    return msgspec.structs.replace(
        view, name=None, labels={}, detail=None, buyer_alias=None, image=None, image_digest=None, warning=None, using=None, usage=None
    )


def _alias(market: Market, org_id: str | None, wallet: str) -> str | None:
    org = market.identity.orgs.get(org_id or "")
    return None if org is None else org.aliases.get(wallet)


def _gpus(run: Run, node: Node | None) -> list[GpuView]:
    known = {} if node is None else {card.uuid: card for card in node.offer.cards}
    views = []
    for uuid in run.cards:
        card = known.get(uuid)  # None: the node offered itself anew without it
        views.append(
            GpuView(
                index=None if card is None else card.index,
                uuid=uuid,
                model=None if card is None else card.model,
                vram_mib=None if card is None else card.vram_mib,
            )
        )
    return sorted(views, key=lambda view: -1 if view.index is None else view.index)


def _image(job: Job, node: Node | None) -> str | None:
    """What was asked for, else what the node takes when nothing is."""
    asked = job.submitted.program.image
    if asked is not None or node is None or node.offer.isolation is Isolation.PROCESS:
        return asked
    return node.offer.default_image


class CardView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A card of a node. Readings are those of the last heartbeat; `None`: unknown."""

    index: int
    uuid: str
    model: str
    vram_mib: int
    driver: str | None
    cuda: int | None
    simulated: bool
    healthy: bool
    state: str
    """`free`, `taken`, or `unhealthy` when nobody holds it and nobody can."""
    job: str | None
    gpu_percent: int | None
    memory_used_mib: int | None
    temperature_c: int | None
    power_w: int | None
    ecc_errors: int | None
    """Uncorrected ones in its memory, since its driver was loaded."""
    processes: int | None
    unhealthy: str | None
    """Why it is not healthy, in its node's words."""
    pci: str | None
    compute_capability: str | None
    mig: bool
    """A slice of a card."""


class NodeView(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node."""

    id: str
    name: str
    owner: str
    state: str
    suspect: bool
    simulated: bool
    price_uusd_per_gpu_hour: int
    num_gpus: int
    gpus_free: int
    cards: list[CardView]
    cores: int
    cores_free: int
    memory_mib: int
    memory_free_mib: int
    isolation: str
    egress: bool
    accept: str
    min_gpus: int
    labels: dict[str, str]
    org: str | None
    default_image: str | None
    images_allow: tuple[str, ...]
    """Which images may run there, as patterns; empty: any."""
    images_warm: tuple[str, ...]
    """Images that are there already, the last used first."""
    tier: str
    agent_version: str | None
    drain_reason: str | None
    drain_deadline_ms: int | None
    maintenance_from_ms: int | None
    maintenance_until_ms: int | None
    maintenance_reason: str | None
    offered_ms: int
    first_ms: int
    updated_ms: int
    heard_ms: int | None
    uptime_s: int | None
    """Since it was last offered; `None` while it is not."""
    backlog_s: int
    """When everything that runs there is over at the latest, by the timeouts."""
    jobs: dict[str, int]
    """How many attempts ended there in which way."""
    running: list[str]
    """Ids of the jobs that hold cards there."""
    updated_seq: int


def node_view(node: Node, market: Market, telemetry: Telemetry, now_ms: int) -> NodeView:
    """The JSON of a node."""
    offer = node.offer
    is_offered = node.presence is NodeState.OFFERED
    from_ms, until_ms, why = planned(node, now_ms) or (None, None, "")
    return NodeView(
        id=offer.node_id,
        name=offer.name,
        owner=node.wallet,
        state=state_at(node, now_ms).value,
        suspect=telemetry.is_suspect(node, market.policy.suspect_s, now_ms),
        simulated=any(card.simulated for card in offer.cards),
        price_uusd_per_gpu_hour=node.price_uusd_per_gpu_hour,
        num_gpus=len(offer.cards),
        gpus_free=len(free_cards(node)),
        cards=_cards(node, telemetry),
        cores=offer.cores,
        cores_free=offer.cores - node.cores_taken,
        memory_mib=offer.memory_mib,
        memory_free_mib=offer.memory_mib - node.memory_taken_mib,
        isolation=offer.isolation.value,
        egress=offer.egress,
        accept=offer.accept.value,
        min_gpus=offer.min_gpus,
        labels=offer.labels,
        org=offer.org_id,
        default_image=offer.default_image,
        images_allow=offer.images_allow,
        images_warm=offer.images_warm,
        tier=node.tier.value if node.tier_until_ms > now_ms else "claimed",
        agent_version=offer.agent_version or None,
        drain_reason=node.drain_reason or None,
        drain_deadline_ms=node.drain_deadline_ms,
        maintenance_from_ms=from_ms,
        maintenance_until_ms=until_ms,
        maintenance_reason=why or None,
        offered_ms=node.offered_ms,
        first_ms=node.first_ms,
        updated_ms=node.updated_ms,
        heard_ms=telemetry.heard_ms(node.node_id),
        uptime_s=max(0, now_ms - node.offered_ms) // 1000 if is_offered else None,
        backlog_s=backlog_s(node, market, now_ms),
        jobs=node.ended,
        running=list(dict.fromkeys(allocation.job_id for allocation in node.allocations.values())),
        updated_seq=node.updated_seq,
    )


def _cards(node: Node, telemetry: Telemetry) -> list[CardView]:
    views = []
    for card in sorted(node.offer.cards, key=lambda card: card.index):
        epoch = node.taken.get(card.uuid)
        allocation = None if epoch is None else node.allocations.get(epoch)
        beat = telemetry.card(node.node_id, card.uuid)
        healthy = card.healthy and (beat is None or beat.healthy)
        views.append(
            CardView(
                index=card.index,
                uuid=card.uuid,
                model=card.model,
                vram_mib=card.vram_mib,
                driver=card.driver or None,
                cuda=card.cuda or None,
                simulated=card.simulated,
                healthy=healthy,
                state="taken" if epoch is not None else "free" if healthy else "unhealthy",
                job=None if allocation is None else allocation.job_id,
                gpu_percent=None if beat is None else known(beat.gpu_percent),
                memory_used_mib=None if beat is None else beat.memory_used_mib,
                temperature_c=None if beat is None else known(beat.temperature_c),
                power_w=None if beat is None else known(beat.power_w),
                ecc_errors=None if beat is None else known(beat.ecc_errors),
                processes=None if beat is None else known(beat.processes),
                unhealthy=None if beat is None else beat.unhealthy or None,
                pci=card.pci or None,
                compute_capability=card.compute_capability or None,
                mig=card.mig,
            )
        )
    return views


def known(reading: int) -> int | None:
    """A reading, None when it could not be read."""
    return None if reading < 0 else reading
