"""What becomes of those who are connected when the broker dies, when a login ends, or when only the callout is away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from integration.broker_env import Ear, World, a_session, login, until, world

from events.connection import Connection, ServiceKey
from events.errors import ConnectionRefused, LogUnavailable, MarketUnreachable
from events.nats_client import Message
from events.streams import Intake, api, append
from events.subjects import intake, live, rpc

__all__ = ["world"]  # the fixture

WALLETS = 20
TOKEN = "f00dfeed"


class Listener:
    """A wallet with its feed, as an agent has it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.wallet = connection.identity.inbox.removeprefix("_INBOX_")
        self.ear = Ear(connection)

    async def listen(self) -> Listener:
        await self.ear.on(f"live.{self.wallet}.{TOKEN}.>")
        return self


async def listeners(world: World, *, hasty: bool = False) -> list[Listener]:
    made = [Listener(await world.connect(login(a_session(number)), f"wallet {number}", hasty=hasty)) for number in range(1, WALLETS + 1)]
    return [await listener.listen() for listener in made]


async def all_hear_and_speak(world: World, everybody: list[Listener], word: bytes) -> None:
    """Each gets what is published for it, and has its own event stored."""
    for listener in everybody:
        await listener.connection.wait_up(30)
        await listener.connection.flush()
    for listener in everybody:
        await world.services.publish(live(listener.wallet, TOKEN), word)
    await until(lambda: all(word in [message.data for message in each.ear.heard] for each in everybody), f"everybody hears {word!r}")
    for listener in everybody:
        await append(listener.connection, intake(listener.wallet), word)


async def test_twenty_wallets_survive_the_death_of_the_broker(world: World) -> None:
    everybody = await listeners(world)
    await all_hear_and_speak(world, everybody, b"before")
    await world.restart_broker()
    await until(lambda: all(not each.connection.is_up for each in everybody), "everybody noticed")
    await all_hear_and_speak(world, everybody, b"after")
    assert {2} == {each.connection.generation for each in everybody}


async def test_twenty_wallets_survive_the_end_of_their_login_twice(tmp_path: Path) -> None:
    world = await World(tmp_path / "market").start(login_s_max=2)
    try:
        everybody = await listeners(world, hasty=True)
        for word in (b"first", b"second", b"third"):
            await all_hear_and_speak(world, everybody, word)
            generations = [each.connection.generation for each in everybody]
            await until(
                lambda before=generations: all(each.connection.generation > was for each, was in zip(everybody, before, strict=True)),
                "every login ended and was renewed",
            )
        assert all(each.connection.generation >= 4 for each in everybody)
    finally:
        await world.stop()


async def test_without_a_callout_those_inside_go_on_and_nobody_comes_in_until_it_is_back(world: World) -> None:
    inside = await world.wallet(1)
    for connection in world.callout:
        await connection.close()
    await inside.flush()
    outside = asyncio.create_task(world.connect(login(a_session(2)), "outside", wait_s=30))
    with pytest.raises((ConnectionRefused, MarketUnreachable)):
        await world.connect(login(a_session(3)), "impatient")
    assert not outside.done()
    await world.start_callout()
    await (await outside).flush()


async def test_while_the_broker_is_away_everything_fails_at_once_and_nothing_is_delivered_later(world: World) -> None:
    wallet = await world.wallet(1)
    mine = wallet.identity.inbox.removeprefix("_INBOX_")
    held: list[Message] = []
    await world.services.subscribe(rpc("sync", mine), held.append)
    await world.services.flush()
    question = asyncio.create_task(wallet.request(rpc("sync", mine), b"?", timeout_s=60))
    await until(lambda: held, "the question")
    world.broker.process.kill()
    with pytest.raises(MarketUnreachable, match="reach") as caught:
        await question
    assert rpc("sync", mine) in caught.value.why
    for attempt in (wallet.publish(intake(mine), b"late"), wallet.request(intake(mine), b"late"), wallet.flush()):
        with pytest.raises(MarketUnreachable):
            await attempt
    await world.restart_broker()
    await wallet.wait_up(30)
    await world.services.wait_up(30)
    await wallet.flush()
    assert 0 == await world.stored("INTAKE")


