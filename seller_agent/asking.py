"""What a seller's short commands ask of the market about a node, beside the agent that runs it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from events.errors import Refused
from events.home import Settings, choose_wallet
from events.ids import node_id
from events.login import open_client
from events.market_client import MarketClient
from events.nodes import NodeWithdrawn
from events.reasons import Refusal
from events.values import Role
from seller_agent.offers import price_text

WITHDRAWN_S = 15.0


async def _client(settings: Settings, node: str) -> MarketClient:
    """A client with the node's own session key; the agent may use it at the same time."""
    return await open_client(settings, Role.SELLER, name="bazaar-seller", lane=node, node_id=node)


async def node_status(settings: Settings, name: str) -> dict[str, Any]:
    """The node in the ledger and on this machine. Raises Refused when the market does not know it."""
    owner = choose_wallet(settings, Role.SELLER).address
    node = node_id(owner, name)
    async with await _client(settings, node) as client:
        found = (await client.sync(node_id=node)).node
    if found is None:
        raise Refused(Refusal.UNKNOWN_NODE, f"{name!a} of {owner} was never offered on this market.")
    return {
        "node": node,
        "name": name,
        "owner": owner,
        "state": found.state,
        "price_usd": price_text(found.price_uusd_per_gpu_hour),
        "price_uusd_per_gpu_hour": found.price_uusd_per_gpu_hour,
        "agent_pid": agent_pid(settings.home / "seller" / name),
        "jobs": [
            {"id": job.job_id, "state": job.state, "attempt": job.attempt, "epoch": job.epoch, "buyer": job.buyer, "gpus": list(job.cards)}
            for job in found.jobs
        ],
    }


async def withdraw_node(settings: Settings, name: str) -> None:
    """Take the node off the market. Raises Refused, MarketUnreachable."""
    node = node_id(choose_wallet(settings, Role.SELLER).address, name)
    async with await _client(settings, node) as client:
        outcome = await client.submit(NodeWithdrawn(node_id=node), WITHDRAWN_S)
    if outcome.reason is not None:
        raise Refused(outcome.reason, outcome.detail)


def agent_pid(folder: Path) -> int | None:
    """The process that has the node's folder, if one has."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
