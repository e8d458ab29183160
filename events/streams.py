"""The streams of a market and the few questions we ask JetStream, as plain requests: what they hold is everybody else's matter.

Raw JSON instead of a library's classes, because those lag behind the server's fields, and because one request is
one line. Everything that goes wrong is a LogUnavailable; a refused write says why in its `code`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from secrets import token_hex
from typing import Any, NamedTuple

import msgspec

from events.connection import Connection
from events.errors import BazaarError, LogUnavailable, MarketUnreachable
from events.nats_client import Message, Subscription, log
from events.subjects import FILES_STREAM, INTAKE_ALL, INTAKE_STREAM, LEDGER_STREAM, LEDGER_SUBJECT, OUTPUT_STREAM

MIB = 1 << 20
NS = 1_000_000_000
API_TIMEOUT_S = 5.0
HEARTBEAT_S = 5
INTAKE_MESSAGES_PER_WALLET = 256
INTAKE_MESSAGE_BYTES_MAX = 17 * 1024
OUTPUT_ALL = "out.>"
FILES_ALL = "file.>"
DAY_NS = 86_400 * NS

_ALREADY_WITH_OTHER_SETTINGS = 10058
_NO_ROOM = 10047
"""Also said of a stream that is there: a second CREATE asks for its `max_bytes` a second time."""
_NO_STREAM = 10059
WRONG_LAST_SEQUENCE = 10071
NO_MESSAGE = 10037

_COMMON = {"retention": "limits", "discard": "new", "num_replicas": 1, "max_consumers": -1, "max_msgs": -1, "allow_rollup_hdrs": False}
LEDGER: dict[str, Any] = {
    **_COMMON,
    "name": LEDGER_STREAM,
    "subjects": [LEDGER_SUBJECT],
    "storage": "file",
    "deny_delete": True,
    "deny_purge": True,
    "max_bytes": -1,
    "max_age": 0,
}
INTAKE: dict[str, Any] = {
    **_COMMON,
    "name": INTAKE_STREAM,
    "subjects": [INTAKE_ALL],
    "storage": "memory",
    "discard_new_per_subject": True,
    "max_msgs_per_subject": INTAKE_MESSAGES_PER_WALLET,
    "max_msg_size": INTAKE_MESSAGE_BYTES_MAX,
    "max_bytes": 256 * MIB,
    "duplicate_window": NS // 10,
}
OUTPUT: dict[str, Any] = {
    **_COMMON,
    "name": OUTPUT_STREAM,
    "subjects": [OUTPUT_ALL],
    "storage": "file",
    "allow_direct": True,
    "max_bytes": 16_384 * MIB,
    "max_age": 31 * DAY_NS,
    "duplicate_window": NS // 10,
}
FILES: dict[str, Any] = {
    **_COMMON,
    "name": FILES_STREAM,
    "subjects": [FILES_ALL],
    "storage": "file",
    "allow_direct": True,
    "max_bytes": 40_960 * MIB,  # with OUTPUT less than the store may hold: the ledger must never be the one that finds it full
    "duplicate_window": NS // 10,
}


class JetStreamRefused(LogUnavailable):
    """JetStream answered no; `code` is its `err_code`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__("The broker's store refused.", why=f"{description} ({code})")
        self.code = code


class Stored(NamedTuple):
    """One message of a stream."""

    seq: int
    subject: str
    data: bytes
    stored_ms: int


# --- questions ---


async def api(connection: Connection, operation: str, question: dict[str, Any] | None = None) -> dict[str, Any]:
    """The answer of `$JS.API.<operation>`. Raises JetStreamRefused, LogUnavailable."""
    data = msgspec.json.encode(question) if question is not None else b""
    return await _json(connection, f"$JS.API.{operation}", data, None)


async def append(
    connection: Connection, subject: str, data: bytes, *, expected_last: int | None = None, timeout_s: float = API_TIMEOUT_S
) -> int:
    """The sequence of the stored message, checked in the broker's acknowledgement. Raises JetStreamRefused when it was not
    stored, LogUnavailable when that is unknown."""
    headers = None if expected_last is None else {"Nats-Expected-Last-Sequence": str(expected_last)}
    answer = await _json(connection, subject, data, headers, timeout_s)
    if answer.get("duplicate"):  # we send no message id, so this is not ours
        raise JetStreamRefused(0, "the broker took the message for another one")
    return int(answer["seq"])


