"""What a run does with what it was given, and when that ends it: idle, cards used too little, too much GPU memory, time nearly over.

Pure: samples come in, usage, a warning and a reason to stop come out. Nothing here ends a run that has not been warned for a while before;
what could not be read counts in the run's favour. The end of its time is enforced by its guard; here it is only announced.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from events.reasons import Reason
from events.values import RunUsage

NOTICE_MS = 5 * 60_000
"""The longest warning before a limit ends a run."""
SHORT_NOTICE_MS = 30_000
"""The shortest, where the limit has room for it."""
MEMORY_NOTICE_MS = 30_000
"""So long a run may stay over its limit of GPU memory."""
BUSY_PERCENT_BATCH = 3
BUSY_PERCENT_SESSION = 10
"""Of one core: what a run uses that only waits stays below; a notebook's server does a little even when nobody is there."""
SHARE = 840
"""A percent in so many parts: the mean of one to eight cards is exact in these."""
STEPS = 120
"""A window of utilisation is looked back on in so many steps, so that a long one costs no more memory than a short one."""


class Limits(NamedTuple):
    """What the run's buyer allows, as it is now."""

    time_s: int
    time_reason: Reason
    idle_s: int | None = None
    percent: int | None = None
    """The cards' least mean utilisation over `window_s`."""
    window_s: int | None = None
    gpu_memory_mib: int | None = None
    """Of each card."""
    session: bool = False


class Sample(NamedTuple):
    """One look at a run. Lists are in the order of its cards; -1: could not be read."""

    ran_ms: int
    gpu_percent: tuple[int, ...] = ()
    gpu_memory_mib: tuple[int, ...] = ()
    cpu_ms: int = -1
    memory_mib: int = 0
    peak_memory_mib: int = 0
    output_bytes: int = 0
    active_ms: int = -1
    """Run time at which somebody last did something in a session; -1: nothing is known of that."""


class Verdict(NamedTuple):
    """What follows from everything seen so far."""

    stop: Reason | None = None
    detail: str = ""
    """Why it is stopped, for the buyer."""
    warning: str = ""
    """What will end the run soon; empty: nothing."""


class Threat(NamedTuple):
    """A limit that is near or passed."""

    reason: Reason
    over: bool
    """It is passed: the run ends once it has been warned for `notice_ms`."""
    due_ms: int
    """Run time at which it is passed if nothing changes."""
    notice_ms: int
    words: str
    remedy: str = ""


class Watch(msgspec.Struct, kw_only=True):
    """What is remembered of one run. Begun anew after a restart of the node's program, with the usage so far; every span counts anew."""

    usage: RunUsage = RunUsage()
    last: Sample | None = None
    first_ms: int = -1
    active_ms: int = -1
    """Run time of the last sign of life."""
    warned_ms: dict[Reason, int] = {}
    """Since when, in run time, each threat has stood without a break."""
    known: list[int] = []
    """For each card, how many readings of its load there were."""
    sums: list[int] = []
    """For each card, the sum of these."""
    curve: list[tuple[int, int, int]] = []
    """(run time, milliseconds of it with known load, mean load in 1/SHARE percent times milliseconds), summed up from the beginning."""


def begin(usage: RunUsage | None) -> Watch:
    """The memory of a run, with what had been seen of it before."""
    if usage is None or not usage.samples:
        return Watch()
    known = [usage.samples if mean >= 0 else 0 for mean in usage.mean_gpu_percent]
    return Watch(usage=usage, known=known, sums=[max(0, mean) * usage.samples for mean in usage.mean_gpu_percent])


def observe(watch: Watch, limits: Limits, sample: Sample) -> Verdict:
    """Take in one look at the run, and say what follows. Samples come in the order of their `ran_ms`."""
    _note_activity(watch, limits, sample)
    _note_load(watch, limits, sample)
    _note_usage(watch, sample)
    watch.last = sample
    threats = [threat for threat in (_idle(watch, limits), _load(watch, limits), _memory(watch, limits), _time(watch, limits)) if threat]
    watch.warned_ms = {threat.reason: watch.warned_ms.get(threat.reason, sample.ran_ms) for threat in threats}
    for threat in threats:
        if threat.over and sample.ran_ms - watch.warned_ms[threat.reason] >= threat.notice_ms:
            return Verdict(stop=threat.reason, detail=threat.words)
    return Verdict(warning=_warning(watch, threats))


