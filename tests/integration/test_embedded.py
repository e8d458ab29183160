"""What keeps an embedded market together: children that are started again, left-over ones that are ended, and parts that cannot start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from e2e.market_env import MarketEnv

from events.connection import Connection, ServiceKey
from events.nats_log import NatsLog
from services.broker import start_time
from services.children import Child, end_left_over, write_running
from services.processes import MarketFolder

AS_ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
SLEEPS = "import time; time.sleep(600)"


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s until {what}"
        time.sleep(0.005)


class Children:
    """Children of this test, ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Child] = []

    def start(self, code: str = SLEEPS, **options: Any) -> Child:
        child = Child("child", [sys.executable, "-c", code], environment=dict(os.environ), stderr=self.folder / "child.err", **options)
        self.made.append(child)
        child.start()
        return child

    def close(self) -> None:
        for child in self.made:
            child.stop(signal.SIGKILL)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    made = Children(tmp_path)
    yield made
    made.close()


# --- children ---


def test_a_child_that_is_killed_is_noticed_once_and_started_again(children: Children) -> None:
    child = children.start()
    first = child.pid
    assert first is not None and not child.look_after()
    os.kill(first, signal.SIGKILL)
    noticed = []
    wait_until(lambda: noticed.append(child.look_after()) or child.pid not in (None, first), "it is back")
    assert 1 == sum(noticed)
    assert 1 == child.restarts


def test_a_child_that_has_lived_for_long_is_started_again_at_once(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.children.STABLE_S", 0.0)
    child = children.start()
    first = child.pid
    assert first is not None and not child.look_after()
    os.kill(first, signal.SIGKILL)
    wait_until(child.look_after, "its end is noticed")
    assert child.pid not in (None, first)


def test_a_child_that_dies_again_and_again_is_started_ever_less_often(children: Children) -> None:
    child = children.start("raise SystemExit(1)")
    deaths: list[float] = []

    def died() -> bool:
        if child.look_after():
            deaths.append(time.monotonic())
        return len(deaths) == 4

    wait_until(died, "four deaths")
    pauses = [later - earlier for earlier, later in pairwise(deaths)]
    assert pauses[0] >= 0.1 and pauses[1] >= 0.2 and pauses[2] >= 0.4


def test_a_child_that_says_that_it_makes_no_sense_is_left_alone(children: Children) -> None:
    child = children.start("raise SystemExit(4)", gives_up_on=(2, 4))
    wait_until(lambda: child.look_after(), "its end is noticed")
    assert (4, 0) == (child.given_up, child.restarts)
    assert not child.look_after()


def test_a_child_that_does_not_listen_is_killed_in_the_end(children: Children, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = children.start(
        f"import pathlib, signal, time; signal.signal(15, lambda *_: None); pathlib.Path({str(ready)!r}).touch()\nwhile True: time.sleep(1)"
    )
    wait_until(ready.exists, "it ignores the signal")
    child.stop(timeout_s=0.2)
    assert child.pid is None


def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\nfrom pathlib import Path\nfrom services.children import Child\n"
            f"command, words = [sys.executable, '-c', {SLEEPS!r}], Path({str(tmp_path / 'err')!r})\n"
            "child = Child('child', command, environment=dict(os.environ), stderr=words)\n"
            "child.start(); print(child.pid, flush=True); time.sleep(600)",
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    with parent, parent.stdout as words:
        pid = int(words.readline())
        parent.kill()
    wait_until(lambda: start_time(pid) is None, "the child is gone")


# --- what an earlier market left ---


def test_what_an_earlier_market_left_running_is_ended_by_name(children: Children, tmp_path: Path) -> None:
    child = children.start()
    file = tmp_path / "running.json"
    write_running(file, [child])
    assert ["child"] == end_left_over(file)
    wait_until(lambda: child.pid is None, "it is gone")
    assert not file.exists()
    assert [] == end_left_over(file)


def test_a_process_that_only_has_the_number_of_an_earlier_one_is_left_alone(children: Children, tmp_path: Path) -> None:
    child = children.start()
    assert child.holder is not None
    file = tmp_path / "running.json"
    file.write_text(json.dumps({"child": {"pid": child.holder.pid, "started": child.holder.started - 1}}))
    assert [] == end_left_over(file)
    assert child.pid is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"pid": "x", "started": 1}}', '{"a": {"pid": 1}}'])
def test_a_damaged_note_of_what_ran_is_no_reason_to_end_anything(tmp_path: Path, text: str) -> None:
    file = tmp_path / "running.json"
    file.write_text(text)
    assert [] == end_left_over(file)


# --- markets that cannot come up ---


@pytest.fixture
def env(tmp_path: Path) -> Iterator[MarketEnv]:
    made = MarketEnv(tmp_path)
    yield made
    made.close()


