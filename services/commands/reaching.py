"""`bazaar-market invite`, and the options of `up` that say how far the market can be reached."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from events.errors import MarketUnreachable
from events.home import read_endpoints, resolve

if TYPE_CHECKING:
    from services.reach import Reach

F = TypeVar("F", bound=Callable[..., Any])

bind = click.option("--bind", default="127.0.0.1", show_default=True, metavar="ADDR", help="Where broker and API listen.")
api_bind = click.option("--api-bind", metavar="ADDR", help="Where the API listens, if elsewhere; 127.0.0.1 behind a proxy.")
tls_cert = click.option("--tls-cert", metavar="FILE", help="The certificate of broker and API, in PEM, with its chain.")
tls_key = click.option("--tls-key", metavar="FILE", help="Its key.")
self_signed = click.option("--tls-self-signed", "self_signed", is_flag=True, help="A certificate of the market's own, made once.")
insecure = click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS: whoever sees the wire reads everything.")
public_host = click.option(
    "--public-host", "public_hosts", multiple=True, metavar="NAME", help="A proxy serves the API under this name: ask for tokens; repeat."
)


def reach_options(command: F) -> F:
    """All of them, in this order."""
    for option in (public_host, insecure, self_signed, tls_key, tls_cert, api_bind, bind):
        command = option(command)
    return command


def decided(home: Path, **given: Any) -> Reach:
    """How far the market can be reached. Raises OpenBind, BadReach, BadCertificate."""
    from services.reach import Asked, decide

    return decide(Asked(**given), home / "market" / "tls")


@click.command()
@click.option("--host", metavar="NAME|ADDR", help="How other machines reach this one; by default as far as it can be told from `up`.")
@click.option("--api-url", metavar="URL", help="The API as they reach it, if a proxy serves it elsewhere.")
@click.option("--no-pin", is_flag=True, help="Leave the fingerprint out: for a certificate of a public authority, which is renewed.")
@click.option("--json", "json_out", is_flag=True, help="One JSON object on stdout.")
def invite(host: str | None, api_url: str | None, no_pin: bool, json_out: bool) -> None:
    """Print the one line with which buyers and sellers join this market."""
    from events.invitation import Invitation
    from services.reach import api_for_others, broker_for_others, is_loopback

    home = resolve({}, os.environ).home
    endpoints = read_endpoints(home)
    if endpoints is None or endpoints.market_id is None:
        raise MarketUnreachable("No market is running here.", why=f"in {home}", hint="bazaar-market up")
    market = broker_for_others(endpoints, host, pin=not no_pin)
    api = api_url or api_for_others(endpoints, host, pin=not no_pin)
    invitation = Invitation(market=market, api=api, market_id=endpoints.market_id)
    line = invitation.line()
    if json_out:
        click.echo(json.dumps({"line": line, "market": market, "api": api, "market_id": endpoints.market_id}))
        return
    click.echo(f"bazaar join {line}")
    if is_loopback(endpoints.bind):
        click.echo("note: the market listens on this machine only; `up --bind 0.0.0.0 --tls-self-signed` opens it", err=True)
    elif "#" not in market and not no_pin:
        click.echo("note: the market has no TLS: whoever sees the wire reads what goes over it", err=True)
