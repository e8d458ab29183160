"""Whatever a run does: nothing ends it that it was not warned of for long enough, and nothing that is within its limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from events.reasons import Reason
from seller_agent.runs.watching import MEMORY_NOTICE_MS, Limits, Sample, Watch, notice_ms, observe

IDLE_S, WINDOW_S, PERCENT, MEMORY_MIB = 40, 60, 10, 1000
LIMITS = Limits(time_s=10_000, time_reason=Reason.RUN_TIMEOUT, idle_s=IDLE_S, percent=PERCENT, window_s=WINDOW_S, gpu_memory_mib=MEMORY_MIB)
NOTICE_MS = {Reason.IDLE: notice_ms(IDLE_S), Reason.LOW_UTILISATION: notice_ms(WINDOW_S), Reason.GPU_MEMORY_EXCEEDED: MEMORY_NOTICE_MS}

PERCENTS = st.sampled_from([-1, 0, 0, 0, 1, 9, 10, 11, 100])
STEPS = st.lists(
    st.tuples(
        st.integers(1, 15_000),
        st.tuples(PERCENTS, PERCENTS),
        st.sampled_from([0, 999, 1000, 1001, 1001]),
        st.sampled_from([0, 0, 0, 5, 5000]),
        st.sampled_from([0, 0, 0, 1]),
    ),
    min_size=1,
    max_size=60,
)
Step = tuple[int, tuple[int, int], int, int, int]


def samples(steps: list[Step]) -> list[Sample]:
    made, ran_ms, cpu_ms, output_bytes = [], 0, 0, 0
    for passed_ms, percents, memory_mib, used_ms, written in steps:
        ran_ms, cpu_ms, output_bytes = ran_ms + passed_ms, cpu_ms + used_ms, output_bytes + written
        made.append(Sample(ran_ms, percents, (memory_mib, 0), cpu_ms, output_bytes=output_bytes))
    return made


@given(STEPS)
def test_nothing_ends_a_run_without_a_warning_before(steps: list[Step]) -> None:
    watch, warned_since_ms = Watch(), -1
    for sample in samples(steps):
        verdict = observe(watch, LIMITS, sample)
        if verdict.stop is not None:
            assert warned_since_ms >= 0, f"{verdict} without any warning"
            assert sample.ran_ms - warned_since_ms >= NOTICE_MS[verdict.stop], verdict
            return
        warned_since_ms = -1 if not verdict.warning else sample.ran_ms if warned_since_ms < 0 else warned_since_ms


@given(STEPS)
def test_nothing_within_its_limits_is_ended(steps: list[Step]) -> None:
    watch, seen = Watch(), []
    for sample in samples(steps):
        verdict = observe(watch, LIMITS, sample)
        seen.append(sample)
        if verdict.stop is Reason.IDLE:
            quiet = [one for one in seen if one.ran_ms > sample.ran_ms - IDLE_S * 1000]
            assert all(max(one.gpu_percent) <= 0 for one in quiet)
            assert 1 == len({one.output_bytes for one in quiet})
        elif verdict.stop is Reason.GPU_MEMORY_EXCEEDED:
            assert all(max(one.gpu_memory_mib) > MEMORY_MIB for one in seen if one.ran_ms >= sample.ran_ms - MEMORY_NOTICE_MS)
        elif verdict.stop is Reason.LOW_UTILISATION:
            assert sample.ran_ms - seen[0].ran_ms >= WINDOW_S * 1000
            assert any(mean_load_from(seen, begin) < PERCENT for begin in range(len(seen) - 1))
        if verdict.stop is not None:
            return


def mean_load_from(seen: list[Sample], begin: int) -> float:
    """The mean after `begin`, if the window has passed since then."""
    if seen[-1].ran_ms - seen[begin].ran_ms < WINDOW_S * 1000:
        return float("inf")
    total = weight = 0.0
    for before, sample in zip(seen[begin:], seen[begin + 1 :], strict=False):
        known = [percent for percent in sample.gpu_percent if percent >= 0]
        if known:
            weight += sample.ran_ms - before.ran_ms
            total += (sample.ran_ms - before.ran_ms) * sum(known) / len(known)
    return total / weight if weight else float("inf")
