"""The query API's answers over the market's own connection: the wallet's session says who reads, so no token is needed.

Commands ask in a plain way, one after the other, some of them from inside a running event loop; so the connection lives in a thread of its
own until the program ends. It is no second market client: nothing is sent from here but questions.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from buyer_cli.complaint import from_api
from events.home import Settings
from events.values import Role

if TYPE_CHECKING:
    from events.connection import Connection

T = TypeVar("T")
OPEN_S, ASK_S = 15.0, 20.0
PAGE = 100
"""Rows that fit into one answer."""
POLL_S = 1.0


class WalletReads:
    """Asks as the buyer of these settings. Raises MarketUnreachable, ConnectionRefused, IdentityError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._subject = ""

    def open(self) -> None:
        """Connect, with a session that lies here or a new one."""
        if self._connection is not None:
            return
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="wallet reads", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._do(self._open())

    def ask(self, path: str, query: Mapping[str, object] | None) -> tuple[int, bytes]:
        """The status and body that HTTP would give."""
        from events import wire

        self.open()
        body = self._do(self._ask(wire.encode({"path": path, "query": _texts(query or {})})))
        try:
            told = msgspec.json.decode(body, type=_Told)
        except msgspec.MsgspecError:
            return 200, body
        return (told.status if told.code and isinstance(told.status, int) else 200), body

    def follow(self, path: str, last_id: int | None) -> Iterator[tuple[str, str]]:
        """Events behind this one, as (sequence, JSON), asked for every second; without a place, what comes from now on."""
        seen = last_id
        while True:
            place: dict[str, object] = {"limit": PAGE} if seen is None else {"from_seq": seen + 1, "limit": PAGE}
            status, body = self.ask(path, place)
            if status != 200:
                raise from_api(body, status)
            page = json.loads(body)
            if seen is None:
                seen = int(page["as_of_seq"])
                continue
            for event in page["items"]:
                seen = max(seen, int(event["seq"]))
                yield str(event["seq"]), json.dumps(event)
            if not page.get("next_cursor"):
                time.sleep(POLL_S)

    def close(self) -> None:
        """Let the connection go."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        atexit.unregister(self.close)
        connection, self._connection = self._connection, None
        if connection is not None:
            asyncio.run_coroutine_threadsafe(connection.close(), loop).result(OPEN_S)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(OPEN_S)
        loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        from events.connection import Connection, WalletKey
        from events.log_setup import configure
        from events.login import ensure_session, find_market_id
        from events.subjects import rpc
        from events.wallet import Passphrases

        settings = self._settings
        configure(settings.home, "bazaar", stderr=False)  # what the connection logs is for the file, not for the person
        market_id = await find_market_id(settings)
        passphrases = Passphrases(settings.passphrase_file)
        session = await ensure_session(settings, Role.BUYER, passphrases, market_id=market_id)
        key = WalletKey(session.seed, session.token, session.wallet)
        self._connection = await Connection(settings.market, key, "bazaar reads").open()
        self._subject = rpc("read", session.wallet)

    async def _ask(self, question: bytes) -> bytes:
        assert self._connection is not None
        await self._connection.wait_up(OPEN_S)
        return await self._connection.request(self._subject, question, ASK_S)


class _Told(msgspec.Struct):
    """What makes an answer a problem: both, and a status that is a number."""

    code: str = ""
    status: Any = 200


def _texts(query: Mapping[str, object]) -> dict[str, str | list[str]]:
    """A query as HTTP would write it."""
    given = {name: value for name, value in query.items() if value is not None}
    return {name: [str(one) for one in value] if isinstance(value, list | tuple) else str(value) for name, value in given.items()}
