"""The owner's standing orders: price, drain, resume, maintenance, withdraw. Each is one event; the running agent hears it and follows."""

from __future__ import annotations

import re
from typing import Any

import click

from events.errors import Refused
from events.fact import Event
from events.home import Settings
from events.nodes import NodeDrained, NodeMaintenancePlanned, NodeRepriced, NodeResumed, NodeWithdrawn
from events.quantities import BadValue, duration_s
from events.reasons import Refusal
from seller_agent.commands.options import found, node_options, run_async, tell
from seller_agent.owner.asking import market_ms, order
from seller_agent.owner.moments import EXAMPLE, clock_text, moment_ms
from seller_agent.owner.nodes import OwnedNode
from seller_agent.owner.offers import OfferError, parse_price, price_text

_REASON = re.compile(r"[A-Za-z0-9 ._@+,:-]{0,100}", re.ASCII)


def _reason(text: str) -> str:
    if _REASON.fullmatch(text) is None:
        raise OfferError(
            "This reason cannot be kept in the ledger.",
            why="A reason has at most 100 of A-Z a-z 0-9 space and ._@+,:-",
            hint='For example --reason "new fan".',
        )
    return text


def _moment(option: str, text: str, now_ms: int) -> int:
    try:
        return moment_ms(text, now_ms)
    except BadValue as error:
        raise OfferError(f"{option} {text[:40]!a}: {error.why}.", why=f"It takes {EXAMPLE}.", hint="Say it so.") from None


def _order(given: dict[str, Any], settings: Settings, node: OwnedNode, event: Event, words: str) -> None:
    seq = run_async(order(settings, node, event, given["delegation"]))
    tell(given, {"node": node.node_id, "name": node.name, "seq": seq}, words)


@click.command()
@click.argument("usd")
@node_options
def price(usd: str, **given: Any) -> None:
    """Ask another price per GPU-hour. Running jobs keep theirs; an agent that restarts keeps the new one."""
    uusd = parse_price(usd)
    settings, node = found(given)
    event = NodeRepriced(node_id=node.node_id, price_uusd_per_gpu_hour=uusd)
    words = f"{node.name} asks {price_text(uusd)} USD per GPU-hour from now on. Jobs that were matched before keep their price."
    _order(given, settings, node, event, words)


@click.command()
@click.option("--reason", default="", metavar="R", help="Shown to buyers.")
@click.option("--deadline", metavar="2h|TIME", help="What still runs then is evicted, and runs elsewhere.")
@node_options
def drain(reason: str, deadline: str | None, **given: Any) -> None:
    """Take no new jobs; what runs goes on, until the deadline if there is one. Holds until `resume`."""
    reason = _reason(reason)
    settings, node = found(given)
    deadline_ms = None if deadline is None else _moment("--deadline", deadline, run_async(market_ms(settings)))
    until = "what runs goes on" if deadline_ms is None else f"what still runs at {clock_text(deadline_ms)} is stopped"
    event = NodeDrained(node_id=node.node_id, reason=reason, deadline_ms=deadline_ms)
    _order(given, settings, node, event, f"{node.name} takes no new jobs; {until}. `bazaar-seller resume` ends that.")


@click.command()
@node_options
def resume(**given: Any) -> None:
    """Take new jobs again after a drain."""
    settings, node = found(given)
    try:
        _order(given, settings, node, NodeResumed(node_id=node.node_id), f"{node.name} takes new jobs again.")
    except Refused as error:
        if error.refusal is Refusal.ILLEGAL_IN_STATE:
            error.what, error.why = f"{node.name} is not drained.", "There is nothing to take back, or the market's operator has to do it."
            error.hint = "bazaar-seller status; a maintenance is taken back with `bazaar-seller maintenance --cancel`"
        raise


@click.command()
@click.option("--from", "begin", metavar="T", help="When it begins: 2h, 18:30, 2026-11-22T18:30.")
@click.option("--for", "span", metavar="D", help="How long it takes, such as 90m.")
@click.option("--reason", default="", metavar="R", help="Shown to buyers.")
@click.option("--cancel", is_flag=True, help="Take the plan back.")
@node_options
def maintenance(begin: str | None, span: str | None, reason: str, cancel: bool, **given: Any) -> None:
    """Plan a time in which the machine is away. Nothing is matched that could still run when it begins; what runs then is stopped,
    and afterwards the node goes on by itself."""
    if cancel == bool(begin or span) or (not cancel and not (begin and span)):
        raise click.UsageError("Give --from and --for, or --cancel alone.")
    reason = _reason(reason)
    settings, node = found(given)
    now_ms = run_async(market_ms(settings))
    if begin is None or span is None:
        event = NodeMaintenancePlanned(node_id=node.node_id, from_ms=now_ms, until_ms=now_ms)
        _order(given, settings, node, event, f"{node.name}: no maintenance is planned any more.")
        return
    from_ms = max(now_ms, _moment("--from", begin, now_ms))
    try:
        until_ms = from_ms + 1000 * duration_s(span)
    except BadValue as error:
        raise OfferError(f"--for {span[:40]!a}: {error.why}.", why="It takes 90m, 4h or 2d.", hint="Say it so.") from None
    event = NodeMaintenancePlanned(node_id=node.node_id, from_ms=from_ms, until_ms=until_ms, reason=reason)
    _order(given, settings, node, event, f"{node.name} is away from {clock_text(from_ms)} to {clock_text(until_ms)}.")


@click.command()
@node_options
def withdraw(**given: Any) -> None:
    """Take the node off the market; what runs goes on."""
    settings, node = found(given)
    _order(given, settings, node, NodeWithdrawn(node_id=node.node_id), f"{node.name} is off the market.")
