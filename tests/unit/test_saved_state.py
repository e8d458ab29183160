"""When the matcher writes its snapshot: often enough for a quick start, never so often that the writing shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from projections import snapshot
from projections.market import Market
from services.matcher import saved_state
from services.matcher.saved_state import EVENTS_MIN, SavedState


@pytest.fixture(autouse=True)
def _a_while_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds after the last snapshot, but not a minute."""
    monkeypatch.setattr(saved_state, "BUSY_EVERY_S", -1.0)


def test_a_market_in_which_little_has_happened_waits_for_the_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, market = SavedState(tmp_path / "snapshot"), Market(last_seq=EVENTS_MIN - 1)
    assert not saved.is_due(market)
    monkeypatch.setattr(saved_state, "EVERY_S", -1.0)
    assert saved.is_due(market)


def test_a_busy_market_is_written_down_sooner_and_then_not_before_as_much_has_happened_again(tmp_path: Path) -> None:
    saved, market = SavedState(tmp_path / "snapshot"), Market(last_seq=EVENTS_MIN)
    assert saved.is_due(market)
    saved.save(market, "now")
    assert market == snapshot.restore((tmp_path / "snapshot").read_bytes(), "now")
    assert not saved.is_due(market)
    market.last_seq += EVENTS_MIN
    assert saved.is_due(market)


def test_a_market_with_many_jobs_is_written_down_after_as_many_events(tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "snapshot")
    market = Market(last_seq=EVENTS_MIN, jobs=dict.fromkeys(map(str, range(EVENTS_MIN + 1))))  # type: ignore[arg-type]
    assert not saved.is_due(market)
    market.last_seq += 1
    assert saved.is_due(market)


def test_nothing_is_due_right_after_a_start_that_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_state, "EVERY_S", -1.0)
    saved, market = SavedState(tmp_path / "snapshot"), Market(last_seq=EVENTS_MIN)
    saved.restored(EVENTS_MIN)
    assert not saved.is_due(market)
