"""The outbox survives crashes and is shared by the processes of a home; real SQLite, real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from events.outbox import Handover, LaneLock, Outbox, OutboxFailed, lane_name, new_id
from events.reasons import Refusal
from events.wire import Outcome

LANE = lane_name("ab" * 32, "0x" + "1" * 40, "buyer")


@contextmanager
def an_outbox(home: Path, lane: str = LANE) -> Iterator[Outbox]:
    outbox = Outbox(home, lane)
    try:
        yield outbox
    finally:
        outbox.close()


def on_disk(home: Path) -> list[bytes]:
    with closing(sqlite3.connect(home / "outbox.db")) as reader:
        return [row[0] for row in reader.execute("SELECT body FROM entries ORDER BY place")]


async def test_what_was_added_is_there_after_a_restart_in_order(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        for place in range(100):
            outbox.add(new_id(), b"%d" % place)
        await outbox.durable()
    with an_outbox(tmp_path) as outbox:
        assert [b"%d" % place for place in range(100)] == [stored.body for stored in outbox.others(set())]
    assert 0o600 == stat.S_IMODE((tmp_path / "outbox.db").stat().st_mode)


async def test_what_is_not_durable_yet_is_written_when_the_client_leaves(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        outbox.add(new_id(), b"late")
    assert [b"late"] == on_disk(tmp_path)


async def test_an_event_that_is_answered_at_once_never_touches_the_disk(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        written = (tmp_path / "outbox.db-wal").stat().st_size
        for _ in range(100):
            id = new_id()
            outbox.add(id, b"quick")
            outbox.settle(id, Outcome(1, b"", 5), ours=True)
        await outbox.durable()
        assert outbox.clean
        assert written == (tmp_path / "outbox.db-wal").stat().st_size


async def test_many_events_cost_one_commit(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox, closing(sqlite3.connect(tmp_path / "outbox.db")) as watcher:
        versions = {watcher.execute("PRAGMA data_version").fetchone()[0]}
        for place in range(1000):
            outbox.add(new_id(), b"%d" % place)
        while len(outbox.others(set())) < 1000:
            versions.add(watcher.execute("PRAGMA data_version").fetchone()[0])
            await asyncio.sleep(0.001)
        versions.add(watcher.execute("PRAGMA data_version").fetchone()[0])
        assert len(versions) <= 3, "the file changed once per window, not once per event"


async def test_who_waits_for_the_disk_hears_of_whatever_goes_wrong_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with an_outbox(tmp_path) as outbox:
        with monkeypatch.context() as broken:

            def fails(*_: object) -> None:
                raise MemoryError("no room")

            broken.setattr(outbox._writer, "_write", fails)
            outbox.add(new_id(), b"kept in memory")
            with pytest.raises(OutboxFailed):
                async with asyncio.timeout(10):
                    await outbox.durable()
        async with asyncio.timeout(10):
            await outbox.durable()
    assert [b"kept in memory"] == on_disk(tmp_path)


async def test_a_closed_outbox_lets_nobody_wait_for_the_disk(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        outbox.add(new_id(), b"one")
        await outbox.durable()
    with pytest.raises(OutboxFailed) as caught:
        async with asyncio.timeout(10):
            await outbox.durable()
    assert caught.value.why.endswith("it is closed")


async def test_a_settled_event_is_gone_from_the_file(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        ids = [new_id() for _ in range(3)]
        for id in ids:
            outbox.add(id, id)
        await outbox.durable()
        outbox.settle(ids[1], Outcome(1, b"", 5), ours=True)
        assert not outbox.clean
        await outbox.durable()
        assert outbox.clean
        assert [ids[0], ids[2]] == on_disk(tmp_path)


async def test_the_outcome_of_another_processes_event_is_left_for_it(tmp_path: Path) -> None:
    outcome = Outcome(3, b"h" * 32, 9, Refusal.UNKNOWN_JOB, 0, "why")
    with an_outbox(tmp_path) as waiting, an_outbox(tmp_path) as sending:
        id = new_id()
        waiting.add(id, b"event")
        await waiting.durable()
        assert sending.changed()
        assert [(id, b"event")] == sending.others(set())
        assert waiting.outcome(id) is None
        sending.settle(id, outcome, ours=False)
        await sending.durable()
        assert outcome == waiting.outcome(id)
        assert [] == waiting.others(set())


async def test_lanes_do_not_see_each_other(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as buyer, an_outbox(tmp_path, lane_name("ab" * 32, "0x" + "1" * 40, "seller", "node2")) as seller:
        buyer.add(new_id(), b"mine")
        await buyer.durable()
        assert [] == seller.others(set())


async def test_a_full_disk_is_said_and_nothing_is_forgotten(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        with closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as other:
            other.execute("DROP TABLE entries")
            outbox.add(new_id(), b"kept in memory")
            with pytest.raises(OutboxFailed) as caught:
                await outbox.durable()
            assert "outbox.db" in caught.value.why
            other.execute("CREATE TABLE entries (place INTEGER PRIMARY KEY, id BLOB UNIQUE, lane TEXT, body BLOB, created_ms INTEGER)")
        await outbox.durable()
        assert [b"kept in memory"] == on_disk(tmp_path)


def test_a_file_that_is_no_outbox_is_said(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(OutboxFailed):
        Outbox(tmp_path, LANE)


def test_one_sender_of_a_lane_at_a_time_and_the_next_one_knows_the_last_number(tmp_path: Path) -> None:
    first, second = LaneLock(tmp_path / "lock"), LaneLock(tmp_path / "lock")
    assert (True, None) == first.acquire()
    assert (False, None) == second.acquire()
    left = Handover(b"k" * 32, 41)
    first.release(left)
    assert (True, left) == second.acquire()
    second.close()
    assert (True, None) == first.acquire(), "it ended without saying where the key stands"
    first.close()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from events.outbox import Outbox, new_id

async def main():
    outbox = Outbox(Path(sys.argv[1]), sys.argv[2])
    assert outbox.lock.acquire()[0]
    for place in range(int(sys.argv[3])):
        outbox.add(new_id(), b"%d" % place)
    await outbox.durable()
    print("durable", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_process_that_is_killed_loses_nothing_durable_and_leaves_the_lock(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), LANE, "50"], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    assert process.stdout is not None
    assert b"durable\n" == process.stdout.readline()
    with an_outbox(tmp_path) as outbox:
        assert (False, None) == outbox.lock.acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert (True, None) == outbox.lock.acquire()
        assert [b"%d" % place for place in range(50)] == [stored.body for stored in outbox.others(set())]


def test_processes_that_start_at_once_share_one_file(tmp_path: Path) -> None:
    lanes = [f"{LANE}.{place}" for place in range(6)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), lane, "20"], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
        )
        for lane in lanes
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert b"durable\n" == process.stdout.readline()
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    assert 120 == len(on_disk(tmp_path))


async def test_old_outcomes_do_not_pile_up(tmp_path: Path) -> None:
    with an_outbox(tmp_path) as outbox:
        outbox.settle(b"old", Outcome(1, b"", 5), ours=False)
        await outbox.durable()
        with closing(sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)) as other:
            other.execute("UPDATE outcomes SET ended_ms = ?", (int(time.time() * 1000) - 2 * 3_600_000,))
        outbox.settle(b"new", Outcome(2, b"", 6), ours=False)
        await outbox.durable()
        assert outbox.outcome(b"old") is None
        assert outbox.outcome(b"new") is not None
