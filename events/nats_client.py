"""One connection of nats-py, and what arrives on it: the only module that knows the library.

Made for one use: it never reconnects. Whoever wants a connection that comes back takes `events/connection.py`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from events import pinning
from events.errors import ConnectionRefused, MarketUnreachable
from events.nats_bulk import BulkProtocol, take_over
from events.stepping import for_at_most


@contextmanager
def _kept_out(name: str) -> Iterator[None]:
    """Import something as if this optional package of its were not installed; whoever imports the package later gets it."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


with _kept_out("aiohttp"):  # for websockets only, and a third of what a program of ours takes to start
    from nats import errors as nats_errors
    from nats.aio import transport
    from nats.aio.client import Client

CONNECT_TIMEOUT_S = 5
CLOSE_TIMEOUT_S = 2.0
PING, PING_INTERVAL_S = b"PING\r\n", 10
BACKLOG_MAX = 65_536
BACKLOG_BYTES_MAX = 256 << 20
"""Messages that wait for one subscription's slow callback, and their bytes; beyond it they are dropped, as the broker would."""
COMPLAIN_EVERY = 1_000
ANSWERS = "Bazaar-Answers"
"""The header in which a service says what it answers."""
HINT = "is the market running? `bazaar-market status` says so on its machine"

log = logging.getLogger("bazaar.connection")


class Message(NamedTuple):
    """What arrives. `headers` is None when there are none; a status of the broker stands there as `Status` and `Description`."""

    subject: str
    data: bytes
    reply: str = ""
    headers: dict[str, str] | None = None


Sink = Callable[[Message], None]
Callback = Sink | Callable[[Message], Awaitable[None]]


def parse_headers(raw: bytes | None) -> dict[str, str] | None:
    """The headers of a message, `NATS/1.0 404 Message Not Found` included. Hostile bytes give odd strings, never an error."""
    if not raw:
        return None
    first, *lines = raw.split(b"\r\n")
    _, _, status = first.decode("utf-8", "replace").partition(" ")
    headers: dict[str, str] = {}
    if status:
        headers["Status"], _, headers["Description"] = status.partition(" ")
    for line in lines:
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers


