"""What the matcher answers about its own state: where a wallet stands, and what its node holds. Pure, from the fold."""

from __future__ import annotations

from events.wire import Outcome, SyncAnswer, SyncJob, SyncNode, SyncRequest
from projections.job_states import STOPPING
from projections.jobs import Job
from projections.market import Market

JOBS_MAX = 1000


def sync(market: Market, request: SyncRequest, wallet: str, live_token: str, secret_key: bytes) -> SyncAnswer:
    """Where this wallet stands: its key's numbers, its unfinished jobs, its node with everything that holds cards."""
    session = market.identity.keys.get(request.key)
    if session is not None and session.wallet != wallet:
        session = None
    outcomes: tuple[Outcome, ...] = ()
    if session is not None:
        outcomes = tuple(Outcome(number, digest, seq, refusal) for number, (digest, seq, refusal) in session.outcomes.items())
    return SyncAnswer(
        as_of_seq=market.last_seq,
        page_hash=market.page_hash,
        time_ms=market.time_ms,
        live_token=live_token,
        prev=market.last_seq_of.get(wallet, 0),
        key_known=session is not None,
        key_last_number=0 if session is None else session.last_number,
        outcomes=outcomes,
        jobs=_jobs(market, request.job_ids, wallet),
        node=_node(market, request.node_id, wallet),
        policy=market.policy,
        secret_key=secret_key,
    )


def _jobs(market: Market, job_ids: tuple[str, ...], wallet: str) -> tuple[SyncJob, ...]:
    found = []
    for job_id in job_ids[:JOBS_MAX]:
        job = market.jobs.get(job_id)
        if job is not None and wallet in (job.buyer, job.run.node_wallet if job.run else ""):
            found.append(sync_job(job, with_order=False))
    return tuple(found)


def _node(market: Market, node_id: str | None, wallet: str) -> SyncNode | None:
    node = None if node_id is None else market.nodes.get(node_id)
    if node is None or node.wallet != wallet or node_id is None:
        return None
    held = []
    for epoch, allocation in node.allocations.items():
        job = market.jobs.get(allocation.job_id)
        if job is not None and job.run is not None and job.run.epoch == epoch:
            held.append(sync_job(job, with_order=True))
        else:  # the job has gone on elsewhere, or is no longer in memory: only its cards are still held here
            held.append(SyncJob(job_id=allocation.job_id, state="gone", attempt=allocation.attempt, epoch=epoch, cards=allocation.cards))
    return SyncNode(
        node_id=node_id,
        state=node.state.value,
        price_uusd_per_gpu_hour=node.price_uusd_per_gpu_hour,
        jobs=tuple(held),
        draining=node.draining,
        drain_reason=node.drain_reason,
        drain_deadline_ms=node.drain_deadline_ms,
        maintenance=node.maintenance,
        banned=node.banned,
    )


def sync_job(job: Job, *, with_order: bool) -> SyncJob:
    """A job as its parties need it."""
    run = job.run
    return SyncJob(
        job_id=job.submitted.job_id,
        state=job.state.value,
        reason=None if job.reason is None else job.reason.value,
        attempt=0 if run is None else run.attempt,
        epoch=0 if run is None else run.epoch,
        node_id=None if run is None else run.node_id,
        node_wallet=None if run is None else run.node_wallet,
        cards=() if run is None else run.cards,
        price_uusd_per_gpu_hour=0 if run is None else run.price_uusd_per_gpu_hour,
        timeout_s=job.timeout_s,
        output_token="" if run is None else run.output_token,
        exit_code=None if run is None else run.exit_code,
        charged_uusd=job.charged_uusd if job.ended_ms else None,
        updated_seq=job.updated_seq,
        buyer=job.buyer,
        closing=job.closing,
        cancelled_by=job.cancelled_by,
        ready=run is not None and run.ready_ms > 0,
        order=job.order if with_order else None,
        detail="" if run is None else run.detail,
        stdout_bytes=0 if run is None else run.stdout_bytes,
        stderr_bytes=0 if run is None else run.stderr_bytes,
        results=None if run is None else run.results,
        results_bytes=0 if run is None else run.results_bytes,
        master_addr=None if run is None else run.master_addr,
        master_port=None if run is None else run.master_port,
        gang_stopped=job.state is STOPPING and job.gang_reason is not None,
    )
