"""The arbiter: what an event changes in the market, if it is legal at its place, whoever sent it.

An event that is not legal is answered with a refusal and changes nothing. No clock is read: the time of an event is the time of its page.
One table says who handles which event; the handlers check what concerns several folds and leave each record to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from events import identity as identity_events
from events import jobs as job_events
from events import market as market_events
from events import money as money_events
from events import nodes as node_events
from events.fact import Event
from events.page import Record
from events.reasons import Refusal
from events.subjects import MATCHER, PUBLISHERS
from projections import identity, job_handlers, party_handlers
from projections.handling import Handled
from projections.identity import SessionKey
from projections.market import Applied, Market


def apply(market: Market, record: Record) -> Applied | Refusal:
    """Fold one event at its place. A refusal means that it had no effect at all."""
    seq, time_ms, event, sender, key, number, digest = record
    kind = type(event)
    if sender:
        session = market.identity.keys.get(key)
        refused = _sender_refusal(market, record, session, kind)
        if refused is not None:
            return refused
    elif MATCHER not in PUBLISHERS[kind]:
        return Refusal.NOT_YOURS
    concerned = HANDLERS[kind](market, record)
    if type(concerned) is not tuple:
        return cast(Refusal, concerned)
    if number:
        identity.note(market.identity, key, number, (digest[:16], seq, None))
    last_seq_of = market.last_seq_of
    market.last_seq, market.time_ms = seq, time_ms
    if len(concerned) == 2:  # buyer and seller: by far the most common
        first, second = concerned
        applied: Applied = ((first, last_seq_of.get(first, 0)), (second, last_seq_of.get(second, 0)))
        last_seq_of[first] = last_seq_of[second] = seq
        return applied
    applied = tuple([(wallet, last_seq_of.get(wallet, 0)) for wallet in concerned])
    for wallet in concerned:
        last_seq_of[wallet] = seq
    return applied


def fold(records: Iterable[Record], market: Market, void: dict[str, int] | None = None) -> Market:
    """Fold events in order. What is void in a written ledger is counted in `void`, never skipped silently."""
    for record in records:
        result = apply(market, record)
        if isinstance(result, Refusal) and void is not None:
            void[result] = void.get(result, 0) + 1
    return market


def _sender_refusal(market: Market, record: Record, session: SessionKey | None, kind: type[Event]) -> Refusal | None:
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
    if record.time_ms >= session.expires_ms and not _ends_claimed_job(market, record.event, session.expires_ms):
        return Refusal.KEY_EXPIRED
    if session.role not in PUBLISHERS[kind]:
        return Refusal.NOT_YOURS
    return None


def _ends_claimed_job(market: Market, event: Event, expires_ms: int) -> bool:
    """The end of a job that was claimed before the key expired is still accepted."""
    if not isinstance(event, job_events.AttemptEvent) or isinstance(event, job_events.JobClaimed):
        return False
    node = market.nodes.get(market.leases.get(event.epoch, ""))
    return node is not None and node.allocations[event.epoch].since_ms < expires_ms


Handler = Callable[[Market, Record], Handled]

HANDLERS: dict[type[Event], Handler] = {
    job_events.JobSubmitted: job_handlers.submitted,
    job_events.JobMatched: job_handlers.matched,
    job_events.LeaseExpired: job_handlers.lease_expired,
    job_events.GpusReleased: job_handlers.released,
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
            job_events.GangStopped,
        ),
        job_handlers.job_event,
    ),
    node_events.NodeOffered: party_handlers.offered,
    **dict.fromkeys(
        (
            node_events.NodeRepriced,
            node_events.NodeDrained,
            node_events.NodeMaintenancePlanned,
            node_events.NodeResumed,
            node_events.NodeWithdrawn,
            node_events.NodeLost,
            node_events.NodeVerified,
            market_events.NodeBanned,
        ),
        party_handlers.node_event,
    ),
    market_events.MarketCreated: party_handlers.created,
    market_events.EventRefused: party_handlers.refused,
    **dict.fromkeys(
        (
            market_events.MatcherStarted,
            market_events.OperatorKeyRotated,
            market_events.PolicyChanged,
            market_events.LimitChanged,
            market_events.MatchingPaused,
            market_events.MatchingResumed,
        ),
        party_handlers.market_event,
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
        party_handlers.identity_event,
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
        party_handlers.money_event,
    ),
}
