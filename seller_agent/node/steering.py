"""Turns what the owner has ordered, and the life that is left in the session key, into what the node does now; says it once.

Beside the agent: no connection, no files. The rules of the orders are in `standing_orders`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from events.fact import Event
from events.nodes import NodeOffered
from events.session import Session
from events.wire import SyncNode
from seller_agent.attempts.decisions import Node
from seller_agent.owner.standing_orders import MarketClock, Orders, bearing, hear, learn

HOUR_MS = 3_600_000


class Steering:
    """Sets `accepting` and `evicting` of one node. `delegated`: its session cannot be renewed here."""

    def __init__(self, node: Node, say: Callable[[str], None], *, delegated: bool = False) -> None:
        self.orders = Orders()
        self.clock = MarketClock()
        self._node = node
        self._say = say
        self._delegated = delegated
        self._session_ended = False
        self._warned_of = b""
        self._said = ""

    def learn(self, node: SyncNode | None, *, price: bool) -> None:
        """What the ledger has; `price`: also the price."""
        if node is not None:
            learn(self.orders, node, price=price)

    def hear(self, event: Event, node_id: str) -> bool:
        """Whether this was an order for the node."""
        return getattr(event, "node_id", "") == node_id and hear(self.orders, event)

    def priced(self, offer: NodeOffered) -> NodeOffered:
        """The offer at the price that the owner set last."""
        price = self.orders.price_uusd_per_gpu_hour
        return offer if price is None else msgspec.structs.replace(offer, price_uusd_per_gpu_hour=price)

    def obey(self, now_boot_ms: int) -> None:
        """What follows at this moment of the market's clock."""
        now = bearing(self.orders, self.clock.now_ms(now_boot_ms))
        self._node.accepting, self._node.evicting = now.accepting and not self._session_ended, now.evicting
        if now.words != self._said:
            self._said = now.words
            self._say(now.words or "New jobs are taken again.")

    def look_at_session(self, session: Session, now_boot_ms: int) -> None:
        """A session key that ends is said in time; at its end no new jobs are taken, and running ones finish. By the market's clock,
        for that is what ends it."""
        now_ms = self.clock.now_ms(now_boot_ms) if self.clock.is_known else int(time.time() * 1000)
        self._session_ended = session.ends_within(now_ms, 0)
        if self._delegated and now_ms >= session.warn_from_ms() and session.key != self._warned_of:
            self._warned_of = session.key
            left_h = max(0, session.expires_ms - now_ms) // HOUR_MS
            self._say(
                f"The delegation of this node ends in {left_h} h; then no new jobs are taken. Run `bazaar login --role seller` in time."
            )
