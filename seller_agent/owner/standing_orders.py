"""What the owner (or the operator) has ordered for a node, as the ledger has it: price, drain, maintenance, ban. Pure.

Orders outlive the agent: it learns them from the ledger at every start and hears them on its feed. Their times are the market's, so that a
wrong clock here moves none of them; the agent passes in what the market's clock says now.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from events.fact import Event
from events.market import NodeBanned
from events.nodes import NodeDrained, NodeMaintenancePlanned, NodeRepriced, NodeResumed
from events.wire import SyncNode


class Orders(msgspec.Struct, kw_only=True):
    """What stands for one node."""

    price_uusd_per_gpu_hour: int | None = None
    """The price that the owner set last; `None`: what the offer says."""
    draining: bool = False
    drain_reason: str = ""
    drain_deadline_ms: int | None = None
    maintenance: tuple[int, int, str] | None = None
    banned: bool = False


class Bearing(NamedTuple):
    """What follows now."""

    accepting: bool
    """New jobs are taken."""
    evicting: bool
    """What runs is to be stopped."""
    words: str
    """Why, for the owner; empty when nothing is out of the ordinary."""


def learn(orders: Orders, node: SyncNode, *, price: bool) -> None:
    """Take over what the ledger has. `price`: also the price; not before our own offer stands there."""
    orders.draining, orders.drain_reason, orders.drain_deadline_ms = node.draining, node.drain_reason, node.drain_deadline_ms
    orders.maintenance, orders.banned = node.maintenance, node.banned
    if price:
        orders.price_uusd_per_gpu_hour = node.price_uusd_per_gpu_hour


def hear(orders: Orders, event: Event) -> bool:
    """Fold one event about this node; whether it was an order."""
    match event:
        case NodeRepriced():
            orders.price_uusd_per_gpu_hour = event.price_uusd_per_gpu_hour
        case NodeDrained():
            orders.draining, orders.drain_reason, orders.drain_deadline_ms = True, event.reason, event.deadline_ms
        case NodeResumed():
            orders.draining, orders.drain_reason, orders.drain_deadline_ms = False, "", None
        case NodeMaintenancePlanned():
            orders.maintenance = None if event.until_ms <= event.from_ms else (event.from_ms, event.until_ms, event.reason)
        case NodeBanned():
            orders.banned = not event.lifted
        case _:
            return False
    return True


def bearing(orders: Orders, market_ms: int) -> Bearing:
    """What the orders mean at this moment of the market's clock. A ban stops nothing that runs: that is its buyer's, not its owner's."""
    if orders.maintenance is not None and orders.maintenance[0] <= market_ms < orders.maintenance[1]:
        return Bearing(False, True, f"Maintenance{_because(orders.maintenance[2])}: what runs is stopped, then new jobs are taken again.")
    if orders.draining:
        if orders.drain_deadline_ms is not None and orders.drain_deadline_ms <= market_ms:
            return Bearing(False, True, f"Drained{_because(orders.drain_reason)}: the deadline is over, what still runs is stopped.")
        return Bearing(
            False, False, f"Draining{_because(orders.drain_reason)}: no new jobs until `bazaar-seller resume`; what runs goes on."
        )
    if orders.banned:
        return Bearing(False, False, "The market's operator has banned this node: no new jobs; what runs goes on.")
    return Bearing(True, False, "")


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


class MarketClock:
    """The market's time by our own monotonic clock, from the last answer that carried it: our wall clock may be wrong."""

    def __init__(self) -> None:
        self._ahead_ms: int | None = None

    def heard(self, market_ms: int, now_boot_ms: int) -> None:
        """An answer of now says so late it is there."""
        self._ahead_ms = market_ms - now_boot_ms

    @property
    def is_known(self) -> bool:
        """Whether anything was heard."""
        return self._ahead_ms is not None

    def now_ms(self, now_boot_ms: int) -> int:
        """The market's time; 0 before the first answer."""
        return 0 if self._ahead_ms is None else now_boot_ms + self._ahead_ms
