"""Events about nodes, the market itself, identity and money: the checks that need the whole market, then each record to its own fold."""

from __future__ import annotations

from events import identity as identity_events
from events import market as market_events
from events import money as money_events
from events import nodes as node_events
from events.fact import Event
from events.ids import node_id
from events.page import Record
from events.reasons import Refusal
from events.subjects import OPERATOR
from events.values import Role
from projections import identity, ledger, nodes
from projections.handling import Handled, both, role_of, touch
from projections.market import Limit, Market
from projections.nodes import Node, NodeState


def offered(market: Market, record: Record) -> Handled:
    """A node is offered, by the wallet that its id is made of."""
    event = record.event
    assert isinstance(event, node_events.NodeOffered)
    if event.node_id != node_id(record.sender, event.name):
        return Refusal.NOT_YOURS
    uuids = {card.uuid for card in event.cards}
    if len(uuids) != len(event.cards) or len({card.index for card in event.cards}) != len(event.cards):
        return Refusal.INVALID_REQUIREMENT
    if event.node_id not in market.nodes:
        identity.count_node(market.identity, record.sender)
    node = nodes.offer(market.nodes.get(event.node_id), event, record.sender, record.seq, record.time_ms)
    market.nodes[event.node_id] = node
    touch(node, record)
    return (record.sender,)


def node_event(market: Market, record: Record) -> Handled:
    """Every event that changes a node that is known."""
    event = record.event
    node = market.nodes.get(event.node_id)  # type: ignore[attr-defined]
    if node is None:
        return Refusal.UNKNOWN_NODE
    if record.sender and node.wallet != record.sender and role_of(market, record) is not Role.OPERATOR:
        return Refusal.NOT_YOURS
    refused = _change_node(node, event)
    if refused is not None:
        return refused
    touch(node, record)
    return (node.wallet,)


def _change_node(node: Node, event: Event) -> Refusal | None:
    offered = node.presence is NodeState.OFFERED
    match event:
        case node_events.NodeRepriced():
            node.price_uusd_per_gpu_hour = event.price_uusd_per_gpu_hour
        case node_events.NodeDrained():
            nodes.drain(node, event)
        case node_events.NodeMaintenancePlanned():
            nodes.plan_maintenance(node, event)
        case node_events.NodeResumed() if node.draining:
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


def created(market: Market, record: Record) -> Handled:
    """The first event of a ledger, and only the first."""
    event = record.event
    assert isinstance(event, market_events.MarketCreated)
    if record.seq != 1:
        return Refusal.ILLEGAL_IN_STATE
    market.market_id, market.name, market.root = event.market_id, event.name, event.root
    market.operators, market.matcher_key, market.payments = event.operators, event.matcher_key, event.payments
    market.policy, market.policy_seq, market.policy_ms = event.policy, record.seq, record.time_ms
    return ()


def market_event(market: Market, record: Record) -> Handled:
    """The operator's and the matcher's own words about the market."""
    match record.event:
        case market_events.MatcherStarted():
            market.matcher_started_ms = record.time_ms
        case market_events.OperatorKeyRotated(matcher_key=key):
            market.matcher_key = key
        case market_events.PolicyChanged(policy=policy):
            market.change_policy(policy, record.seq, record.time_ms)
        case market_events.LimitChanged() as event:
            market.limits_seq = record.seq
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


def refused(market: Market, record: Record) -> Handled:
    """A refusal uses up its number."""
    event = record.event
    assert isinstance(event, market_events.EventRefused)
    key = bytes.fromhex(event.key)
    session = market.identity.keys.get(key)
    if session is None or event.number != session.last_number + 1:
        return Refusal.OUT_OF_SEQUENCE
    identity.note(market.identity, key, event.number, (bytes.fromhex(event.hash)[:16], record.seq, event.reason))
    return (session.wallet,)


def identity_event(market: Market, record: Record) -> Handled:
    """Keys, organisations and read tokens."""
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


def money_event(market: Market, record: Record) -> Handled:
    """Postings, all or none."""
    event = record.event
    wallet = getattr(event, "wallet", record.sender)
    if isinstance(event, money_events.WithdrawalRequested) and event.wallet != record.sender:
        return Refusal.NOT_YOURS
    refused = ledger.post(market.ledger, event)
    if refused is not None:
        return refused
    if isinstance(event, money_events.PaymentCaptured):
        return both(event.buyer, event.seller)
    return (wallet,)
