"""What an owner looks at: the node's state, its jobs, its earnings. Reads only."""

from __future__ import annotations

import json
from typing import Any

import click
from msgspec.structs import asdict

from events.quantities import BadValue
from seller_agent.commands.options import found, node_options, plain, run_async
from seller_agent.owner.accounts import earnings as sums
from seller_agent.owner.asking import jobs_of, market_ms, open_for
from seller_agent.owner.moments import clock_text, moment_ms, span_text
from seller_agent.owner.offers import OfferError, price_text
from seller_agent.owner.state import node_jobs, node_status

EXIT_UNREACHABLE = 6
CLOCK_OFF_MS = 5_000
ENDED = "succeeded,failed,timed_out,cancelled,expired"


@click.command()
@node_options
def status(**given: Any) -> None:
    """The node here and on the market: offer, cards, jobs, standing orders, heartbeat, session, outbox."""
    settings, node = found(given)
    state = run_async(node_status(settings, node, given["delegation"]))
    if given["json_out"]:
        click.echo(json.dumps(state))
    else:
        for line in status_lines(state):
            click.echo(plain(line))
    if state["market_error"] is not None:
        raise click.exceptions.Exit(EXIT_UNREACHABLE)


def status_lines(state: dict[str, Any]) -> list[str]:
    """For a person."""
    agent = f"process {state['agent_pid']}" if state["agent_pid"] else "not running"
    lines = [f"{state['name']}  {state['node']}  owner {state['owner']}"]
    lines.append(f"agent       {agent}" + (f", {state['runner']} runner" if state["runner"] else ""))
    if state["market_error"] is not None:
        lines.append(f"market      {state['market_error']}")
    else:
        lines += _market_lines(state)
    if state["unanswered_events"]:
        lines.append(f"outbox      {state['unanswered_events']} events wait for the market's answer")
    if state["runs"]:
        lines.append(f"here        {len(state['runs'])} run folders")
    return lines + _delegation_lines(state["delegation"])


def _market_lines(state: dict[str, Any]) -> list[str]:
    offer, beat = state["offer"], state["beat_age_ms"]
    heard = "never" if beat is None else f"{span_text(beat)} ago"
    lease = f"; given up after {state['lease_s']} s" if state["lease_s"] else ""
    lines = [
        f"market      {state['state']}{' (silent)' if state['suspect'] else ''}, heard {heard}{lease}",
        f"offer       {state['price_usd']} USD per GPU-hour, {offer['cores']} cores, {offer['memory_mib']} MiB, {offer['isolation']}, "
        f"jobs of {offer['accept']}",
    ]
    if abs(state["clock_ahead_ms"]) > CLOCK_OFF_MS:
        way = "ahead of" if state["clock_ahead_ms"] > 0 else "behind"
        lines.append(f"clock       {span_text(abs(state['clock_ahead_ms']))} {way} the market's: set it; nothing here goes by it meanwhile")
    lines += _order_lines(state["orders"])
    for card in state["cards"]:
        lines.append(f"card {card['index']:<6} {card['model']}, {card['vram_mib']} MiB, {card['state']}{_readings(card)}")
    for job in state["jobs"]:
        lines.append(f"job         {_job_line(job)}")
    return lines


def _order_lines(orders: dict[str, Any]) -> list[str]:
    lines = []
    if orders["draining"]:
        why = f" ({orders['drain_reason']})" if orders["drain_reason"] else ""
        until = f"; what runs at {clock_text(orders['drain_deadline_ms'])} is stopped" if orders["drain_deadline_ms"] else ""
        lines.append(f"drained{why}: no new jobs until `bazaar-seller resume`{until}")
    plan = orders["maintenance"]
    if plan is not None:
        why = f" ({plan['reason']})" if plan["reason"] else ""
        lines.append(f"maintenance{why}: {clock_text(plan['from_ms'])} to {clock_text(plan['until_ms'])}")
    if orders["banned"]:
        lines.append("banned by the market's operator: no new jobs")
    return [f"orders      {line}" for line in lines]


