"""A tunnel over a real broker with real permissions: who gets in, what a stranger or a hostile buyer can do, and what cuts it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from integration.broker_env import HOUR_MS, MARKET_ID, Complaints, Ear, World, login, now_ms, until, world

from buyer_cli.tunnels import Reach, forward
from events import subjects, tunnel_keys
from events.connection import Connection
from events.session import Session, make_session
from events.tunnel import NodeRefused, NodeSilent, Tunnel, meet
from events.tunnel_frames import Target
from events.tunnel_keys import Facts, Identity
from events.values import Role
from events.wallet import KeySigner
from seller_agent.attempts.attempt import Attempt, Run, Standing, Stop
from seller_agent.runners.reach import dial_port
from seller_agent.sessions.tunnels import SESSIONS_MAX, Tunnels

__all__ = ["world"]  # the fixture

pytestmark = pytest.mark.timeout(60)
JOB_ID = "j" + "a" * 19
TOKEN = "ef" * 8
EPOCH = 7


def session(number: int, role: Role) -> Session:
    return make_session(KeySigner(number.to_bytes(32, "big")), MARKET_ID, role, now_ms=now_ms(), validity_ms=HOUR_MS)


class Dials:
    """The runner's verb that is needed: ports of this machine."""

    async def dial(self, key: object, place: str) -> Any:
        return await dial_port(int(place.partition(":")[2]))


class Echo(asyncio.Protocol):
    """Says everything back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Ends:
    """A node with one running attempt, a program in it that says everything back, and its buyer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.buyer, self.seller = session(1, Role.BUYER), session(2, Role.SELLER)
        order: Any = SimpleNamespace()
        self.attempt = Attempt(
            job_id=JOB_ID, attempt=1, epoch=EPOCH, order=order, buyer=self.buyer.wallet, timeout_s=60, output_token=TOKEN
        )
        self.attempt.run, self.attempt.standing = Run.RUNNING, Standing.CLAIMED
        self.attempts = {EPOCH: self.attempt}
        self.facts = Facts(market_id=MARKET_ID, job_id=JOB_ID, attempt=1, epoch=EPOCH, buyer=self.buyer.wallet, seller=self.seller.wallet)
        self.tunnels: Tunnels
        self.reaches: list[Reach] = []
        self._serving: asyncio.Task[None]

    async def start(self) -> Ends:
        self.server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        self.port = int(self.server.sockets[0].getsockname()[1])
        await self.start_node()
        return self

    async def start_node(self) -> None:
        runner: Any = Dials()
        self.tunnels = Tunnels(self.world.url, lambda: self.seller, runner, self.attempts, look_s=0.02)
        self._serving = asyncio.create_task(self.tunnels.run())
        await until(lambda: self.tunnels._doors, "the node listens")

    async def stop_node(self) -> None:
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)

    def reach(self) -> Reach:
        wanted = {"job_id": JOB_ID, "attempt": 1, "epoch": EPOCH, "seller": self.seller.wallet, "output_token": TOKEN}
        self.reaches.append(Reach.of(self.world.url, self.buyer, **wanted))  # type: ignore[arg-type]
        return self.reaches[-1]

    async def local(self, reach: Reach, trouble: list[str] | None = None) -> int:
        """A port here that leads to the program."""
        server = await forward(reach, f"tcp:{self.port}", 0, (trouble if trouble is not None else []).append)
        return int(server.sockets[0].getsockname()[1])

    def sessions(self) -> int:
        return sum(len(door.sessions) for door in self.tunnels._doors.values())

    async def stop(self) -> None:
        for reach in self.reaches:
            await reach.close()
        await self.stop_node()
        self.server.close()


@pytest.fixture
async def ends(world: World) -> AsyncIterator[Ends]:
    made = await Ends(world).start()
    try:
        yield made
    finally:
        await made.stop()


