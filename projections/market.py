"""The whole market as a fold of its ledger: jobs, nodes, identity and money together, and nothing that the ledger does not say.

`apply` is the arbiter: an event has effect only if it is legal at its place, whoever sent it; what is not legal is answered with a refusal
and changes nothing. It reads no clock: the time of an event is the time of its page. Indexes for matching, renewals and buckets are not
part of it (`services/matcher/`), and so not of its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import msgspec

from events import identity as identity_events
from events import jobs as job_events
from events import market as market_events
from events import money as money_events
from events import nodes as node_events
from events.fact import Event
from events.ids import node_id
from events.market import Policy
from events.page import GENESIS_HASH, Record
from events.reasons import Refusal
from events.subjects import MATCHER, OPERATOR, PUBLISHERS
from events.values import Role
from projections import identity, jobs, ledger, nodes
from projections.identity import Identity, SessionKey
from projections.jobs import HELD, MATCHED, QUEUED, TERMINAL, Job, JobState
from projections.ledger import Ledger
from projections.nodes import Allocation, Node, NodeState

FINISHED_KEPT = 10_000
"""Finished jobs kept in memory, oldest dropped first; the read model keeps all of them."""

Applied = tuple[tuple[str, int], ...]
"""The wallets that an event concerns, each with the sequence that concerned it before."""


class Limit(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What the operator allows a wallet or an organisation; `None`: no limit."""

    gpus: int | None = None
    spend_day_uusd: int | None = None
    spend_month_uusd: int | None = None
    priority_max: int | None = None


