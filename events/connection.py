"""The one way to a market: a `Connection` that comes back by itself, with everything it was subscribed to.

A nats-py client closes for good when its login expires or is refused while it reconnects, so a client is used for one
connection only: when it ends, for whatever reason, a new one is made here, with every subscription, and the `on_up` hooks run.
Nothing is ever delivered later: what cannot be sent now raises. This module knows no subject and no rule of the market.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex

from events.errors import BazaarError, ConnectionRefused, MarketUnreachable, Refused
from events.nats_client import ANSWERS, CONNECT_TIMEOUT_S, HINT, Callback, Message, NatsClient, Subscription, connect, log
from events.reasons import Refusal
from events.subjects import inbox_prefix

GUEST = "guest"
WALLET_PAYLOAD_MAX = 147_456
"""As `nats.conf` has it for the account USERS; beyond it the broker closes the connection, so it is checked here."""
SERVICE_PAYLOAD_MAX = 4 << 20
REFUSED_WAIT_S_MAX = 30.0
CANCEL_AGAIN_S = 0.2


@dataclass(frozen=True)
class ServiceKey:
    """A service of the market: its static nkey seed."""

    seed: str = field(repr=False)

    inbox = "_INBOX"
    token = None
    payload_max = SERVICE_PAYLOAD_MAX
    wait_s, jitter_s = 0.05, 0.0


@dataclass(frozen=True)
class WalletKey:
    """A wallet, by the session key it delegated to and the delegation's token."""

    seed: str = field(repr=False)
    token: str = field(repr=False)
    wallet: str

    payload_max = WALLET_PAYLOAD_MAX
    wait_s, jitter_s = 1.0, 1.0

    @property
    def inbox(self) -> str:
        return inbox_prefix(self.wallet)


@dataclass(frozen=True)
class Guest:
    """Nobody yet: may only ask `rpc.hello`."""

    seed: str = field(repr=False)

    inbox = inbox_prefix(GUEST)
    token = None
    payload_max = WALLET_PAYLOAD_MAX
    wait_s, jitter_s = 1.0, 1.0


Identity = ServiceKey | WalletKey | Guest
Hook = Callable[[], Awaitable[None]]


