"""Moments as an owner writes them, what a node has earned, and which node is meant."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from events.errors import IdentityError
from events.home import resolve
from events.ids import node_id
from events.quantities import BadValue
from seller_agent.owner.accounts import earned_uusd, earnings, left_ms
from seller_agent.owner.moments import clock_text, moment_ms, span_text
from seller_agent.owner.nodes import NoSuchNode, Started, choose_node, read_started, write_started
from seller_agent.owner.offers import OfferError

NOW_MS = int(datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp() * 1000)
OWNER = "0x" + "ab" * 20


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("2h", 2),
        ("90m", 1.5),
        ("18:30", 6.5),
        ("11:00", 23),
        ("12:00", 24),
        ("2026-11-22T18:30", 6.5),
        ("2026-11-23 00:00", 12),
        ("2026-11-22T18:30+02:00", 4.5),
    ],
)
def test_a_moment_is_a_span_from_now_a_time_of_day_or_a_date(text: str, hours: float) -> None:
    assert NOW_MS + hours * 3_600_000 == moment_ms(text, NOW_MS)


@pytest.mark.parametrize("text", ["", "soon", "25:00", "-2h", "2026-13-01T00:00", "2026-11-22T", "1e3", "0"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(BadValue):
        moment_ms(text, NOW_MS)


def test_moments_and_spans_are_said_shortly() -> None:
    assert "2026-11-22 12:00 UTC" == clock_text(NOW_MS)
    assert ["0 s", "59 s", "1 min 1 s", "3 h 20 min", "2 d"] == [span_text(ms) for ms in (-5, 59_999, 61_000, 12_000_000, 2 * 86_400_000)]


def a_job(**changes: Any) -> dict[str, Any]:
    usual = {
        "started_ms": NOW_MS - 3_600_000,
        "ended_ms": NOW_MS,
        "timeout_s": 7200,
        "ran_ms": 3_600_000,
        "gpus": [{}, {}],
        "price_uusd_per_gpu_hour": 400_000,
        "charged_uusd": 800_000,
    }
    return usual | changes


def test_earnings_are_summed_by_the_day_on_which_jobs_ended() -> None:
    yesterday = NOW_MS - 86_400_000
    days, total = earnings([a_job(), a_job(charged_uusd=0), a_job(ended_ms=yesterday), a_job(ended_ms=None)])
    assert ["2026-11-22", "2026-11-21"] == list(days)
    assert (2, 1, 800_000) == (days["2026-11-22"].jobs, days["2026-11-22"].paid_jobs, days["2026-11-22"].charged_uusd)
    assert (3, 3 * 2 * 3_600_000, 1_600_000) == (total.jobs, total.gpu_ms, total.charged_uusd)
    assert 1_600_000 - 800_000 == earnings([a_job(), a_job(ended_ms=yesterday)], since_ms=NOW_MS - 1)[1].charged_uusd


def test_a_running_job_says_what_is_left_and_what_it_has_come_to() -> None:
    running = a_job(ended_ms=None, charged_uusd=None)
    assert (3_600_000, 800_000) == (left_ms(running, NOW_MS), earned_uusd(running, NOW_MS))
    assert (0, 1_600_000) == (left_ms(running, NOW_MS + 10**8), earned_uusd(running, NOW_MS + 10**8)), "no further than its time"
    assert (None, 0) == (
        left_ms(a_job(started_ms=None, ended_ms=None), NOW_MS),
        earned_uusd(a_job(started_ms=None, charged_uusd=None), NOW_MS),
    )
    assert (None, 800_000) == (left_ms(a_job(), NOW_MS), earned_uusd(a_job(), NOW_MS))


def home_with(folder: Path, *names: str) -> Any:
    for name in names:
        (folder / "seller" / name).mkdir(parents=True)
        (folder / "seller" / name / "owner").write_text(OWNER + "\n")
    return resolve({"home": str(folder)}, {})


def test_the_only_node_needs_no_name(tmp_path: Path) -> None:
    node = choose_node(home_with(tmp_path, "box"), None)
    assert ("box", node_id(OWNER, "box"), OWNER, None, None) == (node.name, node.node_id, node.owner, node.agent_pid, node.started)


def test_of_several_nodes_one_must_be_named(tmp_path: Path) -> None:
    settings = home_with(tmp_path, "box", "attic")
    with pytest.raises(NoSuchNode) as caught:
        choose_node(settings, None)
    assert ("Nodes here: attic (no agent), box (no agent).", True) == (caught.value.why, "--name" in caught.value.hint)
    assert "attic" == choose_node(settings, "attic").name


def test_a_home_without_nodes_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoSuchNode, match="no node here"):
        choose_node(home_with(tmp_path), None)
    with pytest.raises(IdentityError):
        choose_node(home_with(tmp_path), "other")
    with pytest.raises(OfferError):
        choose_node(home_with(tmp_path), "../up")


def test_how_an_agent_was_started_is_kept_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    started = Started(price_uusd_per_gpu_hour=5, runner="process", delegation="/d")
    write_started(tmp_path, started)
    assert (started, 0o600) == (read_started(tmp_path), (tmp_path / "started.json").stat().st_mode & 0o777)
    (tmp_path / "started.json").write_text("{")
    assert None is read_started(tmp_path)
