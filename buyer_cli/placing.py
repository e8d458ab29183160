"""Before a job is submitted: what it would cost and who could run it, said to the person, who may still say no. Shell."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from buyer_cli import render, render_quote
from buyer_cli.complaint import NO_PLACE, Complaint
from buyer_cli.following import quote_request
from buyer_cli.session import ask_quote
from buyer_cli.terminal import Terminal
from events.errors import MarketUnreachable, Refused
from events.jobs import JobSubmitted
from events.market_client import MarketClient
from events.reasons import Refusal
from events.wire import QuoteAnswer

OFFERS_SHOWN = 5


class Manner(NamedTuple):
    """How the person wants it: without being asked, only when it can start at once, said or not."""

    yes: bool = False
    now: bool = False


async def agreed(client: MarketClient, terminal: Terminal, order: JobSubmitted, manner: Manner) -> JobSubmitted:
    """The job as it is to be submitted. Raises Complaint (5) when `--now` cannot be had, or the person says no."""
    try:
        quote = await quoted(client, order)
    except MarketUnreachable:
        if manner.now:
            raise
        terminal.note("the market gives no quote at present; the job is submitted without one")
        return order
    if quote.only_simulated and terminal.is_interactive and not manner.yes:
        terminal.note("Only simulated cards would do: nothing is computed on a real GPU there.")
        if terminal.confirm("Allow them for this job?", default=False):
            allowed = [msgspec.structs.replace(asked, allow_simulated=True) for asked in (order.requirements, *order.variants)]
            order = msgspec.structs.replace(order, requirements=allowed[0], variants=tuple(allowed[1:]))
            quote = await quoted(client, order)
    if order.estimate_s is not None and order.estimate_s > order.timeout_s:
        lasts, ends = render.duration(order.estimate_s), render.duration(order.timeout_s)
        terminal.note(f"warning: it is thought to take {lasts} (--estimate) and is stopped after {ends} (--timeout)")
    say_quote(terminal, quote, order)
    if not quote.free_now or quote.paused:
        if manner.now:
            raise no_place(quote)
        why = "" if quote.could_run and not quote.paused else f": {render_quote.waiting_sentence(quote)}"
        terminal.note(f"warning: nobody can run it at present{why}; it waits in the queue")
        if quote.only_simulated:
            terminal.note("         --allow-simulated lets it run on simulated cards")
        elif quote.change:
            terminal.note(f"         what would help: {render.text(quote.change)}")
    if not manner.yes and not terminal.confirm("Run it?", default=bool(quote.could_run)):
        raise Complaint("declined", "Nothing was submitted.", exit_code=1)
    return order


async def quoted(client: MarketClient, order: JobSubmitted) -> QuoteAnswer:
    """Who could run it. Raises Refused, MarketUnreachable."""
    answer = await ask_quote(client, quote_request(order, submitted=False))
    if answer.failure is not None:
        raise Refused(Refusal(answer.failure.code), answer.failure.detail)
    return answer


def no_place(quote: QuoteAnswer) -> Complaint:
    """Exit 5: nobody can run it, and which condition fails."""
    if quote.only_simulated:
        return Complaint(
            "no_place",
            "Only simulated cards could run this.",
            render_quote.failing_sentence(quote),
            "--allow-simulated",
            exit_code=NO_PLACE,
        )
    if quote.paused:
        return Complaint("no_place", "The market is paused.", "The operator paused it.", "later", exit_code=NO_PLACE)
    if quote.failing is not None:
        return Complaint(
            "no_place",
            "Nobody here could run this.",
            render_quote.failing_sentence(quote),
            render.text(quote.change) if quote.change else "ask for less; `bazaar offers` shows what there is",
            exit_code=NO_PLACE,
        )
    hint = "leave --now out: the job then waits its turn"
    return Complaint("no_place", "Nobody can run this at present.", render_quote.waiting_sentence(quote), hint, exit_code=NO_PLACE)


def say_quote(terminal: Terminal, quote: QuoteAnswer, order: JobSubmitted) -> None:
    """The quote for a person, on stderr: offers on a terminal, and in any case the most that the job can cost."""
    if terminal.as_json or not quote.could_run:
        return
    if terminal.is_interactive:
        rows = [render_quote.offer_row(offer) for offer in quote.offers[:OFFERS_SHOWN]]
        for line in render.columns(render_quote.OFFER_HEADERS, rows):
            terminal.note(f"  {line}")
    terminal.note(f"{render_quote.places_sentence(quote)}; {cost(quote, order)}")


def cost(quote: QuoteAnswer, order: JobSubmitted) -> str:
    """The most that it can cost."""
    gpus, nodes, total = (order.requirements, *order.variants)[quote.variant].num_gpus, order.num_nodes, order.max_total_uusd
    if nodes > 1:
        gpus, total = max(1, gpus) * nodes, None if total is None else total * nodes
    return render_quote.cost_sentence(quote, gpus, order.timeout_s, order.max_price_uusd_per_gpu_hour, total)
