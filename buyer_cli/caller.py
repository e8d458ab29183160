"""What every command starts with: the terminal, the settings in force, and the flags that all commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from buyer_cli.terminal import Terminal

if TYPE_CHECKING:
    from events.home import Settings

P = ParamSpec("P")
T = TypeVar("T")


class Caller:
    """Who calls, how to answer, and where the market is. Settings are read when first asked for."""

    def __init__(self, terminal: Terminal, flags: dict[str, str | None]) -> None:
        self.terminal = terminal
        self.flags = flags

    @property
    def as_json(self) -> bool:
        """Whether the answer is for a program."""
        return self.terminal.as_json

    @cached_property
    def settings(self) -> Settings:
        """Flag, environment, config.toml, default. Raises BazaarError."""
        from events.home import resolve

        return resolve(self.flags, os.environ)


def command_flags(function: Callable[Concatenate[Caller, P], T]) -> Callable[..., T]:
    """Gives a command `--json`, `--wallet`, `--market` and `--api`, and passes it its Caller first."""

    @click.option("--json", "as_json", is_flag=True, help="Answer in JSON; errors too, on stderr.")
    @click.option("--wallet", metavar="NAME|0x", help="Act as this wallet. [BAZAAR_WALLET]")
    @click.option("--market", metavar="ADDRESS", help="The market's broker. [BAZAAR_MARKET]")
    @click.option("--api", metavar="URL", help="The market's query API. [BAZAAR_API]")
    @functools.wraps(function)
    def wrapped(*args: Any, as_json: bool, wallet: str | None, market: str | None, api: str | None, **kwargs: Any) -> T:
        caller = Caller(Terminal(as_json), {"wallet": wallet, "market": market, "api": api})
        return function(caller, *args, **kwargs)

    return wrapped
