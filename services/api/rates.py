"""How often anybody may ask: a bucket of tokens for each read token and each address, refilled all the time. Pure; time comes in.

Whoever asks from the market's own machine without a token is not counted: it owns the machine.
"""

from __future__ import annotations

from collections import OrderedDict

PER_SECOND = 30
BURST = 120
KNOWN_MAX = 20_000
"""Askers remembered; the one that was silent longest is forgotten first, which can only be in its favour."""


class Rates:
    """The buckets."""

    def __init__(self, per_second: int = PER_SECOND, burst: int = BURST) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Asker -> (what was left, when, in ms)."""

    def ask(self, asker: str, now_ms: int) -> int | None:
        """None when the asker may ask now, else after how many seconds it may ask again."""
        left, since_ms = self._left.pop(asker, (float(self._burst), now_ms))
        left = min(float(self._burst), left + max(0, now_ms - since_ms) * self._per_second / 1000)
        allowed = left >= 1
        self._left[asker] = (left - 1 if allowed else left, now_ms)
        if len(self._left) > KNOWN_MAX:
            self._left.popitem(last=False)
        return None if allowed else max(1, round((1 - left) / self._per_second))
