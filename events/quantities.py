"""What people type, as exact numbers: sizes, durations, money, priorities, targets. Pure; raises BadValue and nothing else.

Money is micro-USD, memory MiB, time seconds. No float is made on the way, so nothing is rounded that was not written.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

from events.values import PRIORITY_LEVELS

_NUMBER = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*([A-Za-z]*)", re.ASCII)
_DURATION = re.compile(r"(\d{1,9})\s*([a-z]*)", re.ASCII)
_WHOLE = re.compile(r"-?\d{1,12}", re.ASCII)

_BYTES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SECONDS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
SIZE_MIB_MAX = 1 << 30
DURATION_S_MAX = 365 * 86400
UUSD = 10**6


class BadValue(ValueError):
    """A text that does not say what it should. `hint` shows one that would do."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


def _not_a_number(text: str) -> str | None:
    """Why a text cannot be any amount, for the mistakes worth a sentence of their own."""
    if text.startswith(("-", "−")):
        return "it must not be negative"
    if text.lower().lstrip("+") in {"nan", "inf", "infinity"}:
        return "it is not a number"
    if re.fullmatch(r"\+?[\d.]+[eE][+-]?\d+", text):
        return "write the number out, without an exponent"
    return None


def whole(text: str, low: int, high: int, what: str = "a whole number") -> int:
    """A whole number between two bounds, both allowed."""
    if not _WHOLE.fullmatch(text):
        raise BadValue(_not_a_number(text) or f"it is not {what}", f"a number from {low} to {high}")
    number = int(text)
    if not low <= number <= high:
        raise BadValue(
            "it must not be negative" if number < 0 else f"it must lie between {low} and {high}", f"a number from {low} to {high}"
        )
    return number


def size_mib(text: str) -> int:
    """`24GB` (10^9), `24GiB` (2^30), `24` (GB) in MiB, rounded up: what is asked for is never less than what was written."""
    example = "24GB, 24GiB, or 24 (GB)"
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadValue(_not_a_number(text.strip()) or "it is not a size", example)
    unit = match[2].lower() or "g"
    factor = _BYTES.get(unit.removesuffix("b") if unit != "b" else unit)
    if factor is None:
        raise BadValue(f"{match[2]} is not a unit of memory", example)
    mib = int((Decimal(match[1]) * factor / 2**20).to_integral_value(rounding=ROUND_CEILING))
    if mib > SIZE_MIB_MAX:
        raise BadValue("no machine is that large", example)
    return mib


def duration_s(text: str) -> int:
    """`90s`, `4h`, `1h30m`, `90` (seconds) in seconds; at least one, at most a year."""
    example = "90s, 30m, 4h, 1h30m or 2d"
    rest, total = text.strip().lower(), 0
    if not rest or _not_a_number(rest):
        raise BadValue(_not_a_number(rest) or "it is empty", example)
    parts = list(_DURATION.finditer(rest))
    if "".join(part[0] for part in parts) != rest.replace(" ", "") and "".join(part[0] for part in parts) != rest:
        raise BadValue("it is not a duration", example)
    for part in parts:
        factor = _SECONDS.get(part[2] or ("s" if len(parts) == 1 else ""))
        if factor is None:
            raise BadValue(f"{part[2]} is not a unit of time" if part[2] else "a number has no unit", example)
        total += int(part[1]) * factor
    if not 1 <= total <= DURATION_S_MAX:
        raise BadValue("it must be between one second and 365 days", example)
    return total


def uusd(text: str, most_uusd: int) -> int:
    """An amount of USD such as `0.40` in micro-USD, exactly: more than six decimals are refused, not rounded."""
    example = "digits such as 0.40"
    stripped = text.strip().removeprefix("$").removesuffix("USD").strip()
    match = _NUMBER.fullmatch(stripped)
    if match is None:
        if re.fullmatch(r"\d+(\.\d+)?", stripped):
            raise BadValue("it has more digits than any price here", example)
        raise BadValue(_not_a_number(stripped) or "it is not an amount of money", example)
    if len((match[2] or "").rstrip("0")) > 6:
        raise BadValue("the smallest unit is 0.000001 USD", "at most six decimals")
    amount = int(Decimal(stripped) * UUSD)
    if amount > most_uusd:
        raise BadValue(f"it is more than {most_uusd // UUSD:,} USD", example)
    return amount


def priority(text: str) -> int:
    """`low`, `normal`, `high`, `critical`, or a number from 0 to 100."""
    level = PRIORITY_LEVELS.get(text.strip().lower())
    if level is not None:
        return level
    try:
        return whole(text.strip(), 0, 100)
    except BadValue as error:
        raise BadValue(
            error.why if text.strip().lstrip("-").isdigit() else "there is no such level", "low, normal, high, critical, or 0-100"
        ) from None


def cuda(text: str) -> int:
    """`12.4` as NVML writes it: 12040."""
    match = re.fullmatch(r"(\d{1,2})(?:\.(\d{1,2}))?", text.strip())
    if match is None:
        raise BadValue("it is not a CUDA version", "12.4")
    return int(match[1]) * 1000 + int(match[2] or 0) * 10


def yes_or_no(text: str) -> bool:
    """A switch, as files and the environment write it."""
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off", ""}:
        return False
    raise BadValue("it is neither yes nor no", "true or false")


class Target(NamedTuple):
    """A node as somebody named it, and which of its cards; no cards: any of them."""

    node: str
    cards: tuple[int, ...] = ()


def target(text: str) -> Target:
    """`NODE`, `NODE::0,2`, or `NODE:NUMA::0,2`, whose NUMA part says nothing that the cards do not say already."""
    example = "NODE, or NODE::0,2 for its cards 0 and 2"
    node, colons, cards = text.strip().partition("::")
    node = re.sub(r":\d{1,3}\Z", "", node)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}", node):
        raise BadValue("it names no node", example)
    if not colons:
        return Target(node)
    if not re.fullmatch(r"\d{1,2}(,\d{1,2}){0,7}", cards):
        raise BadValue("after :: stand card numbers, at most eight, with commas between them", example)
    numbers = tuple(int(card) for card in cards.split(","))
    if max(numbers) > 63:
        raise BadValue("no machine has a card with that number", example)
    if len(set(numbers)) != len(numbers):
        raise BadValue("it names a card twice", example)
    return Target(node, tuple(sorted(numbers)))


def pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE` in its two parts."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise BadValue("it needs a name and a value", "KEY=VALUE")
    return key, value
