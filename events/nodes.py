"""Facts about nodes: what owners offer, change and take back, and what the matcher concludes from silence."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from events.fact import Event
from events.values import (
    Accept,
    Address,
    Card,
    ImageName,
    ImagePattern,
    Isolation,
    Labels,
    Mib,
    Name,
    NodeId,
    OrgId,
    PriceUusdPerGpuHour,
    Tier,
    TimeMs,
    Version,
    Wallet,
)


class NodeOffered(Event, frozen=True, kw_only=True):
    """An owner offers a machine, after reconciling what still runs there. Offering again replaces the offer."""

    node_id: NodeId
    name: Name
    cards: Annotated[tuple[Card, ...], Meta(max_length=64)] = ()
    cores: Annotated[int, Meta(ge=1, le=4096)] = 1
    memory_mib: Mib = 0
    price_uusd_per_gpu_hour: PriceUusdPerGpuHour
    isolation: Isolation = Isolation.CONTAINER
    egress: bool = False
    accept: Accept = Accept.ANYONE
    accept_wallets: Annotated[tuple[Wallet, ...], Meta(max_length=64)] = ()
    """With `own`: whose jobs are taken besides the owner's."""
    min_gpus: Annotated[int, Meta(ge=0, le=8)] = 0
    """The smallest part of the machine that is let."""
    labels: Labels = {}
    org_id: OrgId | None = None
    default_image: ImageName | None = None
    agent_version: Version = ""
    sessions: bool = False
    """Serves notebooks and containers that people connect to."""
    images_allow: Annotated[tuple[ImagePattern, ...], Meta(max_length=16)] = ()
    """Which images may run here; empty: any."""
    images_warm: Annotated[tuple[ImageName, ...], Meta(max_length=32)] = ()
    """Images that are here already, the last used first."""
    address: Address | None = None
    """Where other nodes reach the programs that run here; without one the node takes no rank of a gang."""


class NodeRepriced(Event, frozen=True, kw_only=True):
    """The owner changed the price; running jobs keep theirs."""

    node_id: NodeId
    price_uusd_per_gpu_hour: PriceUusdPerGpuHour


class NodeDrained(Event, frozen=True, kw_only=True):
    """No new jobs; what runs may end until the deadline."""

    node_id: NodeId
    reason: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9 ._@+,:-]{0,100}\Z", max_length=100)] = ""
    deadline_ms: TimeMs | None = None


class NodeMaintenancePlanned(Event, frozen=True, kw_only=True):
    """The machine will be away for a while. No job is matched that could still run when it begins; what runs then is evicted.
    `until_ms` equal to `from_ms` takes the plan back."""

    node_id: NodeId
    from_ms: TimeMs
    until_ms: TimeMs
    reason: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9 ._@+,:-]{0,100}\Z", max_length=100)] = ""


class NodeResumed(Event, frozen=True, kw_only=True):
    """New jobs again."""

    node_id: NodeId


class NodeWithdrawn(Event, frozen=True, kw_only=True):
    """The owner took the machine off the market."""

    node_id: NodeId


class NodeLost(Event, frozen=True, kw_only=True):
    """The matcher has not heard of the node for a whole lease; nothing is matched there before a new NodeOffered."""

    node_id: NodeId


class NodeVerified(Event, frozen=True, kw_only=True):
    """A check of the node's cards, by whom the market trusts with it."""

    node_id: NodeId
    tier: Tier
    method: Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{1,32}\Z", max_length=32)]
    expires_ms: TimeMs
