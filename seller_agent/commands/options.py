"""What the seller's commands about a node share: their options, and how they find the node, run and speak."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

from events.home import Settings, resolve
from seller_agent.owner.nodes import OwnedNode, choose_node

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def node_options(command: F) -> F:
    """`--name --market --wallet --delegation --json`."""
    for option in (
        click.option("--name", metavar="N", help="Which node; needed when there are several in this home."),
        click.option("--market", metavar="URL", help="The broker; by default the market running here, or the one joined."),
        click.option("--wallet", metavar="W", help="Whose node it is, when none was offered from here."),
        click.option("--delegation", type=click.Path(exists=True, dir_okay=False), help="A file from `bazaar login -o`."),
        click.option("--json", "json_out", is_flag=True, help="JSON on stdout."),
    ):
        command = option(command)
    return command


def found(given: dict[str, Any]) -> tuple[Settings, OwnedNode]:
    """The settings and the node that a command was given. Raises NoSuchNode, IdentityError."""
    settings = resolve({"market": given.get("market"), "wallet": given.get("wallet")}, os.environ)
    return settings, choose_node(settings, given.get("name"))


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end."""
    return asyncio.run(work)


def say(text: str) -> None:
    """A line for the person, harmless whatever is in it."""
    click.echo(plain(text), err=True)


def plain(text: object) -> str:
    """Without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def tell(given: dict[str, Any], value: object, words: str) -> None:
    """The outcome: JSON on stdout when that was asked for, else a line."""
    if given.get("json_out"):
        click.echo(json.dumps(value))
    else:
        say(words)