def notice_ms(limit_s: int) -> int:
    """How long before a limit is reached it is warned of: a fifth of it, at most five minutes, at least what leaves time to act."""
    return min(NOTICE_MS, max(limit_s * 200, _time_to_act_ms(limit_s)))


def time_notice_ms(limit_s: int) -> int:
    """How long before the end of its time a run is warned: a tenth of it, at most five minutes, at least what leaves time to act."""
    return min(NOTICE_MS, max(limit_s * 100, _time_to_act_ms(limit_s)))


def _time_to_act_ms(limit_s: int) -> int:
    """Half a minute; of a limit that is shorter than a minute, half of it."""
    return min(SHORT_NOTICE_MS, limit_s * 500)


def shortest_notice_ms(limits: Limits) -> int:
    """The shortest warning that any of these limits gives."""
    spans = [notice_ms(limit_s) for limit_s in (limits.idle_s, limits.window_s) if limit_s is not None]
    return min([time_notice_ms(limits.time_s), MEMORY_NOTICE_MS, *spans])


def span(milliseconds: int) -> str:
    """A time that is left, in the largest unit that says enough: `4 min`, `30 s`."""
    seconds = max(0, milliseconds) // 1000
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


# ---- what is seen


def _note_activity(watch: Watch, limits: Limits, sample: Sample) -> None:
    last = watch.last
    if last is None:
        watch.first_ms = watch.active_ms = sample.ran_ms
    elif _is_active(limits, last, sample):
        watch.active_ms = sample.ran_ms
    watch.active_ms = max(watch.active_ms, min(sample.active_ms, sample.ran_ms))


def _is_active(limits: Limits, last: Sample, sample: Sample) -> bool:
    """Whether the run did anything since the last look. A session's output is no sign: its server logs every request of an open page."""
    if any(percent != 0 for percent in sample.gpu_percent):
        return True
    if not limits.session and sample.output_bytes > last.output_bytes:
        return True
    if sample.cpu_ms < 0 or last.cpu_ms < 0:
        return True
    busy_percent = BUSY_PERCENT_SESSION if limits.session else BUSY_PERCENT_BATCH
    return (sample.cpu_ms - last.cpu_ms) * 100 >= busy_percent * max(1, sample.ran_ms - last.ran_ms)


def _note_load(watch: Watch, limits: Limits, sample: Sample) -> None:
    """The cards' mean load counts for the time since the look before."""
    if limits.window_s is None:
        return
    before_ms, known_ms, load = watch.curve[-1] if watch.curve else (sample.ran_ms, 0, 0)
    readings = [percent for percent in sample.gpu_percent if percent >= 0]
    if readings:
        passed_ms = sample.ran_ms - before_ms
        known_ms += passed_ms
        load += passed_ms * sum(readings) * SHARE // len(readings)
    step_ms = limits.window_s * 1000 // STEPS
    if len(watch.curve) >= 2 and sample.ran_ms - watch.curve[-2][0] < step_ms:
        watch.curve.pop()
    watch.curve.append((sample.ran_ms, known_ms, load))
    oldest_ms = sample.ran_ms - limits.window_s * 1000
    while len(watch.curve) > 2 and watch.curve[1][0] <= oldest_ms:
        watch.curve.pop(0)


