"""What people read: money, times, sizes, states, rows and sentences, from plain values. Pure; prints nothing itself.

Whatever came from the market goes through `printable` here, so that no caller can forget it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from buyer_cli.printable import printable
from events.reasons import REASONS, Reason
from events.values import charge_uusd
from events.wire import QuoteAnswer, QuoteOffer

Json = Mapping[str, Any]
ABSENT = "-"
UNFINISHED = frozenset({"queued", "matched", "claimed", "starting", "running", "stopping"})
EXIT_CODES = {"succeeded": 0, "failed": 100, "cancelled": 103, "timed_out": 104, "expired": 105}
"""How `run`, `wait` and `logs -f` exit."""


def usd(amount_uusd: int | None) -> str:
    """`0.40 USD`: at least two decimals, and as many more as the amount has."""
    if amount_uusd is None:
        return ABSENT
    whole, rest = divmod(amount_uusd, 10**6)
    return f"{whole:,}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')} USD"


def price(amount_uusd: int | None) -> str:
    """`0.40 USD per GPU-hour`."""
    return ABSENT if amount_uusd is None else f"{usd(amount_uusd)} per GPU-hour"


def size(mib: int) -> str:
    """The round size a card is sold under; asking for exactly that matches it."""
    if mib < 973:
        return f"{mib} MiB"
    return f"{(mib * 20 + 1024) // (1024 * 20)} GB"


def data_size(size_bytes: int) -> str:
    """Bytes of files and output."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"


def duration(seconds: float) -> str:
    """The two largest units that are needed: `1 h 30 min`, `45 s`."""
    left = max(0, int(seconds))
    if not left:
        return "0 s"
    parts = []
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, factor)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def ago(then_ms: int | None, now_ms: int) -> str:
    """`12 s ago`. A clock that runs ahead shows as `now`."""
    if then_ms is None:
        return ABSENT
    seconds = (now_ms - then_ms) // 1000
    if seconds < 1:
        return "now"
    return f"{duration(seconds).split(' ', 2)[0]} {duration(seconds).split(' ', 2)[1]} ago"


