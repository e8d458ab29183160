"""How often a host has failed, and how many connections each name has: what the callout counts of those who come in.

Plain counters; the time is an argument. What the broker says of its connections is told here by `callout.py`.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

CONNECTING_S = 10.0
"""For so long a granted connection counts although the broker does not list it yet."""
FAILURES_IN_A_BURST = 20
FAILURES_PER_S = 2.0
"""Failed logins of one host beyond this are refused without looking at the signature again."""
REMEMBERED_MAX = 10_000


def network_of(host: str) -> str:
    """Where a connection comes from: an address, or of IPv6 what one customer gets; empty for this machine itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is None:
            return "" if address.is_loopback else str(ipaddress.ip_network((address, 64), strict=False))
        address = mapped
    return "" if address.is_loopback else str(address)


class Buckets:
    """How many more failures each host may have: a bucket per host that fills with time."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def is_empty(self, host: str, now_s: float) -> bool:
        """Whether this host has failed too often lately."""
        return self._level(host, now_s) < 1

    def take(self, host: str, now_s: float) -> None:
        """Count a failure."""
        self._left[host] = (max(0.0, self._level(host, now_s) - 1), now_s)
        self._left.move_to_end(host)
        while len(self._left) > REMEMBERED_MAX:
            self._left.popitem(last=False)

    def _level(self, host: str, now_s: float) -> float:
        level, since_s = self._left.get(host, (float(FAILURES_IN_A_BURST), now_s))
        return min(float(FAILURES_IN_A_BURST), level + (now_s - since_s) * FAILURES_PER_S)


class Seats:
    """How many connections each name has on each broker: granted here, corrected by what the broker lists.

    The broker tells of every connection that ends, but may be missed; so a full name, or one not seen before, is asked about.
    """

    def __init__(self) -> None:
        self._taken: OrderedDict[tuple[str, str], dict[int, float]] = OrderedDict()

    def must_ask(self, broker: str, name: str, limit: int) -> bool:
        """Whether the broker's own list is needed to say if there is a seat."""
        return len(self._taken.get((broker, name), range(limit))) >= limit

    def is_full(self, broker: str, name: str, limit: int) -> bool:
        """Whether no seat is left, as far as is known here."""
        return len(self._taken.get((broker, name), ())) >= limit

    def correct(self, broker: str, name: str, listed: set[int], now_s: float) -> None:
        """Count what the broker lists, and what was granted so lately that it may not be listed yet."""
        before = self._taken.pop((broker, name), {})
        lately = {seat: granted_s for seat, granted_s in before.items() if now_s - granted_s < CONNECTING_S}
        self._taken[broker, name] = {**dict.fromkeys(listed, 0.0), **lately}
        while len(self._taken) > REMEMBERED_MAX:
            self._taken.popitem(last=False)

    def take(self, broker: str, name: str, seat: int, limit: int, now_s: float) -> bool:
        """Whether there was a seat; if so it is taken."""
        taken = self._taken.setdefault((broker, name), {})
        if len(taken) >= limit:
            return False
        taken[seat] = now_s
        return True

    def correct_all(self, broker: str, listed: dict[str, set[int]], now_s: float) -> None:
        """The same for every name: what is not listed has no connection."""
        known = [name for at, name in self._taken if at == broker]
        for name in {*known, *listed}:
            self.correct(broker, name, listed.get(name, set()), now_s)

    def leave(self, broker: str, name: str, seat: int) -> None:
        """A connection has ended."""
        self._taken.get((broker, name), {}).pop(seat, None)
