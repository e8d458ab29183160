"""Everything about a node that its owner asks for: what lies here, and what the market says of it. Reads only."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from events.errors import IdentityError, MarketUnreachable, Refused
from events.home import Settings
from events.market_client import MarketClient
from events.outbox import lane_name
from events.reading import read
from events.reasons import Refusal
from events.session import Session, SessionStore, read_session
from events.values import Role
from events.wire import SyncNode
from seller_agent.owner.accounts import earned_uusd, left_ms
from seller_agent.owner.asking import jobs_of, market_ms, open_for
from seller_agent.owner.nodes import OwnedNode
from seller_agent.owner.offers import price_text

HELD_STATES = ("matched", "claimed", "starting", "running", "stopping")


def local_state(settings: Settings, node: OwnedNode, market_id: str | None) -> dict[str, Any]:
    """What is known here, whether or not a market answers."""
    session = _session(settings, node, market_id)
    now_ms = int(time.time() * 1000)
    return {
        "node": node.node_id,
        "name": node.name,
        "owner": node.owner,
        "agent_pid": node.agent_pid,
        "runner": node.started.runner if node.started is not None else None,
        "unanswered_events": unanswered_events(settings.home, node, market_id),
        "runs": runs_here(node.folder),
        "delegation": None
        if session is None
        else {
            "expires_ms": session.expires_ms,
            "left_ms": max(0, session.expires_ms - now_ms),
            "warning": now_ms >= session.warn_from_ms(),
            "renews_itself": not _is_delegated(node),
        },
    }


def _is_delegated(node: OwnedNode) -> bool:
    return node.started is not None and node.started.delegation is not None


def _session(settings: Settings, node: OwnedNode, market_id: str | None) -> Session | None:
    try:
        if node.started is not None and node.started.delegation is not None:
            return read_session(Path(node.started.delegation))
        return None if market_id is None else SessionStore(settings.home, market_id).load(node.owner, Role.SELLER, node.node_id)
    except IdentityError:
        return None


def unanswered_events(home: Path, node: OwnedNode, market_id: str | None) -> int | None:
    """Events of the node that wait for an answer on disk; `None` when that cannot be told."""
    if market_id is None or not (home / "outbox.db").exists():
        return None
    lane = lane_name(market_id, node.owner, Role.SELLER.value, node.node_id)
    try:
        with closing(sqlite3.connect(f"file:{home / 'outbox.db'}?mode=ro", uri=True, timeout=2.0)) as database:
            return int(database.execute("SELECT count(*) FROM entries WHERE lane = ?", (lane,)).fetchone()[0])
    except sqlite3.Error:
        return None


def runs_here(folder: Path) -> list[str]:
    """Names of the run folders: what runs, or is not yet cleared away."""
    try:
        return sorted(entry.name for entry in (folder / "runs").iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []


async def market_state(client: MarketClient, node: OwnedNode, now_ms: int) -> dict[str, Any]:
    """What the market says: orders from the fold, cards with their readings, what it holds. Raises Refused, MarketUnreachable."""
    told = (await client.sync(node_id=node.node_id)).node
    if told is None:
        raise Refused(Refusal.UNKNOWN_NODE, f"{node.name!a} of {node.owner} was never offered on this market.")
    seen = await read(client, f"/v1/nodes/{node.node_id}")
    policy = client.last_sync.policy if client.last_sync is not None else None
    heard_ms = seen.get("heard_ms")
    return {
        "state": told.state,
        "suspect": bool(seen.get("suspect")),
        "price_usd": price_text(told.price_uusd_per_gpu_hour),
        "price_uusd_per_gpu_hour": told.price_uusd_per_gpu_hour,
        "orders": orders_of(told),
        "offer": {key: seen.get(key) for key in ("cores", "memory_mib", "isolation", "accept", "labels", "default_image", "agent_version")},
        "cards": seen.get("cards", []),
        "heard_ms": heard_ms,
        "beat_age_ms": None if heard_ms is None else max(0, now_ms - heard_ms),
        "lease_s": None if policy is None else policy.lease_s,
        "ended": seen.get("jobs", {}),
        "jobs": await node_jobs(client, node, now_ms, recent=0),
    }


def orders_of(told: SyncNode) -> dict[str, Any]:
    """The owner's and the operator's standing orders."""
    plan = told.maintenance
    return {
        "draining": told.draining,
        "drain_reason": told.drain_reason or None,
        "drain_deadline_ms": told.drain_deadline_ms,
        "maintenance": None if plan is None else {"from_ms": plan[0], "until_ms": plan[1], "reason": plan[2] or None},
        "banned": told.banned,
    }


async def node_jobs(client: MarketClient, node: OwnedNode, now_ms: int, *, recent: int) -> list[dict[str, Any]]:
    """The jobs that the node holds, and its `recent` last ones, newest first: job JSON with `left_ms` and `earned_uusd`."""
    found = await jobs_of(client, node.node_id, state=",".join(HELD_STATES))
    if recent:
        shown = {job["id"] for job in found}
        page = await read(client, "/v1/jobs", {"node": node.node_id, "limit": str(recent)})
        found += [job for job in page["items"] if job["id"] not in shown]
    for job in found:
        job["left_ms"], job["earned_uusd"] = left_ms(job, now_ms), earned_uusd(job, now_ms)
    return found


async def node_status(settings: Settings, node: OwnedNode, delegation: str | None = None) -> dict[str, Any]:
    """All of it. `market_error` says why when the market could not be asked; then only what is known here is in it."""
    try:
        now_ms = await market_ms(settings)
        ahead_ms = int(time.time() * 1000) - now_ms
        async with await open_for(settings, node, delegation) as client:
            return {
                **local_state(settings, node, client.market_id),
                **await market_state(client, node, now_ms),
                "now_ms": now_ms,
                "clock_ahead_ms": ahead_ms,
                "market_error": None,
            }
    except MarketUnreachable as error:
        return {**local_state(settings, node, settings.market_id), "market_error": f"{error.what} {error.why}".strip()}
