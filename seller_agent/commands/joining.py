"""`bazaar-seller join`: takes in the line that `bazaar-market invite` prints, once what it says has been tried."""

from __future__ import annotations

import json
import os

import click

from events.home import resolve
from events.invitation import BadLine, overruled, read_line
from events.invitation import join as join_market
from seller_agent.commands.options import plain, run_async, say


@click.command()
@click.argument("line", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also when this home has joined another market.")
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout.")
def join(line: tuple[str, ...], force: bool, json_out: bool) -> None:
    """Join a market by the line that its operator sent. The market must answer, with the certificate that the line names."""
    settings = resolve({}, os.environ)
    try:
        invitation = read_line(" ".join(line))
    except BadLine as error:
        raise click.UsageError(plain(f"{error.what} {error.why} {error.hint}")) from None
    hello = run_async(join_market(settings, invitation, force=force))
    if json_out:
        told = {"market": invitation.market, "api": invitation.api, "market_id": invitation.market_id, "name": hello.name}
        click.echo(json.dumps(told))
    else:
        say(f"joined {hello.name} ({hello.market_id[:16]}); written to {settings.home / 'config.toml'}")
    for warning in overruled(settings):
        say(f"warning: {warning}")
