"""`bazaar-market`: the operator's commands. Parses, asks, prints; what a command does is in the module that it calls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NoReturn

import click

from events.errors import BazaarError, IdentityError, MarketUnreachable, Refused
from events.home import Settings, read_endpoints, resolve
from events.log_setup import configure
from events.pinning import split
from events.reasons import REFUSALS
from services.commands import reaching, rules
from services.processes import MarketFolder

DEFAULT_PORT, DEFAULT_API_PORT = 4222, 8420
EXIT_FAILURE, EXIT_USAGE, EXIT_IDENTITY, EXIT_UNREACHABLE = 1, 2, 4, 6

as_json = click.option("--json", "json_out", is_flag=True, help="One JSON object on stdout.")
broker_option = click.option("--broker", metavar="URL", help="The broker; by default the market running here.")
log_level = click.option("--log-level", default="info", show_default=True, type=click.Choice(["debug", "info", "warning", "error"]))
log_json = click.option("--log-json", is_flag=True, help="Log lines on stderr as JSON; in the files they are so anyway.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gpubazaar")
def cli() -> None:
    """Run a GPU Bazaar market."""


for command in (reaching.invite, rules.policy, rules.limit, rules.pause, rules.resume, rules.cancel, rules.node):
    cli.add_command(command)


def main() -> NoReturn:
    """The command line, with every failure as a few lines and a documented exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BazaarError as error:
        complain(error)
        sys.exit(exit_code(error))
    sys.exit(0)


def exit_code(error: BazaarError) -> int:
    """The documented code of a failure."""
    if isinstance(error, MarketUnreachable):
        return EXIT_UNREACHABLE
    if isinstance(error, IdentityError):
        return EXIT_IDENTITY
    if isinstance(error, Refused):
        return REFUSALS[error.refusal].exit_code
    return int(getattr(error, "exit_code", EXIT_FAILURE))


def complain(error: BazaarError) -> None:
    """What, why, and what to try."""
    click.echo(f"error: {error.what}", err=True)
    if error.why:
        click.echo(f"  why: {error.why}", err=True)
    if error.hint:
        click.echo(f"  try: {error.hint}", err=True)


def settings() -> Settings:
    """What the environment and `config.toml` say."""
    return resolve({}, os.environ)


@cli.command()
@click.option("--port", type=click.IntRange(0, 65535), help=f"The broker's port; 0 takes free ones for all. Default {DEFAULT_PORT}.")
@click.option("--api-port", type=click.IntRange(0, 65535), help=f"The API's port. Default {DEFAULT_API_PORT}.")
@click.option("--policy", metavar="NAME", help="The first policy of a new market (BAZAAR_POLICY).")
@click.option("--seller", is_flag=True, help="Offer this machine's GPUs.")
@click.option("--price", default="0.40", show_default=True, metavar="USD", help="Per GPU-hour.")
@click.option(
    "--simulate-gpus", "simulate", multiple=True, metavar="SPEC", help='Offer simulated cards such as "2xRTX 4090"; repeat for more nodes.'
)
@click.option("--runner", type=click.Choice(["docker", "process"]), help="How the seller runs jobs; by default what this machine has.")
@reaching.reach_options
@as_json
@log_level
@log_json
def up(
    port: int | None,
    api_port: int | None,
    policy: str | None,
    seller: bool,
    price: str,
    simulate: tuple[str, ...],
    runner: str | None,
    json_out: bool,
    log_level: str,
    log_json: bool,
    **reach: Any,
) -> None:
    """Start a whole market on this machine, and keep it running until Ctrl-C."""
    from services.embedded import Embedded, Running, SellerOptions, UpOptions
    from services.reach import is_loopback

    extra = () if runner is None else ("--runner", runner)
    sellers: list[SellerOptions] = []
    if simulate:
        host = socket.gethostname().split(".")[0]
        names = [None] if len(simulate) == 1 else [f"{host}-{number}" for number in range(1, len(simulate) + 1)]
        sellers = [SellerOptions(name, price, spec, extra) for name, spec in zip(names, simulate, strict=True)]
    elif seller:
        sellers = [SellerOptions(None, price, None, extra)]
    if api_port is None:
        api_port = 0 if port == 0 else DEFAULT_API_PORT
    home = settings().home
    options = UpOptions(
        home=home,
        reach=reaching.decided(home, **reach),
        port=DEFAULT_PORT if port is None else port,
        api_port=api_port,
        policy=rules.first_policy(policy, os.environ),
        sellers=tuple(sellers),
        log_level=log_level,
        log_json=log_json,
    )

    def ready(running: Running) -> None:
        if json_out:
            click.echo(json.dumps({"market": running.market, "api": running.api, "pid": os.getpid(), "market_id": running.market_id}))
        else:
            click.echo(_greeting(running, sellers, is_open=not is_loopback(options.reach.bind)))

    async def serve() -> None:
        market = Embedded(options, lambda text: click.echo(text, err=True))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, market.stop)
        await market.run(ready)

    if not json_out:
        click.echo("starting the market ...", err=True)
    asyncio.run(serve())


