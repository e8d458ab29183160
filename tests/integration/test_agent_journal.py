"""The journal on a real disk, under `kill -9`, in windows, and when it cannot be written."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from builders import BUYER, job_id, job_submitted

from seller_agent.attempts.attempt import Attempt, Run, Standing, Stop
from seller_agent.attempts.journal import Journal, JournalError, Leases

ROOT = Path(__file__).resolve().parents[2]


def attempt(epoch: int, **changes: object) -> Attempt:
    order = job_submitted(f"job {epoch}")
    usual = {"job_id": job_id(f"job {epoch}"), "attempt": 1, "epoch": epoch, "order": order, "buyer": BUYER, "timeout_s": 60}
    return Attempt(**(usual | changes))  # type: ignore[arg-type]


async def reread(path: Path) -> tuple[dict[int, Attempt], Leases | None]:
    journal = Journal(path)
    attempts, leases = await journal.open()
    await journal.close()
    return {attempt.epoch: attempt for attempt in attempts}, leases


async def test_everything_about_an_attempt_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    assert ([], None) == await journal.open()
    one = attempt(
        3, standing=Standing.CLAIMED, run=Run.RUNNING, stop=Stop.CANCEL, shipped=(10, 20), output_token="ab" * 8, cards=("GPU-1",)
    )
    journal.keep(one)
    journal.answered(Leases(boot_id="boot", sent_boot_ms={3: 77}))
    await journal.close()
    assert ({3: one}, Leases(boot_id="boot", sent_boot_ms={3: 77})) == await reread(tmp_path / "journal.db")


async def test_the_last_state_counts_and_the_forgotten_is_gone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    one, two = attempt(1), attempt(2)
    journal.keep(one)
    journal.keep(two)
    await journal.commit()
    one.run = Run.RUNNING
    journal.keep(one)
    journal.forget(2)
    await journal.close()
    assert {1: one} == (await reread(tmp_path / "journal.db"))[0]


async def test_what_is_forgotten_while_it_is_being_written_leaves_no_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    for epoch in range(1, 50):
        journal.keep(attempt(epoch))
        writing = asyncio.create_task(journal.commit())
        await asyncio.sleep(0)
        journal.forget(epoch)
        await writing
    await journal.close()
    assert {} == (await reread(tmp_path / "journal.db"))[0]


async def test_what_comes_and_goes_within_a_window_never_touches_the_disk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    before = (tmp_path / "journal.db-wal").stat().st_size
    for epoch in range(1, 100):
        journal.keep(attempt(epoch))
        journal.forget(epoch)
    await journal.commit()
    assert before == (tmp_path / "journal.db-wal").stat().st_size
    await journal.close()


KILLED = """
import asyncio, os, sys
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/tests"]
from pathlib import Path
from integration.test_agent_journal import attempt
from seller_agent.attempts.attempt import Stop
from seller_agent.attempts.journal import Journal

async def main():
    journal = Journal(Path(sys.argv[1]))
    await journal.open()
    one, epoch = attempt(1), 1
    while True:
        one.stop = Stop.EVICT
        journal.keep(one)
        await journal.commit()
        print(epoch, flush=True)  # the reason is on disk: now the signal may go out
        epoch += 1
        one = attempt(epoch)

asyncio.run(main())
"""


async def test_a_reason_that_was_committed_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "journal.db"), str(ROOT)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for _ in range(5):
        told = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rest = process.stdout.read().split()
    process.stdout.close()
    told = int(rest[-1]) if rest else told
    attempts, _ = await reread(tmp_path / "journal.db")
    assert set(range(1, told + 1)) <= set(attempts) <= set(range(1, told + 2)), "at most the one under way is in doubt"
    assert all(one.stop is Stop.EVICT for one in attempts.values())


async def test_a_write_that_fails_is_said_and_tried_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("CREATE TRIGGER full BEFORE INSERT ON attempts BEGIN SELECT RAISE(FAIL, 'disk is full'); END")
    one = attempt(1)
    journal.keep(one)
    with pytest.raises(JournalError, match="journal failed"):
        await journal.commit()
    assert "disk is full" in journal.trouble
    other.execute("DROP TRIGGER full")
    other.close()
    await journal.commit()
    await journal.close()
    assert {1: one} == (await reread(tmp_path / "journal.db"))[0]


async def test_who_waits_for_a_commit_may_be_cancelled_and_the_write_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    await journal.open()
    one = attempt(1)
    for stop in (Stop.EVICT, Stop.LEASE, Stop.CANCEL):
        one.stop = stop
        journal.keep(one)
        waiting = asyncio.create_task(journal.commit())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await journal.close()
    assert {1: one} == (await reread(tmp_path / "journal.db"))[0]


async def test_a_damaged_journal_is_said_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"this is no database, whatever it is, and long enough to be looked at as one" * 20)
    journal = Journal(tmp_path / "journal.db")
    with pytest.raises(JournalError) as failure:
        await journal.open()
    assert "move it away" in failure.value.hint.lower()
    await journal.close()