def count(number: int, noun: str) -> str:
    """`1 node`, `3 nodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def text(value: object) -> str:
    """A value of an answer as one harmless line; absent is a dash."""
    return ABSENT if value is None or value == "" else printable(str(value))


def state(job: Json) -> str:
    """The state with what is going on beside it: `claimed (pulling 43%)`."""
    phase = job.get("phase")
    return text(job.get("state")) + (f" ({text(phase)})" if phase else "")


def cards(job: Json) -> str:
    """Which cards a job has. While it waits there are none to name."""
    if job.get("state") == "queued":
        return "N/A"
    listed = job.get("gpus") or []
    if not listed:
        return "none" if job.get("num_gpus") == 0 else ABSENT
    return f"{len(listed)}x {text(listed[0].get('model'))} [{','.join(str(card.get('index')) for card in listed)}]"


JOB_HEADERS = ("ID", "NAME", "STATE", "GPUS", "NODE", "UPDATED")


def job_row(job: Json, now_ms: int) -> tuple[str, ...]:
    """A line of `bazaar ps`."""
    node = text(job.get("node_name") or job.get("node"))
    return (text(job.get("id")), text(job.get("name")), state(job), cards(job), node, ago(job.get("updated_ms"), now_ms))


def reason_sentence(reason: str | None) -> str:
    """A reason in words a buyer can act on."""
    try:
        return REASONS[Reason(str(reason))].sentence
    except ValueError:
        return text(reason)


def job_lines(job: Json, now_ms: int) -> list[tuple[str, str]]:
    """`bazaar show`: a label and a value a line, without what is absent."""
    lines = [("id", text(job.get("id"))), ("name", text(job.get("name"))), ("state", state(job))]
    if job.get("reason"):
        lines.append(("reason", f"{text(job['reason'])}: {reason_sentence(job['reason'])}"))
    lines += [(name, text(job.get(name))) for name in ("detail", "exit_code", "queue_position") if job.get(name) is not None]
    lines.append(("GPUs", cards(job) if job.get("gpus") else text(job.get("num_gpus"))))
    if job.get("node"):
        lines.append(("node", f"{text(job.get('node_name'))} ({text(job['node'])})"))
    lines += [(name, text(job.get(name))) for name in ("image", "group", "org") if job.get(name)]
    if job.get("labels"):
        lines.append(("labels", ", ".join(f"{printable(str(key))}={printable(str(value))}" for key, value in job["labels"].items())))
    lines += [("priority", text(job.get("priority"))), ("attempt", text(job.get("attempt")))]
    lines += _money_lines(job)
    if job.get("timeout_s") is not None:
        lines.append(("timeout", duration(job["timeout_s"])))
    for name in ("submitted", "matched", "started", "ended", "updated"):
        if job.get(f"{name}_ms") is not None:
            lines.append((name, ago(job[f"{name}_ms"], now_ms)))
    return lines + _rest_lines(job)


def _money_lines(job: Json) -> list[tuple[str, str]]:
    lines = []
    if job.get("price_uusd_per_gpu_hour") is not None:
        lines.append(("price", price(job["price_uusd_per_gpu_hour"])))
    if job.get("max_price_uusd_per_gpu_hour") is not None:
        lines.append(("at most", price(job["max_price_uusd_per_gpu_hour"])))
    if job.get("charged_uusd") is not None:
        lines.append(("charged", usd(job["charged_uusd"])))
    return lines


def _rest_lines(job: Json) -> list[tuple[str, str]]:
    """What an API newer than this program tells besides."""
    if job.get("kept_until_ms") is None or job.get("ended_ms") is None:
        return []
    return [("output kept", f"{duration((job['kept_until_ms'] - job['ended_ms']) // 1000)} after the end")]


def ended_sentence(job: Json) -> str:
    """How a job ended, in one line: state, why, how long, and the bill."""
    word = text(job.get("state")).replace("_", " ")
    parts = [word]
    if job.get("state") != "succeeded":
        parts = [f"{word}: {reason_sentence(job.get('reason'))}"]
        if job.get("exit_code"):
            parts[0] += f" (exit code {text(job['exit_code'])})"
    ran_ms = job.get("ran_ms")
    if ran_ms is None and job.get("started_ms") is not None and job.get("ended_ms") is not None:
        ran_ms = max(0, job["ended_ms"] - job["started_ms"])
    if ran_ms is not None:
        parts.append(f"ran {duration(ran_ms // 1000) if ran_ms >= 1000 else f'{ran_ms} ms'}")
    if job.get("charged_uusd") is not None:
        parts.append(f"bill {usd(job['charged_uusd'])}")
    return ", ".join(parts)


def usd_plain(amount_uusd: int | None) -> str:
    """An amount for a column whose head names the unit."""
    return usd(amount_uusd).removesuffix(" USD")


NODE_HEADERS = ("NAME", "STATE", "PRICE USD/GPU-H", "GPUS", "FREE", "MODEL", "VRAM", "ID")
CARD_HEADERS = ("INDEX", "MODEL", "VRAM", "STATE", "USE", "TEMP", "JOB", "UUID")
QUEUE_HEADERS = ("ID", "NAME", "STATE", "PRIORITY", "GPUS", "NODE", "UPDATED")


def node_state(node: Json) -> str:
    """The state with what a buyer should know besides."""
    word = text(node.get("state"))
    return f"{word} (not heard of lately)" if node.get("suspect") else word


def node_model(node: Json) -> str:
    """The models of its cards."""
    models = sorted({str(card.get("model")) for card in node.get("cards") or []})
    return (text(", ".join(models)) if models else "no GPU") + (" (simulated)" if node.get("simulated") else "")


def node_row(node: Json) -> tuple[str, ...]:
    """A line of `bazaar nodes` and `bazaar offers`."""
    listed = node.get("cards") or []
    vram = size(min(int(card.get("vram_mib") or 0) for card in listed)) if listed else ABSENT
    amount, free = usd_plain(node.get("price_uusd_per_gpu_hour")), text(node.get("gpus_free"))
    return (
        text(node.get("name")),
        node_state(node),
        amount,
        text(node.get("num_gpus")),
        free,
        node_model(node),
        vram,
        text(node.get("id")),
    )


def node_lines(node: Json) -> list[tuple[str, str]]:
    """`bazaar node`: a label and a value a line."""
    lines = [
        ("id", text(node.get("id"))),
        ("name", text(node.get("name"))),
        ("owner", text(node.get("owner"))),
        ("state", node_state(node)),
    ]
    if node.get("drain_reason"):
        lines.append(("drained for", text(node["drain_reason"])))
    lines.append(("price", price(node.get("price_uusd_per_gpu_hour"))))
    lines.append(("cores", f"{text(node.get('cores_free'))} of {text(node.get('cores'))} free"))
    lines.append(
        ("memory", f"{data_size(int(node.get('memory_free_mib') or 0) << 20)} of {data_size(int(node.get('memory_mib') or 0) << 20)} free")
    )
    lines += [(name, text(node.get(name))) for name in ("isolation", "accept", "tier", "default_image", "agent_version") if node.get(name)]
    lines.append(("network", "egress, when a job asks for it" if node.get("egress") else "none"))
    if node.get("uptime_s") is not None:
        lines.append(("offered for", duration(node["uptime_s"])))
    if node.get("backlog_s"):
        lines.append(("busy for at most", duration(node["backlog_s"])))
    if node.get("jobs"):
        lines.append(("attempts ended", ", ".join(f"{text(number)} {text(how)}" for how, number in sorted(node["jobs"].items()))))
    return lines


def card_row(card: Json) -> tuple[str, ...]:
    """A line of a node's cards."""
    use = ABSENT if card.get("gpu_percent") is None else f"{text(card['gpu_percent'])} %"
    warm = ABSENT if card.get("temperature_c") is None else f"{text(card['temperature_c'])} C"
    head = (text(card.get("index")), text(card.get("model")), size(int(card.get("vram_mib") or 0)), text(card.get("state")))
    return (*head, use, warm, text(card.get("job")), text(card.get("uuid")))