def _greeting(running: Any, sellers: list[Any], *, is_open: bool) -> str:
    lines = ["GPU Bazaar is up. Ctrl-C ends it; what was submitted is kept."]
    if running.left_over:
        lines.append(f"  found      left running by an earlier market and ended: {', '.join(running.left_over)}")
    lines += [f"  market     {running.market}", f"  API        {split(running.api)[0]}", f"  data       {running.home}"]
    for seller in sellers:
        cards = f"{seller.simulate} (simulated)" if seller.simulate else "this machine's GPUs"
        lines.append(f"  seller     {cards} at {seller.price} USD per GPU-hour")
    if is_open:
        lines.append("  others     bazaar-market invite    # prints the line with which they join")
    simulated = " --allow-simulated" if any(seller.simulate for seller in sellers) else ""
    lines.append(f"  try        bazaar wallet new && bazaar run{simulated} -c 'print(6 * 7)'")
    return "\n".join(lines)


@cli.command()
def down() -> None:
    """End the market that runs in this home."""
    from services.broker import start_time

    folder = MarketFolder(settings().home)
    try:
        pid = int(folder.lock.read_text())
    except (OSError, ValueError):
        pid = 0
    started = start_time(pid) if pid else None
    if started is None or read_endpoints(folder.home) is None:
        raise MarketUnreachable("No market is running here.", why=f"in {folder.home}", hint="bazaar-market up")
    os.kill(pid, signal.SIGTERM)
    while start_time(pid) == started:
        time.sleep(0.05)
    click.echo("The market has ended.", err=True)


@cli.command()
@as_json
def status(json_out: bool) -> None:
    """Which parts run, and where the ledger stands."""
    from services.embedded import api_get

    home = settings().home
    endpoints = read_endpoints(home)
    if endpoints is None:
        raise MarketUnreachable("No market is running here.", why=f"in {home}", hint="bazaar-market up")
    parts = json.loads(MarketFolder(home).running.read_text())
    try:
        market = json.loads(api_get(endpoints.api, "/v1/market", 5.0))
    except (OSError, MarketUnreachable) as error:
        market = {"error": str(error)}
    found = {"market": endpoints.market, "api": endpoints.api, "pid": endpoints.pid, "parts": parts, "state": market}
    if json_out:
        click.echo(json.dumps(found))
        return
    click.echo(f"market {endpoints.market}  API {endpoints.api}  pid {endpoints.pid}")
    for name, part in sorted(parts.items()):
        click.echo(f"  {name:<12} pid {part['pid']}")
    click.echo("  " + "  ".join(f"{key} {value}" for key, value in market.items() if isinstance(value, (str, int))))


