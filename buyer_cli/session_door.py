"""A session's pages at an address of this machine: asks the session inside the tunnel how it is opened, then keeps a local port. Shell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote

import msgspec

from buyer_cli.caller import Caller
from buyer_cli.complaint import Complaint
from buyer_cli.tunnels import LOOPBACK, Place, Reach, opened
from events.errors import BazaarError
from events.market_client import MarketClient
from events.tunnel import Tunnel
from events.tunnel_frames import SESSION, Target, is_place
from events.tunnel_keys import Facts

ANSWER_BYTES_MAX = 8192
ANSWER_S = 15.0
TOKEN_LETTERS = frozenset("0123456789abcdef")


class SessionDoor(msgspec.Struct, frozen=True, kw_only=True):
    """How a session is reached, as its node tells it inside the tunnel."""

    kind: str
    place: str = ""
    path: str = ""
    token: str = ""


def reach_of(client: MarketClient, url: str, job_id: str) -> Reach:
    """The way to the job's node, wherever the job runs by the time that it is gone. `url`: the broker's."""

    async def locate() -> Place:
        found = (await client.sync(job_ids=(job_id,))).jobs
        if not found or found[0].state not in ("starting", "running") or not found[0].output_token:
            state = found[0].state if found else "unknown to the market"
            raise Complaint("illegal_in_state", f"{job_id} cannot be connected to.", f"It is {state}.", f"bazaar show {job_id}")
        job = found[0]
        session = client.session
        facts = Facts(
            market_id=session.market_id,
            job_id=job_id,
            attempt=job.attempt,
            epoch=job.epoch,
            buyer=session.wallet,
            seller=job.node_wallet or "",
        )
        return Place(facts, job.output_token)

    return Reach(url, lambda: client.session, locate)


@asynccontextmanager
async def open_door(caller: Caller, client: MarketClient, job_id: str, *, port: int = 0) -> AsyncIterator[str]:
    """The address of the session's first page, for as long as this is entered. Raises Complaint, BazaarError."""
    reach = reach_of(client, caller.settings.market or "", job_id)
    try:
        door = await ask_session(reach, job_id)
        if not door.place:
            why = f"A {door.kind} serves none by itself."
            raise Complaint("no_pages", f"{job_id} has no pages.", why, f"bazaar shell {job_id}, or bazaar forward {job_id} PORT")
        try:
            async with opened(reach, door.place, port, caller.terminal.note) as bound:
                yield f"http://{LOOPBACK}:{bound}{door.path}?token={door.token}"
        except OSError as error:
            raise Complaint("cannot_listen", f"Port {port} cannot be had.", error.strerror or str(error), "another --port") from None
    finally:
        await reach.close()


async def ask_session(reach: Reach, job_id: str) -> SessionDoor:
    """How it is opened. Raises Complaint, BazaarError."""
    tunnel = await reach.tunnel()
    answer = _Answer(tunnel)
    try:
        async with asyncio.timeout(ANSWER_S):
            data = await answer.whole()
    except TimeoutError:
        raise BazaarError("The session's node does not answer.", hint="try again") from None
    try:
        door = msgspec.json.decode(data, type=SessionDoor)
    except (msgspec.MsgspecError, ValueError):
        why = answer.reason or "What it says of itself cannot be read."
        raise Complaint("no_session", f"{job_id} cannot be opened.", why, f"bazaar show {job_id}") from None
    is_path = door.path == quote(door.path) and door.path.startswith("/" if door.place else "")
    plain = is_path and set(door.token) <= TOKEN_LETTERS and (not door.place or is_place(door.place))
    if not plain:
        raise Complaint("no_session", f"{job_id} cannot be opened.", "What its node says of it is not sane.", f"bazaar close {job_id}")
    return door


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