def queue_row(job: Json, now_ms: int) -> tuple[str, ...]:
    """A line of `bazaar queue`; other parties' jobs have no name here."""
    gpus = text(job.get("num_gpus"))
    node = text(job.get("node_name") or job.get("node"))
    head = (text(job.get("id")), text(job.get("name")), state(job), text(job.get("priority")))
    return (*head, gpus, node, ago(job.get("updated_ms"), now_ms))


OFFER_HEADERS = ("NAME", "PRICE USD/GPU-H", "GPUS", "FREE", "MODEL", "VRAM", "ISOLATION", "ID")


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
        text(offer.node_id),
    )


def funnel_rows(quote: QuoteAnswer) -> list[tuple[str, str, str]]:
    """How many nodes are left after each condition; the one that fails is marked."""
    rows = []
    for step in quote.steps:
        mark = "  <- nobody" if step.condition == quote.failing else ""
        rows.append((str(step.nodes), text(step.condition), text(step.asked) + mark))
    return rows


def failing_sentence(quote: QuoteAnswer) -> str:
    """Which condition no node passes."""
    for step in quote.steps:
        if step.condition == quote.failing:
            return (
                f"no node passes: {text(step.condition)} ({text(step.asked)})" if step.asked else f"no node passes: {text(step.condition)}"
            )
    return f"no node passes: {text(quote.failing)}"


def waiting_sentence(quote: QuoteAnswer) -> str:
    """Why a queued job waits, in one line."""
    if quote.paused:
        return "the market is paused"
    if quote.failing is not None:
        simulated = "; only simulated cards would do, and the job does not allow them" if quote.only_simulated else ""
        return failing_sentence(quote) + simulated
    parts = []
    if quote.queue_position:
        parts.append(f"{count(quote.queue_position, 'job')} before it")
    if quote.free_now:
        parts.append(f"{count(quote.free_now, 'node')} free for it")
    elif quote.could_run:
        busy = f"{count(quote.could_run, 'node')} could run it, {'it is' if quote.could_run == 1 else 'all are'} busy"
        parts.append(busy + free_in(quote))
    return ", ".join(parts) or "its turn has not come"


def free_in(quote: QuoteAnswer) -> str:
    """When the first busy node is free at the latest."""
    return "" if quote.free_in_s is None else f", free in at most {duration(max(1, quote.free_in_s))}"


def cost_sentence(quote: QuoteAnswer, num_gpus: int, timeout_s: int, max_price_uusd: int | None, max_total_uusd: int | None) -> str:
    """The most that the job can cost, in money, and what that rests on."""
    prices = [offer.price_uusd_per_gpu_hour for offer in quote.offers]
    top = max_price_uusd if max_price_uusd is not None else max(prices, default=None)
    if top is None:
        return f"no cap on the price: --max-price sets one; it may run {duration(timeout_s)}"
    cap = charge_uusd(timeout_s * 1000, num_gpus, top)
    if max_total_uusd is not None and max_total_uusd < cap:
        return f"at most {usd(max_total_uusd)} (--max-total)"
    basis = f"{duration(timeout_s)} on {count(max(1, num_gpus), 'GPU')} at {price(top)}"
    if max_price_uusd is not None:
        return f"at most {usd(cap)} ({basis})"
    low = charge_uusd(timeout_s * 1000, num_gpus, min(prices))
    span = usd(cap) if low == cap else f"{usd_plain(low)} to {usd(cap)}"
    return f"at most {span} at the present offers ({basis}); --max-price sets a cap"


def columns(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table for pipes and files: aligned, untruncated, no rules."""
    table = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def places_sentence(quote: QuoteAnswer) -> str:
    """How many nodes could run it, and when."""
    nodes = count(quote.could_run, "node")
    if quote.free_now:
        return f"{nodes} could run it, {quote.free_now} free now"
    return f"{nodes} could run it, none free now{free_in(quote)}"


JOB_KEYS = (
    "id",
    "state",
    "reason",
    "detail",
    "phase",
    "kind",
    "name",
    "buyer",
    "buyer_alias",
    "org",
    "group",
    "labels",
    "node",
    "node_name",
    "gpus",
    "num_gpus",
    "image",
    "price_uusd_per_gpu_hour",
    "max_price_uusd_per_gpu_hour",
    "priority",
    "queue_position",
    "attempt",
    "epoch",
    "exit_code",
    "submitted_ms",
    "matched_ms",
    "started_ms",
    "ended_ms",
    "updated_ms",
    "timeout_s",
    "estimate_s",
    "charged_uusd",
)
"""Of a job as JSON, in the API and here alike."""