class NatsClient(Client):
    """A client of nats-py whose messages go to `sinks` at once, instead of through a queue and a task each."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks: dict[int, Sink] = {}
        self.ended = False
        self.trouble = ""
        """What nats-py last reported aside."""
        self.bulk: BulkProtocol | None = None

    @property
    def is_usable(self) -> bool:
        return self.is_connected and not self.ended

    @property
    def was_greeted(self) -> bool:
        """Whether a broker has answered at all."""
        return bool(self._server_info)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        sink = self.sinks.get(sid)
        if sink is None:
            return
        try:
            sink(Message(subject.decode(), data, reply.decode(), parse_headers(headers)))
        except Exception:
            log.exception("a subscription to %s failed", subject.decode("utf-8", "replace"))

    def over_tls(self) -> None:
        """Tell the library's stream what it runs over, which nats-py forgets: an end of it would be complained of in every log."""
        assert self._transport is not None
        self._transport._io_writer._protocol._over_ssl = True  # type: ignore[attr-defined]

    def read_in_bulk(self) -> None:
        """Read the socket in large pieces from now on, around nats-py's own reader; before the first subscription."""
        assert not self.sinks and self._transport is not None
        writer, reader = self._transport._io_writer, self._transport._io_reader  # type: ignore[attr-defined]
        self.bulk = take_over(writer, reader, self._deliver)

    def _deliver(self, sid: int, subject: bytes, reply: bytes, data: bytes) -> None:
        sink = self.sinks.get(sid)
        if sink is None:
            return
        try:
            sink(Message(subject.decode(), data, reply.decode()))
        except Exception:
            log.exception("a subscription to %s failed", subject.decode("utf-8", "replace"))

    def write_now(self, subject: str, data: bytes) -> None:
        """Write a message in this very moment, past nats-py's queue."""
        assert self._transport is not None
        self._transport._io_writer.writelines((f"PUB {subject} {len(data)}\r\n".encode(), data, b"\r\n"))  # type: ignore[attr-defined]

    async def attach(self, subject: str, queue: str, sink: Sink) -> int:
        """Subscribe; the number by which the subscription is detached."""
        sid = self._sid + 1
        self.sinks[sid] = sink
        subscription = await self.subscribe(subject, queue=queue)
        assert sid == subscription._id, "nats-py numbers its subscriptions one by one"
        return sid

    async def detach(self, sid: int) -> None:
        """End a subscription."""
        self.sinks.pop(sid, None)
        self._remove_sub(sid)
        if self.is_usable:
            await self._send_unsubscribe(sid)

    async def send(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> None:
        """Write a message. Raises MarketUnreachable."""
        try:
            await self.publish(subject, data, reply=reply, headers=headers)
        except (nats_errors.ConnectionClosedError, nats_errors.OutboundBufferLimitError, OSError) as error:
            raise MarketUnreachable(why=str(error), hint=HINT) from None

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        """Behind all that was said before: nats-py writes a PING past what is still pending, so that its PONG would prove nothing."""
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        await self._send_command(PING)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        """One may come that nobody waits for any more: nats-py would fail to tell him, and read nothing ever after."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def round_trip(self, timeout_s: float) -> None:
        """Return when the broker has taken everything written so far. Raises MarketUnreachable."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.flush()
        except (TimeoutError, nats_errors.Error, OSError) as error:
            raise MarketUnreachable(why=f"no answer to a ping ({str(error) or 'timed out'})", hint=HINT) from None

    def when_ended(self, callback: Callable[[NatsClient], None]) -> None:
        """Call back once when this connection is over, however it ended: its reading task ends in every case."""
        assert self._reading_task is not None
        self._reading_task.add_done_callback(lambda _: callback(self))

    async def dispose(self) -> None:
        """Close, whatever state it is in, and leave no socket."""
        self.ended = True
        await for_at_most(CLOSE_TIMEOUT_S, self.close())
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
            await for_at_most(CLOSE_TIMEOUT_S, self._transport.wait_closed())  # type: ignore[no-untyped-call]


class Subscription:
    """A subscription that outlives clients. Messages reach an async callback in order, one at a time unless `concurrency` allows more."""

    def __init__(
        self, subject: str, callback: Callback, *, queue: str, concurrency: int, forget: Callable[[Subscription], Awaitable[None]]
    ) -> None:
        self.subject = subject
        self.sid = 0
        """Its number on the present client."""
        self._queue = queue
        self._callback = callback
        self._forget = forget
        self._workers: list[asyncio.Task[None]] = []
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(BACKLOG_MAX)
        self._waiting_bytes = self._dropped = 0
        self._sink: Sink = callback  # type: ignore[assignment]
        if inspect.iscoroutinefunction(callback):
            self._sink = self._enqueue
            self._workers = [asyncio.get_running_loop().create_task(self._work()) for _ in range(concurrency)]

    async def unsubscribe(self) -> None:
        """Stop at once; what waits is thrown away."""
        self.stop()
        await self._forget(self)

    def stop(self) -> None:
        """End the workers; the broker is not told."""
        for worker in self._workers:
            worker.cancel()

    async def attach(self, client: NatsClient) -> None:
        """Subscribe on this client."""
        self.sid = await client.attach(self.subject, self._queue, self._sink)

    def _enqueue(self, message: Message) -> None:
        if self._waiting.full() or self._waiting_bytes + len(message.data) > BACKLOG_BYTES_MAX:
            if self._dropped % COMPLAIN_EVERY == 0:
                log.warning("%s: too slow, messages are dropped; %d before", self.subject, self._dropped)
            self._dropped += 1
            return
        self._waiting_bytes += len(message.data)
        self._waiting.put_nowait(message)

    async def _work(self) -> None:
        while True:
            message = await self._waiting.get()
            self._waiting_bytes -= len(message.data)
            try:
                await self._callback(message)  # type: ignore[misc]
            except Exception:
                log.exception("what listens to %s failed", self.subject)


async def connect(
    url: str,
    *,
    name: str,
    seed: str,
    token: str | None,
    inbox: str,
    tls: ssl.SSLContext | None,
    reported: Callable[[str], Awaitable[None]],
    bulk: bool = False,
) -> NatsClient:
    """A client that is logged in. `reported` hears what the broker complains of. Where the address says TLS nothing is sent or believed
    before the handshake. Raises MarketUnreachable, WrongCertificate, ConnectionRefused."""
    addresses = url.split(",")
    is_encrypted = any(pinning.is_encrypted(address) for address in addresses)
    if is_encrypted and tls is None:
        tls = await asyncio.to_thread(pinning.context_for, addresses)
    over_websockets = any("ws" in address.partition(":")[0] for address in addresses)
    if over_websockets:
        _bring_websockets()
    client = NatsClient()

    async def error_cb(error: Exception) -> None:
        client.trouble = str(error) or type(error).__name__
        await reported(client.trouble)

    try:
        await client.connect(
            [pinning.split(address)[0] for address in addresses],
            name=name,
            nkeys_seed_str=seed,
            token=token,
            inbox_prefix=inbox,
            error_cb=error_cb,
            allow_reconnect=False,
            connect_timeout=CONNECT_TIMEOUT_S,
            max_reconnect_attempts=1,  # of each address, counted from 0; 0 would mean for ever
            reconnect_time_wait=0,
            ping_interval=PING_INTERVAL_S,
            tls=tls,
            tls_handshake_first=is_encrypted and not over_websockets,
        )
    except BaseException as error:
        trouble = client.trouble  # of all addresses, where there is none left to try
        await client.dispose()
        if not isinstance(error, TimeoutError | nats_errors.Error | OSError):
            raise
        if not isinstance(error, nats_errors.NoServersError):
            trouble = str(error) or type(error).__name__
        if pinning.REFUSED in trouble:
            raise await asyncio.to_thread(_not_believed, addresses, trouble) from None
        raise _not_let_in(url, name, trouble, hung_up=client.was_greeted and isinstance(error, ConnectionError)) from None
    if not client.is_connected:  # nats-py can return a client that the broker has closed
        await client.dispose()
        raise _not_let_in(url, name, client.trouble, hung_up=True)
    if is_encrypted:
        client.over_tls()
    if bulk:
        client.read_in_bulk()
    return client


def _bring_websockets() -> None:
    """Give nats-py the package that was kept from it."""
    for name in ("aiohttp", "multidict"):
        setattr(transport, name, importlib.import_module(name))


def _not_believed(addresses: list[str], trouble: str) -> pinning.WrongCertificate:
    """Which certificate is shown where another was agreed on; by now it may be another one again."""
    for plain, pin in map(pinning.split, addresses):
        try:
            if pin is not None:
                pinning.agreed(plain, pin)
        except pinning.WrongCertificate as error:
            return error
        except MarketUnreachable as error:
            trouble = error.why
    return pinning.WrongCertificate(
        "The certificate is not believed.", why=f"{addresses[0]}: {trouble}", hint="see docs/operations.md, TLS"
    )


def _not_let_in(url: str, name: str, trouble: str, *, hung_up: bool) -> MarketUnreachable | ConnectionRefused:
    """A broker that greeted and then hung up has refused; its reason is often lost, because nats-py was still writing."""
    if not hung_up and "authorization" not in trouble.lower():
        return MarketUnreachable(why=f"{url}: {trouble}", hint=HINT)
    return ConnectionRefused(
        why=f"{url} did not accept the key of {name}",
        hint="log in again: the delegation may have expired, be for another market, or have too many connections",
    )