async def _json(
    connection: Connection, subject: str, data: bytes, headers: dict[str, str] | None, timeout_s: float = API_TIMEOUT_S
) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(await connection.request(subject, data, timeout_s, headers))
    except MarketUnreachable as error:
        raise LogUnavailable(why=error.why, hint=error.hint) from None
    except msgspec.DecodeError:
        raise LogUnavailable(why=f"the answer to {subject} is not JSON") from None
    refused = answer.get("error")
    if refused is not None:
        raise JetStreamRefused(int(refused.get("err_code", 0)), str(refused.get("description", ""))[:200])
    return dict(answer)


async def direct_get(
    connection: Connection, stream: str, *, seq: int | None = None, subject: str | None = None, last: bool = False
) -> Stored | None:
    """One message: that at `seq`; or the first of `subject` from `seq` (default 1) on; or with `last` the newest of `subject`.
    The stream allows direct reads. None when there is none. Raises LogUnavailable."""
    assert seq is not None or subject is not None
    if subject is None:
        question: dict[str, Any] = {"seq": seq}
    elif last:
        question = {"last_by_subj": subject}
    else:
        question = {"seq": seq or 1, "next_by_subj": subject}
    try:
        message = await connection.ask(f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(question), API_TIMEOUT_S)
    except MarketUnreachable as error:
        raise LogUnavailable(why=error.why, hint=error.hint) from None
    headers = message.headers or {}
    if headers.get("Status") == "404":
        return None
    if "Nats-Sequence" not in headers:
        raise LogUnavailable(why=f"{stream}: {headers.get('Description', 'no message in the answer')}"[:200])
    return Stored(int(headers["Nats-Sequence"]), headers["Nats-Subject"], message.data, milliseconds(headers["Nats-Time-Stamp"]))


async def purge(connection: Connection, stream: str, *, subject: str | None = None, below: int | None = None) -> int:
    """How many messages were thrown away: those of `subject` (default all), with `below` only those before that sequence."""
    question: dict[str, Any] = {}
    if subject is not None:
        question["filter"] = subject
    if below is not None:
        question["seq"] = below
    return int((await api(connection, f"STREAM.PURGE.{stream}", question))["purged"])


def milliseconds(iso: str) -> int:
    """A time as JetStream writes it (nanoseconds, Z), in ms."""
    whole, _, fraction = iso.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 1000 + int((fraction + "000")[:3])


async def ensure_streams(connection: Connection, *, replicas: int = 1) -> None:
    """All four streams exist as they are described here. The memory stream INTAKE is gone after every restart of the broker, so
    this belongs into an `on_up` hook. Raises LogUnavailable."""
    for settings in (LEDGER, INTAKE, OUTPUT, FILES):
        await ensure_stream(connection, {**settings, "num_replicas": replicas})


async def ensure_stream(connection: Connection, settings: dict[str, Any]) -> None:
    """This one stream exists with these settings. Raises LogUnavailable."""
    try:
        await api(connection, f"STREAM.CREATE.{settings['name']}", settings)
    except JetStreamRefused as refused:
        if refused.code not in (_ALREADY_WITH_OTHER_SETTINGS, _NO_ROOM):
            raise
        try:
            await api(connection, f"STREAM.UPDATE.{settings['name']}", settings)
        except JetStreamRefused as error:
            raise refused if error.code == _NO_STREAM else error from None


# --- listening ---


class Delivery(NamedTuple):
    """One message of a stream as a consumer delivers it. With `respond` empty it is a message, else the broker waits for an
    empty answer there before it sends more."""

    seq: int
    stored_ns: int
    message: Message
    respond: str = ""


