"""Events that change jobs and the cards they hold: the checks that need the whole market, then each record to its own fold."""

from __future__ import annotations

from events import jobs as job_events
from events.page import Record
from events.reasons import Refusal
from events.values import Role
from projections import jobs, nodes, parties
from projections.handling import Handled, both, role_of, touch
from projections.job_states import HELD, MATCHED, QUEUED, TERMINAL
from projections.jobs import Job, Run
from projections.market import Market
from projections.nodes import Allocation, NodeState
from projections.parties import Stake


def submitted(market: Market, record: Record) -> Handled:
    """A new job, or the same submission sent again, which changes nothing."""
    event = record.event
    assert isinstance(event, job_events.JobSubmitted)
    known = market.jobs.get(event.job_id)
    if known is not None:
        if known.buyer == record.sender and known.submitted == event:
            return (record.sender,)
        return Refusal.ILLEGAL_IN_STATE
    if event.num_nodes > 1 and not _joins_gang(market, record.sender, event):
        return Refusal.ILLEGAL_IN_STATE
    job = jobs.submit(event, record.sender, record.seq, record.time_ms)
    market.jobs[event.job_id] = job
    market.moved(job, None)
    return (record.sender,)


def _joins_gang(market: Market, sender: str, event: job_events.JobSubmitted) -> bool:
    """Take a rank into its gang: the ranks come one after the other, from one wallet, and ask for the same."""
    group = event.group_id or ""
    before = market.gangs.get(group, ())
    if not group or len(before) != event.rank or event.rank >= event.num_nodes:
        return False
    if before:
        first = market.jobs.get(before[0])
        if first is None or first.buyer != sender or first.submitted.num_nodes != event.num_nodes or first.state is not QUEUED:
            return False
    market.gangs[group] = (*before, event.job_id)
    return True


def matched(market: Market, record: Record) -> Handled:
    """A queued job gets free cards of an offered node."""
    event = record.event
    assert isinstance(event, job_events.JobMatched)
    job, node = market.jobs.get(event.job_id), market.nodes.get(event.node_id)
    if job is None:
        return Refusal.UNKNOWN_JOB
    if node is None:
        return Refusal.UNKNOWN_NODE
    if job.state is not QUEUED or event.attempt != job.attempts + 1 or node.state is not NodeState.OFFERED:
        return Refusal.ILLEGAL_IN_STATE
    requirements = jobs.choice(job, event.variant)
    if requirements is None or not nodes.are_free(node, event.cards):
        return Refusal.ILLEGAL_IN_STATE
    if job.submitted.num_nodes > 1 and any(_has(other, event) for other in market.ranks_of(job)):
        return Refusal.ILLEGAL_IN_STATE
    allocation = Allocation(
        job_id=event.job_id,
        attempt=event.attempt,
        cards=event.cards,
        cores=nodes.cores_asked(requirements),
        memory_mib=requirements.memory_mib,
        since_ms=record.time_ms,
        expected_ms=job.expected_s * 1000,
    )
    nodes.allocate(node, record.seq, allocation)
    market.leases[record.seq] = event.node_id
    jobs.match(job, event, record.seq, record.time_ms, node.wallet)
    market.took(job, record.seq, record.time_ms)
    market.moved(job, QUEUED)
    touch(node, record)
    return _parties(job)


def _has(other: Job, event: job_events.JobMatched) -> bool:
    """Whether another rank of the gang is on that node already."""
    return other.state in HELD and other.run is not None and other.run.node_id == event.node_id


