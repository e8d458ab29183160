"""`bazaar ps`, `show`, `queue`, `nodes`, `node`, `offers`: what the query API knows, for people and as the API's own JSON."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from buyer_cli import render, render_nodes, render_usage
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import NOT_FOUND, USAGE, Complaint
from buyer_cli.finding import find_job, find_node, my_address
from buyer_cli.offer_filter import offer_query
from buyer_cli.printable import printable
from events.delegation import parse_address
from events.quantities import BadValue
from events.wallet import Keystore

STATES = sorted(render.UNFINISHED | set(render.EXIT_CODES))


def now_ms() -> int:
    """The wall clock, for `12 s ago` only."""
    return time.time_ns() // 1_000_000


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Finished jobs too.")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only this state; may be repeated.", metavar="STATE")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only with this label; may be repeated.")
@click.option("--buyer", metavar="0x|NAME|all", help="Another wallet's jobs, as far as you may see them, or everybody's.")
@click.option("--org", metavar="NAME|ID", help="Everybody's jobs for this organisation.")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=None, help="At most so many.")
@command_flags
def ps(
    caller: Caller,
    everything: bool,
    states: tuple[str, ...],
    labels: tuple[str, ...],
    buyer: str | None,
    org: str | None,
    limit: int | None,
) -> None:
    """My unfinished jobs, newest first."""
    wanted, api = set(states) or (set() if everything else render.UNFINISHED), Api(caller.settings)
    query: dict[str, object] = {"label": list(labels) or None, "state": sorted(wanted) or None}
    query |= {"org": None if org is None else _org(api, org), "buyer": None if org and not buyer else _buyer(caller, buyer)}
    jobs = api.items("/v1/jobs", query, most=limit or 10_000)
    if caller.as_json:
        caller.terminal.emit(jobs)
        return
    empty = "no job" if everything or states else "no unfinished job; `bazaar ps -a` shows the others"
    caller.terminal.table(render.JOB_HEADERS, [render.job_row(job, now_ms()) for job in jobs], empty=empty)


def _org(api: Api, asked: str) -> str:
    """The id of an organisation that is named by its id or its name. Raises Complaint."""
    found = [one for one in api.get("/v1/orgs")["items"] if asked in (one["id"], one["name"])]
    if len(found) == 1:
        return str(found[0]["id"])
    why = f"{len(found)} are called so." if found else "None that you may see is called so."
    raise Complaint("unknown_org", f"There is no organisation {printable(asked)}.", why, "bazaar org list", exit_code=NOT_FOUND)


def _buyer(caller: Caller, asked: str | None) -> str | None:
    if asked == "all":
        return None
    if asked is None:
        return my_address(caller)
    return parse_address(asked) or Keystore(caller.settings.home).find(asked).address


@click.command()
@click.argument("job")
@command_flags
def show(caller: Caller, job: str) -> None:
    """Everything about a job. JOB is its id, a unique beginning of it, or `last`."""
    found = find_job(caller, Api(caller.settings), job)
    if caller.as_json:
        caller.terminal.emit(found)
    else:
        caller.terminal.lines(render.job_lines(found, now_ms()) + render_usage.usage_lines(found))


@click.command()
@command_flags
def queue(caller: Caller) -> None:
    """What waits, in the order in which the market would place it, and what runs."""
    body = Api(caller.settings).get("/v1/queue")
    if caller.as_json:
        caller.terminal.emit(body)
        return
    now = now_ms()
    queued, running = body.get("queued", []), body.get("running", [])
    caller.terminal.note(f"{render.count(len(queued), 'job')} waiting, {len(running)} running")
    rows = [(str(place), *render.queue_row(job, now)) for place, job in enumerate(queued, 1)]
    rows += [("", *render.queue_row(job, now)) for job in running]
    if rows:
        caller.terminal.table(("PLACE", *render.QUEUE_HEADERS), rows)


@click.command()
@command_flags
def nodes(caller: Caller) -> None:
    """The machines of the market, with their cards, state and price."""
    found = Api(caller.settings).items("/v1/nodes")
    if caller.as_json:
        caller.terminal.emit(found)
    else:
        caller.terminal.table(
            render_nodes.NODE_HEADERS, [render_nodes.node_row(node) for node in found], empty="no node is offered at present"
        )


@click.command()
@click.argument("node")
@command_flags
def node(caller: Caller, node: str) -> None:
    """One machine. NODE is its id, a unique beginning of it, or its name."""
    api = Api(caller.settings)
    found = api.get(f"/v1/nodes/{find_node(api.items('/v1/nodes'), node)['id']}")
    if caller.as_json:
        caller.terminal.emit(found)
        return
    caller.terminal.lines(render_nodes.node_lines(found))
    caller.terminal.table(
        render_nodes.CARD_HEADERS, [render_nodes.card_row(card) for card in found.get("cards") or []], empty="it has no cards"
    )


@click.command()
@click.argument("conditions", nargs=-1, metavar="[FILTER]")
@command_flags
def offers(caller: Caller, conditions: tuple[str, ...]) -> None:
    """Machines on offer, cheapest first. FILTER such as 'gpus>=2 vram>=24GB price<=0.40': the conditions that a job can have.

    \b
    gpus>= vram>= total-vram>= cuda>= cores>= memory>= price<= isolation>= tier>= network= label:NAME=
    model=   several: any of them
    """
    try:
        query = offer_query(" ".join(conditions))
    except BadValue as error:
        why, example = re.sub(r"\s+", " ", error.why), "'gpus>=2 vram>=24GB price<=0.40 model=A100 label:region=eu'"
        raise Complaint("bad_filter", "That is no filter.", why, error.hint or example, exit_code=USAGE) from None
    found: list[dict[str, Any]] = Api(caller.settings).items("/v1/offers", query)
    if caller.as_json:
        caller.terminal.emit(found)
    else:
        caller.terminal.table(
            render_nodes.NODE_HEADERS, [render_nodes.node_row(offer) for offer in found], empty="nothing on offer passes that"
        )
