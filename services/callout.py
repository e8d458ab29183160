"""Who may come in: answers the broker's question about every connection that is not one of the market's own services.

A wallet shows a session key (it signed the broker's nonce) and a delegation to that key; it gets exactly the subjects of
`events/subjects.py`, until the delegation ends. Nobody without one is more than a guest who may ask `rpc.hello`. The broker
does not enforce limits of a login in this mode, so connections are counted here, per wallet and broker.
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

QUESTION = "$SYS.REQ.USER.AUTH"
ACCOUNT = "USERS"
DISCONNECTED = f"$SYS.ACCOUNT.{ACCOUNT}.DISCONNECT"
CONCURRENCY = 32

CONNECTIONS_PER_WALLET = 24
CONNECTIONS_OF_GUESTS = 64
GUEST_S = 60
LOGIN_S_MAX = 86_400
"""A login ends after a day even when its delegation does not; clients come back within two seconds."""
CONNECTING_S = 10.0
"""For so long a granted connection counts although the broker does not list it yet."""

FAILURES_IN_A_BURST = 20
FAILURES_PER_S = 2.0
"""Failed logins of one host beyond this are refused without looking at the signature again."""
REMEMBERED_MAX = 10_000

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


class _Disconnect(msgspec.Struct, frozen=True):
    """The broker's word that a connection ended."""

    server: jwt.ServerId
    client: _Client


_disconnects = msgspec.json.Decoder(_Disconnect)


class Buckets:
    """How many more failures each host may have: a bucket per host that fills with time."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def is_empty(self, host: str, now_s: float) -> bool:
        """Whether this host has failed too often lately."""
        return self._level(host, now_s) < 1

    def take(self, host: str, now_s: float) -> None:
        """Count a failure."""
        self._left[host] = (max(0.0, self._level(host, now_s) - 1), now_s)
        self._left.move_to_end(host)
        while len(self._left) > REMEMBERED_MAX:
            self._left.popitem(last=False)

    def _level(self, host: str, now_s: float) -> float:
        level, since_s = self._left.get(host, (float(FAILURES_IN_A_BURST), now_s))
        return min(float(FAILURES_IN_A_BURST), level + (now_s - since_s) * FAILURES_PER_S)


class Seats:
    """How many connections each name has on each broker: granted here, corrected by what the broker lists.

    The broker tells of every connection that ends, but may be missed; so a full name, or one not seen before, is asked about.
    """

    def __init__(self) -> None:
        self._taken: OrderedDict[tuple[str, str], dict[int, float]] = OrderedDict()

    def must_ask(self, broker: str, name: str, limit: int) -> bool:
        """Whether the broker's own list is needed to say if there is a seat."""
        return len(self._taken.get((broker, name), range(limit))) >= limit

    def correct(self, broker: str, name: str, listed: set[int], now_s: float) -> None:
        """Count what the broker lists, and what was granted so lately that it may not be listed yet."""
        before = self._taken.pop((broker, name), {})
        lately = {seat: granted_s for seat, granted_s in before.items() if now_s - granted_s < CONNECTING_S}
        self._taken[broker, name] = {**dict.fromkeys(listed, 0.0), **lately}
        while len(self._taken) > REMEMBERED_MAX:
            self._taken.popitem(last=False)

    def take(self, broker: str, name: str, seat: int, limit: int, now_s: float) -> bool:
        """Whether there was a seat; if so it is taken."""
        taken = self._taken.setdefault((broker, name), {})
        if len(taken) >= limit:
            return False
        taken[seat] = now_s
        return True

    def leave(self, broker: str, name: str, seat: int) -> None:
        """A connection has ended."""
        self._taken.get((broker, name), {}).pop(seat, None)


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
        self._seats.leave(event.server.id, event.client.user, event.client.id)

    async def _decide(self, request: jwt.AuthorizationRequest) -> Grant:
        """What this connection gets. Raises Refused."""
        now_s = self._clock()
        grant = self._grant(request, now_s)
        broker, seat = request.server_id.id, request.client_info.id
        if self._seats.must_ask(broker, grant.name, grant.seats):
            listed = await self._listed(broker, grant.name)
            self._seats.correct(broker, grant.name, listed, now_s)
        if not self._seats.take(broker, grant.name, seat, grant.seats, now_s):
            raise Refused(Refusal.QUOTA_EXCEEDED, f"{grant.seats} connections are open already.")
        return grant

    def _grant(self, request: jwt.AuthorizationRequest, now_s: float) -> Grant:
        host, options = request.client_info.host, request.connect_opts
        try:
            if not request.client_info.nonce or not jwt.proves_key(options.nkey, request.client_info.nonce, options.sig):
                raise Refused(Refusal.BAD_SIGNATURE, "The connection does not prove its key.")
            if not options.auth_token:
                return guest_grant(int(now_s))
            return wallet_grant(self._login(host, options, now_s), int(now_s), self._login_s_max)
        except Refused:
            self._buckets.take(host, now_s)
            raise

    def _login(self, host: str, options: jwt.ConnectOptions, now_s: float) -> Login:
        """The wallet behind a token, remembered once its signature was checked. Raises Refused."""
        remembered = hashlib.sha256(f"{options.nkey} {options.auth_token}".encode()).digest()
        now_ms = int(now_s * 1000)
        login = self._known.get(remembered)
        if login is None:
            if self._buckets.is_empty(host, now_s):
                raise Refused(Refusal.RATE_LIMITED)
            key_hex = jwt.decode_nkey(options.nkey, jwt.USER_PREFIX).hex()
            login = self._verify(options.auth_token, key_hex=key_hex, now_ms=now_ms)
            self._known[remembered] = login
            while len(self._known) > REMEMBERED_MAX:
                self._known.popitem(last=False)
        if login.expires_ms // 1000 <= now_s:  # to the second, as the login would end
            raise Refused(Refusal.KEY_EXPIRED)
        return login

    async def _listed(self, broker: str, name: str) -> set[int]:
        """The connections that a broker has for a name. Raises Refused when it cannot be asked."""
        question = {"user": name, "auth": True, "acc": ACCOUNT, "limit": 1024}
        try:
            answer = await self._system.request(f"$SYS.REQ.SERVER.{broker}.CONNZ", msgspec.json.encode(question), timeout_s=2)
            return {int(connection["cid"]) for connection in msgspec.json.decode(answer)["data"]["connections"] or ()}
        except (BazaarError, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            log.warning("the broker could not be asked for the connections of %s: %r", name, error)
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
