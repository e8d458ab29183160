"""How the operator's commands reach the market: questions with the market's own key, orders as signed events of the operator. Shell.

Nothing is changed but by an event that the matcher admits, so every order is dated and stands in the ledger.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from events import wire
from events.connection import Connection, ServiceKey
from events.errors import BazaarError, Refused
from events.fact import Event
from events.home import Settings
from events.login import open_client
from events.reasons import Refusal
from events.values import Role
from services.matcher.rules import Candidate, FindAnswer, FindRequest, Rules
from services.processes import MarketFolder

T = TypeVar("T")
ANSWER_S = 30.0


class NotFound(BazaarError):
    """Nothing, or more than one thing, is called so."""

    what = "There is no such thing here."
    exit_code = 3


async def _ask(settings: Settings, subject: str, request: object, answer: type[T]) -> T:
    folder = MarketFolder(settings.home)
    async with Connection(settings.market, ServiceKey(folder.load_keys().market), "operator") as connection:
        return wire.decode(await connection.request(subject, wire.encode(request)), answer)


def rules(settings: Settings) -> Rules:
    """The rules in force. Raises MarketUnreachable."""
    return asyncio.run(_ask(settings, "market.rules", None, Rules))


def find(settings: Settings, kind: str, text: str) -> Candidate:
    """The one thing that is meant. Raises NotFound, MarketUnreachable."""
    found = asyncio.run(_ask(settings, "market.find", FindRequest(kind=kind, text=text), FindAnswer)).found
    shown = "".join(letter for letter in text if letter.isprintable())[:80]
    if not found:
        raise NotFound(f"There is no {kind} {shown}.", hint="Look with `bazaar nodes` and `bazaar ps --buyer all`.")
    if len(found) > 1:
        listed = ", ".join(f"{one.id} ({one.name or one.state})" for one in found)
        raise NotFound(f"{shown} may mean several.", why=f"They are: {listed}.", hint="Write more of its id.")
    return found[0]


def order(settings: Settings, event: Event) -> int:
    """Say this as the operator; the sequence at which it stands in the ledger. Raises Refused, MarketUnreachable, IdentityError."""

    async def say() -> Any:
        client = await open_client(settings, Role.OPERATOR, name="operator")
        try:
            return await client.submit(event, ANSWER_S)
        finally:
            await client.close()

    outcome = asyncio.run(say())
    if outcome.reason is not None:
        raise Refused(Refusal(outcome.reason), outcome.detail)
    return int(outcome.seq)
