"""Reads the query API over the market's own connection: who reaches the broker needs no other address; the subject proves who asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from events import wire
from events.errors import BazaarError, MarketUnreachable
from events.market_client import MarketClient

READ_S = 20.0
PAGE = 100
ITEMS_MAX = 20_000


class ReadRefused(BazaarError):
    """The query API answers a question with a problem."""

    what = "The market does not answer this question."


async def read(client: MarketClient, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The body that the API has for this path, as far as this wallet may see. Raises MarketUnreachable, ReadRefused."""
    answer = await client.ask_bytes("read", wire.encode({"path": path, "query": dict(query or {})}), READ_S)
    try:
        body = msgspec.json.decode(answer, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise MarketUnreachable("The market's answer cannot be read.", why=str(error), hint="Update the client.") from None
    if isinstance(body.get("status"), int) and "code" in body:
        raise ReadRefused(str(body.get("title", "")), why=str(body.get("detail", "")), hint=str(body.get("hint") or ""))
    return body


async def read_items(client: MarketClient, path: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """All items of a list, page after page, at most ITEMS_MAX. Raises as `read`."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < ITEMS_MAX:
        page = await read(client, path, {**(query or {}), "limit": str(PAGE)} | ({"cursor": cursor} if cursor else {}))
        found += page["items"]
        cursor = page.get("next_cursor")
        if not cursor:
            break
    return found
