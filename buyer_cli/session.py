"""Opens the market for a command: as whom, with which passphrase, and what is asked of it. Shell; loads nats, so import it late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import click

from buyer_cli.caller import Caller
from events.log_setup import configure
from events.login import open_client
from events.market_client import MarketClient
from events.values import Role
from events.wallet import Passphrases
from events.wire import FilesAnswer, FilesRequest, QuoteAnswer, QuoteRequest

T = TypeVar("T")
FILES_S = 10.0
QUOTE_S = 5.0


def passphrases(caller: Caller) -> Passphrases:
    """Where this command's passphrases come from; a person is asked only on a terminal."""

    def ask(question: str) -> str:
        is_new = question.startswith("New")
        answer: str = click.prompt(question, default="", hide_input=True, show_default=False, confirmation_prompt=is_new, err=True)
        return answer

    return Passphrases(caller.settings.passphrase_file, ask if caller.terminal.is_interactive else None)


@asynccontextmanager
async def opened(caller: Caller) -> AsyncIterator[MarketClient]:
    """The market, logged in as the buyer. Raises MarketUnreachable, ConnectionRefused, IdentityError."""
    configure(caller.settings.home, "bazaar", stderr=False)  # what the connection logs is for the file, not for the person
    client = await open_client(caller.settings, Role.BUYER, passphrases(caller))
    try:
        yield client
    finally:
        await client.close()


def asks_files(client: MarketClient) -> Any:
    """How `events/files.py` and the output reader reach the store."""

    async def ask(request: FilesRequest) -> FilesAnswer:
        return await client.ask("files", request, FilesAnswer, FILES_S)

    return ask


async def ask_quote(client: MarketClient, request: QuoteRequest) -> QuoteAnswer:
    """Who could run it. Raises Refused, MarketUnreachable."""
    return await client.ask("quote", request, QuoteAnswer, QUOTE_S)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end."""
    return asyncio.run(work)