def _readings(card: dict[str, Any]) -> str:
    known = [
        f"{card[key]}{unit}"
        for key, unit in (("gpu_percent", " %"), ("memory_used_mib", " MiB used"), ("temperature_c", " C"), ("power_w", " W"))
        if card.get(key)
    ]
    notes = ["simulated"] if card["simulated"] else []
    if card.get("unhealthy"):
        notes.append(card["unhealthy"])
    if card.get("ecc_errors"):
        notes.append(f"{card['ecc_errors']} memory errors")
    return "".join(f", {note}" for note in (*notes, *known))


def _job_line(job: dict[str, Any]) -> str:
    left = f", {span_text(job['left_ms'])} left" if job["left_ms"] is not None else ""
    cards = ",".join(str(gpu["index"]) for gpu in job["gpus"]) or "no"
    state = job["state"] if not job["phase"] else f"{job['state']} ({job['phase']})"
    return f"{job['id']}  {state:<10}  cards {cards}  buyer {job['buyer']}  {price_text(job['earned_uusd'])} USD{left}"


def _delegation_lines(delegation: dict[str, Any] | None) -> list[str]:
    if delegation is None:
        return []
    left = span_text(delegation["left_ms"])
    if delegation["renews_itself"]:
        return [f"session     {left} left, renewed by itself"]
    warning = ": run `bazaar login --role seller -o FILE` in time" if delegation["warning"] else ""
    return [f"delegation  {left} left{warning}" if delegation["left_ms"] else "delegation  over: no new jobs are taken"]


@click.command()
@click.option("--last", "recent", type=click.IntRange(0, 500), default=10, metavar="N", help="So many ended ones too; default 10.")
@node_options
def jobs(recent: int, **given: Any) -> None:
    """What the node runs, and what it ran last: state, buyer, cards, time left, earned."""
    settings, node = found(given)

    async def ask() -> list[dict[str, Any]]:
        now_ms = await market_ms(settings)
        async with await open_for(settings, node, given["delegation"]) as client:
            return await node_jobs(client, node, now_ms, recent=recent)

    listed = run_async(ask())
    if given["json_out"]:
        click.echo(json.dumps(listed))
        return
    for job in listed:
        click.echo(plain(_job_line(job)))


@click.command()
@click.option("--since", metavar="T", help="Jobs that ended since then: 7d (ago), 2026-11-01T00:00.")
@node_options
def earnings(since: str | None, **given: Any) -> None:
    """What the node has earned, by day (UTC) and in all. Nothing is paid out by this version."""
    settings, node = found(given)
    now_ms = run_async(market_ms(settings))
    since_ms = None if since is None else _ago(since, now_ms)

    async def ask() -> list[dict[str, Any]]:
        async with await open_for(settings, node, given["delegation"]) as client:
            return await jobs_of(client, node.node_id, state=ENDED)

    days, total = sums(run_async(ask()), since_ms)
    if given["json_out"]:
        rows = [{"day": day, **asdict(one)} for day, one in days.items()]
        click.echo(json.dumps({"node": node.node_id, "name": node.name, "since_ms": since_ms, "days": rows, "total": asdict(total)}))
        return
    for day, one in [*days.items(), ("total", total)]:
        hours = f"{one.gpu_ms / 3_600_000:.2f}"
        click.echo(f"{day:<10}  {one.jobs:>6} jobs  {hours:>9} GPU-hours  {price_text(one.charged_uusd):>12} USD")


def _ago(text: str, now_ms: int) -> int:
    """A duration counts back from now."""
    try:
        then = moment_ms(text, now_ms)
        return then if "-" in text else 2 * now_ms - then if ":" not in text else then - 86_400_000
    except BadValue as error:
        raise OfferError(f"--since {text[:40]!a}: {error.why}.", why="It takes 7d or 2026-11-01T00:00.", hint="Say it so.") from None
