"""What every wallet and organisation uses of the market: cards, money, and the time that fair shares are reckoned from. Pure.

A party is counted when a node gets a job of its and when that attempt is over, and at no other time. Used time is decayed in integer steps
of a sixty-fourth of the half-life, so that every fold of the same ledger comes to the same number.
"""

from __future__ import annotations

from bisect import bisect_right
from math import isqrt

import msgspec

from events.values import charge_uusd

DAY_MS = 86_400_000
STEPS = 64
"""Steps of decay in a half-life."""
_BITS = 60
LEVELS = 4
"""Two parties whose use differs by less than a quarter of a doubling have the same level, and take turns."""


def _roots() -> tuple[int, ...]:
    """2 to the power of 0/64, 1/64, ... 63/64, as integers with 60 bits behind the point."""
    step = 2 << _BITS
    for _ in range(STEPS.bit_length() - 1):
        step = isqrt(step << _BITS)
    found = [1 << _BITS]
    while len(found) < STEPS:
        found.append(found[-1] * step >> _BITS)
    return tuple(found)


ROOTS = _roots()


class Party(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A wallet or an organisation that has ever submitted a job."""

    number: int
    """Its own, in the order in which parties came."""
    turn_seq: int
    """When it was last given something; before that, when it came. Among parties of one level the longest ago goes first."""
    level: int = 0
    """How much it has used, 0: nothing. Parties are compared by it; it stays as it is until the party's use changes."""
    gpus: int = 0
    """Cards of its jobs that nodes have now."""
    committed_uusd: int = 0
    """The most that these jobs may still cost."""
    committed_gpu_ms: int = 0
    """How long these jobs are expected to take, times their cards."""
    used_gpu_ms: int = 0
    """Card time of attempts that are over, decayed to `used_at_ms`."""
    used_at_ms: int = 0
    day: int = 0
    day_uusd: int = 0
    """Charged on that day (days since 1970, UTC)."""
    month: int = 0
    month_uusd: int = 0
    """Charged in that month (months since 1970, UTC)."""


class Stake(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False, frozen=True):
    """What one attempt is counted for while a node has it."""

    gpus: int = 0
    uusd: int = 0
    gpu_ms: int = 0


def month_of(now_ms: int) -> int:
    """Months since January 1970, UTC."""
    days = now_ms // DAY_MS + 719_468  # since 1 March of year 0, so that the leap day is the last of its year
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month = (5 * day_of_year + 2) // 153
    return (year_of_era + era * 400 - 1970) * 12 + month + 2


def next_day_ms(now_ms: int) -> int:
    """When the next day begins, UTC; a month begins with one of them."""
    return (now_ms // DAY_MS + 1) * DAY_MS


def spent_today_uusd(party: Party, now_ms: int) -> int:
    """Charged on this day."""
    return party.day_uusd if party.day == now_ms // DAY_MS else 0


def spent_this_month_uusd(party: Party, now_ms: int) -> int:
    """Charged in this month."""
    return party.month_uusd if party.month == month_of(now_ms) else 0


def worst_uusd(timeout_s: int, num_gpus: int, price_uusd_per_gpu_hour: int, left_uusd: int | None) -> int:
    """The most that a run can cost; `left_uusd`: what the buyer still lets the job cost."""
    cost = charge_uusd(timeout_s * 1000, num_gpus, price_uusd_per_gpu_hour)
    return cost if left_uusd is None else min(cost, max(0, left_uusd))


def decayed(gpu_ms: int, from_ms: int, to_ms: int, half_life_ms: int) -> int:
    """What is left of a use after so long."""
    steps = to_ms * STEPS // half_life_ms - from_ms * STEPS // half_life_ms
    if steps <= 0:
        return gpu_ms
    whole, part = divmod(steps, STEPS)
    if part:
        whole += 1
        gpu_ms = gpu_ms * ROOTS[STEPS - part] >> _BITS
    return gpu_ms >> whole


def level_of(gpu_ms: int, now_ms: int, half_life_ms: int) -> int:
    """A use at a time as one small number: equal steps are equal ratios, and what all lose by mere waiting changes no order."""
    if gpu_ms <= 0:
        return 0
    shift = gpu_ms.bit_length() - 1
    scaled = gpu_ms << _BITS >> shift
    fine = shift * STEPS + bisect_right(ROOTS, scaled) - 1 + now_ms * STEPS // half_life_ms
    return 1 + fine * LEVELS // STEPS


def take(party: Party, stake: Stake, seq: int, now_ms: int, half_life_ms: int) -> None:
    """A node gets a job of the party's."""
    party.gpus += stake.gpus
    party.committed_uusd += stake.uusd
    party.committed_gpu_ms += stake.gpu_ms
    party.turn_seq = seq
    _reckon(party, 0, now_ms, half_life_ms)


def restake(party: Party, before: Stake, after: Stake) -> None:
    """A job that a node has may run for longer; that gives nobody's turn away."""
    party.committed_uusd += after.uusd - before.uusd
    party.committed_gpu_ms += after.gpu_ms - before.gpu_ms


def give_back(party: Party, stake: Stake, used_gpu_ms: int, charged_uusd: int, *, now_ms: int, half_life_ms: int) -> None:
    """The attempt is over: what it took counts instead of what was expected."""
    party.gpus -= stake.gpus
    party.committed_uusd -= stake.uusd
    party.committed_gpu_ms -= stake.gpu_ms
    day = now_ms // DAY_MS
    if day != party.day:
        month = month_of(now_ms)
        if month != party.month:
            party.month, party.month_uusd = month, 0
        party.day, party.day_uusd = day, 0
    party.day_uusd += charged_uusd
    party.month_uusd += charged_uusd
    _reckon(party, used_gpu_ms, now_ms, half_life_ms)


def rescale(party: Party, now_ms: int, before_ms: int, half_life_ms: int) -> None:
    """Another half-life from now on; what was used has been decaying with the one before."""
    party.used_gpu_ms = decayed(party.used_gpu_ms, party.used_at_ms, now_ms, before_ms)
    party.used_at_ms = now_ms
    _reckon(party, 0, now_ms, half_life_ms)


def _reckon(party: Party, used_gpu_ms: int, now_ms: int, half_life_ms: int) -> None:
    if party.used_gpu_ms:
        party.used_gpu_ms = decayed(party.used_gpu_ms, party.used_at_ms, now_ms, half_life_ms)
    party.used_gpu_ms += used_gpu_ms
    party.used_at_ms = now_ms
    party.level = level_of(party.used_gpu_ms + party.committed_gpu_ms, now_ms, half_life_ms)