def stop(env: MarketEnv) -> None:
    env.up.stop()
    env.wait_until(lambda: not env.left_over(), "nothing is left")


def refused(env: MarketEnv, *options: str) -> tuple[int, str]:
    """`up` that does not come up: its exit code and what it says. Nothing may be left of it."""
    told = env.command("bazaar-market", "up", "--port", "0", "--runner", "process", *options, code=None)
    assert "" == told.stdout and told.code
    env.wait_until(lambda: not env.left_over(), "nothing is left")
    assert not (env.home / "market" / "endpoints.json").exists()
    return told.code, told.stderr


def test_endpoints_stand_in_a_file_for_as_long_as_the_market_is_up(env: MarketEnv) -> None:
    env.start()
    file = env.home / "market" / "endpoints.json"
    found = json.loads(file.read_text())
    assert (env.market, env.api, env.up.pid) == (found["market"], found["api"], found["pid"])
    assert 0o700 == (env.home / "market").stat().st_mode & 0o777
    assert {0o600} == {key.stat().st_mode & 0o777 for key in (env.home / "market" / "keys").iterdir()}
    stop(env)
    assert not file.exists()


def test_no_secret_of_the_market_stands_in_an_argument_list(env: MarketEnv) -> None:
    env.start("--simulate-gpus", "1xRTX 4090")
    secrets = [key.read_text().strip() for key in (env.home / "market" / "keys").iterdir()]
    secrets += [file.read_text().strip() for file in (env.home / "keystore").glob("*.passphrase")]
    assert len(secrets) >= 9
    seen = [Path(f"/proc/{pid}/{part}").read_bytes() for pid in env.left_over() for part in ("cmdline", "environ")]
    assert len(seen) >= 14
    assert not [secret for secret in secrets if any(secret.encode() in data for data in seen)]
    logs = b"".join(file.read_bytes() for file in [*(env.home / "log").iterdir(), env.home / "market" / "broker.log"])
    assert not [secret for secret in secrets if secret.encode() in logs]


def test_a_seller_whose_cards_make_no_sense_is_named_with_its_own_words(env: MarketEnv) -> None:
    code, said = refused(env, "--simulate-gpus", "two of the large ones")
    assert code == 1
    assert "seller does not start" in said and "two of the large ones" in said


def test_keys_that_others_may_read_are_refused(env: MarketEnv) -> None:
    env.start()
    stop(env)
    (env.home / "market" / "keys" / "matcher.seed").chmod(0o644)
    code, said = refused(env)
    assert 4 == code and "matcher.seed" in said


async def test_a_ledger_that_somebody_else_wrote_into_is_never_served_from(env: MarketEnv) -> None:
    """Every service halts at the first page that is not the market's; so does `up`, and says why."""
    env.start()
    keys = MarketFolder(env.home).load_keys()
    async with Connection(env.market, ServiceKey(keys.market), "vandal") as connection:
        ledger = NatsLog(connection)
        await ledger.append(b"not a page", (await ledger.head()).position)
    env.up.process.kill()  # in its own order it would wait for a matcher that cannot go on
    env.up.process.wait()
    env.wait_until(lambda: not env.left_over(), "nothing is left")
    (env.home / "market" / "endpoints.json").unlink()
    code, said = refused(env)
    assert 1 == code
    assert "does not start" in said and "The ledger is damaged" in said


@pytest.fixture
def small_store(env: MarketEnv) -> Iterator[Path]:
    """The market's store on a disk of its own, with little room."""
    store = env.home / "market" / "store"
    store.mkdir(parents=True, mode=0o700)
    (env.home / "market").chmod(0o700)
    mounted = subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", f"size=48m,uid={os.getuid()},mode=0700", "tmpfs", store], check=False)
    if mounted.returncode != 0:
        pytest.skip("a disk of its own cannot be mounted here")
    try:
        yield store
    finally:
        stop(env)
        subprocess.run([*AS_ROOT, "umount", store], check=True)


def test_a_market_whose_disk_was_full_goes_on_by_itself_once_there_is_room(env: MarketEnv, small_store: Path) -> None:
    env.start("--simulate-gpus", "1xRTX 4090")
    env.bazaar("wallet", "new")
    before = env.submit("--", "true")
    env.wait_for_job(before, "succeeded")
    filler = small_store / "filler"
    with filler.open("wb") as stream:
        while True:
            try:
                stream.write(bytes(1 << 20))
                stream.flush()
            except OSError:
                break
    env.wait_until(lambda: "the disk is full" in env.up.err, "the operator is told")
    filler.unlink()
    env.wait_until(lambda: "there is room on the disk again" in env.up.err, "the room is noticed")
    after = env.submit("--", "true")
    env.wait_for_job(after, "succeeded")
    assert "succeeded" == env.job(before)["state"], "what was acknowledged is kept"
