"""What the handlers of events share: how they answer, who spoke, whom it concerns."""

from __future__ import annotations

from events.page import Record
from events.reasons import Refusal
from events.values import Role
from projections.market import Market
from projections.nodes import Node

Handled = tuple[str, ...] | Refusal
"""The wallets concerned, or why nothing happened."""


def role_of(market: Market, record: Record) -> Role | None:
    """The role of the sender's key, None for the matcher itmarket."""
    session = market.identity.keys.get(record.key)
    return None if session is None else session.role


def both(buyer: str, seller: str) -> tuple[str, ...]:
    """Buyer and seller, once when they are one."""
    return (buyer,) if buyer == seller else (buyer, seller)


def touch(node: Node, record: Record) -> None:
    """Something about the node changed with this record."""
    node.updated_ms, node.updated_seq = record.time_ms, record.seq
