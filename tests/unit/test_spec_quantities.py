"""What people type becomes exact numbers, and what cannot be meant is refused with a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.quantities import BadValue, Target, cuda, duration_s, priority, size_mib, target, uusd


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("24GB", 22889),
        ("24", 22889),
        ("24G", 22889),
        ("24 gb", 22889),
        ("24GiB", 24576),
        ("24Gi", 24576),
        ("512MiB", 512),
        ("1.5GB", 1431),
        ("0", 0),
    ],
)
def test_a_size_is_read_in_mib_rounded_up(text: str, mib: int) -> None:
    assert mib == size_mib(text)


def test_24gb_fits_a_24_gb_card_that_reports_24564_mib_and_24gib_does_not() -> None:
    card_mib = 24_564
    assert size_mib("24GB") <= card_mib < size_mib("24GiB")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-1", "negative"),
        ("1e999", "exponent"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("two", "not a size"),
        ("", "not a size"),
        ("24XB", "XB is not a unit"),
        ("9" * 30, "not a size"),
        ("99999999TB", "no machine"),
        ("٢٤GB", "not a size"),
    ],
)
def test_a_size_that_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadValue, match=why):
        size_mib(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("90", 90), ("4h", 14400), ("1h30m", 5400), ("1h 30m", 5400), ("2d", 172800)])
def test_a_duration_is_read_in_seconds(text: str, seconds: int) -> None:
    assert seconds == duration_s(text)


@pytest.mark.parametrize("text", ["0", "-1", "1e3", "h", "1h30", "1x", "", "366d", "1.5h", "9999999999999h"])
def test_a_duration_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        duration_s(text)


@pytest.mark.parametrize(
    ("text", "amount"), [("0.40", 400_000), ("0", 0), ("1", 10**6), ("$2.5", 2_500_000), ("0.000001", 1), ("0.40 USD", 400_000)]
)
def test_money_is_read_in_micro_usd(text: str, amount: int) -> None:
    assert amount == uusd(text, 10**12)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "not a number"),
        ("Infinity", "not a number"),
        ("-0.40", "negative"),
        ("1" * 30, "more digits"),
        ("0." + "1" * 30, "more digits"),
        ("1e999", "exponent"),
        ("0.0000001", "smallest unit"),
        ("1000001", "more than 1,000,000 USD"),
        ("0,40", "not an amount"),
        ("", "not an amount"),
    ],
)
def test_money_that_cannot_be_meant_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadValue, match=why):
        uusd(text, 10**12)


@given(st.integers(0, 10**12))
def test_no_amount_of_money_is_rounded(amount: int) -> None:
    assert amount == uusd(f"{amount // 10**6}.{amount % 10**6:06d}", 10**12)


@given(st.text(max_size=40))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    for read in (size_mib, duration_s, priority, cuda, target, lambda value: uusd(value, 10**12)):
        try:
            read(text)
        except BadValue as error:
            assert error.why


def test_priorities_are_levels_or_numbers() -> None:
    assert [25, 50, 75, 100, 7] == [priority(text) for text in ("low", "Normal", "high", "critical", "7")]
    for text in ("101", "-1", "urgent", "1.5"):
        with pytest.raises(BadValue):
            priority(text)


def test_a_target_names_a_node_and_perhaps_its_cards() -> None:
    assert Target("rig-1") == target("rig-1")
    assert Target("rig-1", (0, 2)) == target("rig-1::2,0")
    assert Target("rig-1", (3,)) == target("rig-1:1::3")


@pytest.mark.parametrize("text", ["", "::0", "rig::", "rig::a", "rig::0,0", "rig::64", "rig*", ">", "a.b*::0", "rig::0,1,2,3,4,5,6,7,8"])
def test_a_target_that_names_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        target(text)


def test_cuda_versions_are_as_nvml_writes_them() -> None:
    assert [12040, 12000, 11080] == [cuda("12.4"), cuda("12"), cuda("11.8")]
