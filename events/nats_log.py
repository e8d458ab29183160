"""The log on a JetStream stream: one message is one page, and the stream's sequence is the page's position.

The broker refuses a page whose expected position is not the last one, and refuses to delete or purge, so positions have no
holes; a hole means damage. What pages mean is `events/page.py`.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from events.connection import Connection
from events.errors import AppendConflict, LogCorrupt, LogUnavailable, MarketUnreachable
from events.log import LogHead, StoredPage
from events.streams import (
    API_TIMEOUT_S,
    HEARTBEAT_S,
    NO_MESSAGE,
    WRONG_LAST_SEQUENCE,
    Delivery,
    JetStreamRefused,
    PushConsumer,
    api,
    append,
    milliseconds,
)
from events.subjects import LEDGER_STREAM, LEDGER_SUBJECT

RETRY_S = 0.2


class NatsLog:
    """The ledger of a market, over a connection in the account MARKET."""

    def __init__(self, connection: Connection, *, append_timeout_s: float = API_TIMEOUT_S) -> None:
        self._connection = connection
        self._append_timeout_s = append_timeout_s

    async def append(self, data: bytes, expected_position: int) -> int:
        """See `Log.append`."""
        try:
            return await append(self._connection, LEDGER_SUBJECT, data, expected_last=expected_position, timeout_s=self._append_timeout_s)
        except JetStreamRefused as refused:
            if refused.code == WRONG_LAST_SEQUENCE:
                raise AppendConflict(why=f"expected the log to end at {expected_position}: {refused.why}") from None
            raise

    async def head(self) -> LogHead:
        """See `Log.head`."""
        info = await api(self._connection, f"STREAM.INFO.{LEDGER_STREAM}")
        return LogHead(int(info["state"]["last_seq"]), str(info["created"]))

    async def read(self, position: int) -> StoredPage | None:
        """See `Log.read`. Asks the stream's leader: a page that was acknowledged is there."""
        if position < 1:
            return None
        try:
            answer = await api(self._connection, f"STREAM.MSG.GET.{LEDGER_STREAM}", {"seq": position})
        except JetStreamRefused as refused:
            if refused.code == NO_MESSAGE:
                return None
            raise
        message: dict[str, Any] = answer["message"]
        return StoredPage(int(message["seq"]), b64decode(message.get("data", "")), milliseconds(message["time"]))

    async def follow(self, after: int, *, until: int | None = None) -> AsyncIterator[StoredPage]:
        """See `Log.follow`. Waits for the connection while it is down, and goes on where it was."""
        follower = _Follower(self._connection, self)
        position = after
        try:
            while until is None or position < until:
                delivery = await follower.next(position + 1)
                if delivery.seq <= position:
                    continue  # sent twice, over a reconnect
                position = delivery.seq
                yield StoredPage(position, delivery.message.data, delivery.stored_ns // 1_000_000)
        finally:
            await follower.stop()


class _Follower:
    """A consumer of the ledger that is made again whenever messages may have been missed."""

    def __init__(self, connection: Connection, log: NatsLog) -> None:
        self._connection = connection
        self._log = log
        self._consumer = PushConsumer(connection, LEDGER_STREAM, self._delivered)
        self._arrived: deque[Delivery] = deque()
        self._woken = asyncio.Event()
        self._created = ""
        self._is_fresh = False
        self._remove_hook = connection.on_up(self._wake)

    async def next(self, expected: int) -> Delivery:
        """The page at `expected`, or an older one once more. Raises LogUnavailable, LogCorrupt."""
        while True:
            while self._arrived:
                delivery = self._arrived.popleft()
                if delivery.respond:
                    await self._consumer.respond(delivery.respond)
                elif delivery.seq <= expected:
                    self._is_fresh = False
                    return delivery
                elif self._is_fresh:
                    raise LogCorrupt(why=f"page {expected} is missing; the next one is {delivery.seq}")
                else:
                    self._consumer.doubt()
                    break
            if not self._consumer.is_alive or self._connection.is_closed:
                await self._start(expected)
            elif not self._arrived:
                await self._wait()

    async def stop(self) -> None:
        """Listen no more."""
        self._remove_hook()
        await self._consumer.stop()

    async def _wait(self) -> None:
        self._woken.clear()
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                await self._woken.wait()
        except TimeoutError:
            return  # the caller sees whether the consumer still lives

    async def _start(self, expected: int) -> None:
        """Listen from `expected` on, once connected."""
        while True:
            try:
                await self._connection.wait_up()
                await self._check_head(expected)
                self._arrived.clear()
                await self._consumer.start(expected)
            except MarketUnreachable as error:
                raise LogUnavailable(why=error.why, hint=error.hint) from None
            except LogUnavailable:
                if self._connection.is_closed:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                self._is_fresh = True
                return

    async def _check_head(self, expected: int) -> None:
        """It is still the same log, and no shorter than what was read of it."""
        head = await self._log.head()
        if self._created not in ("", head.created):
            raise LogCorrupt("The ledger was made anew.", why=f"it was created at {self._created}, now at {head.created}")
        if head.position < expected - 1:
            raise LogCorrupt("The ledger has become shorter.", why=f"page {expected - 1} was read, the last one is {head.position}")
        self._created = head.created

    async def _wake(self) -> None:
        self._woken.set()

    def _delivered(self, delivery: Delivery) -> None:
        self._arrived.append(delivery)
        self._woken.set()
