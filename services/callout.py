"""Who may come in: answers the broker's question about every connection that is not one of the market's own services.

A wallet shows a session key (it signed the broker's nonce) and a delegation to that key; it gets exactly the subjects of
`events/subjects.py`, until the delegation ends. Nobody without one is more than a guest who may ask `rpc.hello`. The broker
does not enforce limits of a login in this mode, so connections are counted here (`seats.py`), per wallet, per address and broker.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from events import delegation
from events.connection import GUEST, Connection, ServiceKey
from events.errors import BazaarError, Refused
from events.nats_client import Message
from events.reasons import Refusal
from events.subjects import inbox_prefix, publish_allowed, rpc, subscribe_allowed
from services import jwt
from services.market_keys import MarketKeys, load_or_make
from services.seats import REMEMBERED_MAX, Buckets, Seats, network_of

QUESTION = "$SYS.REQ.USER.AUTH"
ACCOUNT = "USERS"
DISCONNECTED = f"$SYS.ACCOUNT.{ACCOUNT}.DISCONNECT"
CONCURRENCY = 32

CONNECTIONS_PER_WALLET = 24
CONNECTIONS_OF_GUESTS = 64
GUEST_S = 60
LOGIN_S_MAX = 86_400
"""A login ends after a day even when its delegation does not; clients come back within two seconds."""
CONNECTIONS_PER_NETWORK, GUESTS_PER_NETWORK = 500, 16
"""Wallets' connections, and guests', from one address (of IPv6: one /64): wallets cost nothing, so nobody is to take all the places of
all wallets with them. Not counted for this machine: a proxy's connections come from it."""
LIST_AGAIN_S = 5.0
LISTED_MAX = 4096

log = logging.getLogger("bazaar.callout")


class Login(NamedTuple):
    """What a good delegation says."""

    wallet: str
    expires_ms: int


class VerifyDelegation(Protocol):
    """Whether a delegation token lets this key (64 hex) speak for a wallet now. Raises Refused."""

    def __call__(self, token: str, *, key_hex: str, now_ms: int) -> Login: ...


def verifier(market_id: str) -> VerifyDelegation:
    """The check of delegations to this market, the cheap questions first: recovering the wallet from a signature costs most."""

    def verify(token: str, *, key_hex: str, now_ms: int) -> Login:
        signed = delegation.decode_token(token)
        stated = delegation.parse(signed.text)
        if stated.market_id != market_id:
            raise Refused(Refusal.WRONG_MARKET)
        if stated.key_hex != key_hex:
            raise Refused(Refusal.NOT_YOURS, "The delegation is for another session key.")
        if stated.expires_ms <= now_ms:
            raise Refused(Refusal.KEY_EXPIRED)
        checked = delegation.check(signed, market_id=market_id, key_hex=key_hex, now_ms=now_ms)
        return Login(checked.wallet, checked.expires_ms)

    return verify


class _Client(msgspec.Struct, frozen=True):
    id: int
    user: str = ""
    host: str = ""


class _Listed(msgspec.Struct, frozen=True):
    """One connection in the broker's list."""

    cid: int
    ip: str = ""
    authorized_user: str = ""


class _Connections(msgspec.Struct, frozen=True):
    connections: list[_Listed] | None = None


class _List(msgspec.Struct, frozen=True):
    data: _Connections


class _Disconnect(msgspec.Struct, frozen=True):
    """The broker's word that a connection ended."""

    server: jwt.ServerId
    client: _Client


_disconnects = msgspec.json.Decoder(_Disconnect)
_lists = msgspec.json.Decoder(_List)


@dataclass(frozen=True)
class Grant:
    """What a connection gets."""

    name: str
    permissions: jwt.Permissions
    expires_s: int
    seats: int


