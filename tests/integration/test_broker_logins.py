"""Who is let in: a key that signs the broker's nonce, with a delegation that holds now, here, and for it; at most eight times."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest
from integration.broker_env import HOUR_MS, OTHER_MARKET_ID, Ear, RawLogin, World, a_session, login, now_ms, until, world
from nacl.signing import SigningKey

from events.connection import Connection, Guest, WalletKey
from events.delegation import nkey_of
from events.errors import ConnectionRefused
from events.session import Session
from events.subjects import intake, rpc
from services import callout, market_keys
from services.callout import CONNECTIONS_PER_WALLET
from services.seats import FAILURES_IN_A_BURST

__all__ = ["world"]  # the fixture


def options_of(session: Session, nonce: str) -> dict[str, str]:
    """An honest CONNECT."""
    signature = market_keys.signing_key(session.seed).sign(nonce.encode()).signature
    return {"nkey": nkey_of(session.key), "sig": b64encode(signature).decode(), "auth_token": session.token}


async def refused(world: World, identity: WalletKey) -> None:
    with pytest.raises(ConnectionRefused):
        await world.connect(identity, "refused")


async def test_a_good_delegation_is_let_in(world: World) -> None:
    session = a_session(1)
    wallet = await world.connect(login(session), "good")
    assert b'"stream":"INTAKE"' in await wallet.request(intake(session.wallet), b"event")


async def test_a_delegation_that_has_ended_is_refused(world: World) -> None:
    await refused(world, login(a_session(1, issued_ms=now_ms() - 2 * HOUR_MS, validity_ms=HOUR_MS)))


async def test_a_delegation_to_another_market_is_refused(world: World) -> None:
    await refused(world, login(a_session(1, market_id=OTHER_MARKET_ID)))


async def test_a_stolen_delegation_is_worth_nothing_without_its_key(world: World) -> None:
    owner = a_session(1)
    await world.connect(login(owner), "owner")
    thief = WalletKey(market_keys.make_seed(), owner.token, owner.wallet)
    await refused(world, thief)


async def test_a_delegation_that_was_tampered_with_is_refused(world: World) -> None:
    session = a_session(1)
    for place in (0, 40, len(session.token) // 2, len(session.token) - 2):
        letter = "A" if session.token[place] != "A" else "B"
        await refused(world, WalletKey(session.seed, session.token[:place] + letter + session.token[place + 1 :], session.wallet))


async def test_a_wallet_cannot_call_itself_another(world: World) -> None:
    """Its inbox is named after the wallet in the delegation, whatever the client says."""
    session, victim = a_session(1), a_session(2)
    liar = await world.connect(WalletKey(session.seed, session.token, victim.wallet), "liar")
    with pytest.raises(ConnectionRefused, match="not permit"):
        await liar.request(intake(victim.wallet), b"event")


@pytest.mark.parametrize("token", ["x", "x" * 4000, "é", "AAAA", "=" * 100], ids=["short", "long", "not ascii", "nulls", "padding"])
async def test_a_token_that_is_none_is_refused(world: World, token: str) -> None:
    await refused(world, WalletKey(market_keys.make_seed(), token, "0x" + "0" * 40))
    await world.wallet(1)


async def test_the_signature_of_another_connections_nonce_is_worth_nothing(world: World) -> None:
    session = a_session(1)
    first = await RawLogin.open(world.url)
    overheard = options_of(session, first.nonce)
    assert "PONG" == await first.say(**overheard)
    assert "PONG" != await (await RawLogin.open(world.url)).say(**overheard)


@pytest.mark.parametrize("missing", ["sig", "nkey"])
async def test_a_login_without_its_proof_is_refused(world: World, missing: str) -> None:
    raw = await RawLogin.open(world.url)
    options = options_of(a_session(1), raw.nonce)
    del options[missing]
    assert "PONG" != await raw.say(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "guest", "pass": ""},
        {"user": "0x7e5f4552091a69125d5dfcb7b8c2659029395bdf", "pass": "x"},
        {"auth_token": "x"},
        {"jwt": "eyJ0eXAiOiJKV1QifQ.e30.x", "sig": "x"},
        {"nkey": "U" + "A" * 55, "sig": ""},
        {"nkey": "x" * 3000, "sig": "y" * 3000},
    ],
    ids=["nothing", "guest by name", "wallet by name", "token alone", "jwt", "no signature", "long"],
)
async def test_no_other_kind_of_login_is_let_in(world: World, options: dict[str, str]) -> None:
    assert "PONG" != await (await RawLogin.open(world.url)).say(**options)


async def test_the_markets_own_keys_are_not_names_to_be_claimed(world: World) -> None:
    """Knowing a service's public key is not having it."""
    public = market_keys.public_nkey(world.keys.market)
    raw = await RawLogin.open(world.url)
    forged = b64encode(SigningKey.generate().sign(raw.nonce.encode()).signature).decode()
    assert "PONG" != await raw.say(nkey=public, sig=forged)


