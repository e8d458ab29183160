"""What is said of a run's use, and what ends it: idle, low use of its cards, GPU memory, time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from events.reasons import Reason
from events.values import RunUsage
from seller_agent.runs.watching import Limits, Sample, Verdict, Watch, begin, observe, span

HOUR_S = 3600


def limits(**changes: Any) -> Limits:
    return Limits(**({"time_s": 100 * HOUR_S, "time_reason": Reason.RUN_TIMEOUT} | changes))


def at(second: float, **changes: Any) -> Sample:
    """A run that does nothing at all."""
    return Sample(**({"ran_ms": int(second * 1000), "gpu_percent": (0,), "gpu_memory_mib": (0,), "cpu_ms": 100} | changes))


def play(allowed: Limits, samples: Iterable[Sample], watch: Watch | None = None) -> list[tuple[int, Verdict]]:
    """(second, verdict) of each look, up to the one that ends the run."""
    watch, told = watch or Watch(), []
    for sample in samples:
        verdict = observe(watch, allowed, sample)
        told.append((sample.ran_ms // 1000, verdict))
        if verdict.stop is not None:
            break
    return told


def first_warned(told: list[tuple[int, Verdict]]) -> int:
    return next(second for second, verdict in told if verdict.warning)


def test_an_idle_run_is_warned_and_then_ended() -> None:
    told = play(limits(idle_s=1800), (at(second) for second in range(0, 4000, 5)))
    assert 1500 == first_warned(told)
    assert "stops in 5 min: idle for 30 min: no CPU, no GPU use and no output; use it, or let it end" == dict(told)[1500].warning
    assert (1800, Reason.IDLE) == (told[-1][0], told[-1][1].stop)
    assert "idle for 30 min: no CPU, no GPU use and no output" == told[-1][1].detail


@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(lambda n: {"gpu_percent": (1 if n % 20 == 0 else 0,)}, id="its card is used"),
        pytest.param(lambda n: {"cpu_ms": 100 + 2000 * (n // 20)}, id="it computes"),
        pytest.param(lambda n: {"output_bytes": n // 20}, id="it writes"),
        pytest.param(lambda n: {"cpu_ms": -1}, id="nobody can tell"),
        pytest.param(lambda n: {"gpu_percent": (0, -1)}, id="a card tells nothing"),
    ],
)
def test_whatever_shows_a_sign_of_life_is_not_idle(sign: Any) -> None:
    told = play(limits(idle_s=120), (at(number * 5, **sign(number)) for number in range(400)))
    assert {None} == {verdict.stop for _, verdict in told}


def test_a_session_is_kept_alive_by_its_people_and_not_by_its_output() -> None:
    allowed = limits(idle_s=600, session=True)
    told = play(allowed, (at(second, output_bytes=second, active_ms=min(second, 3000) * 1000) for second in range(0, 9000, 5)))
    assert (3600, Reason.IDLE, "idle for 10 min") == (told[-1][0], told[-1][1].stop, told[-1][1].detail)


def test_a_sign_of_life_takes_a_warning_back() -> None:
    samples = [at(0), at(95), at(99, output_bytes=1), at(110, output_bytes=1), at(190, output_bytes=1)]
    told = play(limits(idle_s=100), samples)
    assert [False, True, False, False, True] == [bool(verdict.warning) for _, verdict in told]


def test_after_a_restart_of_the_agent_idleness_counts_anew() -> None:
    told = play(limits(idle_s=100), (at(second) for second in range(1000, 1300, 5)), begin(RunUsage(samples=9, mean_gpu_percent=(0,))))
    assert 1100 == told[-1][0]


def test_cards_that_are_used_too_little_end_the_run_after_a_warning() -> None:
    told = play(limits(percent=10, window_s=1800), (at(second, gpu_percent=(5, 8)) for second in range(0, 4000, 5)))
    assert 1500 == first_warned(told)
    assert "stops in 5 min: cards used 6 % in the last 30 min, 10 % wanted" == dict(told)[1500].warning
    assert (1800, Reason.LOW_UTILISATION) == (told[-1][0], told[-1][1].stop)


def test_the_mean_over_the_window_counts_not_a_moment() -> None:
    busy_now_and_then = (at(second, gpu_percent=(100 if second % 100 < 20 else 0,)) for second in range(0, 9000, 5))
    assert {None} == {verdict.stop for _, verdict in play(limits(percent=10, window_s=600), busy_now_and_then)}


def test_a_run_whose_cards_went_quiet_is_ended_once_the_window_is_quiet() -> None:
    told = play(limits(percent=10, window_s=1000), (at(second, gpu_percent=(100 if second < 5000 else 0,)) for second in range(0, 9000, 5)))
    assert Reason.LOW_UTILISATION is told[-1][1].stop
    assert 5900 <= told[-1][0] <= 5920
    assert 200 <= told[-1][0] - first_warned(told)


def test_unreadable_cards_are_not_held_against_the_run() -> None:
    told = play(limits(percent=10, window_s=600), (at(second, gpu_percent=(-1,)) for second in range(0, 3000, 5)))
    assert {None} == {verdict.stop for _, verdict in told}


def test_gpu_memory_over_its_limit_is_warned_of_and_ends_the_run_half_a_minute_later() -> None:
    told = play(
        limits(gpu_memory_mib=1000), (at(second, gpu_memory_mib=(10, 1001 if second >= 50 else 1000)) for second in range(0, 200, 5))
    )
    assert 50 == first_warned(told)
    assert "stops in 30 s: 1001 MiB of a card's memory in use, 1000 MiB allowed; use less" == dict(told)[50].warning
    assert (80, Reason.GPU_MEMORY_EXCEEDED) == (told[-1][0], told[-1][1].stop)


def test_a_short_peak_of_gpu_memory_is_let_pass() -> None:
    told = play(limits(gpu_memory_mib=1000), (at(second, gpu_memory_mib=(2000 if second % 30 < 25 else 0,)) for second in range(0, 600, 5)))
    assert {None} == {verdict.stop for _, verdict in told}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.RUN_TIMEOUT, "stops in 5 min: run timeout; bazaar extend JOB 1h"),
        (Reason.ESTIMATE_EXCEEDED, "stops in 5 min: estimate times --estimate-limit"),
        (Reason.BUDGET_EXHAUSTED, "stops in 5 min: --max-total is nearly spent"),
    ],
)
def test_the_end_of_its_time_is_announced_five_minutes_before(reason: Reason, words: str) -> None:
    told = play(limits(time_s=4 * HOUR_S, time_reason=reason), [at(4 * HOUR_S - 301), at(4 * HOUR_S - 300), at(5 * HOUR_S)])
    assert ["", words] == [verdict.warning for _, verdict in told[:2]]
    assert None is told[2][1].stop, "the guard ends it, and nobody else"


def test_a_short_run_is_warned_a_tenth_of_its_time_before() -> None:
    told = play(limits(time_s=600), [at(539), at(540)])
    assert ["", "stops in 60 s: run timeout; bazaar extend JOB 1h"] == [verdict.warning for _, verdict in told]


@pytest.mark.parametrize(("time_s", "notice_s"), [(4, 2), (10, 5), (60, 30), (120, 30), (300, 30), (600, 60), (4 * HOUR_S, 300)])
def test_the_end_of_the_time_is_told_early_enough_to_act(time_s: int, notice_s: int) -> None:
    told = play(limits(time_s=time_s), [at(time_s - notice_s - 1), at(time_s - notice_s)])
    assert ["", f"stops in {span(notice_s * 1000)}: run timeout; bazaar extend JOB 1h"] == [verdict.warning for _, verdict in told]


@pytest.mark.parametrize(("idle_s", "notice_s"), [(4, 2), (10, 5), (60, 30), (300, 60), (HOUR_S, 300)])
def test_who_is_idle_is_told_early_enough_to_act(idle_s: int, notice_s: int) -> None:
    told = dict(play(limits(idle_s=idle_s), [at(second) for second in range(idle_s + 1)]))
    assert "" == told[idle_s - notice_s - 1].warning
    assert told[idle_s - notice_s].warning.startswith(f"stops in {span(notice_s * 1000)}: idle")
    assert None is told[idle_s - 1].stop and Reason.IDLE is told[idle_s].stop


def test_an_extension_takes_the_warning_back() -> None:
    watch = Watch()
    assert observe(watch, limits(time_s=600), at(590)).warning
    assert "" == observe(watch, limits(time_s=4200), at(595)).warning


def test_of_two_threats_the_nearer_one_is_told() -> None:
    told = play(limits(time_s=200, idle_s=195), [at(0), at(182)])
    assert told[-1][1].warning.startswith("stops in 39 s: idle") is False
    assert told[-1][1].warning.startswith("stops in 18 s: run timeout")


def test_the_usage_is_mean_and_peak_for_each_card() -> None:
    watch = Watch()
    for percent, memory in ((10, 100), (30, 300), (20, 200)):
        observe(
            watch, limits(), at(percent, gpu_percent=(percent, 0, -1), gpu_memory_mib=(memory, 5, -1), cpu_ms=percent, memory_mib=memory)
        )
    expected = RunUsage(
        samples=3,
        cpu_ms=30,
        peak_memory_mib=300,
        mean_gpu_percent=(20, 0, -1),
        max_gpu_percent=(30, 0, -1),
        peak_gpu_memory_mib=(300, 5, -1),
    )
    assert expected == watch.usage
    again = begin(watch.usage)
    observe(again, limits(), at(99, gpu_percent=(100, 4, 7), gpu_memory_mib=(0, 0, 1), cpu_ms=99))
    assert (4, (40, 1, 7), (100, 4, 7), 99) == (
        again.usage.samples,
        again.usage.mean_gpu_percent,
        again.usage.max_gpu_percent,
        again.usage.cpu_ms,
    )


def test_a_long_window_is_remembered_in_few_steps() -> None:
    watch, allowed = Watch(), limits(percent=1, window_s=86400)
    for second in range(0, 2 * 86400, 60):
        observe(watch, allowed, at(second, gpu_percent=(50,)))
    assert len(watch.curve) < 250


@pytest.mark.parametrize(
    ("milliseconds", "words"), [(0, "0 s"), (119_999, "119 s"), (120_000, "2 min"), (7_199_000, "119 min"), (7_200_000, "2 h")]
)
def test_a_span_is_told_in_one_unit(milliseconds: int, words: str) -> None:
    assert words == span(milliseconds)