async def echoed(port: int, data: bytes) -> bytes:
    """What comes back, whole; empty when the connection is cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            return await reader.readexactly(len(data))
    except (ConnectionError, asyncio.IncompleteReadError):
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# --- it works ---


async def test_many_connections_share_a_session_and_every_byte_comes_back(ends: Ends) -> None:
    port = await ends.local(ends.reach())
    said = [secrets.token_bytes(200_000 + number) for number in range(20)]
    assert said == await asyncio.gather(*(echoed(port, data) for data in said))
    assert 1 == ends.sessions()


async def test_half_a_connection_may_end_before_the_other(ends: Ends) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%d" % len(await reader.read()))
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    onward = await forward(ends.reach(), f"tcp:{server.sockets[0].getsockname()[1]}", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", onward.sockets[0].getsockname()[1])
    writer.write(bytes(3_000_000))
    writer.write_eof()
    assert b"3000000" == await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    server.close()


async def test_a_slow_reader_holds_up_nobody_else(ends: Ends) -> None:
    port = await ends.local(ends.reach())
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write(bytes(8_000_000))  # whoever says it does not read what comes back
    assert b"quick" * 1000 == await echoed(port, b"quick" * 1000)
    async with asyncio.timeout(20):
        assert bytes(8_000_000) == await reader.readexactly(8_000_000)
    writer.close()
    await writer.wait_closed()


# --- strangers ---


async def test_another_wallet_can_neither_open_nor_listen(ends: Ends) -> None:
    world, other = ends.world, session(3, Role.BUYER)
    stranger = await world.connect(login(other), "stranger")
    complaints = Complaints(stranger)
    opening = subjects.tunnel(ends.buyer.wallet, ends.seller.wallet, tunnel_keys.opening_token(JOB_ID, EPOCH, TOKEN), 0)
    await stranger.publish(opening, b"x")
    await until(lambda: complaints.about(opening), "the broker refuses to let it speak as the buyer")
    for subject in (opening, f"tunnel.{ends.buyer.wallet}.{ends.seller.wallet}.>", f"tunnel.*.{ends.buyer.wallet}.>"):
        ear = await Ear(stranger).on(subject)
        await until(lambda subject=subject: complaints.about(subject), f"the broker refuses to let it listen to {subject}")
        assert [] == ear.heard
    facts = Facts(market_id=MARKET_ID, job_id=JOB_ID, attempt=1, epoch=EPOCH, buyer=other.wallet, seller=ends.seller.wallet)
    with pytest.raises(NodeSilent):  # as itself, it speaks to nobody
        await meet(stranger, facts, Identity(other.signing_key, other.signed), TOKEN, timeout_s=0.5)
    assert 0 == ends.sessions()


async def test_what_a_strangers_reply_brings_to_the_opening_is_no_opening(ends: Ends) -> None:
    stranger = await ends.world.connect(login(session(3, Role.BUYER)), "stranger")
    opening = subjects.tunnel(ends.buyer.wallet, ends.seller.wallet, tunnel_keys.opening_token(JOB_ID, EPOCH, TOKEN), 0)
    await stranger.publish(f"tunnel.{stranger.identity.wallet}.{ends.seller.wallet}.x.0", b"x", reply=opening)  # type: ignore[union-attr]
    port = await ends.local(ends.reach())
    assert b"still there" == await echoed(port, b"still there")


async def test_the_broker_in_between_sees_nothing_of_what_is_said(ends: Ends) -> None:
    seen = await ends.world.connect(login(session(2, Role.SELLER)), "the node's own account")
    ear = await Ear(seen).on(f"tunnel.*.{ends.seller.wallet}.>")
    port = await ends.local(ends.reach())
    secret = b"a token that nobody else may read" * 100
    assert secret == await echoed(port, secret)
    heard = b"".join(message.data for message in ear.heard)
    assert len(heard) > len(secret) and b"token" not in heard and b"127.0.0.1" not in heard and b"tcp:" not in heard


# --- hostile buyers ---


async def hostile(ends: Ends) -> tuple[Connection, Tunnel, str]:
    """A session, and where its frames go, of a buyer that will say what it likes there."""
    connection = await Connection(ends.world.url, login(ends.buyer), "hostile", bulk=True).open()
    ends.world.connections.append(connection)
    identity = Identity(ends.buyer.signing_key, ends.buyer.signed)
    tunnel = await meet(connection, ends.facts, identity, TOKEN)
    return connection, tunnel, tunnel._send_on


@pytest.mark.parametrize("size", [0, 1, 8, 30, 1000, 147_000])
async def test_garbage_ends_its_own_session_and_no_other(ends: Ends, size: int) -> None:
    port = await ends.local(ends.reach())
    assert b"before" == await echoed(port, b"before")
    connection, tunnel, subject = await hostile(ends)
    await until(lambda: 2 == ends.sessions(), "two sessions")
    await connection.publish(subject, secrets.token_bytes(size))
    await until(lambda: 1 == ends.sessions(), "one session")
    await until(lambda: tunnel.is_closed, "its own end is told")
    assert b"after" == await echoed(port, b"after")


class Asked:
    """The buyer's end of a stream that nobody waits for."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class SlowDials(Dials):
    """A runner whose connections come about when they are let, and which counts them."""

    def __init__(self) -> None:
        self.may_go = asyncio.Event()
        self.asked, self.given, self.closed = 0, 0, 0

    async def dial(self, key: object, place: str) -> Any:
        self.asked += 1
        await self.may_go.wait()
        self.given += 1
        return self

    async def read(self, size: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def close(self) -> None:
        self.closed += 1


async def test_a_stream_that_is_given_up_while_it_is_dialled_leaves_nothing_open(ends: Ends) -> None:
    ends.tunnels._runner = dials = SlowDials()
    _, tunnel, _ = await hostile(ends)
    for _ in range(3):
        tunnel.reset(tunnel.open(Target(place="tcp:1"), Asked()), "no more")
    await until(lambda: dials.asked == 3, "all are dialled")
    dials.may_go.set()
    await until(lambda: dials.closed == 3, "what came about too late is closed")
    await until(lambda: not ends.tunnels._streams, "nothing goes on")


async def test_a_stream_whose_session_ends_while_it_is_dialled_leaves_nothing_open(ends: Ends) -> None:
    ends.tunnels._runner = dials = SlowDials()
    _, tunnel, _ = await hostile(ends)
    tunnel.open(Target(place="tcp:1"), Asked())
    await until(lambda: dials.asked == 1, "it is dialled")
    tunnel.close("no more")
    await until(lambda: not ends.sessions(), "the session ends")
    dials.may_go.set()
    await until(lambda: dials.closed == 1, "what came about too late is closed")


async def test_streams_given_up_and_asked_for_again_are_never_more_at_once_than_a_job_may_have(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seller_agent.sessions.tunnels.SERVED_MAX", 5)
    ends.tunnels._runner = dials = SlowDials()
    _, tunnel, _ = await hostile(ends)
    for _ in range(20):
        tunnel.reset(tunnel.open(Target(place="tcp:1"), Asked()), "no more")
    heard = next(iter(ends.tunnels._doors[EPOCH].sessions.values())).tunnel
    await until(lambda: heard.streams_opened == 20, "the node has heard all")
    await asyncio.sleep(0)
    assert 5 == dials.asked
    dials.may_go.set()
    await until(lambda: dials.closed == 5, "they end")
    tunnel.open(Target(place="tcp:1"), Asked())
    await until(lambda: dials.asked == 6, "then there is room again")


async def test_garbage_at_the_door_is_passed_over(ends: Ends) -> None:
    connection = await ends.world.connect(login(ends.buyer), "hostile")
    opening = subjects.tunnel(ends.buyer.wallet, ends.seller.wallet, tunnel_keys.opening_token(JOB_ID, EPOCH, TOKEN), 0)
    for size in (0, 1, 100, 10_000, 140_000):
        await connection.publish(opening, secrets.token_bytes(size))
    port = await ends.local(ends.reach())
    assert b"hello" == await echoed(port, b"hello")


async def test_a_job_has_so_many_sessions_and_no_more(ends: Ends) -> None:
    connection = await ends.world.connect(login(ends.buyer), "many")
    identity = Identity(ends.buyer.signing_key, ends.buyer.signed)
    opened = [await meet(connection, ends.facts, identity, TOKEN) for _ in range(SESSIONS_MAX)]
    with pytest.raises(NodeRefused) as refused:
        await meet(connection, ends.facts, identity, TOKEN)
    assert "too_many" == refused.value.reason
    opened[0].close("enough")
    await until(lambda: SESSIONS_MAX - 1 == ends.sessions(), "one has left")
    opened.append(await meet(connection, ends.facts, identity, TOKEN))
    for tunnel in opened:
        tunnel.close("enough")
    await until(lambda: 0 == ends.sessions(), "all have left")


# --- what cuts it ---


@pytest.mark.parametrize("how", ["stopped", "exited", "taken back", "forgotten"])
async def test_the_end_of_the_attempt_cuts_its_sessions_at_once(ends: Ends, how: str) -> None:
    reach = ends.reach()
    port = await ends.local(reach)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    assert b"hello" == await reader.readexactly(5)
    match how:
        case "stopped":
            ends.attempt.stop = Stop.CANCEL
        case "exited":
            ends.attempt.run = Run.EXITED
        case "taken back":
            ends.attempt.standing = Standing.GONE
        case "forgotten":
            del ends.attempts[EPOCH]
    with contextlib.suppress(ConnectionError):
        assert b"" == await asyncio.wait_for(reader.read(), 10)
    writer.close()
    tunnel = reach._tunnel
    assert tunnel is not None
    assert "the job has ended" == tunnel.reason
    connection = await ends.world.connect(login(ends.buyer), "late")
    with pytest.raises(NodeSilent):
        await meet(connection, ends.facts, Identity(ends.buyer.signing_key, ends.buyer.signed), TOKEN, timeout_s=0.5)


async def test_after_the_nodes_agent_was_started_again_the_same_port_works(ends: Ends) -> None:
    port = await ends.local(ends.reach())
    assert b"before" == await echoed(port, b"before")
    await ends.stop_node()
    await ends.start_node()
    assert b"after" == await echoed(port, b"after")


async def test_after_the_broker_was_killed_the_same_port_works_again(ends: Ends) -> None:
    port = await ends.local(ends.reach())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello")
    assert b"hello" == await reader.readexactly(5)
    await ends.world.restart_broker()
    with contextlib.suppress(ConnectionError):
        assert b"" == await asyncio.wait_for(reader.read(), 30), "what it carried is cut"
    writer.close()

    async def works() -> bool:
        return b"after" == await echoed(port, b"after")

    async with asyncio.timeout(30):
        while not await works():
            await asyncio.sleep(0.1)
