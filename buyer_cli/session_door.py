"""A session's pages at an address of this machine: asks the session inside the tunnel how it is opened, then keeps a local port. Shell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec

from buyer_cli import render
from buyer_cli.caller import Caller
from buyer_cli.complaint import Complaint
from buyer_cli.job_reach import met, reach_of
from buyer_cli.tunnels import LOOPBACK, opened
from events.errors import BazaarError
from events.market_client import MarketClient
from events.tunnel import Tunnel
from events.tunnel_frames import SESSION, Target, is_place

ANSWER_BYTES_MAX = 8192
ANSWER_S = 15.0
TOKEN_LETTERS = frozenset("0123456789abcdef")


class SessionDoor(msgspec.Struct, frozen=True, kw_only=True):
    """How a session is reached, as its node tells it inside the tunnel."""

    kind: str
    place: str = ""
    path: str = ""
    token: str = ""


@asynccontextmanager
async def open_door(caller: Caller, client: MarketClient, job_id: str, *, port: int = 0, buyer: str = "") -> AsyncIterator[str]:
    """The address of the session's first page, for as long as this is entered. Raises Complaint, BazaarError."""
    reach = reach_of(client, client.connection.url, job_id, buyer=buyer)
    try:
        door = await ask_session(await met(job_id, reach.tunnel()), job_id)
        if not door.place:
            why = f"A {render.text(door.kind)} serves none by itself."
            raise Complaint("no_pages", f"{job_id} has no pages.", why, f"bazaar shell {job_id}, or bazaar forward {job_id} PORT")
        try:
            async with opened(reach, door.place, port, lambda why: caller.terminal.note(render.text(why))) as bound:
                yield f"http://{LOOPBACK}:{bound}{door.path}?token={door.token}"
        except OSError as error:
            raise Complaint("cannot_listen", f"Port {port} cannot be had.", error.strerror or str(error), "another --port") from None
    finally:
        await reach.close()


async def ask_session(tunnel: Tunnel, job_id: str) -> SessionDoor:
    """How it is opened. Raises Complaint, BazaarError."""
    answer = _Answer(tunnel)
    try:
        async with asyncio.timeout(ANSWER_S):
            data = await answer.whole()
    except TimeoutError:
        raise BazaarError("The session's node does not answer.", hint="try again") from None
    door = read_door(data)
    if door is None:
        why = render.text(answer.reason) or "What its node says of it cannot be meant."
        raise Complaint("no_session", f"{job_id} cannot be opened.", why, f"bazaar show {job_id}")
    return door


def read_door(data: bytes) -> SessionDoor | None:
    """What a node said, when an address of this machine can be made of it; a node may say anything."""
    try:
        door = msgspec.json.decode(data, type=SessionDoor)
    except (msgspec.MsgspecError, ValueError):
        return None
    if not door.place:
        return door
    is_sane = is_place(door.place) and door.path.startswith("/") and door.path == quote(door.path) and set(door.token) <= TOKEN_LETTERS
    return door if is_sane else None


class _Answer:
    """The end of a stream that is only read, once, to its end."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self._data = b""
        self._done = asyncio.Event()
        self.reason = ""
        self._number = tunnel.open(Target(place=SESSION), self)

    async def whole(self) -> bytes:
        """Everything that was said."""
        await self._done.wait()
        if not self._tunnel.is_closed:
            self._tunnel.reset(self._number, "")
        return self._data

    def opened(self) -> None:
        """Nothing is said to it."""

    def data(self, data: memoryview) -> None:
        self._tunnel.consumed(self._number, len(data))
        self._data += bytes(data)
        if len(self._data) > ANSWER_BYTES_MAX:
            self._done.set()

    def granted(self) -> None:
        """Nothing is said to it."""

    def eof(self) -> None:
        self._done.set()

    def over(self, reason: str) -> None:
        self.reason = reason
        self._done.set()

    def resized(self, columns: int, rows: int) -> None:
        """There is no terminal."""

    def exited(self, code: int) -> None:
        """There is no program."""