class PushConsumer:
    """An ack-none consumer of one stream, delivered to `sink` in order with the broker's flow control.

    It lives on one connect only: `start` makes it anew, and `heard_at` says when the broker last gave a sign of life on it.
    """

    def __init__(self, connection: Connection, stream: str, sink: Callable[[Delivery], None]) -> None:
        self._connection = connection
        self._stream = stream
        self._sink = sink
        self._subscription: Subscription | None = None
        self._name = ""
        self.generation = 0
        self.heard_at = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the broker gave a sign of life on this connect lately."""
        silent_s = asyncio.get_running_loop().time() - self.heard_at
        return self.generation == self._connection.generation and silent_s < 3 * HEARTBEAT_S

    async def start(self, first_seq: int) -> None:
        """Deliver from `first_seq` on. Raises LogUnavailable."""
        await self.stop()
        inbox = self._connection.new_inbox()
        self._name = f"c{token_hex(8)}"
        self.generation = self._connection.generation
        self.heard_at = asyncio.get_running_loop().time()
        self._subscription = await self._connection.subscribe(inbox, self._arrived)
        config = {
            "name": self._name,
            "deliver_subject": inbox,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": first_seq,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "flow_control": True,
            "idle_heartbeat": HEARTBEAT_S * NS,
            "inactive_threshold": 30 * NS,
        }
        await api(self._connection, f"CONSUMER.CREATE.{self._stream}.{self._name}", {"stream_name": self._stream, "config": config})

    def doubt(self) -> None:
        """Messages may have been lost on the way: no longer alive, whatever else arrives."""
        self.generation = 0

    async def stop(self) -> None:
        """Deliver no more."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        await subscription.unsubscribe()
        if self._connection.generation == self.generation:
            try:
                await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", reply=self._connection.new_inbox())
            except BazaarError:
                log.debug("%s: consumer of %s left to its time limit", self._connection.name, self._stream)

    async def respond(self, subject: str) -> None:
        """Tell the broker that everything delivered before was taken."""
        try:
            await self._connection.publish(subject)
        except MarketUnreachable:
            log.debug("%s: no flow control, the connection is down", self._connection.name)

    def _arrived(self, message: Message) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        headers = message.headers
        if headers is not None and "Status" in headers:
            waits = message.reply or headers.get("Nats-Consumer-Stalled", "")
            if waits:
                self._sink(Delivery(0, 0, message, waits))
            return
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time ns>.<pending>
        tokens = message.reply.split(".")
        self._sink(Delivery(int(tokens[-4]), int(tokens[-2]), message))


class Intake:
    """What wallets publish, one after the other, to a plain function: `callback(position, subject, data)`.

    Positions grow for ever, also over a restart of the broker, after which the memory stream begins at 1 again; a position
    of an older stream purges nothing. Headers of the messages are not passed on: they prove nothing.
    """

    def __init__(self, connection: Connection, callback: Callable[[int, str, bytes], None]) -> None:
        self._connection = connection
        self._callback = callback
        self._consumer = PushConsumer(connection, INTAKE_STREAM, self._delivered)
        self._created = ""
        self._base = 0
        self._last = 0
        self._watch: asyncio.Task[None] | None = None
        self._responses: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. To be run in an `on_up` hook, after `ensure_streams`. Raises LogUnavailable."""
        info = await api(self._connection, f"STREAM.INFO.{INTAKE_STREAM}")
        if info["created"] != self._created:
            self._created = info["created"]
            self._base += self._last
            self._last = 0
        await self._consumer.start(self._last + 1)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._look_after(), name="intake")

    async def stop(self) -> None:
        """Listen no more."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        await self._consumer.stop()

    async def purge_to(self, position: int) -> None:
        """Throw away everything up to this position, once it is durable elsewhere. Raises LogUnavailable."""
        if position > self._base:
            await purge(self._connection, INTAKE_STREAM, below=position - self._base + 1)

    def _delivered(self, delivery: Delivery) -> None:
        if delivery.respond:
            self._later(self._consumer.respond(delivery.respond))
        elif delivery.seq > self._last:
            self._last = delivery.seq
            self._callback(self._base + delivery.seq, delivery.message.subject, delivery.message.data)

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._responses.add(task)
        task.add_done_callback(self._responses.discard)

    async def _look_after(self) -> None:
        """A consumer that has fallen silent although the connection stands is made again."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if not self._connection.is_up or self._consumer.is_alive:
                continue
            try:
                await self.start()
            except BazaarError as error:
                log.warning("%s: the intake cannot be read: %s", self._connection.name, error.why)
                self._connection.drop()
