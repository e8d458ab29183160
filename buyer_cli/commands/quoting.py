"""`bazaar quote`: who could run a job, at what price, and how many nodes pass each condition. Nothing is written."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from buyer_cli import render_quote
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.placing import cost, no_place, quoted
from buyer_cli.planning import Asked, Plan, requirement_layers
from buyer_cli.session import opened, run_async
from buyer_cli.spec import wishes
from buyer_cli.spec_flags import AfterDashes, spec_flags
from buyer_cli.submission import orders_for
from buyer_cli.terminal import Terminal
from events.jobs import JobSubmitted
from events.wire import QuoteAnswer


@click.command(cls=AfterDashes)
@click.argument("script", required=False, metavar="[SCRIPT|-]")
@spec_flags
@click.pass_context
@command_flags
def quote(caller: Caller, ctx: click.Context, script: str | None, flags: dict[str, object], job_file: str | None) -> int:
    """Who could run this, at what price, and how many of the market's nodes pass each condition. Exit 5: nobody, ever."""
    layers = requirement_layers(Asked(script, None, ctx.obj, job_file), flags, caller.settings.allow_simulated)
    made = [Plan(wish, ("true",), ()) for layer in layers for wish in wishes(layer)]

    async def ask() -> list[tuple[JobSubmitted, QuoteAnswer]]:
        async with opened(caller) as client:
            return [(order, await quoted(client, order)) for order in await orders_for(client, Api(caller.settings), made)]

    answers = run_async(ask())
    if caller.as_json:
        found = [_json(order, answer) for order, answer in answers]
        caller.terminal.emit(found[0] if len(found) == 1 else found)
    else:
        for order, answer in answers:
            _show(caller.terminal, order, answer)
    for _, answer in answers:
        if answer.failing is not None:
            raise no_place(answer)
    return 0


def _json(order: JobSubmitted, answer: QuoteAnswer) -> dict[str, Any]:
    told: dict[str, Any] = {
        field: getattr(answer, field) for field in answer.__struct_fields__ if field not in ("steps", "offers", "failure")
    }
    told["steps"] = [{"condition": step.condition, "asked": step.asked, "nodes": step.nodes} for step in answer.steps]
    told["offers"] = [msgspec.structs.asdict(offer) for offer in answer.offers]
    return told | {"num_gpus": order.requirements.num_gpus, "timeout_s": order.timeout_s}


def _show(terminal: Terminal, order: JobSubmitted, answer: QuoteAnswer) -> None:
    terminal.table(("NODES", "CONDITION", "ASKED"), render_quote.funnel_rows(answer), empty="no node is offered at present")
    if answer.offers:
        terminal.data("")
        terminal.table(render_quote.OFFER_HEADERS, [render_quote.offer_row(offer) for offer in answer.offers])
    if answer.could_run:
        terminal.data("")
        terminal.data(f"{render_quote.places_sentence(answer)}; {cost(answer, order)}")
