"""Machines and their cards as people read them, from the API's JSON. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from buyer_cli.render import ABSENT, Json, data_size, duration, price, size, text, usd_plain
from events.naming import cards_in_words

NODE_HEADERS = ("NAME", "STATE", "PRICE USD/GPU-H", "GPUS", "FREE", "MODEL", "VRAM", "ID")
CARD_HEADERS = ("INDEX", "MODEL", "VRAM", "STATE", "USE", "MEMORY", "TEMP", "POWER", "JOB", "UUID")


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
    least = int(node.get("min_gpus") or 0)
    return (
        text(node.get("name")),
        node_state(node),
        amount,
        text(node.get("num_gpus")) + (f" ({least} or more)" if least > 1 else ""),
        free,
        node_model(node),
        vram,
        text(node.get("id")),
    )


IMAGE_LISTS = (("only images", "images_allow"), ("images there", "images_warm"))


def _maintenance(node: Json) -> str:
    """When the machine is away, and why."""
    times = (node.get("maintenance_from_ms"), node.get("maintenance_until_ms"))
    begin, end = (datetime.fromtimestamp(int(time_ms or 0) / 1000, UTC).strftime("%Y-%m-%d %H:%M") for time_ms in times)
    why = node.get("maintenance_reason")
    return f"{begin} to {end} UTC" + (f": {text(why)}" if why else "")


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
    if node.get("maintenance_from_ms") is not None:
        lines.append(("maintenance", _maintenance(node)))
    lines.append(
        ("cards", text(cards_in_words((str(card.get("model")), int(card.get("vram_mib") or 0)) for card in node.get("cards") or [])))
    )
    if node.get("org"):
        lines.append(("organisation", f"{text(node['org'])}, whose members' jobs it takes"))
    if int(node.get("min_gpus") or 0) > 1:
        lines.append(("let", f"{text(node['min_gpus'])} cards or more at once"))
    lines.append(("price", price(node.get("price_uusd_per_gpu_hour"))))
    lines.append(("cores", f"{text(node.get('cores_free'))} of {text(node.get('cores'))} free"))
    lines.append(
        ("memory", f"{data_size(int(node.get('memory_free_mib') or 0) << 20)} of {data_size(int(node.get('memory_mib') or 0) << 20)} free")
    )
    lines += [(name, text(node.get(name))) for name in ("isolation", "accept", "tier", "default_image", "agent_version") if node.get(name)]
    if node.get("labels"):
        lines.append(("labels", ", ".join(f"{text(key)}={text(value)}" for key, value in sorted(node["labels"].items()))))
    lines += [(label, ", ".join(map(text, node[name]))) for label, name in IMAGE_LISTS if node.get(name)]
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
    held = data_size(int(card["memory_used_mib"]) << 20) if card.get("memory_used_mib") else ABSENT
    readings = (_reading(card, "gpu_percent", "%"), held, _reading(card, "temperature_c", "C"), _reading(card, "power_w", "W"))
    state = f"{text(card.get('state'))} ({text(card['unhealthy'])})" if card.get("unhealthy") else text(card.get("state"))
    head = (text(card.get("index")), text(card.get("model")), size(int(card.get("vram_mib") or 0)), state)
    return (*head, *readings, text(card.get("job")), text(card.get("uuid")))


def _reading(card: Json, name: str, unit: str) -> str:
    return ABSENT if card.get(name) is None else f"{text(card[name])} {unit}"
