"""Where other nodes reach the programs that run on this one: what a gang needs, and what a node offers as its address. Shell.

A container has a network of its own, without a way in: nodes with the Docker runner offer no address and take no rank of a gang.
"""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from events.values import Isolation
from seller_agent.owner.offers import OfferError


def address_of(given: str | None, isolation: Isolation, market_url: str) -> str | None:
    """The address to offer: what the owner said, else the one by which this machine reaches the broker; None with the Docker runner.
    Raises OfferError when an address is given for containers, which nobody can reach."""
    if isolation is not Isolation.PROCESS:
        if given is not None:
            raise OfferError(
                "--address has no meaning with the Docker runner.",
                why="A container cannot be reached from other machines, so such a node takes no rank of a gang.",
                hint="Leave it away, or offer the machine with --runner process or ssh.",
            )
        return None
    return given if given is not None else way_to(market_url)


def way_to(url: str) -> str | None:
    """The address of this machine on the way to the broker; None when there is no way. Nothing is sent."""
    place = urlsplit(url if "//" in url else f"nats://{url}")
    try:
        found = socket.getaddrinfo(place.hostname, place.port or 4222, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, there = found[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(there)
            address: str = way.getsockname()[0]
    except (OSError, IndexError):
        return None
    return address.partition("%")[0]