def job_event(market: Market, record: Record) -> Handled:
    """Every event that names a job and neither makes it nor frees cards by itself."""
    seq, time_ms, event, sender, _, _, _ = record
    job = market.jobs.get(event.job_id)  # type: ignore[attr-defined]
    if job is None:
        return Refusal.UNKNOWN_JOB
    run = job.run
    if sender:
        if isinstance(event, job_events.AttemptEvent):
            if run is None or run.node_wallet != sender:
                return Refusal.NOT_YOURS
        elif sender != job.buyer and role_of(market, record) is not Role.OPERATOR:
            return Refusal.NOT_YOURS
    refused = jobs.refusal(job, event)
    if refused is not None:
        return refused
    before, charged_uusd = job.state, job.charged_uusd
    stake = None if run is None else run.stake
    jobs.evolve(job, event, seq, time_ms, sender=sender, auto_retry=_may_retry(market, job))
    after = job.state
    if after is before:
        if run is not None and stake is not None and run.stake is not stake:
            _extended(market, job, run, stake)
        return _parties(job)
    if run is not None and before in HELD and after not in HELD:
        if before is MATCHED:
            node = market.free(run.epoch)  # cancelled or declined before anything ran: nothing to clean up
            if node is not None:
                touch(node, record)
        market.gave_back(job, job.charged_uusd - charged_uusd, time_ms)
        _count_end(market, job)
    market.moved(job, before)
    return _parties(job)


def lease_expired(market: Market, record: Record) -> Handled:
    """Cards go back by the ledger's word; a job that still ran there is tried again or has ended."""
    event = record.event
    assert isinstance(event, job_events.LeaseExpired)
    if market.leases.get(event.epoch) != event.node_id:
        return Refusal.STALE_EPOCH
    node = market.free(event.epoch)
    assert node is not None
    touch(node, record)
    job = market.jobs.get(event.job_id)
    if job is None or jobs.refusal(job, event) is not None:
        return (node.wallet,)
    before, charged_uusd = job.state, job.charged_uusd
    jobs.evolve(job, event, record.seq, record.time_ms, auto_retry=_may_retry(market, job))
    market.gave_back(job, job.charged_uusd - charged_uusd, record.time_ms)
    _count_end(market, job)
    market.moved(job, before)
    return _parties(job)


def released(market: Market, record: Record) -> Handled:
    """The node says that the cards are clean."""
    event = record.event
    assert isinstance(event, job_events.GpusReleased)
    node = market.nodes.get(market.leases.get(event.epoch, ""))
    if node is None:
        return Refusal.STALE_EPOCH
    if node.wallet != record.sender:
        return Refusal.NOT_YOURS
    allocation = node.allocations[event.epoch]
    if allocation.job_id != event.job_id or allocation.attempt != event.attempt:
        return Refusal.STALE_EPOCH
    job = market.jobs.get(event.job_id)
    if job is not None and job.state in HELD and job.run is not None and job.run.epoch == event.epoch:
        return Refusal.ILLEGAL_IN_STATE
    market.free(event.epoch)
    touch(node, record)
    return (node.wallet,) if job is None else both(job.buyer, node.wallet)


def _may_retry(market: Market, job: Job) -> bool:
    """A gang is tried again as a whole, or not at all: not when one of its ranks has ended."""
    if not market.policy.auto_retry or job.submitted.num_nodes == 1:
        return market.policy.auto_retry
    ranks = market.ranks_of(job)
    return len(ranks) == job.submitted.num_nodes and all(rank.state not in TERMINAL for rank in ranks)


def _extended(market: Market, job: Job, run: Run, before: Stake) -> None:
    """A job that a node has got more time."""
    node = market.nodes.get(market.leases.get(run.epoch, ""))
    if node is not None:
        node.allocations[run.epoch].expected_ms = job.expected_s * 1000
    for party in market.parties_of(job):
        parties.restake(party, before, run.stake)


def _count_end(market: Market, job: Job) -> None:
    run = job.run
    if run is None or run.reason is None:
        return
    node = market.nodes.get(run.node_id)
    if node is not None:
        node.ended[run.reason] = node.ended.get(run.reason, 0) + 1


def _parties(job: Job) -> tuple[str, ...]:
    run = job.run
    return (job.buyer,) if run is None else both(job.buyer, run.node_wallet)