class Connection:
    """A connection to a market that comes back by itself. Make it inside a running event loop.

    `url` may name several brokers of a cluster, separated by commas. `on_up` hooks run after every connect, before
    `open` or `wait_up` return, in the order they were added; one that raises makes the connection start over.
    """

    def __init__(
        self,
        url: str,
        identity: Identity,
        name: str,
        *,
        reconnect_wait_s: float | None = None,
        jitter_s: float | None = None,
        tls: ssl.SSLContext | None = None,
        bulk: bool = False,
    ) -> None:
        """`bulk`: for many large messages; costs half a megabyte."""
        self.url = url
        self.identity = identity
        """May be replaced by another one of the same wallet (a new delegation): used from the next connect on."""
        self.name = name
        self.generation = 0
        """Counts the connects: whoever remembers it sees that messages may have been missed in between."""
        self.on_violation: Callable[[str], None] | None = None
        """Told of everything that the broker did not permit."""
        self.on_refused: Callable[[ConnectionRefused], None] | None = None
        """Told of every refused login while reconnecting."""
        self._wait_s = identity.wait_s if reconnect_wait_s is None else reconnect_wait_s
        self._jitter_s = identity.jitter_s if jitter_s is None else jitter_s
        self._tls = tls
        self._bulk = bulk
        self._client: NatsClient | None = None
        self._subscriptions: list[Subscription] = []
        self._hooks: list[Hook] = []
        self._requests: dict[str, tuple[asyncio.Future[Message], str]] = {}
        self._inbox = f"{identity.inbox}.{token_hex(8)}."
        self._up = asyncio.Event()
        self._lost = asyncio.Event()
        self._closed = False
        self._keeper: asyncio.Task[None] | None = None
        self._disposals: set[asyncio.Task[None]] = set()
        self._trouble = "not connected"

    # --- coming and going ---

    @property
    def is_up(self) -> bool:
        """Whether a message could be sent now."""
        return self._client is not None and self._up.is_set()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def on_up(self, hook: Hook) -> Callable[[], None]:
        """Run this after every connect from the next one on. The answer, called, ends that."""
        self._hooks.append(hook)
        return lambda: self._hooks.remove(hook)

    async def open(self, *, wait_s: float | None = 0.0) -> Connection:
        """Connect, trying again for `wait_s` (None: for ever). Raises MarketUnreachable or ConnectionRefused, whichever was last."""
        loop = asyncio.get_running_loop()
        deadline = None if wait_s is None else loop.time() + wait_s
        while True:
            try:
                await self._establish()
                break
            except (MarketUnreachable, ConnectionRefused):
                if deadline is not None and loop.time() >= deadline:
                    raise
                await asyncio.sleep(self._pause_s())
        self._keeper = loop.create_task(self._keep(), name=f"connection {self.name}")
        return self

    async def close(self) -> None:
        """End it, sending what is still pending. Requests in flight raise MarketUnreachable."""
        self._closed = True
        while self._keeper is not None and not self._keeper.done():
            self._keeper.cancel()  # again, if need be: what it waits for may swallow one (wait_for of 3.11 does)
            await asyncio.wait({self._keeper}, timeout=CANCEL_AGAIN_S)
        for subscription in self._subscriptions:
            subscription.stop()
        client, self._client = self._client, None
        self._trouble = "the connection was closed"
        self._fail_requests()
        if client is not None:
            await client.dispose()
        await asyncio.gather(*self._disposals)
        self._up.set()  # nobody waits for a connection that will not come

    async def __aenter__(self) -> Connection:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def wait_up(self, timeout_s: float | None = None) -> None:
        """Return when connected. Raises MarketUnreachable after `timeout_s`, or when the connection was closed."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise self._unreachable() from None
        if self._closed:
            raise self._unreachable()

    def drop(self) -> None:
        """Give up the present client as if the broker had gone; a new one follows. For when a stream fell silent."""
        if self._client is not None:
            self._ended(self._client)

    # --- talking ---

    async def publish(self, subject: str, data: bytes = b"", reply: str = "", headers: dict[str, str] | None = None) -> None:
        """Send now. Raises MarketUnreachable when that is not possible (nothing is kept for later), Refused when too large."""
        await self._sendable(data, headers).send(subject, data, reply, headers)

    def publish_now(self, subject: str, data: bytes) -> None:
        """Write in this very moment. Raises as `publish`."""
        self._sendable(data, None).write_now(subject, data)

    async def flush(self, timeout_s: float = 5.0) -> None:
        """Return when the broker has taken everything sent so far. Raises MarketUnreachable."""
        await self._sendable(b"", None).round_trip(timeout_s)

    async def request(self, subject: str, data: bytes = b"", timeout_s: float = 5.0, headers: dict[str, str] | None = None) -> bytes:
        """The bytes of the one answer. Raises MarketUnreachable: nobody serves it, no answer in time, connection lost;
        ConnectionRefused when the broker does not permit it; Refused when too large."""
        message = await self.ask(subject, data, timeout_s, headers)
        return message.data

    async def ask(self, subject: str, data: bytes = b"", timeout_s: float = 5.0, headers: dict[str, str] | None = None) -> Message:
        """As `request`, with the answer's headers. Every question has a reply subject of its own with 128 random bits."""
        client = self._sendable(data, headers)
        token = token_hex(16)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._requests[token] = (answer, subject)
        try:
            async with asyncio.timeout(timeout_s):
                await client.send(subject, data, self._inbox + token, headers)
                message = await answer
        except TimeoutError:
            why = f"no answer to {subject} within {timeout_s:g} s"
            raise MarketUnreachable(why=why, hint="the service may be starting; try again") from None
        finally:
            del self._requests[token]
        if message.headers is not None and message.headers.get("Status") == "503":
            raise MarketUnreachable(why=f"nobody serves {subject} at {self.url}", hint="the service may be starting; try again")
        return message

    async def respond(self, question: Message, data: bytes) -> None:
        """Answer a question. The answer names what it answers: a buyer who reads along a seller's output sees the reply subject of
        that message, and could otherwise have the answer to a question of his own delivered there. Raises as `publish`."""
        if question.reply:
            await self.publish(question.reply, data, headers={ANSWERS: question.subject})

    async def subscribe(self, subject: str, callback: Callback, *, queue: str = "", concurrency: int = 1) -> Subscription:
        """Call back with every Message on `subject` from now on, over all reconnects. A plain function is called in the
        reading loop and must be quick; an async one runs in `concurrency` tasks of its own."""
        subscription = Subscription(subject, callback, queue=queue, concurrency=concurrency, forget=self._forget)
        self._subscriptions.append(subscription)
        if self._client is not None:
            await subscription.attach(self._client)
        return subscription

    def new_inbox(self) -> str:
        """A subject for answers that nobody can guess."""
        return f"{self.identity.inbox}.{token_hex(16)}"

    # --- one client after the other ---

    async def _forget(self, subscription: Subscription) -> None:
        with suppress(ValueError):
            self._subscriptions.remove(subscription)
        if self._client is not None:
            await self._client.detach(subscription.sid)

    async def _establish(self) -> None:
        """One attempt: a client, every subscription, every hook."""
        client = await self._connect()
        try:
            await client.attach(self._inbox + "*", "", self._answered)
            for subscription in list(self._subscriptions):
                await subscription.attach(client)
            await client.round_trip(CONNECT_TIMEOUT_S)
            self._client = client
            client.when_ended(self._ended)
            self.generation += 1
            for hook in list(self._hooks):
                await hook()
            if client.ended:
                raise self._unreachable()
        except BaseException:
            self._client = None
            await client.dispose()
            raise
        self._lost.clear()
        self._up.set()

    async def _connect(self) -> NatsClient:
        try:
            return await connect(
                self.url,
                name=self.name,
                seed=self.identity.seed,
                token=self.identity.token,
                inbox=self.identity.inbox,
                tls=self._tls,
                reported=self._reported,
                bulk=self._bulk,
            )
        except BazaarError as error:
            self._trouble = error.why
            raise

    async def _keep(self) -> None:
        """Make the next client whenever one has ended."""
        refusals = 0
        while not self._closed:
            await self._lost.wait()
            await asyncio.sleep(min(REFUSED_WAIT_S_MAX, self._pause_s() * 2**refusals))
            try:
                await self._establish()
            except ConnectionRefused as error:
                refusals = min(refusals + 1, 10)
                log.warning("%s: %s %s", self.name, error.what, error.why)
                if self.on_refused is not None:
                    self.on_refused(error)
            except BazaarError as error:
                log.debug("%s: %s %s", self.name, error.what, error.why)
            except Exception:
                log.exception("%s: what runs after connecting failed", self.name)
            else:
                refusals = 0
                log.info("%s: connected again to %s", self.name, self.url)

    def _ended(self, client: NatsClient) -> None:
        """The present client is over: fail what waits for it, and let the keeper make another."""
        client.ended = True
        if client is not self._client:
            return
        self._client = None
        self._up.clear()
        self._trouble = f"{self.url}: {client.last_error or client.trouble or 'the connection was lost'}"
        self._fail_requests()
        log.warning("%s: connection lost: %s", self.name, self._trouble)
        self._lost.set()
        disposal = asyncio.get_running_loop().create_task(client.dispose())
        self._disposals.add(disposal)
        disposal.add_done_callback(self._disposals.discard)

    def _fail_requests(self) -> None:
        for answer, subject in self._requests.values():
            if not answer.done():
                answer.set_exception(MarketUnreachable(why=f"{self._trouble}, before {subject} was answered", hint=HINT))

    def _answered(self, message: Message) -> None:
        waiting = self._requests.get(message.subject.rpartition(".")[2])
        if waiting is None or waiting[0].done():
            return
        about = message.headers.get(ANSWERS) if message.headers is not None else None
        if about is not None and about != waiting[1]:  # somebody aimed the answer to his own question at our inbox
            log.warning("%s: an answer about %s came for %s", self.name, about, waiting[1])
            return
        waiting[0].set_result(message)

    async def _reported(self, trouble: str) -> None:
        """What the broker complains of, in one line; what it did not permit fails its request at once."""
        if "permissions violation" not in trouble.lower():
            log.debug("%s: %s", self.name, trouble)
            return
        log.warning("%s: %s", self.name, trouble)
        refused = re.search(r'publish to "([^"]*)"', trouble)
        for answer, subject in self._requests.values():
            if refused is not None and refused[1] == subject.lower() and not answer.done():
                answer.set_exception(ConnectionRefused("The market does not permit this.", why=f"this key may not publish to {subject}"))
        if self.on_violation is not None:
            self.on_violation(trouble)

    def _sendable(self, data: bytes, headers: dict[str, str] | None) -> NatsClient:
        """The client to send with, once the size is known to be harmless: an oversized message would end the connection."""
        client = self._client
        if client is None or not client.is_usable:
            raise self._unreachable()
        size = len(data) + (sum(len(name) + len(value) + 4 for name, value in headers.items()) + 12 if headers else 0)
        limit = min(self.identity.payload_max, client.max_payload)
        if size > limit:
            raise Refused(Refusal.TOO_LARGE, f"A message of {size} bytes; {limit} are allowed.")
        return client

    def _pause_s(self) -> float:
        return self._wait_s + random.random() * self._jitter_s

    def _unreachable(self) -> MarketUnreachable:
        return MarketUnreachable(why=self._trouble, hint=HINT)