async def test_a_guest_may_say_hello_and_nothing_else(world: World) -> None:
    await world.services.subscribe("rpc.hello.*", lambda message: world.soon(world.services.respond(message, b"welcome")))
    await world.services.flush()
    guest = await world.connect(Guest(market_keys.make_seed()), "guest")
    assert b"welcome" == await guest.request(rpc("hello", "guest"))
    for subject in (rpc("sync", "guest"), intake("guest"), "live.guest.x", "tunnel.guest.x.y.1", "$JS.API.INFO"):
        with pytest.raises(ConnectionRefused, match="not permit"):
            await guest.request(subject)
    ear = await Ear(guest).on("live.market.>", "live.guest.>", ">")
    await world.services.publish("live.market.tick", b"tick")
    assert [] == await ear.silence()


async def test_a_wallet_has_so_many_connections_and_no_more(world: World) -> None:
    session = a_session(1)
    attempts = await asyncio.gather(*(world.connect(login(session), f"connection {n}") for n in range(36)), return_exceptions=True)
    let_in = [attempt for attempt in attempts if isinstance(attempt, Connection)]
    assert CONNECTIONS_PER_WALLET == len(let_in)
    assert 36 - CONNECTIONS_PER_WALLET == sum(isinstance(attempt, ConnectionRefused) for attempt in attempts)
    await world.wallet(2)


async def test_two_keys_of_one_wallet_share_its_connections(world: World) -> None:
    for _ in range(CONNECTIONS_PER_WALLET):
        await world.wallet(1)
    await refused(world, login(a_session(1)))


async def test_a_connection_that_ends_makes_room(world: World) -> None:
    session = a_session(1)
    for number in range(3 * CONNECTIONS_PER_WALLET):
        connection = await world.connect(login(session), f"short {number}", wait_s=5)
        await connection.close()


async def test_connections_are_counted_although_the_callout_began_anew(world: World) -> None:
    session = a_session(1)
    for number in range(CONNECTIONS_PER_WALLET - 1):
        await world.connect(login(session), f"before {number}")
    for connection in world.callout:
        await connection.close()
    await world.start_callout()
    await world.connect(login(session), "the last")
    await refused(world, login(session))


@pytest.fixture
def few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine counts like any other, and has three places."""
    monkeypatch.setattr(callout, "network_of", lambda host: host)
    monkeypatch.setattr(callout, "CONNECTIONS_PER_NETWORK", 3)
    monkeypatch.setattr(callout, "GUESTS_PER_NETWORK", 2)


@pytest.mark.usefixtures("few_places")
async def test_wallets_of_one_address_share_its_places_and_guests_have_their_own(world: World) -> None:
    wallets = [await world.wallet(number) for number in (1, 2, 3)]
    await refused(world, login(a_session(4)))
    for _ in range(2):
        await world.guest()
    with pytest.raises(ConnectionRefused):
        await world.guest()
    await wallets[0].close()
    await world.connect(login(a_session(4)), "in the place of another", wait_s=10)


@pytest.mark.usefixtures("few_places")
async def test_places_are_counted_although_the_callout_began_anew(world: World) -> None:
    for number in (1, 2):
        await world.wallet(number)
    for connection in world.callout:
        await connection.close()
    await world.start_callout()
    await world.wallet(3)
    await refused(world, login(a_session(4)))


@pytest.mark.usefixtures("few_places")
async def test_a_wallet_that_is_full_takes_no_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callout, "CONNECTIONS_PER_WALLET", 1)
    await world.wallet(1)
    for _ in range(3):
        await refused(world, login(a_session(1)))
    await world.wallet(2)
    await world.wallet(3)


async def test_who_fails_too_often_is_not_looked_at_but_who_was_let_in_before_is(world: World) -> None:
    known = a_session(1)
    connection = await world.connect(login(known), "known")
    await connection.close()
    for number in range(FAILURES_IN_A_BURST + 5):
        bad = a_session(9, market_id=OTHER_MARKET_ID)
        raw = await RawLogin.open(world.url)
        assert "PONG" != await raw.say(**options_of(bad, raw.nonce)), number
    raw = await RawLogin.open(world.url)
    assert "PONG" == await raw.say(**options_of(known, raw.nonce))
    unknown = a_session(2)
    raw = await RawLogin.open(world.url)
    assert "PONG" != await raw.say(**options_of(unknown, raw.nonce))
    await world.connect(login(unknown), "a little later", wait_s=20)


async def test_a_login_ends_with_its_delegation(world: World) -> None:
    session = a_session(1, validity_ms=2000)
    connection = await world.connect(login(session), "short", hasty=True)
    refusals: list[ConnectionRefused] = []
    connection.on_refused = refusals.append
    await until(lambda: not connection.is_up, "the end of the login")
    await until(lambda: refusals, "the refusal to come back")
    assert now_ms() >= session.expires_ms - 1000
    connection.identity = login(a_session(1))
    await connection.wait_up(30)
