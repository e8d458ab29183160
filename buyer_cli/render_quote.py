"""Quotes as people read them: who could run a job, what it costs, why it waits. Pure."""

from __future__ import annotations

from buyer_cli.render import ABSENT, count, duration, price, size, text, usd, usd_plain
from events.values import charge_uusd
from events.wire import QuoteAnswer, QuoteOffer

OFFER_HEADERS = ("NAME", "PRICE USD/GPU-H", "GPUS", "FREE", "MODEL", "VRAM", "ISOLATION", "DEFAULT IMAGE", "IMAGE THERE", "ID")


def offer_row(offer: QuoteOffer) -> tuple[str, ...]:
    """A line of `bazaar quote`."""
    model = text(offer.model) + (" (simulated)" if offer.simulated else "")
    free = f"{offer.gpus_free}" if offer.gpus else ABSENT
    vram = size(offer.vram_mib) if offer.gpus else ABSENT
    return (
        text(offer.name),
        usd_plain(offer.price_uusd_per_gpu_hour),
        str(offer.gpus),
        free,
        model,
        vram,
        text(offer.isolation),
        text(offer.default_image),
        "yes" if offer.image_there else ABSENT,
        text(offer.node_id),
    )


def funnel_rows(quote: QuoteAnswer) -> list[tuple[str, str, str]]:
    """How many nodes are left after each condition; the one that fails is marked, and nothing after it means anything."""
    rows = []
    for step in quote.steps:
        fails = step.condition == quote.failing
        rows.append((str(step.nodes), text(step.condition), text(step.asked) + ("  <- nobody" if fails else "")))
        if fails:
            break
    return rows


def failing_sentence(quote: QuoteAnswer) -> str:
    """Which condition no node passes."""
    for step in quote.steps:
        if step.condition == quote.failing and step.condition in ("nodes", "target"):
            return text(step.asked)
        if step.condition == quote.failing:
            return f"no node passes: {text(step.condition)}" + (f" ({text(step.asked)})" if step.asked else "")
    return f"no node passes: {text(quote.failing)}"


def waiting_sentence(quote: QuoteAnswer) -> str:
    """Why a queued job waits, in one line."""
    if quote.paused:
        return "the market is paused"
    if quote.failing is not None:
        simulated = "; only simulated cards would do, and the job does not allow them" if quote.only_simulated else ""
        return failing_sentence(quote) + simulated
    if limit_sentence(quote):
        return limit_sentence(quote)
    parts = []
    if quote.queue_position:
        parts.append(f"{count(quote.queue_position, 'job')} before it")
    if quote.free_now:
        parts.append(f"{count(quote.free_now, 'node')} free for it")
    elif is_kept(quote):
        parts.append(KEPT_WORDS)
    elif quote.could_run and quote.steps and quote.steps[-1].condition == "nodes":
        parts.append(text(quote.steps[-1].asked))
    elif quote.could_run:
        busy = f"{count(quote.could_run, 'node')} could run it, {'it is' if quote.could_run == 1 else 'all are'} busy"
        parts.append(busy + free_in(quote))
    return ", ".join(parts) or "its turn has not come"


def limit_sentence(quote: QuoteAnswer) -> str:
    """Which limit of the wallet or its organisation leaves no node; empty when none does."""
    words = next((text(step.asked) for step in quote.steps if step.condition == "limit" and step.nodes == 0), "")
    return words if not words or words.startswith("your ") else "a limit of your wallet or organisation is reached"


def free_in(quote: QuoteAnswer) -> str:
    """When the first busy node is free at the latest."""
    if quote.free_in_s is None:
        return ""
    left_s = max(1, quote.free_in_s)
    return f", free in at most {duration(left_s if left_s < 120 else -(-left_s // 60) * 60)}"


def cost_sentence(quote: QuoteAnswer, num_gpus: int, timeout_s: int, max_price_uusd: int | None, max_total_uusd: int | None) -> str:
    """The most that the job can cost, in money, and what that rests on."""
    prices = [offer.price_uusd_per_gpu_hour for offer in quote.offers]
    top = max_price_uusd if max_price_uusd is not None else max(prices, default=None)
    if top is None:
        return f"it may run {duration(timeout_s)} at any price (--max-price sets a cap)"
    cap = charge_uusd(timeout_s * 1000, num_gpus, top)
    if max_total_uusd is not None and max_total_uusd < cap:
        return f"at most {usd(max_total_uusd)} (--max-total)"
    cards = f"on {count(num_gpus, 'GPU')}" if num_gpus else "without a GPU, billed as one,"
    basis = f"{duration(timeout_s)} {cards} at {price(top)}"
    if max_price_uusd is not None:
        return f"at most {usd(cap)} ({basis})"
    low = quote.price_from_uusd if quote.price_from_uusd is not None else charge_uusd(timeout_s * 1000, num_gpus, min(prices))
    span = usd(cap) if low == cap else f"{usd_plain(low)} to {usd(cap)}"
    return f"at most {span} ({basis}, as offered now; --max-price makes that a cap)"


def places_sentence(quote: QuoteAnswer) -> str:
    """How many nodes could run it, and when."""
    nodes = count(quote.could_run, "node")
    if quote.free_now:
        return f"{nodes} could run it, {quote.free_now} free now"
    if limit_sentence(quote):
        return f"{nodes} could run it, but {limit_sentence(quote)}"
    if is_kept(quote):
        return f"{nodes} could run it; {KEPT_WORDS}"
    return f"{nodes} could run it, none free now{free_in(quote)}"


KEPT_WORDS = "what is free is kept for a job ahead of it, and only a job that is over in time may pass"


def is_kept(quote: QuoteAnswer) -> bool:
    """Whether a place that is free is kept for another job."""
    return not quote.free_now and any(step.condition == "kept" and step.nodes == 0 for step in quote.steps)