class Market(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything that is true in a market after `last_seq`."""

    market_id: str = ""
    name: str = ""
    root: str = ""
    operators: tuple[str, ...] = ()
    matcher_key: str = ""
    payments: str = "none"
    policy: Policy = Policy()
    policy_seq: int = 0
    paused: bool = False
    jobs: dict[str, Job] = {}
    nodes: dict[str, Node] = {}
    identity: Identity = msgspec.field(default_factory=Identity)
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    limits: dict[str, Limit] = {}
    leases: dict[int, str] = {}
    """Epoch -> node that still holds cards for it."""
    queued_of: dict[str, int] = {}
    """Wallet -> how many of its jobs are queued."""
    states: dict[str, int] = {}
    """Job state -> how many jobs ever entered it and are there now (finished ones: ever)."""
    finished: dict[str, None] = {}
    """Finished jobs in memory, oldest first."""
    last_seq_of: dict[str, int] = {}
    """Wallet -> the last event that concerned it."""
    last_seq: int = 0
    time_ms: int = 0
    pages: int = 0
    page_hash: bytes = GENESIS_HASH
    matcher_started_ms: int = 0

    def apply(self, record: Record) -> Applied | Refusal:
        """Fold one event at its place. A refusal means that it had no effect at all."""
        seq, time_ms, event, sender, key, number, digest = record
        kind = type(event)
        if sender:
            session = self.identity.keys.get(key)
            refused = self._sender_refusal(record, session, kind)
            if refused is not None:
                return refused
        elif MATCHER not in PUBLISHERS[kind]:
            return Refusal.NOT_YOURS
        concerned = HANDLERS[kind](self, record)
        if type(concerned) is not tuple:
            return cast(Refusal, concerned)
        if number:
            identity.note(self.identity, key, number, (digest[:16], seq, None))
        last_seq_of = self.last_seq_of
        self.last_seq, self.time_ms = seq, time_ms
        if len(concerned) == 2:  # buyer and seller: by far the most common
            first, second = concerned
            applied: Applied = ((first, last_seq_of.get(first, 0)), (second, last_seq_of.get(second, 0)))
            last_seq_of[first] = last_seq_of[second] = seq
            return applied
        applied = tuple([(wallet, last_seq_of.get(wallet, 0)) for wallet in concerned])
        for wallet in concerned:
            last_seq_of[wallet] = seq
        return applied

    def close_page(self, page_hash: bytes) -> None:
        """A page ends here; what comes next chains to this hash."""
        self.page_hash = page_hash
        self.pages += 1

    def _sender_refusal(self, record: Record, session: SessionKey | None, kind: type[Event]) -> Refusal | None:
        """What the sender's key says against the event, before the event itself is looked at."""
        if session is None:
            if kind is not identity_events.SessionKeyAuthorised:
                return Refusal.UNKNOWN_KEY
            return None if record.number == 1 else Refusal.OUT_OF_SEQUENCE
        if session.wallet != record.sender:
            return Refusal.NOT_YOURS
        if record.number != session.last_number + 1:
            return Refusal.OUT_OF_SEQUENCE
        if session.revoked:
            return Refusal.KEY_REVOKED
        if record.time_ms >= session.expires_ms and not self._ends_claimed_job(record.event, session.expires_ms):
            return Refusal.KEY_EXPIRED
        if session.role not in PUBLISHERS[kind]:
            return Refusal.NOT_YOURS
        return None

    def _ends_claimed_job(self, event: Event, expires_ms: int) -> bool:
        """The end of a job that was claimed before the key expired is still accepted."""
        if not isinstance(event, job_events.AttemptEvent) or isinstance(event, job_events.JobClaimed):
            return False
        node = self.nodes.get(self.leases.get(event.epoch, ""))
        return node is not None and node.allocations[event.epoch].since_ms < expires_ms

    def role_of(self, record: Record) -> Role | None:
        """The role of the sender's key, None for the matcher itself."""
        session = self.identity.keys.get(record.key)
        return None if session is None else session.role

    def moved(self, job: Job, before: JobState | None) -> None:
        """Keep the counters right after a job changed its state, and drop the oldest finished jobs."""
        after = job.state
        if before is after:
            return
        states = self.states
        if before is not None:
            states[before] -= 1
            if before is QUEUED:
                left = self.queued_of[job.buyer] - 1
                if left:
                    self.queued_of[job.buyer] = left
                else:
                    del self.queued_of[job.buyer]
        states[after] = states.get(after, 0) + 1
        if after is QUEUED:
            self.queued_of[job.buyer] = self.queued_of.get(job.buyer, 0) + 1
        elif after in TERMINAL:
            self.finished[job.submitted.job_id] = None
            if len(self.finished) > FINISHED_KEPT:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        job_id = next(iter(self.finished))
        run = self.jobs[job_id].run
        if run is None or run.epoch not in self.leases:
            del self.finished[job_id]
            del self.jobs[job_id]

    def free(self, epoch: int) -> Node | None:
        """Free the cards of an epoch, if some node still holds them."""
        name = self.leases.pop(epoch, None)
        if name is None:
            return None
        node = self.nodes[name]
        nodes.release(node, epoch)
        return node


def fold(records: Iterable[Record], market: Market, void: dict[str, int] | None = None) -> Market:
    """Fold events in order. What is void in a written ledger is counted in `void`, never skipped silently."""
    for record in records:
        result = market.apply(record)
        if isinstance(result, Refusal) and void is not None:
            void[result] = void.get(result, 0) + 1
    return market


Handled = tuple[str, ...] | Refusal
"""The wallets concerned, or why nothing happened."""


def _submitted(market: Market, record: Record) -> Handled:
    event = record.event
    assert isinstance(event, job_events.JobSubmitted)
    known = market.jobs.get(event.job_id)
    if known is not None:
        if known.buyer == record.sender and known.submitted == event:
            return (record.sender,)
        return Refusal.ILLEGAL_IN_STATE
    job = jobs.submit(event, record.sender, record.seq, record.time_ms)
    market.jobs[event.job_id] = job
    market.moved(job, None)
    return (record.sender,)


def _matched(market: Market, record: Record) -> Handled:
    event = record.event
    assert isinstance(event, job_events.JobMatched)
    job, node = market.jobs.get(event.job_id), market.nodes.get(event.node_id)
    if job is None:
        return Refusal.UNKNOWN_JOB
    if node is None:
        return Refusal.UNKNOWN_NODE
    if job.state is not QUEUED or event.attempt != job.attempts + 1 or node.state is not NodeState.OFFERED:
        return Refusal.ILLEGAL_IN_STATE
    if not nodes.are_free(node, event.cards):
        return Refusal.ILLEGAL_IN_STATE
    requirements = job.submitted.requirements
    allocation = Allocation(
        job_id=event.job_id,
        attempt=event.attempt,
        cards=event.cards,
        cores=nodes.cores_asked(requirements),
        memory_mib=requirements.memory_mib,
        since_ms=record.time_ms,
    )
    nodes.allocate(node, record.seq, allocation)
    market.leases[record.seq] = event.node_id
    jobs.match(job, event, record.seq, record.time_ms, node.wallet)
    market.moved(job, QUEUED)
    _touch(node, record)
    return _parties(job)


def _job_event(market: Market, record: Record) -> Handled:
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
        elif sender != job.buyer and market.role_of(record) is not Role.OPERATOR:
            return Refusal.NOT_YOURS
    refused = jobs.refusal(job, event)
    if refused is not None:
        return refused
    before = job.state
    jobs.evolve(job, event, seq, time_ms, sender=sender, auto_retry=market.policy.auto_retry)
    after = job.state
    if after is before:
        return _parties(job)
    if run is not None and before in HELD and after not in HELD:
        if before is MATCHED:
            node = market.free(run.epoch)  # cancelled or declined before anything ran: nothing to clean up
            if node is not None:
                _touch(node, record)
        _count_end(market, job)
    market.moved(job, before)
    return _parties(job)


def _lease_expired(market: Market, record: Record) -> Handled:
    event = record.event
    assert isinstance(event, job_events.LeaseExpired)
    if market.leases.get(event.epoch) != event.node_id:
        return Refusal.STALE_EPOCH
    node = market.free(event.epoch)
    assert node is not None
    _touch(node, record)
    job = market.jobs.get(event.job_id)
    if job is None or jobs.refusal(job, event) is not None:
        return (node.wallet,)
    before = job.state
    jobs.evolve(job, event, record.seq, record.time_ms, auto_retry=market.policy.auto_retry)
    _count_end(market, job)
    market.moved(job, before)
    return _parties(job)


def _released(market: Market, record: Record) -> Handled:
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
    _touch(node, record)
    return (node.wallet,) if job is None else _both(job.buyer, node.wallet)


def _count_end(market: Market, job: Job) -> None:
    run = job.run
    if run is None or run.reason is None:
        return
    node = market.nodes.get(run.node_id)
    if node is not None:
        node.ended[run.reason] = node.ended.get(run.reason, 0) + 1


def _parties(job: Job) -> tuple[str, ...]:
    run = job.run
    return (job.buyer,) if run is None else _both(job.buyer, run.node_wallet)


def _both(buyer: str, seller: str) -> tuple[str, ...]:
    return (buyer,) if buyer == seller else (buyer, seller)


def _touch(node: Node, record: Record) -> None:
    node.updated_ms, node.updated_seq = record.time_ms, record.seq


def _offered(market: Market, record: Record) -> Handled:
    event = record.event
    assert isinstance(event, node_events.NodeOffered)
    if event.node_id != node_id(record.sender, event.name):
        return Refusal.NOT_YOURS
    uuids = {card.uuid for card in event.cards}
    if len(uuids) != len(event.cards) or len({card.index for card in event.cards}) != len(event.cards):
        return Refusal.INVALID_REQUIREMENT
    node = nodes.offer(market.nodes.get(event.node_id), event, record.sender, record.seq, record.time_ms)
    market.nodes[event.node_id] = node
    _touch(node, record)
    return (record.sender,)


def _node_event(market: Market, record: Record) -> Handled:
    """Every event that changes a node that is known."""
    event = record.event
    node = market.nodes.get(event.node_id)  # type: ignore[attr-defined]
    if node is None:
        return Refusal.UNKNOWN_NODE
    if record.sender and node.wallet != record.sender and market.role_of(record) is not Role.OPERATOR:
        return Refusal.NOT_YOURS
    refused = _change_node(node, event)
    if refused is not None:
        return refused
    _touch(node, record)
    return (node.wallet,)


def _change_node(node: Node, event: Event) -> Refusal | None:
    offered = node.presence is NodeState.OFFERED
    match event:
        case node_events.NodeRepriced():
            node.price_uusd_per_gpu_hour = event.price_uusd_per_gpu_hour
        case node_events.NodeDrained() if offered:
            nodes.drain(node, event)
        case node_events.NodeResumed() if offered and node.draining:
            node.draining, node.drain_reason, node.drain_deadline_ms = False, "", None
        case node_events.NodeWithdrawn() if offered:
            node.presence = NodeState.WITHDRAWN
        case node_events.NodeLost() if offered:
            node.presence = NodeState.LOST
        case node_events.NodeVerified():
            nodes.verify(node, event)
        case market_events.NodeBanned():
            node.banned = not event.lifted
        case _:
            return Refusal.ILLEGAL_IN_STATE
    return None


def _created(market: Market, record: Record) -> Handled:
    event = record.event
    assert isinstance(event, market_events.MarketCreated)
    if record.seq != 1:
        return Refusal.ILLEGAL_IN_STATE
    market.market_id, market.name, market.root = event.market_id, event.name, event.root
    market.operators, market.matcher_key, market.payments = event.operators, event.matcher_key, event.payments
    market.policy, market.policy_seq = event.policy, record.seq
    return ()


def _market_event(market: Market, record: Record) -> Handled:
    match record.event:
        case market_events.MatcherStarted():
            market.matcher_started_ms = record.time_ms
        case market_events.OperatorKeyRotated(matcher_key=key):
            market.matcher_key = key
        case market_events.PolicyChanged(policy=policy):
            market.policy, market.policy_seq = policy, record.seq
        case market_events.LimitChanged() as event:
            market.limits[event.party] = Limit(
                gpus=event.gpus,
                spend_day_uusd=event.spend_day_uusd,
                spend_month_uusd=event.spend_month_uusd,
                priority_max=event.priority_max,
            )
        case market_events.MatchingPaused():
            market.paused = True
        case market_events.MatchingResumed():
            market.paused = False
    return (record.sender,) if record.sender else ()


def _refused(market: Market, record: Record) -> Handled:
    event = record.event
    assert isinstance(event, market_events.EventRefused)
    key = bytes.fromhex(event.key)
    session = market.identity.keys.get(key)
    if session is None or event.number != session.last_number + 1:
        return Refusal.OUT_OF_SEQUENCE
    identity.note(market.identity, key, event.number, (bytes.fromhex(event.hash)[:16], record.seq, event.reason))
    return (session.wallet,)


def _identity_event(market: Market, record: Record) -> Handled:
    state, sender, now_ms = market.identity, record.sender, record.time_ms
    refused: Refusal | None
    match record.event:
        case identity_events.SessionKeyAuthorised() as event:
            if event.role == OPERATOR and sender not in market.operators:
                return Refusal.NOT_YOURS
            if event.key != record.key.hex() or record.number != 1:
                return Refusal.NOT_YOURS
            refused = identity.authorise(state, event, sender, now_ms)
        case identity_events.SessionKeyRevoked(key=key):
            refused = identity.revoke(state, bytes.fromhex(key), sender)
        case identity_events.OrganisationCreated() as event:
            refused = identity.found(state, event, sender, now_ms)
        case identity_events.MemberAdded() | identity_events.MemberRoleChanged() | identity_events.MemberRemoved() as event:
            refused = identity.change_member(state, event, sender)
        case identity_events.ReadTokenIssued() as event:
            refused = identity.issue_token(state, event, sender, now_ms)
        case identity_events.ReadTokenRevoked(token_sha256=digest):
            refused = identity.revoke_token(state, digest, sender)
        case _:
            raise AssertionError(record.event)
    return (sender,) if refused is None else refused


def _money_event(market: Market, record: Record) -> Handled:
    event = record.event
    wallet = getattr(event, "wallet", record.sender)
    if isinstance(event, money_events.WithdrawalRequested) and event.wallet != record.sender:
        return Refusal.NOT_YOURS
    refused = ledger.post(market.ledger, event)
    if refused is not None:
        return refused
    if isinstance(event, money_events.PaymentCaptured):
        return _both(event.buyer, event.seller)
    return (wallet,)


Handler = Callable[[Market, Record], Handled]

HANDLERS: dict[type[Event], Handler] = {
    job_events.JobSubmitted: _submitted,
    job_events.JobMatched: _matched,
    job_events.LeaseExpired: _lease_expired,
    job_events.GpusReleased: _released,
    **dict.fromkeys(
        (
            job_events.JobClaimed,
            job_events.JobDeclined,
            job_events.JobStarted,
            job_events.SessionReady,
            job_events.UsageRecorded,
            job_events.JobSucceeded,
            job_events.JobFailed,
            job_events.JobTimedOut,
            job_events.JobCancelled,
            job_events.JobCancelRequested,
            job_events.SessionCloseRequested,
            job_events.JobReprioritised,
            job_events.JobRepriced,
            job_events.JobExtended,
            job_events.JobRequeued,
            job_events.JobExpired,
        ),
        _job_event,
    ),
    node_events.NodeOffered: _offered,
    **dict.fromkeys(
        (
            node_events.NodeRepriced,
            node_events.NodeDrained,
            node_events.NodeResumed,
            node_events.NodeWithdrawn,
            node_events.NodeLost,
            node_events.NodeVerified,
            market_events.NodeBanned,
        ),
        _node_event,
    ),
    market_events.MarketCreated: _created,
    market_events.EventRefused: _refused,
    **dict.fromkeys(
        (
            market_events.MatcherStarted,
            market_events.OperatorKeyRotated,
            market_events.PolicyChanged,
            market_events.LimitChanged,
            market_events.MatchingPaused,
            market_events.MatchingResumed,
        ),
        _market_event,
    ),
    **dict.fromkeys(
        (
            identity_events.SessionKeyAuthorised,
            identity_events.SessionKeyRevoked,
            identity_events.OrganisationCreated,
            identity_events.MemberAdded,
            identity_events.MemberRoleChanged,
            identity_events.MemberRemoved,
            identity_events.ReadTokenIssued,
            identity_events.ReadTokenRevoked,
        ),
        _identity_event,
    ),
    **dict.fromkeys(
        (
            money_events.CreditsGranted,
            money_events.FundsDeposited,
            money_events.FundsHeld,
            money_events.PaymentCaptured,
            money_events.HoldReleased,
            money_events.WithdrawalRequested,
            money_events.FundsWithdrawn,
        ),
        _money_event,
    ),
}
