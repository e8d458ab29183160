"""What a seller's short commands ask of the market about a node, and tell it, beside the agent that runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from events.errors import Refused
from events.fact import Event
from events.home import Settings, known_wallets
from events.login import open_client
from events.market_client import MarketClient, ask_hello
from events.reading import read_items
from events.session import Session, read_session
from events.values import Role
from seller_agent.owner.nodes import OwnedNode

ANSWER_S = 15.0


def delegated_session(settings: Settings, node: OwnedNode, delegation: str | None) -> Session | None:
    """The session to act with when there is no keystore for it here: the file that was named, else the one that the agent was
    started with. Raises IdentityError."""
    if delegation is None and any(wallet.address == node.owner for wallet in known_wallets(settings.home)):
        return None
    path = delegation or (node.started.delegation if node.started is not None else None)
    return None if path is None else read_session(Path(path))


async def open_for(settings: Settings, node: OwnedNode, delegation: str | None = None) -> MarketClient:
    """A client with the node's own session key; the agent may use it at the same time. Raises MarketUnreachable, IdentityError."""
    named = {**settings.settings, "wallet": settings.settings["wallet"]._replace(value=node.owner)}
    return await open_client(
        dataclasses.replace(settings, settings=named),
        Role.SELLER,
        name="bazaar-seller",
        lane=node.node_id,
        node_id=node.node_id,
        session=delegated_session(settings, node, delegation),
    )


async def order(settings: Settings, node: OwnedNode, event: Event, delegation: str | None = None) -> int:
    """Say this to the market; its place in the ledger. Raises Refused, MarketUnreachable."""
    async with await open_for(settings, node, delegation) as client:
        outcome = await client.submit(event, ANSWER_S)
    if outcome.reason is not None:
        raise Refused(outcome.reason, outcome.detail)
    return outcome.seq


async def market_ms(settings: Settings) -> int:
    """What the market's clock says: the owner's times are its. Raises MarketUnreachable."""
    return (await ask_hello(settings.market)).time_ms


async def jobs_of(client: MarketClient, node_id: str, **query: str) -> list[dict[str, Any]]:
    """Job JSON of the node's jobs, newest first. Raises MarketUnreachable, ReadRefused."""
    return await read_items(client, "/v1/jobs", {"node": node_id, **query})
