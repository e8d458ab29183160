"""Which organisation is meant, and what the market knows of this wallet's organisations and read tokens."""

from __future__ import annotations

from typing import Any

from buyer_cli.complaint import NOT_FOUND, USAGE, Complaint
from buyer_cli.printable import printable
from events.market_client import MarketClient
from events.reading import read

Json = dict[str, Any]


async def _newest(client: MarketClient, path: str) -> list[Json]:
    """A list that knows everything this wallet has heard of. Raises MarketUnreachable."""
    seq = (client.last_sync or await client.sync()).prev
    items: list[Json] = (await read(client, path, {"min_seq": str(seq)}))["items"]
    return items


async def own_orgs(client: MarketClient) -> list[Json]:
    """The organisations that the wallet is in."""
    return await _newest(client, "/v1/orgs")


async def own_tokens(client: MarketClient) -> list[Json]:
    """The wallet's read tokens."""
    return await _newest(client, "/v1/tokens")


def pick_org(orgs: list[Json], given: str | None, wallet: str) -> Json:
    """The organisation that is meant: by id, unique prefix or name; without one, the only one that this wallet is in."""
    mine = [one for one in orgs if any(member["wallet"] == wallet for member in one["members"])]
    if given is None:
        if len(mine) == 1:
            return mine[0]
        listed = ", ".join(f"{one['name']} ({one['id']})" for one in mine) or "none; `bazaar org create NAME` makes one"
        raise Complaint("ambiguous", "Say which organisation is meant.", f"This wallet's: {listed}.", "--org NAME", exit_code=USAGE)
    found = [one for one in mine if given in (one["id"], one["name"])] or [one for one in mine if one["id"].startswith(given)]
    if len(found) != 1:
        why = f"{len(found)} of this wallet's organisations are called so." if found else "This wallet is in no organisation of that name."
        raise Complaint("unknown_org", f"There is no organisation {printable(given)}.", why, "bazaar org list", exit_code=NOT_FOUND)
    return found[0]
