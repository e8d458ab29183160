"""What the owner of a node has ordered stands in the ledger until the owner says otherwise."""

from __future__ import annotations

from builders import NODE, SELLER, History, make, node_offered

from events.nodes import NodeDrained, NodeLost, NodeMaintenancePlanned, NodeRepriced, NodeResumed, NodeWithdrawn
from events.wire import SyncRequest
from projections.nodes import Node, NodeState
from services.matcher.answers import sync


def node_of(history: History) -> Node:
    return history.market.nodes[NODE]


def test_a_drain_outlives_a_restart_of_the_agent() -> None:
    history = History()
    history.happen(node_offered(), make(NodeDrained, reason="new cards", deadline_ms=5), make(NodeLost), node_offered())
    assert (NodeState.DRAINING, "new cards", 5) == (
        node_of(history).state,
        node_of(history).drain_reason,
        node_of(history).drain_deadline_ms,
    )
    history.happen(make(NodeResumed))
    assert (NodeState.OFFERED, "", None) == (node_of(history).state, node_of(history).drain_reason, node_of(history).drain_deadline_ms)


def test_a_node_may_be_drained_and_resumed_while_it_is_away() -> None:
    history = History()
    history.happen(node_offered(), make(NodeWithdrawn), make(NodeDrained))
    assert (NodeState.WITHDRAWN, True) == (node_of(history).state, node_of(history).draining)
    history.happen(make(NodeResumed), node_offered())
    assert NodeState.OFFERED is node_of(history).state


def test_the_owner_is_told_of_every_standing_order() -> None:
    history = History()
    plan = make(NodeMaintenancePlanned, from_ms=10, until_ms=20, reason="new fan")
    history.happen(node_offered(), make(NodeDrained, reason="dust", deadline_ms=7), plan, make(NodeRepriced, price_uusd_per_gpu_hour=5))
    told = sync(history.market, SyncRequest(node_id=NODE), SELLER, "", b"").node
    assert told is not None
    assert ("draining", 5, True, "dust", 7, (10, 20, "new fan"), False) == (
        told.state,
        told.price_uusd_per_gpu_hour,
        told.draining,
        told.drain_reason,
        told.drain_deadline_ms,
        told.maintenance,
        told.banned,
    )
