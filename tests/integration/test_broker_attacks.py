"""What a wallet can do to others through the broker, tried with real logins: nothing beyond its own subjects.

`a` attacks, `b` is the victim, `c` a third party. What holds about inboxes, exactly: a reply subject has 128 random bits of its
own, so it cannot be guessed; the only stranger who ever sees one is the buyer who reads along a seller's output, and an
answer aimed there names what it answers and is thrown away.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from contextlib import suppress

import pytest
from integration.broker_env import Complaints, Ear, World, until, world

from events.connection import Connection
from events.errors import MarketUnreachable, Refused
from events.nats_client import Message
from events.reasons import Refusal
from events.streams import INTAKE_MESSAGES_PER_WALLET, Intake, JetStreamRefused, api, append, direct_get
from events.subjects import INTAKE_STREAM, RPC_VERBS, inbox_prefix, intake, live, output, output_of, rpc, tunnel

__all__ = ["world"]  # the fixture

TOKEN = "f00dfeed"


class Parties:
    """Three wallets that are logged in."""

    def __init__(self, a: Connection, b: Connection, c: Connection) -> None:
        self.a, self.b, self.c = a, b, c
        self.wallet_a, self.wallet_b, self.wallet_c = (self.wallet_of(party) for party in (a, b, c))

    @staticmethod
    def wallet_of(party: Connection) -> str:
        return party.identity.inbox.removeprefix("_INBOX_")


@pytest.fixture
async def parties(world: World) -> Parties:
    return Parties(await world.wallet(1), await world.wallet(2), await world.wallet(3))


async def answer_with_the_callers_bytes(world: World) -> None:
    """The most dangerous service there could be: what it answers was chosen by who asks."""

    async def echo(message: Message) -> None:
        await world.services.publish(message.reply, message.data)

    await world.services.subscribe("rpc.*.*", echo)
    await world.services.subscribe("output.*.*.*.*", echo)
    await world.services.flush()


async def test_a_wallet_publishes_nowhere_but_as_itself(world: World, parties: Parties) -> None:
    b, c = parties.wallet_b, parties.wallet_c
    foreign = [
        intake(b),
        "intake.x",
        "ledger.page",
        "$JS.API.STREAM.DELETE.LEDGER",
        "$JS.API.STREAM.PURGE.INTAKE",
        "$JS.API.INFO",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.USER.AUTH",
        live(b, TOKEN),
        "live.market.tick",
        *(rpc(verb, b) for verb in RPC_VERBS),
        output(b, c, "job", TOKEN),
        f"{inbox_prefix(b)}.x",
        tunnel(b, c, "session", 1),
        "_R_.x",
        "$JS.ACK.LEDGER.x.1.1.1.1.0",
        "out.job.1",
        "file.x",
        "beats.x",
    ]
    everywhere = await Ear(world.services).on(*(subject for subject in foreign if not subject.startswith(("$SYS", "_R_", "$JS"))))
    victims = [await Ear(parties.b).on(f"{inbox_prefix(b)}.>", f"live.{b}.>", "live.market.>", f"tunnel.*.{b}.>", f"output.*.{b}.>")]
    complaints = Complaints(parties.a)
    for subject in foreign:
        await parties.a.publish(subject, b"attack")
    await parties.a.flush()
    assert [] == [subject for subject in foreign if not complaints.about(subject)]
    assert [] == await everywhere.silence()
    assert [[]] == [await ear.silence() for ear in victims]
    assert (0, 0) == (await world.stored("INTAKE"), await world.stored("LEDGER"))


async def test_a_wallet_listens_nowhere_but_at_itself(world: World, parties: Parties) -> None:
    a, b, c = parties.wallet_a, parties.wallet_b, parties.wallet_c
    foreign = [
        ">",
        "*.>",
        "live.>",
        f"live.{b}.>",
        "live.*.>",
        "live.beats",
        "_INBOX.>",
        f"{inbox_prefix(b)}.>",
        "intake.>",
        intake(a),
        "output.>",
        f"output.*.{b}.>",
        "tunnel.>",
        f"tunnel.{c}.{b}.>",
        f"tunnel.{a}.{b}.>",
        rpc("sync", a),
        "_R_.>",
        "$SYS.>",
        "$JS.EVENT.>",
        "ledger.page",
        "beats.>",
    ]
    ear, complaints = Ear(parties.a), Complaints(parties.a)
    await ear.on(*foreign)
    for subject in (live(b, TOKEN), f"{inbox_prefix(b)}.x", "ledger.page", "beats.x", "_R_.x"):
        await world.services.publish(subject, b"secret")
    await parties.c.publish(tunnel(c, b, "session", 1), b"secret")
    await parties.c.flush()
    await world.services.flush()
    assert [] == await ear.silence()
    assert [] == [subject for subject in foreign if not complaints.about(subject)]


async def test_a_wallet_reads_what_is_meant_for_it_and_for_everybody(world: World, parties: Parties) -> None:
    ear = await Ear(parties.b).on(
        f"live.{parties.wallet_b}.{TOKEN}.>", "live.market.>", f"tunnel.{parties.wallet_c}.{parties.wallet_b}.s.>"
    )
    await world.services.publish(live(parties.wallet_b, TOKEN), b"page")
    await world.services.publish("live.market.tick", b"tick")
    await parties.c.publish(tunnel(parties.wallet_c, parties.wallet_b, "s", 1), b"frame")
    await until(lambda: len(ear.heard) == 3, "page, tick and frame")
    assert {b"page", b"tick", b"frame"} == {message.data for message in ear.heard}


@pytest.mark.parametrize("with_bytes_of_the_attacker", [False, True], ids=["acknowledgement", "chosen bytes"])
async def test_a_forged_reply_reaches_no_stream_no_service_and_nobody_who_uses_a_token(
    world: World, parties: Parties, with_bytes_of_the_attacker: bool
) -> None:
    a, b, c = parties.wallet_a, parties.wallet_b, parties.wallet_c
    await append(world.services, "out.job.1", b"acknowledged line")
    services = await Ear(world.services).on("ledger.page", intake(b), "intake.x", rpc("beat", b), "out.>", "file.>", "beats.>")
    victim = await Ear(parties.b).on(
        f"live.{b}.{TOKEN}.>", f"tunnel.{c}.{b}.{TOKEN}.>", f"output.{c}.{b}.job.{TOKEN}", f"{inbox_prefix(b)}.{TOKEN}.>"
    )
    replies = [
        "ledger.page",
        intake(b),
        rpc("beat", b),
        "$JS.API.STREAM.DELETE.OUTPUT",
        "$JS.API.STREAM.PURGE.INTAKE",
        "out.job.1",
        "file.x",
        "beats.x",
        live(b, "guess"),
        tunnel(c, b, "guess", 1),
        output(c, b, "job", "guess"),
        f"{inbox_prefix(b)}.guess.1",
    ]
    if with_bytes_of_the_attacker:
        await answer_with_the_callers_bytes(world)
    for reply in replies:
        asked = rpc("read", a) if with_bytes_of_the_attacker else intake(a)
        await parties.a.publish(asked, b"attack", reply=reply)
    await parties.a.flush()
    assert [] == await victim.silence()
    assert [] == await services.silence()
    assert (0, 1) == (await world.stored("LEDGER"), await world.stored("OUTPUT"))
    assert (0 if with_bytes_of_the_attacker else len(replies)) == await world.stored("INTAKE")


async def test_a_feed_that_is_listened_to_without_its_token_can_be_written_to(world: World, parties: Parties) -> None:
    """Why every feed is listened to by its token."""
    await answer_with_the_callers_bytes(world)
    careless = await Ear(parties.b).on(f"live.{parties.wallet_b}.>")
    await parties.a.publish(rpc("read", parties.wallet_a), b"chosen", reply=live(parties.wallet_b, "guess"))
    await until(lambda: careless.heard, "the forged message")
    assert b"chosen" == careless.heard[0].data


async def test_a_guessed_inbox_does_not_disturb_a_question(world: World, parties: Parties) -> None:
    held: list[Message] = []
    await world.services.subscribe(rpc("sync", parties.wallet_b), held.append)
    await answer_with_the_callers_bytes_except_sync(world)
    question = asyncio.create_task(parties.b.request(rpc("sync", parties.wallet_b), b"where do I stand?"))
    await until(lambda: held, "the question")
    for guess in range(100):
        await parties.a.publish(
            rpc("read", parties.wallet_a), b"forged", reply=f"{inbox_prefix(parties.wallet_b)}.{guess:016x}.{guess:032x}"
        )
    await parties.a.flush()
    await world.services.respond(held[0], b"the truth")
    assert b"the truth" == await question


async def answer_with_the_callers_bytes_except_sync(world: World) -> None:
    async def echo(message: Message) -> None:
        await world.services.publish(message.reply, message.data)

    await world.services.subscribe("rpc.read.*", echo)
    await world.services.flush()


async def test_a_buyer_who_sees_a_sellers_reply_subject_cannot_answer_there(world: World, parties: Parties) -> None:
    seller, buyer = parties.b, parties.a
    seen = await Ear(buyer).on(output_of(parties.wallet_a, "job"))
    held: list[Message] = []
    await world.services.subscribe("output.*.*.*.*", held.append)
    await world.services.subscribe(rpc("files", parties.wallet_a), lambda message: world.soon(world.services.respond(message, b"forged")))
    await world.services.flush()
    shipped = asyncio.create_task(seller.request(output(parties.wallet_b, parties.wallet_a, "job", TOKEN), b"line"))
    await until(lambda: seen.heard and held, "the line at the buyer and at the gateway")
    assert seen.heard[0].reply.startswith(inbox_prefix(parties.wallet_b)), "the broker shows it; if that ends, so may the header"
    await buyer.publish(rpc("files", parties.wallet_a), b"", reply=seen.heard[0].reply)
    await buyer.flush()
    await world.services.flush()
    await seller.flush()
    assert not shipped.done()
    await world.services.respond(held[0], b"recorded")
    assert b"recorded" == await shipped


async def test_squatting_on_a_message_id_costs_the_squatter_nothing_and_us_nothing_we_use(world: World, parties: Parties) -> None:
    """With one id for both, the broker swallows the second message: so clients never send the header, and it is forgotten at once."""
    squat = {"Nats-Msg-Id": "j1"}
    await parties.a.request(intake(parties.wallet_a), b"squat", headers=squat)
    with_id = json.loads(await parties.b.request(intake(parties.wallet_b), b"swallowed", headers=squat))
    without = json.loads(await parties.b.request(intake(parties.wallet_b), b"stored"))
    assert True is with_id.get("duplicate")
    assert None is without.get("duplicate")
    assert 2 == await world.stored("INTAKE")
    with pytest.raises(JetStreamRefused):
        await append(parties.b, intake(parties.wallet_b), b"x" * 20_000)


async def test_a_trace_header_sends_nothing_to_anybody(world: World, parties: Parties) -> None:
    b = parties.wallet_b
    victim = await Ear(parties.b).on(f"live.{b}.>", f"{inbox_prefix(b)}.>")
    services = await Ear(world.services).on("ledger.page", intake(b))
    for target in (live(b, TOKEN), intake(b), "ledger.page", f"{inbox_prefix(b)}.x"):
        for only in ({}, {"Nats-Trace-Only": "true"}):
            await parties.a.publish(intake(parties.wallet_a), b"attack", headers={"Nats-Trace-Dest": target, **only})
    await parties.a.flush()
    assert [] == await victim.silence()
    assert [] == await services.silence()


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Rollup": "all"},
        {"Nats-Rollup": "sub"},
        {"Nats-TTL": "1s"},
        {"Nats-Schedule": "@at 2030-01-01T00:00:00Z", "Nats-Schedule-Target": "intake.x"},
        {"Nats-Batch-Id": "b1", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "1"},
        {"Nats-Incr": "+1"},
        {"Nats-Expected-Stream": "LEDGER"},
        {"Nats-Expected-Last-Sequence": "99"},
        {"Nats-Expected-Last-Msg-Id": "x"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_a_header_that_would_change_the_stream_costs_only_its_own_message(
    world: World, parties: Parties, headers: dict[str, str]
) -> None:
    await append(parties.b, intake(parties.wallet_b), b"innocent")
    answer = json.loads(await parties.a.request(intake(parties.wallet_a), b"attack", headers=headers))
    assert "error" in answer
    assert b"innocent" == await first_in_the_intake(world)
    assert 1 == await world.stored("INTAKE")
    await append(parties.b, intake(parties.wallet_b), b"goes on")


async def first_in_the_intake(world: World) -> bytes:
    answer = await api(world.services, f"STREAM.MSG.GET.{INTAKE_STREAM}", {"seq": 1})
    return b64decode(answer["message"]["data"])


@pytest.mark.parametrize(
    "headers",
    [
        {"Nats-Expected-Last-Subject-Sequence": "0", "Nats-Expected-Last-Subject-Sequence-Subject": "intake.x"},
        {"Nats-Stream": "LEDGER", "Nats-Subject": "ledger.page", "Nats-Sequence": "1"},
        {"Nats-Request-Info": '{"user": "somebody else"}'},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_a_header_that_lies_is_stored_and_not_shown_to_whoever_reads_the_intake(
    world: World, parties: Parties, headers: dict[str, str]
) -> None:
    read: list[tuple[int, str, bytes]] = []
    taken = Intake(world.services, lambda position, subject, data: read.append((position, subject, data)))
    await taken.start()
    await parties.a.request(intake(parties.wallet_a), b"event", headers=headers)
    await until(lambda: read, "the message")
    assert [(1, intake(parties.wallet_a), b"event")] == read
    await taken.stop()


async def test_headers_count_as_size(world: World, parties: Parties) -> None:
    answer = json.loads(await parties.a.request(intake(parties.wallet_a), b"", headers={"X": "y" * 17_500}))
    assert 10054 == answer["error"]["err_code"]
    assert 0 == await world.stored("INTAKE")


async def test_an_oversized_message_is_refused_before_it_is_sent(world: World, parties: Parties) -> None:
    with pytest.raises(Refused) as caught:
        await parties.a.publish(intake(parties.wallet_a), b"x" * 400_000)
    assert Refusal.TOO_LARGE == caught.value.refusal
    await parties.a.flush()
    assert 1 == parties.a.generation


async def test_who_sends_an_oversized_message_all_the_same_loses_the_connection_and_nobody_else_does(
    world: World, parties: Parties
) -> None:
    client = parties.a._client
    assert client is not None
    await client.publish(intake(parties.wallet_a), b"x" * 400_000)
    await until(lambda: not parties.a.is_up, "the broker hangs up")
    await parties.b.flush()
    assert 1 == parties.b.generation
    await parties.a.wait_up(10)
    assert 0 == await world.stored("INTAKE")


async def test_one_connection_holds_no_more_than_512_subscriptions(world: World, parties: Parties) -> None:
    ear = Ear(parties.a)
    mine = inbox_prefix(parties.wallet_a)
    await ear.on(*(f"{mine}.many.{number}" for number in range(500)))
    assert 1 == parties.a.generation
    with suppress(MarketUnreachable):
        await ear.on(*(f"{mine}.more.{number}" for number in range(100)))
    await until(lambda: not parties.a.is_up, "the end of a connection with too many")
    await parties.b.flush()
    assert 1 == parties.b.generation


@pytest.mark.parametrize("messages", [80, INTAKE_MESSAGES_PER_WALLET + 44])
async def test_a_flood_fills_only_its_own_quota(world: World, parties: Parties, messages: int) -> None:
    for number in range(messages):
        await parties.a.publish(intake(parties.wallet_a), b"flood %d" % number)
    await parties.a.flush()
    stored = min(messages, INTAKE_MESSAGES_PER_WALLET)
    await world.settled("INTAKE", stored)
    if stored < messages:
        with pytest.raises(JetStreamRefused):
            await append(parties.a, intake(parties.wallet_a), b"one more")
    assert stored + 1 == await append(parties.b, intake(parties.wallet_b), b"an honest one")


async def test_nobody_outside_can_ask_the_store(world: World, parties: Parties) -> None:
    await append(world.services, "file.x", b"somebody's file")
    assert None is not await direct_get(world.services, "FILES", seq=1)
    with pytest.raises(Exception, match="not permit"):
        await parties.a.request("$JS.API.DIRECT.GET.FILES", b'{"seq":1}')
