"""Replaying the whole ledger from nothing, and comparing the outcome with the market that is live."""

from __future__ import annotations

from typing import Any

import msgspec

from events import wire
from events.connection import Connection, ServiceKey
from events.nats_log import NatsLog
from projections import snapshot
from services.follower import Follower
from services.processes import MarketFolder


class Digest(msgspec.Struct, frozen=True):
    """What the matcher says about its own market."""

    seq: int
    digest: bytes
    page_hash: bytes


async def verify(folder: MarketFolder, broker: str) -> dict[str, Any]:
    """Pages, events, digest, what had no effect, and whether the live market agrees. Raises LogCorrupt, MarketUnreachable."""
    async with Connection(broker, ServiceKey(folder.load_keys().market), "verify") as connection:
        ledger = NatsLog(connection)
        follower = Follower()
        while True:
            await follower.catch_up(ledger)
            live = wire.decode(await connection.request("market.digest"), Digest)
            if live.seq <= follower.market.last_seq:
                break
    market = follower.market
    digest = snapshot.digest(market)
    return {
        "pages": market.pages,
        "events": market.last_seq,
        "digest": digest.hex(),
        "live_digest": live.digest.hex(),
        "agrees": live.seq == market.last_seq and live.digest == digest,
        "void": follower.void,
    }
