"""`bazaar join`: takes in the line that `bazaar-market invite` prints, once what it says has been tried."""

from __future__ import annotations

import asyncio

import click

from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import USAGE, Complaint
from buyer_cli.render import text
from events.errors import MarketUnreachable
from events.home import resolve
from events.invitation import BadLine, Invitation, overruled, read_line
from events.invitation import join as join_market


@click.command()
@click.argument("line", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Also when this home has joined another market.")
@command_flags
def join(caller: Caller, line: tuple[str, ...], force: bool) -> None:
    """Join a market by the line that its operator sent. The market must answer, with the certificate that the line names."""
    try:
        invitation = read_line(" ".join(line))
    except BadLine as error:
        raise Complaint("bad_invitation", error.what, error.why, error.hint, exit_code=USAGE) from None
    settings = caller.settings
    hello = asyncio.run(join_market(settings, invitation, force=force))
    if caller.as_json:
        caller.terminal.emit({"market": invitation.market, "api": invitation.api, "market_id": invitation.market_id, "name": hello.name})
    else:
        caller.terminal.note(f"joined {text(hello.name)} ({hello.market_id[:16]}); written to {settings.home / 'config.toml'}")
    for warning in [*overruled(settings), *_api_trouble(caller, invitation)]:
        caller.terminal.note(f"warning: {text(warning)}")


def _api_trouble(caller: Caller, invitation: Invitation) -> list[str]:
    if invitation.api is None:
        return []
    try:
        Api(resolve({"home": str(caller.settings.home), "market": invitation.market, "api": invitation.api}, {})).get("/healthz")
    except (Complaint, MarketUnreachable) as error:
        return [f"the query API does not answer at present: {error.why or error.what}"]
    return []