async def test_hooks_run_at_every_connect_before_anybody_is_told_that_it_is_up(world: World) -> None:
    ran: list[int] = []
    connection = Connection(world.url, ServiceKey(world.keys.market), "hooked")
    world.connections.append(connection)

    async def hook() -> None:
        assert not connection.is_up
        await api(connection, "INFO")
        ran.append(connection.generation)

    remove = connection.on_up(hook)
    await connection.open()
    assert [1] == ran
    await world.restart_broker()
    await until(lambda: connection.generation == 2 and connection.is_up, "it is back")
    assert [1, 2] == ran
    remove()
    connection.drop()
    await connection.wait_up(10)
    assert [1, 2] == ran


async def test_a_hook_that_fails_makes_the_connection_start_over(world: World) -> None:
    failures = [LogUnavailable(why="not yet"), RuntimeError("a bug"), None]

    async def hook() -> None:
        failure = failures.pop(0)
        if failure is not None:
            raise failure

    connection = await world.connect(ServiceKey(world.keys.market), "hooked")
    connection.on_up(hook)
    connection.drop()
    await connection.wait_up(10)
    assert [] == failures


async def test_subscriptions_made_and_ended_while_the_broker_is_away_count_when_it_is_back(world: World) -> None:
    kept: list[Message] = []
    ended: list[Message] = []
    connection = await world.connect(ServiceKey(world.keys.market), "absent")
    subscription = await connection.subscribe("beats.x", ended.append)
    world.broker.process.kill()
    await until(lambda: not connection.is_up, "it noticed")
    await subscription.unsubscribe()
    await connection.subscribe("beats.x", kept.append)
    await world.restart_broker()
    await connection.wait_up(10)
    await world.services.wait_up(10)
    await world.services.publish("beats.x", b"beat")
    await until(lambda: kept, "the beat")
    assert [] == ended


async def test_the_intake_goes_on_counting_over_a_restart_and_old_positions_purge_nothing_new(world: World) -> None:
    read: list[tuple[int, bytes]] = []
    taken = Intake(world.services, lambda position, _, data: read.append((position, data)))
    await taken.start()
    world.services.on_up(taken.start)
    for number in range(3):
        await append(world.services, "intake.x", b"old %d" % number)
    await until(lambda: len(read) == 3, "the old messages")
    await world.restart_broker()
    await until(lambda: not world.services.is_up, "it noticed")
    await world.services.wait_up(10)
    for number in range(2):
        await append(world.services, "intake.x", b"new %d" % number)
    await until(lambda: len(read) == 5, "the new messages")
    assert [(1, b"old 0"), (2, b"old 1"), (3, b"old 2"), (4, b"new 0"), (5, b"new 1")] == read
    await taken.purge_to(3)
    assert 2 == (await api(world.services, "STREAM.INFO.INTAKE"))["state"]["messages"]
    await taken.purge_to(4)
    assert 1 == (await api(world.services, "STREAM.INFO.INTAKE"))["state"]["messages"]
    await taken.stop()


async def test_the_intake_gives_each_message_once_over_a_lost_connection(world: World) -> None:
    read: list[int] = []
    taken = Intake(world.services, lambda position, *_: read.append(position))
    await taken.start()
    world.services.on_up(taken.start)
    for _ in range(5):
        await append(world.services, "intake.x", b"event")
    await until(lambda: len(read) == 5, "the first five")
    world.services.drop()
    await world.services.wait_up(10)
    await append(world.services, "intake.x", b"event")
    await until(lambda: 6 in read, "the sixth")
    assert [1, 2, 3, 4, 5, 6] == read
    await taken.stop()


async def test_a_flood_waits_in_the_stream_until_it_is_purged(world: World) -> None:
    """More than any socket holds: the broker must not hang up on a reader that is busy."""
    read: list[int] = []
    taken = Intake(world.services, lambda position, *_: read.append(position))
    await taken.start()
    publisher = await world.connect(ServiceKey(world.keys.market), "publisher")
    for wallet in range(30):
        for _ in range(256):
            await publisher.publish(f"intake.w{wallet}", b"x" * 16_000)
    await publisher.flush()
    await until(lambda: len(read) == 30 * 256, "all of 120 MB", 60)
    assert list(range(1, 30 * 256 + 1)) == read
    assert 1 == world.services.generation
    await taken.purge_to(read[-1])
    assert 0 == (await api(world.services, "STREAM.INFO.INTAKE"))["state"]["messages"]
    await taken.stop()
