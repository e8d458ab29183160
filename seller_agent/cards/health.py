"""Whether a card may be given out, from one reading after another. Pure: time comes as an argument.

A card is not let while it does not answer, has made errors in memory, works for a program that we did not start, or still holds memory
of one that is gone. The last two must last for a while, and be over for a while: a run of ours comes and goes between two readings.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from seller_agent.cards.card import CardTelemetry, DetectedCard

FOREIGN_MS = 15_000
"""So long somebody else's work must be seen, without a break, before a card is taken off the market."""
CLEAN_MS = 15_000
"""So long a card must be clean before it is back."""
USED_MIB_MIN, USED_PERCENT = 1536, 10
"""An idle card holds less memory than the larger of these: the driver's own, a desktop's."""
BUSY_PERCENT = 10

Ours = Mapping[str, frozenset[int] | None]
"""By UUID, the cards that our runs have: with their processes, or None where those cannot be told apart."""


class Judgement(msgspec.Struct, frozen=True):
    """`well`: it may be given out. `broken`: what runs on it is lost. `why` it is not well, in words."""

    well: bool = True
    broken: bool = False
    why: str = ""


class _Seen(msgspec.Struct):
    """What is remembered of a card."""

    busy_since_ms: int | None = None
    clean_since_ms: int | None = None
    paused: str = ""


class CardJudge:
    """The judge of one node's cards."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def judge(self, card: DetectedCard, reading: CardTelemetry, ours: Ours, now_ms: int) -> Judgement:
        """What the newest reading of a card means. `now_ms` only ever grows."""
        if not reading.healthy:
            return Judgement(False, not reading.spares_runs, reading.fault)
        if not card.healthy:
            return Judgement(False, False, card.fault)  # it never was one that could be let
        if reading.ecc_errors:
            errors = "1 uncorrected memory error" if reading.ecc_errors == 1 else f"{reading.ecc_errors} uncorrected memory errors"
            return Judgement(False, False, f"{errors} since the driver was loaded: reset the card (nvidia-smi --gpu-reset)")
        if card.simulated:
            return Judgement()
        why = self._after_a_while(self._seen.setdefault(card.uuid, _Seen()), _in_the_way(card, reading, ours), now_ms)
        return Judgement(not why, False, why)

    def _after_a_while(self, seen: _Seen, why: str, now_ms: int) -> str:
        """Why the card is off the market, once that has lasted, and until it has been over for as long."""
        if why:
            seen.clean_since_ms = None
            seen.busy_since_ms = now_ms if seen.busy_since_ms is None else seen.busy_since_ms
            if seen.paused or now_ms - seen.busy_since_ms >= FOREIGN_MS:
                seen.paused = why
        else:
            seen.busy_since_ms = None
            seen.clean_since_ms = now_ms if seen.clean_since_ms is None else seen.clean_since_ms
            if now_ms - seen.clean_since_ms >= CLEAN_MS:
                seen.paused = ""
        return seen.paused


def _in_the_way(card: DetectedCard, reading: CardTelemetry, ours: Ours) -> str:
    """What of others is on the card at this moment; empty: nothing, or it cannot be told from our own."""
    if card.uuid in ours:
        known = ours[card.uuid]
        strange = set(reading.pids or ()) - known if known else set()
        return _programs(len(strange)) if strange else ""
    if reading.pids:
        return _programs(len(reading.pids))
    used = reading.memory_used_mib
    if used is not None and used > max(USED_MIB_MIN, card.vram_mib * USED_PERCENT // 100) and card.vram_mib > USED_MIB_MIN:
        return f"{used} MiB of its memory are in use, by nothing that we started"
    if reading.pids is None and (reading.utilisation_percent or 0) >= BUSY_PERCENT:
        return f"it is busy ({reading.utilisation_percent} %) with something that we did not start"
    return ""


def _programs(count: int) -> str:
    return "a program that we did not start uses it" if count == 1 else f"{count} programs that we did not start use it"
