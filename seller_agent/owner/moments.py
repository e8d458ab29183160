"""Moments as an owner writes them, and how long until them. By the market's clock, which the caller passes in."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from events.quantities import BadValue, duration_s

EXAMPLE = "2h, 18:30 or 2026-11-22T18:30"
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)


def moment_ms(text: str, now_ms: int) -> int:
    """The Unix milliseconds of `2h` (from now), `18:30` (the next one here), or an ISO date and time (here, unless it names a zone).
    Raises BadValue."""
    text = text.strip()
    clock = _CLOCK.fullmatch(text)
    if clock is not None:
        now = datetime.fromtimestamp(now_ms / 1000).astimezone()
        then = now.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        return _ms(then if then > now else then + timedelta(days=1))
    if re.match(r"\d{4}-", text):
        try:
            return _ms(datetime.fromisoformat(text).astimezone())
        except (ValueError, OverflowError, OSError):
            raise BadValue("it is no date and time", EXAMPLE) from None
    try:
        return now_ms + 1000 * duration_s(text)
    except BadValue:
        raise BadValue("it is no time", EXAMPLE) from None


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def clock_text(unix_ms: int) -> str:
    """A moment for a person here: `2026-11-22 18:30`."""
    return datetime.fromtimestamp(unix_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M %Z").strip()


def span_text(span_ms: int) -> str:
    """A time span in its two largest units: `3 h 20 min`."""
    seconds = max(0, span_ms) // 1000
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