def wallet_grant(login: Login, now_s: int, login_s_max: int = LOGIN_S_MAX) -> Grant:
    """Exactly a wallet's own subjects."""
    permissions = jwt.Permissions(publish_allowed(login.wallet), subscribe_allowed(login.wallet))
    return Grant(login.wallet, permissions, min(login.expires_ms // 1000, now_s + login_s_max), CONNECTIONS_PER_WALLET)


def guest_grant(now_s: int) -> Grant:
    """One question and its answer."""
    permissions = jwt.Permissions((rpc("hello", GUEST),), (f"{inbox_prefix(GUEST)}.>",))
    return Grant(GUEST, permissions, now_s + GUEST_S, CONNECTIONS_OF_GUESTS)


def _place_name(user: str, host: str) -> str:
    """What a connection is counted as beside its wallet: where it comes from, guests apart; empty when that is not counted."""
    network = network_of(host)
    return network and f"{GUEST if user == GUEST else 'wallets'} at {network}"


class Callout:
    """The service, over a connection in the account AUTH, with one in SYS to ask how many connections a wallet has."""

    def __init__(
        self,
        auth: Connection,
        system: Connection,
        keys: MarketKeys,
        verify: VerifyDelegation,
        *,
        login_s_max: int = LOGIN_S_MAX,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._auth = auth
        self._system = system
        self._issuer = keys.issuer_key
        self._verify = verify
        self._login_s_max = login_s_max
        self._clock = clock
        self._known: OrderedDict[bytes, Login] = OrderedDict()
        self._buckets = Buckets()
        self._seats = Seats()
        self._places = Seats()
        self._listed_s: dict[str, float] = {}

    async def start(self) -> None:
        """Answer from now on, over all reconnects."""
        await self._system.subscribe(DISCONNECTED, self._left)
        await self._auth.subscribe(QUESTION, self._asked, queue="callout", concurrency=CONCURRENCY)
        await self._auth.flush()

    async def _asked(self, message: Message) -> None:
        try:
            request = jwt.decode_request(message.data)
        except jwt.BadToken as error:
            log.warning("a question about a login was no such thing: %s", error)
            return
        now_s = int(self._clock())
        try:
            grant = await self._decide(request)
        except Refused as refused:
            log.info("refused a connection from %s: %s", request.client_info.host, refused.refusal.value)
            answer = jwt.denied(request, self._issuer, why=refused.refusal.value, now_s=now_s)
        else:
            answer = jwt.granted(
                request,
                self._issuer,
                account=ACCOUNT,
                name=grant.name,
                permissions=grant.permissions,
                now_s=now_s,
                expires_s=grant.expires_s,
            )
        try:
            await self._auth.publish(message.reply, answer)
        except BazaarError as error:
            log.warning("a login could not be answered: %s", error.why)

    def _left(self, message: Message) -> None:
        event = _disconnects.decode(message.data)
        user, seat = event.client.user, event.client.id
        self._seats.leave(event.server.id, user, seat)
        self._places.leave(event.server.id, _place_name(user, event.client.host), seat)

    async def _decide(self, request: jwt.AuthorizationRequest) -> Grant:
        """What this connection gets. Raises Refused."""
        now_s = self._clock()
        grant = self._grant(request, now_s)
        broker, seat = request.server_id.id, request.client_info.id
        place = _place_name(grant.name, request.client_info.host)
        if place:
            await self._take_place(broker, place, seat, GUESTS_PER_NETWORK if grant.name == GUEST else CONNECTIONS_PER_NETWORK, now_s)
        try:
            await self._take_seat(broker, grant, seat, now_s)
        except Refused:
            self._places.leave(broker, place, seat)
            raise
        return grant

    async def _take_seat(self, broker: str, grant: Grant, seat: int, now_s: float) -> None:
        """One of the wallet's connections. Raises Refused."""
        if self._seats.must_ask(broker, grant.name, grant.seats):
            listed = await self._listed(broker, user=grant.name)
            self._seats.correct(broker, grant.name, {one.cid for one in listed}, now_s)
        if not self._seats.take(broker, grant.name, seat, grant.seats, now_s):
            raise Refused(Refusal.QUOTA_EXCEEDED, f"{grant.seats} connections are open already.")

    async def _take_place(self, broker: str, place: str, seat: int, limit: int, now_s: float) -> None:
        """One of the connections from there. The broker's whole list is asked for once, and when a place seems full. Raises Refused."""
        listed_s = self._listed_s.get(broker)
        if listed_s is None or (self._places.is_full(broker, place, limit) and not 0 <= now_s - listed_s < LIST_AGAIN_S):
            self._listed_s[broker] = now_s
            await self._count_places(broker, now_s)
        if not self._places.take(broker, place, seat, limit, now_s):
            raise Refused(Refusal.QUOTA_EXCEEDED, f"{limit} connections from there are open already.")

    async def _count_places(self, broker: str, now_s: float) -> None:
        listed: dict[str, set[int]] = {}
        try:
            for one in await self._listed(broker):
                listed.setdefault(_place_name(one.authorized_user, one.ip), set()).add(one.cid)
        except Refused:
            del self._listed_s[broker]
            raise
        listed.pop("", None)
        self._places.correct_all(broker, listed, now_s)

    def _grant(self, request: jwt.AuthorizationRequest, now_s: float) -> Grant:
        host, options = request.client_info.host, request.connect_opts
        try:
            if not request.client_info.nonce or not jwt.proves_key(options.nkey, request.client_info.nonce, options.sig):
                raise Refused(Refusal.BAD_SIGNATURE, "The connection does not prove its key.")
            if not options.auth_token:
                return guest_grant(int(now_s))
            return wallet_grant(self._login(host, options, now_s), int(now_s), self._login_s_max)
        except Refused:
            self._buckets.take(network_of(host), now_s)
            raise

    def _login(self, host: str, options: jwt.ConnectOptions, now_s: float) -> Login:
        """The wallet behind a token, remembered once its signature was checked. Raises Refused."""
        remembered = hashlib.sha256(f"{options.nkey} {options.auth_token}".encode()).digest()
        now_ms = int(now_s * 1000)
        login = self._known.get(remembered)
        if login is None:
            if self._buckets.is_empty(network_of(host), now_s):
                raise Refused(Refusal.RATE_LIMITED)
            key_hex = jwt.decode_nkey(options.nkey, jwt.USER_PREFIX).hex()
            login = self._verify(options.auth_token, key_hex=key_hex, now_ms=now_ms)
            self._known[remembered] = login
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        if login.expires_ms // 1000 <= now_s:  # to the second, as the login would end
            raise Refused(Refusal.KEY_EXPIRED)
        return login

    async def _listed(self, broker: str, user: str | None = None) -> list[_Listed]:
        """The connections that a broker has, of this name or of all wallets. Raises Refused when it cannot be asked."""
        question = {"auth": True, "acc": ACCOUNT, "limit": LISTED_MAX} | ({} if user is None else {"user": user})
        try:
            answer = await self._system.request(f"$SYS.REQ.SERVER.{broker}.CONNZ", msgspec.json.encode(question), timeout_s=2)
            return _lists.decode(answer).data.connections or []
        except (BazaarError, msgspec.MsgspecError) as error:
            log.warning("the broker could not be asked for the connections of %s: %r", user or "all wallets", error)
            raise Refused(Refusal.RATE_LIMITED, "Connections cannot be counted just now.") from None


async def serve(url: str, keys: MarketKeys, market_id: str, *, stopped: asyncio.Event, ready: Callable[[], None]) -> None:
    """Run until `stopped`; `ready` is called when connections are let in. Raises MarketUnreachable, ConnectionRefused."""
    async with (
        Connection(url, ServiceKey(keys.sys), "callout-system") as system,
        Connection(url, ServiceKey(keys.callout), "callout") as auth,
    ):
        await Callout(auth, system, keys, verifier(market_id)).start()
        ready()
        await stopped.wait()


def main() -> None:
    """The process: prints `ready` when it answers, ends on SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m services.callout", description="Decide who may connect to a market's broker.")
    parser.add_argument("--url", required=True, help="the broker, e.g. nats://127.0.0.1:4222")
    parser.add_argument("--keys", required=True, type=Path, help="the market's folder of keys")
    parser.add_argument("--market-id", required=True, help="64 hex digits; delegations to other markets are refused")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_run(arguments.url, arguments.keys, arguments.market_id))


async def _run(url: str, keys: Path, market_id: str) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await serve(url, load_or_make(keys), market_id, stopped=stopped, ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
