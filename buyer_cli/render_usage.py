"""What a job used of what it asked for and was given, in words; what will end it soon. Pure.

Only what was measured is said: a run that was never looked at has nothing to compare.
"""

from __future__ import annotations

import re

from buyer_cli.render import Json, data_size, duration, run_time, text

SEEN_ENOUGH = 3
"""So often a run must have been looked at before a card counts as never used, and before what it used in all means something."""
MIB = 1 << 20


def usage_lines(job: Json) -> list[tuple[str, str]]:
    """A label and a value for each thing asked and used; nothing for a job that was not watched."""
    lines = [("warning", text(job["warning"]))] if job.get("warning") else []
    if (job.get("limit_s") or 0) < (job.get("timeout_s") or 0) and job.get("limit_s"):
        lines.append(("ends after", f"{duration(job['limit_s'])}, by its estimate or its budget"))
    if job.get("using"):
        lines.append(("using now", _now(job["using"])))
    usage = job.get("usage") or {}
    if not usage.get("samples"):
        return lines
    lines += [_time(job), *_cards(job, usage)]
    if job.get("ran_ms") and usage["samples"] >= SEEN_ENOUGH:  # what came after the last look counts nowhere: too much of a short run
        lines += [_memory(job, usage), _cores(job, usage)]
    return [line for line in lines if line[1]]


def waste(job: Json) -> list[str]:
    """Cards that were paid and never used, a sentence each."""
    return [f"{label} was {words}" for label, words in _cards(job, job.get("usage") or {}) if words.startswith("never used")]


def remarks(job: Json) -> list[str]:
    """What is worth a line after the end of a job: what its node said of it, unless it went well, and what was paid for nothing."""
    said = [text(job["detail"])] if job.get("detail") and job.get("state") != "succeeded" else []
    return said + waste(job)


def warning_kind(warning: str) -> str:
    """What of a warning makes it another one: not how far off it is, nor how much of something there is."""
    return re.sub(r"\d+", "", warning.partition(":")[2])


def _now(using: Json) -> str:
    parts = []
    if using.get("gpu_percent") is not None:
        parts.append(f"GPU {using['gpu_percent']} %")
    if using.get("gpu_memory_mib") is not None:
        parts.append(f"{data_size(using['gpu_memory_mib'] * MIB)} of GPU memory")
    return ", ".join([*parts, f"{data_size((using.get('memory_mib') or 0) * MIB)} of main memory"])


def _time(job: Json) -> tuple[str, str]:
    ran_ms = job.get("ran_ms")
    if ran_ms is None:
        return "time", ""
    words = f"{run_time(ran_ms)} of {duration(job['timeout_s'])}" if job.get("timeout_s") else run_time(ran_ms)
    if job.get("estimate_s"):
        words += f"; {ran_ms // 10 // job['estimate_s']} % of the estimate of {duration(job['estimate_s'])}"
    return "time", words


def _cards(job: Json, usage: Json) -> list[tuple[str, str]]:
    """In the order of the match, named by their index on the node."""
    known = {card.get("uuid"): card for card in job.get("gpus") or []}
    lines = []
    for place, uuid in enumerate(usage.get("gpus") or []):
        card = known.get(uuid) or {}
        label = f"card {text(card.get('index', place))}"
        mean, most, memory_mib = (_at(usage, name, place) for name in ("mean_gpu_percent", "max_gpu_percent", "peak_gpu_memory_mib"))
        if most == 0 and usage.get("samples", 0) >= SEEN_ENOUGH:
            share = 100 // max(1, len(usage["gpus"]))
            lines.append((label, f"never used: {share} % of the bill" if share < 100 else "never used; --gpus 0 is a job without cards"))
            continue
        parts = [f"used {mean} % in the mean, {most} % at most"] if mean >= 0 else []
        if memory_mib >= 0:
            of = f" of {data_size(card['vram_mib'] * MIB)}" if card.get("vram_mib") else ""
            parts.append(f"{data_size(memory_mib * MIB)}{of} of its memory")
        lines.append((label, "; ".join(parts)))
    return lines


def _at(usage: Json, name: str, place: int) -> int:
    values = usage.get(name) or []
    return -1 if place >= len(values) or values[place] is None else int(values[place])


def _memory(job: Json, usage: Json) -> tuple[str, str]:
    asked_mib = job.get("memory_mib")
    used = data_size((usage.get("peak_memory_mib") or 0) * MIB)
    return "main memory", f"{used} of {data_size(asked_mib * MIB)} asked" if asked_mib else f"{used}; nothing was asked"


def _cores(job: Json, usage: Json) -> tuple[str, str]:
    tenths = (usage.get("cpu_ms") or 0) * 10 // max(1, job["ran_ms"])
    asked = f"of {job['cores']} asked" if job.get("cores") else "; nothing was asked"
    return "cores", f"{tenths // 10}.{tenths % 10} in the mean {asked}".replace(" ;", ";")
