"""`bazaar-seller reap`: ends what is past its time here. For a timer, and for an owner who wants to be sure."""

from __future__ import annotations

import json
import os

import click
from msgspec import to_builtins

from events.home import resolve
from seller_agent.commands.options import plain, say
from seller_agent.owner.moments import span_text
from seller_agent.owner.nodes import NoSuchNode, node_names
from seller_agent.runs.reaping import Found, reap_node


@click.command()
@click.option("--name", metavar="N", help="Only this node; by default all of this home.")
@click.option("--dry-run", is_flag=True, help="Say what would be ended.")
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout.")
def reap(name: str | None, dry_run: bool, json_out: bool) -> None:
    """End containers and processes of this home that are past their lease or deadline. Needs neither agent nor market, and leaves
    alone what still has its time."""
    home = resolve({}, os.environ).home
    names = node_names(home)
    if name is not None and name not in names:
        raise NoSuchNode(
            f"There is no node {name[:64]!a} here.", why=f"Nodes here: {', '.join(names) or 'none'}.", hint="Leave --name out."
        )
    found = {one: reap_node(home / "seller" / one, dry_run=dry_run) for one in ([name] if name is not None else names)}
    if json_out:
        click.echo(json.dumps({one: to_builtins(result) for one, result in found.items()}))
    else:
        for one, result in found.items():
            for line in _lines(result, dry_run):
                click.echo(plain(f"{one}: {line}"))
    for one, result in found.items():
        if result.trouble:
            say(f"{one}: {result.trouble}")
    if any(result.trouble or any(not late.gone for late in result.late) for result in found.values()) and not dry_run:
        raise click.exceptions.Exit(1)


def _lines(found: Found, dry_run: bool) -> list[str]:
    done = {True: "ended", False: "still there"}
    return [
        f"{late.kind} {late.run}: {late.reason}{f', {span_text(late.late_ms)} late' if late.late_ms else ''}, "
        f"{'would be ended' if dry_run else done[late.gone]}"
        for late in found.late
    ]
