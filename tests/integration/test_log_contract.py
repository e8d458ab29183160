"""What every log promises, shown of both: the one in memory and the one on a real broker. Then what only a broker can do wrong."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.broker_env import World, world

from events.connection import Connection, ServiceKey
from events.errors import AppendConflict, LogCorrupt, LogUnavailable
from events.log import Log, LogHead
from events.memory_log import MemoryLog
from events.nats_log import NatsLog
from events.streams import LEDGER, api, ensure_stream

__all__ = ["world"]  # the fixture


@pytest.fixture(params=["memory", "nats"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Log]:
    if request.param == "memory":
        yield MemoryLog()
        return
    world = await World(tmp_path / "market").start()
    try:
        yield NatsLog(world.services)
    finally:
        await world.stop()


async def positions(log: Log, after: int, until: int) -> list[int]:
    return [page.position async for page in log.follow(after, until=until)]


async def filled(log: Log, pages: int) -> None:
    for number in range(pages):
        await log.append(b"page %d" % (number + 1), number)


async def test_an_empty_log_ends_at_zero_and_has_no_page(log: Log) -> None:
    assert 0 == (await log.head()).position
    assert None is await log.read(1)
    assert None is await log.read(0)
    assert [] == await positions(log, 0, 0)


async def test_a_page_is_read_back_as_it_was_appended(log: Log) -> None:
    data = os.urandom(1 << 20)
    assert 1 == await log.append(data, 0)
    page = await log.read(1)
    assert page is not None
    assert (1, data) == (page.position, page.data)
    assert [data] == [page.data async for page in log.follow(0, until=1)]
    assert 1 == (await log.head()).position
    assert None is await log.read(2)


async def test_a_page_in_the_wrong_place_is_refused_and_leaves_nothing(log: Log) -> None:
    await filled(log, 2)
    for expected in (0, 1, 3, 99):
        with pytest.raises(AppendConflict):
            await log.append(b"late", expected)
    assert 2 == (await log.head()).position


async def test_of_two_writers_with_one_expectation_exactly_one_is_taken(log: Log) -> None:
    await filled(log, 3)
    outcomes = await asyncio.gather(*(log.append(b"writer %d" % number, 3) for number in range(10)), return_exceptions=True)
    assert [4] == [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert 9 == sum(isinstance(outcome, AppendConflict) for outcome in outcomes)
    assert 4 == (await log.head()).position


async def test_the_same_bytes_sent_again_conflict_and_can_be_recognised(log: Log) -> None:
    await log.append(b"page 1", 0)
    with pytest.raises(AppendConflict):
        await log.append(b"page 1", 0)
    page = await log.read(1)
    assert page is not None
    assert b"page 1" == page.data


async def test_following_gives_every_page_once_in_order(log: Log) -> None:
    await filled(log, 50)
    assert list(range(1, 51)) == await positions(log, 0, 50)
    assert list(range(41, 51)) == await positions(log, 40, 50)
    assert [7] == await positions(log, 6, 7)


async def test_a_follower_waits_for_what_is_still_to_come(log: Log) -> None:
    follower = log.follow(0)
    waiting = asyncio.ensure_future(anext(follower))
    await log.append(b"page 1", 0)
    assert b"page 1" == (await waiting).data
    await log.append(b"page 2", 1)
    assert b"page 2" == (await anext(follower)).data
    await follower.aclose()  # type: ignore[attr-defined]


async def test_followers_do_not_disturb_each_other(log: Log) -> None:
    await filled(log, 20)
    assert [list(range(1, 21))] * 3 == await asyncio.gather(*(positions(log, 0, 20) for _ in range(3)))


async def test_the_head_names_this_very_log(log: Log) -> None:
    before = await log.head()
    await log.append(b"page 1", 0)
    assert LogHead(1, before.created) == await log.head()


# --- only on a broker ---


async def test_acknowledged_pages_and_followers_survive_the_death_of_the_broker(world: World) -> None:
    log = NatsLog(world.services)
    await filled(log, 30)
    created = (await log.head()).created
    follower = log.follow(0)
    assert list(range(1, 11)) == [(await anext(follower)).position for _ in range(10)]
    await world.restart_broker()
    await world.services.wait_up(10)
    assert LogHead(30, created) == await log.head()
    assert 31 == await log.append(b"page 31", 30)
    assert list(range(11, 32)) == [(await anext(follower)).position for _ in range(21)]
    await follower.aclose()  # type: ignore[attr-defined]


async def test_without_a_broker_the_log_is_unavailable_at_once(world: World) -> None:
    log = NatsLog(world.services)
    await filled(log, 1)
    await world.broker.stop_async()
    for attempt in (log.append(b"page 2", 1), log.head(), log.read(1)):
        with pytest.raises(LogUnavailable):
            await attempt


async def test_a_follower_ends_when_its_connection_is_closed(world: World) -> None:
    reader = await world.connect(ServiceKey(world.keys.market), "reader")
    follower = NatsLog(reader).follow(0)
    waiting = asyncio.ensure_future(anext(follower))
    await asyncio.sleep(0)
    await reader.close()
    with pytest.raises(LogUnavailable):
        await waiting


async def a_ledger_with_a_hole(connection: Connection) -> None:
    """Nobody can make one in the real ledger, so this one is made for it."""
    await api(connection, "STREAM.DELETE.LEDGER")
    await ensure_stream(connection, {**LEDGER, "deny_delete": False, "deny_purge": False})
    await filled(NatsLog(connection), 5)
    await api(connection, "STREAM.MSG.DELETE.LEDGER", {"seq": 3})


async def test_a_hole_in_the_ledger_is_damage(world: World) -> None:
    await a_ledger_with_a_hole(world.services)
    with pytest.raises(LogCorrupt, match="damaged") as caught:
        await positions(NatsLog(world.services), 0, 5)
    assert "page 3 is missing" in caught.value.why
    assert None is await NatsLog(world.services).read(3)


async def test_a_follower_stops_when_the_ledger_is_made_anew(world: World) -> None:
    log = NatsLog(world.services)
    await filled(log, 5)
    follower = log.follow(0)
    for _ in range(5):
        await anext(follower)
    await api(world.services, "STREAM.DELETE.LEDGER")
    world.services.drop()
    with pytest.raises(LogCorrupt, match="anew"):
        await anext(follower)


async def test_the_ledger_refuses_to_forget(world: World) -> None:
    log = NatsLog(world.services)
    await filled(log, 3)
    for operation, question in (("STREAM.PURGE.LEDGER", {}), ("STREAM.MSG.DELETE.LEDGER", {"seq": 1})):
        with pytest.raises(LogUnavailable, match="refused"):
            await api(world.services, operation, question)
    assert [1, 2, 3] == await positions(log, 0, 3)
