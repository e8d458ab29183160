"""What people read: money, times, sizes, states, rows and sentences, from plain values. Pure; prints nothing itself.

Whatever came from the market goes through `printable` here, so that no caller can forget it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from buyer_cli.printable import printable
from events.reasons import REASONS, Reason

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
    """The state with what is going on beside it: `claimed (pulling 43%)`, `running (stops in 4 min)`."""
    beside = job.get("phase") or str(job.get("warning") or "").partition(":")[0]
    return text(job.get("state")) + (f" ({text(beside)})" if beside else "")


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
    if (job.get("num_nodes") or 1) > 1:
        lines.append(("rank", f"{text(job.get('rank'))} of {text(job['num_nodes'])}"))
    if job.get("node"):
        lines.append(("node", f"{text(job.get('node_name'))} ({text(job['node'])})"))
    lines += [(name, text(job.get(name))) for name in ("image", "image_digest", "group", "org") if job.get(name)]
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


def run_time(ran_ms: int) -> str:
    """How long something ran: `74 ms`, `1.6 s`, `3 min 20 s`."""
    if ran_ms < 1000:
        return f"{ran_ms} ms"
    return f"{ran_ms / 1000:.1f} s" if ran_ms < 60_000 else duration(ran_ms // 1000)


def state_sentence(state: str) -> str:
    """`It has succeeded`, `It was cancelled`, `It is running`."""
    verb = {"cancelled": "was", "over": "is"}.get(state, "has" if state in EXIT_CODES else "is")
    return f"It {verb} {text(state).replace('_', ' ')}"


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
        parts.append(f"ran {run_time(ran_ms)}")
    if job.get("charged_uusd") is not None and job.get("attempt"):
        parts.append(f"bill {usd(job['charged_uusd'])}")
    return ", ".join(parts)


def usd_plain(amount_uusd: int | None) -> str:
    """An amount for a column whose head names the unit."""
    return usd(amount_uusd).removesuffix(" USD")


QUEUE_HEADERS = ("ID", "NAME", "STATE", "PRIORITY", "GPUS", "NODE", "UPDATED")


def queue_row(job: Json, now_ms: int) -> tuple[str, ...]:
    """A line of `bazaar queue`; other parties' jobs have no name here."""
    gpus = text(job.get("num_gpus"))
    node = text(job.get("node_name") or job.get("node"))
    head = (text(job.get("id")), text(job.get("name")), state(job), text(job.get("priority")))
    return (*head, gpus, node, ago(job.get("updated_ms"), now_ms))


def columns(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table for pipes and files: aligned, untruncated, no rules."""
    table = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


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
    "num_nodes",
    "rank",
    "image",
    "image_digest",
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
    "warning",
    "usage",
)
"""Of a job as JSON, in the API and here alike."""


def event_line(event: Json) -> str:
    """A line of `bazaar events`: place, time of day (UTC), kind, and what it is about."""
    told = event.get("event") or {}
    about = [text(told[name]) for name in ("job_id", "node_id", "wallet", "name", "state", "reason") if told.get(name)]
    second = int(event.get("time_ms") or 0) // 1000 % 86400
    time = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
    return "  ".join((text(event.get("seq")).rjust(6), time, text(event.get("type")).ljust(20), *about)).rstrip()
