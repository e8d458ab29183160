"""Why a job waits, as people read it: a sentence, the funnel, a line a node, what would change it, and the wait so far. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any

from buyer_cli.render import ABSENT, count, duration, text, usd, usd_plain

Json = Mapping[str, Any]
NODE_HEADERS = ("NODE", "PRICE USD/GPU-H", "WHY NOT", "FREE IN", "ID")
WAIT_HEADERS = ("FROM", "TO", "FOR", "CAUSE", "WHY")
TIER_WORDS = {
    "free": "free for it",
    "capacity": "could run it, taken",
    "away": "could run it, take nothing now",
    "price": "ask too much",
    "never": "could never run it",
}


def funnel(why: Json) -> str:
    """`7 nodes -> 5 with 2 GPUs -> 3 with 24 GB a card -> 0 free now`: conditions that take nobody away are left out."""
    parts, left = [], None
    for step in why.get("steps") or []:
        if left is None or step["nodes"] != left:
            asked = text(step["asked"])
            parts.append(f"{count(step['nodes'], 'node')} {asked}" if left is None else f"{step['nodes']} {asked}")
            left = step["nodes"]
        if not left:
            break
    return " -> ".join(parts)


def lines(why: Json) -> list[str]:
    """Everything but the tables."""
    found = [text(why.get("summary"))]
    shown = funnel(why)
    if shown:
        found.append(f"Nodes: {shown}")
    tiers = why.get("tiers") or {}
    if tiers:
        found.append("Of them: " + ", ".join(f"{number} {TIER_WORDS.get(tier, text(tier))}" for tier, number in tiers.items()))
    for ahead in why.get("ahead") or []:
        found.append(f"Before it: {text(ahead['job'])} ({text(ahead['why'])})")
    place = why.get("place_kept")
    if place:
        found.append(_place(place, why))
    change = why.get("change")
    if change:
        when = "the matcher, asked with that, places it at once" if change["at_once"] else "then it could run there once there is room"
        price = f"{usd_plain(change['price_uusd_per_gpu_hour'])} USD per GPU-hour, at most {usd(change['cost_uusd'])}"
        found.append(f"Smallest change: {text(change['flag'])} -> {text(change['name'])} at {price}; {when}")
    past = why.get("history")
    if past:
        half, most = duration(past["p50_s"]), duration(past["p90_s"])
        found.append(f"Jobs like it waited: half of {past['jobs']} at most {half}, nine in ten at most {most}")
    return found


def _place(place: Json, why: Json) -> str:
    """The node that is kept, for whom, and from when it has room."""
    names = {node["node"]: node["name"] for node in why.get("nodes") or []}
    where = ", ".join(text(names.get(node, node)) for node in place["nodes"])
    left_ms = place["from_ms"] - why["time_ms"]
    when = f"in {duration_ms(left_ms)} at the latest" if left_ms > 0 else "any moment"
    if place["job"] == why["job"]:
        return f"A place is kept for it: room on {where} {when}"
    return f"Kept for {text(place['job'])}, which is ahead: {where}, with room for it {when}; a job that is over by then may start there"


def node_row(node: Json) -> tuple[str, ...]:
    """A line of the table of nodes."""
    free_in_s = node.get("free_in_s")
    free_in = ABSENT if free_in_s is None else f"{duration(max(1, free_in_s))} at most"
    return (text(node["name"]), usd_plain(node["price_uusd_per_gpu_hour"]), text(node["why"]), free_in, text(node["node"]))


def wait_row(wait: Json, zone: tzinfo | None) -> tuple[str, ...]:
    """A line of the table of the wait."""
    meanwhile = wait.get("placed_meanwhile") or 0
    told = text(wait["why"]) + (f"; {count(meanwhile, 'other job')} placed there meanwhile" if meanwhile else "")
    begin, end = (clock(wait[name], zone) for name in ("from_ms", "until_ms"))
    return (begin, end, duration_ms(wait["until_ms"] - wait["from_ms"]), text(wait["cause"]), told)


def clock(time_ms: int, zone: tzinfo | None) -> str:
    """The time of day."""
    return datetime.fromtimestamp(time_ms / 1000, zone).strftime("%H:%M:%S")


def duration_ms(milliseconds: int) -> str:
    """A short wait is told in milliseconds."""
    return f"{milliseconds} ms" if milliseconds < 1000 else duration(milliseconds / 1000)
