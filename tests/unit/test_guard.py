"""The guard outside the agent: when it strikes, what it keeps, when it ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.guard import files as guard_files
from seller_agent.runners.docker_engine.guard import guard
from seller_agent.runners.docker_engine.guard.files import Due, StopRecord, Watch, due
from seller_agent.runners.docker_engine.guard.guard import Round
from seller_agent.runners.docker_engine.guard.start import hold_agent_lock

FROM_NOW_MS = 3_600_000


def watch_of(folder: Path, **changes: int | str | None) -> Watch:
    fields: dict[str, object] = {
        "container": "c",
        "folder": str(folder),
        "socket": str(folder / "no.sock"),
        "boot_id": "boot",
        "grace_s": 10,
        "lease_until_boot_ms": 150_000,
        **changes,
    }
    return Watch(**fields)  # type: ignore[arg-type]


def test_the_deadline_gives_grace_after_it_and_the_lease_before_it(tmp_path: Path) -> None:
    assert Due(reason="deadline", term_ms=90_000, kill_ms=100_000) == due(watch_of(tmp_path, deadline_boot_ms=90_000), None, "boot")
    assert Due(reason="lease", term_ms=137_000, kill_ms=147_000) == due(watch_of(tmp_path), None, "boot")


def test_a_long_grace_never_outlives_the_lease(tmp_path: Path) -> None:
    asked = StopRecord(reason="asked", boot_id="boot", term_boot_ms=80_000, kill_boot_ms=400_000)
    assert Due(reason="asked", term_ms=80_000, kill_ms=147_000) == due(watch_of(tmp_path), asked, "boot")


def test_after_a_reboot_no_lease_is_left(tmp_path: Path) -> None:
    assert Due(reason="lease", term_ms=0, kill_ms=0) == due(watch_of(tmp_path), None, "another")


def test_a_stop_from_before_a_reboot_says_nothing_about_times(tmp_path: Path) -> None:
    old = StopRecord(reason="asked", boot_id="old", term_boot_ms=1, kill_boot_ms=2)
    assert "lease" == due(watch_of(tmp_path), old, "boot").reason


def test_the_first_to_say_why_is_right(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    first = StopRecord(reason="asked", boot_id="boot", term_boot_ms=1, kill_boot_ms=2)
    assert guard_files.write_stop(tmp_path, first)
    assert not guard_files.write_stop(tmp_path, StopRecord(reason="lease", boot_id="boot", term_boot_ms=3, kill_boot_ms=4))
    assert first == guard_files.read_stop(tmp_path)
    assert ["stop.json"] == os.listdir(tmp_path / "runner")


def test_a_watch_is_read_as_written_and_a_torn_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert None is guard_files.read_watch(path)
    guard_files.write_watch(path, watch_of(tmp_path, pid=7))
    assert watch_of(tmp_path, pid=7) == guard_files.read_watch(path)
    path.write_text(path.read_text()[:-10])
    assert None is guard_files.read_watch(path)


def test_a_changed_watch_is_noticed_between_rounds(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    watching = guard.Guard(tmp_path)
    alive = watch_of(tmp_path, boot_id=watching.boot, lease_until_boot_ms=clocks.boot_ms() + FROM_NOW_MS)
    guard_files.write_watch(tmp_path / "x.json", alive)
    for lease_ms in (FROM_NOW_MS, FROM_NOW_MS + 1, 0):
        changed = watch_of(tmp_path, boot_id=watching.boot, lease_until_boot_ms=lease_ms)
        guard_files.write_watch(tmp_path / "x.json", changed)
        assert [(tmp_path / "x.json", changed)] == watching.watches()


def test_a_run_whose_docker_does_not_answer_stays_guarded(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    watching = guard.Guard(tmp_path)
    guard_files.write_watch(tmp_path / "x.json", watch_of(tmp_path, boot_id=watching.boot, lease_until_boot_ms=0))
    assert Round(active=1, stopping=0, unreachable=1) == watching.round()
    assert "c: " in (tmp_path / "guard.log").read_text()
    assert 1 == guard.main(["--reap", str(tmp_path)])


def test_a_process_that_only_has_the_containers_number_is_not_killed(tmp_path: Path) -> None:
    (tmp_path / "runner").mkdir()
    watching = guard.Guard(tmp_path)
    mine = watch_of(tmp_path, boot_id=watching.boot, lease_until_boot_ms=0, pid=os.getpid(), pid_start_ticks=1)
    guard_files.write_watch(tmp_path / "x.json", mine)
    assert Round(active=1, stopping=0, unreachable=1) == watching.round()


def test_only_one_guard_holds_a_folder_and_an_idle_one_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = guard.take_lock(tmp_path)
    assert held is not None
    assert None is guard.take_lock(tmp_path)
    monkeypatch.setattr(guard, "ALONE_EXIT_MS", 0)
    guard.watch(tmp_path, held)
    again = guard.take_lock(tmp_path)
    assert again is not None
    os.close(again)
    assert f"{os.getpid()}\n" == (tmp_path / "guard.lock").read_text()


def test_a_run_that_comes_as_the_guard_goes_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runner").mkdir()
    monkeypatch.setattr(guard, "ALONE_EXIT_MS", 0)
    monkeypatch.setattr(guard, "TICK_S", 0.001)
    path, took = tmp_path / "x.json", []

    def late(directory: Path) -> int | None:
        took.append(directory)
        path.unlink()
        return None

    close, lease_ms = os.close, clocks.boot_ms() + FROM_NOW_MS

    def close_as_the_run_comes(descriptor: int) -> None:
        close(descriptor)
        guard_files.write_watch(path, watch_of(tmp_path, boot_id=clocks.boot_id(), lease_until_boot_ms=lease_ms))

    descriptor = guard.take_lock(tmp_path)
    monkeypatch.setattr(guard, "take_lock", late)
    monkeypatch.setattr(os, "close", close_as_the_run_comes)
    guard.watch(tmp_path, descriptor)
    assert [tmp_path] == took


def test_reap_wants_a_folder_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == guard.main(["--reap", str(tmp_path / "nowhere")])
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "guard").mkdir()
    assert 0 == guard.main(["--reap", str(tmp_path)])


def test_a_guard_knows_of_every_agent_that_lives(tmp_path: Path) -> None:
    assert not guard.has_agent(tmp_path)
    first, second = hold_agent_lock(tmp_path), hold_agent_lock(tmp_path)
    assert guard.has_agent(tmp_path)
    os.close(first)
    assert guard.has_agent(tmp_path)
    os.close(second)
    assert not guard.has_agent(tmp_path)
