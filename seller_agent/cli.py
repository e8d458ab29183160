"""`bazaar-seller`: parses, asks, prints; what a command does is in the module that it loads when it runs."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

import click

EXIT_FAILURE, EXIT_USAGE, EXIT_IDENTITY, EXIT_UNREACHABLE = 1, 2, 4, 6
EXIT_INTERRUPTED = 130

as_json = click.option("--json", "json_out", is_flag=True, help="JSON on stdout.")
market_option = click.option("--market", metavar="URL", help="The broker; by default the market running here, or the one joined.")
wallet_option = click.option("--wallet", metavar="W", help="Whose node it is: a wallet's name or address.")
name_option = click.option("--name", metavar="N", help="The node's name; by default this machine's.")
docker_host_option = click.option(
    "--docker-host", envvar="DOCKER_HOST", metavar="HOST", help="Docker's socket, as unix:///path (DOCKER_HOST)."
)
simulate_option = click.option("--simulate-gpus", "simulate", multiple=True, metavar="SPEC", help='Cards that do not exist: "2xRTX 4090".')


ELSEWHERE: dict[str, tuple[str, str, str]] = {
    "join": ("joining", "join", "Join a market by the line that its operator sent."),
    "gpus": ("examining", "gpus", "What would be offered: every card, and how it is."),
    "doctor": ("examining", "doctor", "Check everything that a seller needs."),
    "status": ("looking", "status", "The node here and on the market."),
    "jobs": ("looking", "jobs", "What the node runs, and what it ran last."),
    "earnings": ("looking", "earnings", "What the node has earned, by day and in all."),
    "price": ("orders", "price", "Ask another price; running jobs keep theirs."),
    "drain": ("orders", "drain", "Take no new jobs; what runs may finish."),
    "resume": ("orders", "resume", "Take new jobs again after a drain."),
    "maintenance": ("orders", "maintenance", "Plan a time in which the machine is away."),
    "hosts": ("hosts", "hosts", "Whether the hosts of a file can be reached, and what they would offer."),
    "reap": ("reaping", "reap", "End what is past its lease or deadline here; for a timer."),
    "install-service": ("service", "install_service", "Run the agent as a systemd service."),
    "withdraw": ("orders", "withdraw", "Take the node off the market; what runs goes on."),
}
"""Name -> module in seller_agent/commands, function in it, help line. Loaded when it runs."""


class Commands(click.Group):
    """The commands of this file, and those that stand in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = ELSEWHERE.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(importlib.import_module(f"seller_agent.commands.{entry[0]}"), entry[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, command.get_short_help_str(90)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl([*own, *((name, entry[2]) for name, entry in ELSEWHERE.items())])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gpubazaar")
def cli() -> None:
    """Offer this machine's GPUs on a GPU Bazaar market."""


def main() -> NoReturn:
    """The command line, with every failure as a few lines and a documented exit code."""
    try:
        code = cli.main(standalone_mode=False)  # of a command that ended by Exit: its code
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        sys.exit(_explain(error))
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Say what went wrong, why, and what to try; a fault of ours is shown whole."""
    from events.errors import BazaarError

    if not isinstance(error, BazaarError):
        raise error
    code = _exit_code(error)
    if "--json" in sys.argv:
        problem = {
            "type": "about:blank",
            "title": error.what,
            "status": code,
            "detail": error.why,
            "code": _code(error),
            "hint": error.hint,
        }
        click.echo(json.dumps(problem), err=True)
        return code
    _say(f"error: {error.what}")
    if error.why:
        _say(f"  why: {error.why}")
    if error.hint:
        _say(f"  try: {error.hint}")
    return code


def _exit_code(error: Exception) -> int:
    from events.errors import IdentityError, MarketUnreachable, Refused
    from events.reasons import REFUSALS
    from seller_agent.owner.nodes import NoSuchNode
    from seller_agent.owner.offers import OfferError

    if isinstance(error, MarketUnreachable):
        return EXIT_UNREACHABLE
    if isinstance(error, IdentityError):
        return EXIT_IDENTITY
    if isinstance(error, OfferError | NoSuchNode):
        return EXIT_USAGE
    return REFUSALS[error.refusal].exit_code if isinstance(error, Refused) else EXIT_FAILURE


def _code(error: Exception) -> str:
    """One word for a program: the market's own refusal, else the kind of fault."""
    from events.errors import Refused

    return error.refusal.value if isinstance(error, Refused) else re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()


def _say(text: str) -> None:
    """A line for the person, harmless whatever is in it."""
    click.echo("".join(letter if letter.isprintable() else "?" for letter in text), err=True)


def _settings(market: str | None = None, wallet: str | None = None) -> Any:
    from events.home import resolve

    return resolve({"market": market, "wallet": wallet}, os.environ)


def _await(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


def _node_name(given: str | None) -> str:
    from seller_agent.owner.offers import node_name

    return node_name(given, socket.gethostname())


@cli.command()
@click.option("--price", required=True, metavar="USD", help="Per GPU-hour, such as 0.35.")
@click.option(
    "--accept", type=click.Choice(["own", "organisation", "anyone"]), help="Whose jobs are taken; by default as the runner isolates."
)
@click.option("--org", metavar="ID", help="Take the jobs of this organisation's members and of nobody else; `bazaar org list` shows ids.")
@click.option("--gpus", metavar="0,1", help="Only these cards, by index.")
@click.option("--min-gpus", type=click.IntRange(0, 8), default=0, help="The smallest part of the machine that is let.")
@name_option
@click.option(
    "--runner",
    type=click.Choice(["docker", "process", "ssh"]),
    help="How jobs run; by default Docker where it answers, processes for simulated cards. ssh: on the machines of --hosts.",
)
@click.option("--hosts", metavar="FILE", help="With --runner ssh: the machines to offer, one node each (docs/ssh-nodes.md).")
@click.option("--default-image", metavar="IMAGE", help="For jobs that name no image, with the Docker runner.")
@click.option("--images-allow", multiple=True, metavar="PATTERN", help="Let only such images run, as 'pytorch/*'; repeat.")
@click.option("--registry-auth", metavar="FILE", help="Logins for pulling images, as Docker's config.json has them (0600).")
@click.option("--keep-free", default="10GB", metavar="SIZE", help="With less room, images pulled for jobs are deleted. Default 10GB.")
@click.option("--egress", is_flag=True, help="Let jobs reach the internet, and nothing else; as root, and only while that is proved.")
@click.option("--egress-check", multiple=True, metavar="IP:PORT", help="What they must reach for that; repeat, one is enough.")
@click.option("--address", metavar="ADDR", help="Where other nodes reach programs here, for gangs; by default the way to the market.")
@docker_host_option
@simulate_option
@click.option("--labels", multiple=True, metavar="K=V", help="Labels that jobs may ask for; repeat.")
@click.option("--delegation", type=click.Path(exists=True, dir_okay=False), help="A file from `bazaar login -o`; needs no keystore here.")
@click.option("--resume", is_flag=True, help="Take new jobs although the node was drained.")
@market_option
@wallet_option
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--log-json", is_flag=True, help="Log lines as JSON.")
def run(**given: Any) -> None:
    """Offer this machine, or the hosts of a file, and run jobs until Ctrl-C."""
    if (given["runner"] == "ssh") != (given["hosts"] is not None):
        raise click.UsageError("--runner ssh and --hosts FILE go together.")
    from events.log_setup import configure
    from events.values import Accept
    from seller_agent.node import starting
    from seller_agent.node.containers import ContainerTerms, parse_image, parse_patterns, parse_places, parse_room
    from seller_agent.owner.offers import Terms, parse_address, parse_indices, parse_labels, parse_org, parse_price

    accept, org_id = parse_org(None if given["accept"] is None else Accept(given["accept"]), given["org"])
    terms = Terms(
        name=_node_name(given["name"]),
        price_uusd_per_gpu_hour=parse_price(given["price"]),
        accept=accept,
        org_id=org_id,
        min_gpus=given["min_gpus"],
        gpus=None if given["gpus"] is None else parse_indices(given["gpus"]),
        labels=parse_labels(given["labels"]),
        address=parse_address(given["address"]),
    )
    options = starting.Options(
        terms=terms,
        runner=given["runner"],
        simulate=given["simulate"],
        delegation=given["delegation"],
        containers=ContainerTerms(
            docker_host=given["docker_host"],
            default_image=parse_image(given["default_image"]),
            images_allow=parse_patterns(given["images_allow"]),
            registry_auth=given["registry_auth"],
            keep_free_mib=parse_room(given["keep_free"]),
            egress=given["egress"],
            egress_check=parse_places(given["egress_check"]),
        ),
        resume=given["resume"],
    )
    settings = _settings(given["market"], given["wallet"])
    configure(settings.home, f"seller-{terms.name}", level=given["log_level"], as_json=given["log_json"])
    if given["runner"] == "ssh":
        from seller_agent.node.ssh_nodes import run_hosts

        _await(lambda: run_hosts(settings, options, given["hosts"], _say))
        return
    _await(lambda: starting.run(settings, options, _say))


if __name__ == "__main__":
    main()
