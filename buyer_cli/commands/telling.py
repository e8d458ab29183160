"""`bazaar events`: the ledger as the API tells it, from any place, and on as it grows."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from buyer_cli import render
from buyer_cli.api_reads import PAGE, Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import INTERRUPTED
from events.errors import MarketUnreachable

AGAIN_S = 1.0
GIVE_UP_S = 600.0


@click.command("events")
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows.")
@click.option("--from", "first", type=click.IntRange(1), metavar="SEQ", help="Begin at this event. Default: the latest ones.")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Without -f, at most so many.")
@command_flags
def events_(caller: Caller, follow: bool, first: int | None, limit: int) -> int:
    """What happened, in order. Other parties' jobs appear without name, labels or output."""
    api = Api(caller.settings)
    try:
        if follow:
            _follow(caller, api, first)
        else:
            _past(caller, api, first, limit)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _past(caller: Caller, api: Api, first: int | None, limit: int) -> None:
    if first is None and limit > PAGE:
        first = max(1, int(api.get("/v1/market")["seq"]) - limit + 1)
    found = api.items("/v1/events", {"from_seq": first}, most=limit)
    if caller.as_json:
        caller.terminal.emit(found)
        return
    for event in found:
        caller.terminal.data(render.event_line(event))


def _follow(caller: Caller, api: Api, first: int | None) -> None:
    """Never a lost or doubled event: after a break it goes on behind the last one that was shown."""
    last = int(api.get("/v1/market")["seq"]) if first is None else first - 1
    away_since: float | None = None
    while True:
        try:
            for number, data in api.stream("/v1/events", {"from_seq": last + 1}, last):  # a named place is never sent on to a snapshot
                away_since = None
                if not number.isdigit() or int(number) <= last:
                    continue
                last = int(number)
                _show(caller, json.loads(data))
        except MarketUnreachable as error:
            if away_since is None:
                away_since = time.monotonic()
                caller.terminal.note(f"the API cannot be reached ({error.why or error.what}); trying again ...")
            elif time.monotonic() - away_since > GIVE_UP_S:
                raise
        time.sleep(AGAIN_S)


def _show(caller: Caller, event: dict[str, Any]) -> None:
    if caller.as_json:
        caller.terminal.emit(event)
    else:
        caller.terminal.data(render.event_line(event))