@cli.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written next.")
@click.option("--tail", default=20, show_default=True, help="Lines of each log to begin with.")
def logs(follow: bool, tail: int) -> None:
    """The logs of all parts."""
    folder = settings().home / "log"
    files = dict.fromkeys(sorted(folder.glob("*.log")), 0)
    for file in files:
        text = file.read_text(errors="replace").splitlines()
        for line in text[-tail:]:
            click.echo(f"{file.stem:<10} {_harmless(line)}")
        files[file] = file.stat().st_size
    while follow:
        time.sleep(0.3)
        for file in sorted(folder.glob("*.log")):
            size, seen = file.stat().st_size, files.get(file, 0)
            if size < seen:
                seen = 0
            if size > seen:
                with file.open("rb") as stream:
                    stream.seek(seen)
                    for line in stream.read().decode(errors="replace").splitlines():
                        click.echo(f"{file.stem:<10} {_harmless(line)}")
            files[file] = size


def _harmless(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)


@cli.command("verify-log")
@broker_option
@as_json
def verify_log(broker: str | None, json_out: bool) -> None:
    """Replay the whole ledger: every hash, every page's signature, and the digest against the matcher's own."""
    from services.verify import verify

    folder = MarketFolder(settings().home)
    found = asyncio.run(verify(folder, broker or settings().market))
    if json_out:
        click.echo(json.dumps(found))
    else:
        click.echo(f"{found['pages']} pages, {found['events']} events, digest {found['digest']}")
        click.echo("The live market agrees." if found["agrees"] else "The live market DIFFERS.")
    if not found["agrees"] or found["void"]:
        raise click.exceptions.Exit(EXIT_FAILURE)


def _service(name: str, logging: tuple[str, bool], run: Callable[[], Coroutine[Any, Any, None]], *, fast_loop: bool = False) -> None:
    """One service as this process. Ends with its failure said, not with a traceback, when the environment is at fault."""
    from services.processes import calm_collector

    configure(settings().home, name, level=logging[0], as_json=logging[1])
    calm_collector()
    if fast_loop:
        import uvloop

        uvloop.run(run())
    else:
        asyncio.run(run())


@cli.command()
@broker_option
@click.option("--standby", is_flag=True, help="Take over only when the leading matcher falls silent.")
@log_level
@log_json
def matcher(broker: str | None, standby: bool, log_level: str, log_json: bool) -> None:
    """The matcher alone: the one writer of the ledger."""
    from services.processes import run_matcher

    folder, url = MarketFolder(settings().home), broker or settings().market
    _service("matcher", (log_level, log_json), lambda: run_matcher(folder, url, standby=standby), fast_loop=True)


@cli.command()
@broker_option
@log_level
@log_json
def callout(broker: str | None, log_level: str, log_json: bool) -> None:
    """The callout alone: decides who may connect."""
    from services.processes import run_callout

    folder, url = MarketFolder(settings().home), broker or settings().market
    _service("callout", (log_level, log_json), lambda: run_callout(folder, url))


@cli.command()
@broker_option
@log_level
@log_json
def files(broker: str | None, log_level: str, log_json: bool) -> None:
    """The gateway alone: files in and out, and the output of jobs."""
    from services.processes import run_gateway

    folder, url = MarketFolder(settings().home), broker or settings().market
    _service("files", (log_level, log_json), lambda: run_gateway(folder, url), fast_loop=True)


@cli.command()
@broker_option
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_API_PORT, show_default=True)
@click.option("--fd", type=int, hidden=True, help="A socket that is listened on already.")
@reaching.public_host
@reaching.tls_cert
@reaching.tls_key
@log_level
@log_json
def api(broker: str | None, port: int, fd: int | None, log_level: str, log_json: bool, **reach: Any) -> None:
    """The query API alone, on loopback."""
    from services.processes import run_api

    folder, url = MarketFolder(settings().home), broker or settings().market
    decided = reaching.decided(folder.home, **reach)
    listening = socket.create_server(("127.0.0.1", port)) if fd is None else socket.socket(fileno=fd)
    run = partial(run_api, folder, url, listening, tls=decided.tls, public_hosts=decided.public_hosts)
    _service("api", (log_level, log_json), run)