def _note_usage(watch: Watch, sample: Sample) -> None:
    usage, cards = watch.usage, len(sample.gpu_percent)
    if len(watch.known) != cards:
        watch.known, watch.sums = [0] * cards, [0] * cards
    for place, percent in enumerate(sample.gpu_percent):
        if percent >= 0:
            watch.known[place] += 1
            watch.sums[place] += percent
    means = tuple(total // known if known else -1 for total, known in zip(watch.sums, watch.known, strict=True))
    watch.usage = RunUsage(
        samples=usage.samples + 1,
        cpu_ms=max(usage.cpu_ms, sample.cpu_ms),
        peak_memory_mib=max(usage.peak_memory_mib, sample.memory_mib, sample.peak_memory_mib),
        mean_gpu_percent=means,
        max_gpu_percent=_highest(usage.max_gpu_percent, sample.gpu_percent),
        peak_gpu_memory_mib=_highest(usage.peak_gpu_memory_mib, sample.gpu_memory_mib),
    )


def _highest(before: tuple[int, ...], now: tuple[int, ...]) -> tuple[int, ...]:
    return now if len(before) != len(now) else tuple(map(max, before, now))


# ---- what it means


def _idle(watch: Watch, limits: Limits) -> Threat | None:
    if limits.idle_s is None or watch.last is None:
        return None
    notice, due_ms = notice_ms(limits.idle_s), watch.active_ms + limits.idle_s * 1000
    if watch.last.ran_ms < due_ms - notice:
        return None
    words = f"idle for {span(limits.idle_s * 1000)}" + ("" if limits.session else ": no CPU, no GPU use and no output")
    return Threat(Reason.IDLE, watch.last.ran_ms >= due_ms, due_ms, notice, words, "use it, or let it end")


def _load(watch: Watch, limits: Limits) -> Threat | None:
    if limits.percent is None or limits.window_s is None or watch.last is None:
        return None
    window_ms, notice, now_ms = limits.window_s * 1000, notice_ms(limits.window_s), watch.last.ran_ms
    full, nearly = _mean_load(watch, window_ms), _mean_load(watch, window_ms - notice)
    over = full is not None and full < limits.percent
    if not over and (nearly is None or nearly >= limits.percent):
        return None
    due_ms = max(now_ms, watch.first_ms + window_ms)
    mean = full if over and full is not None else nearly
    words = f"cards used {mean} % in the last {span(window_ms)}, {limits.percent} % wanted"
    return Threat(Reason.LOW_UTILISATION, over, due_ms, notice, words)


def _mean_load(watch: Watch, window_ms: int) -> int | None:
    """The cards' mean load over the last `window_ms`, or a little more; None when not all of that was watched, or half of it unread."""
    now_ms, known_ms, load = watch.curve[-1]
    begun = next((point for point in reversed(watch.curve) if point[0] <= now_ms - window_ms), None)
    if begun is None or 2 * (known_ms - begun[1]) < window_ms:
        return None
    return (load - begun[2]) // (SHARE * (known_ms - begun[1]))


def _memory(watch: Watch, limits: Limits) -> Threat | None:
    if limits.gpu_memory_mib is None or watch.last is None:
        return None
    most = max(watch.last.gpu_memory_mib, default=-1)
    if most <= limits.gpu_memory_mib:
        return None
    words = f"{most} MiB of a card's memory in use, {limits.gpu_memory_mib} MiB allowed"
    return Threat(Reason.GPU_MEMORY_EXCEEDED, True, watch.last.ran_ms, MEMORY_NOTICE_MS, words, "use less")


def _time(watch: Watch, limits: Limits) -> Threat | None:
    due_ms, notice = limits.time_s * 1000, time_notice_ms(limits.time_s)
    if watch.last is None or watch.last.ran_ms < due_ms - notice:
        return None
    words, remedy = {
        Reason.ESTIMATE_EXCEEDED: ("estimate times --estimate-limit", ""),
        Reason.BUDGET_EXHAUSTED: ("--max-total is nearly spent", ""),
    }.get(limits.time_reason, ("run timeout", "bazaar extend JOB 1h"))
    return Threat(limits.time_reason, False, due_ms, 0, words, remedy)


def _warning(watch: Watch, threats: list[Threat]) -> str:
    """Of the threat that ends the run first. How far off it is stands before the colon, what it is after it."""
    if not threats or watch.last is None:
        return ""
    due_ms, first = min(
        ((max(threat.due_ms, watch.warned_ms[threat.reason] + threat.notice_ms), threat) for threat in threats), key=lambda pair: pair[0]
    )
    return f"stops in {span(due_ms - watch.last.ran_ms)}: {first.words}{f'; {first.remedy}' if first.remedy else ''}"[:120]
