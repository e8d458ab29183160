"""How often anybody may ask."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.api import rates
from services.api.rates import Rates


def test_a_burst_is_allowed_and_then_so_many_a_second() -> None:
    buckets = Rates(per_second=10, burst=5)
    assert [None] * 5 == [buckets.ask("a", 0) for _ in range(5)]
    assert buckets.ask("a", 0) == 1
    assert buckets.ask("b", 0) is None, "another asker has a bucket of its own"
    assert [None, 1] == [buckets.ask("a", 100), buckets.ask("a", 100)]


@given(st.lists(st.integers(0, 5000), max_size=300))
def test_nobody_gets_more_than_the_burst_and_the_rate_allow(pauses_ms: list[int]) -> None:
    buckets, now_ms, allowed = Rates(per_second=10, burst=5), 0, 0
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        allowed += buckets.ask("a", now_ms) is None
    assert allowed <= 5 + now_ms * 10 // 1000 + 1


def test_the_number_of_askers_remembered_is_bounded() -> None:
    buckets = Rates()
    for number in range(rates.KNOWN_MAX + 100):
        buckets.ask(str(number), 0)
    assert len(buckets._left) == rates.KNOWN_MAX
