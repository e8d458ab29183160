"""The node's side of tunnels: lets the buyer of a job that runs here in, and nobody else, for as long as it runs.

For each live attempt one opening subject is listened to, whose name only the job's buyer can tell; when the attempt is over, whatever way,
its sessions are cut. On a connection of its own, so that a buyer's bytes never stand before the node's beats. Counted, never looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import structlog

from events import subjects, tunnel_keys
from events.connection import Connection, WalletKey
from events.errors import BazaarError
from events.nats_client import Message, Subscription
from events.session import Session
from events.tunnel import Tunnel, forget
from events.tunnel_frames import STREAMS_MAX, Target
from events.tunnel_keys import Facts, Identity, NotMet
from seller_agent.attempts.attempt import Attempt, Run, Standing
from seller_agent.runners.runner import RunKey, RunnerError, Stream, Terminal
from seller_agent.sessions import tunnel_ends

log = structlog.get_logger("seller")

SESSIONS_MAX = 8
"""Of one job at once."""
SERVED_MAX = SESSIONS_MAX * STREAMS_MAX
"""Streams of one job that are dialled or served at once: who gives up and asks again does not free a place before the dialling ends."""
LISTENED_MAX = 400
"""Attempts that are listened for at once: a connection has 512 subscriptions."""
TASKS_MAX = 4096
"""Streams and openings in hand, of all jobs; an opening beyond is not heard, and said again."""
LOOK_S = 0.2
RETRY_S = 2.0
DIAL_MAX_S = 15.0


class Reach(Protocol):
    """What tunnels need of a runner."""

    async def dial(self, key: RunKey, place: str) -> Stream:
        """As `Runner.dial`."""

    async def shell(self, key: RunKey, argv: tuple[str, ...], columns: int, rows: int) -> Terminal:
        """As `Runner.shell`."""


class _Met(NamedTuple):
    """A session that was let in."""

    hello: bytes
    answer: bytes
    tunnel: Tunnel
    send_on: str


class _Door:
    """One live attempt: what is listened to, and who is in."""

    def __init__(self, attempt: Attempt, facts: Facts) -> None:
        self.attempt = attempt
        self.facts = facts
        self.subscription: Subscription | None = None
        self.sessions: dict[str, _Met] = {}
        self.served = 0
        """Streams that are dialled, or served by a task."""


class Tunnels:
    """All tunnels of one node. `attempts` is the node's present, looked at again and again."""

    def __init__(
        self, url: str, session: Callable[[], Session], runner: Reach, attempts: Mapping[int, Attempt], *, look_s: float = LOOK_S
    ) -> None:
        self._url = url
        self._session = session
        self._runner = runner
        self._attempts = attempts
        self._look_s = look_s
        self._connection: Connection | None = None
        self._acting: Session | None = None
        self._doors: dict[int, _Door] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """For ever. Cancelled, it says goodbye to everybody."""
        try:
            while True:
                try:
                    await self._look()
                except BazaarError as error:
                    log.warning("no tunnels for now", why=f"{error.what} {error.why}")
                    await self._leave("the node cannot reach the market")
                    await asyncio.sleep(RETRY_S)
                await asyncio.sleep(self._look_s)
        finally:
            await self._leave("the node's agent ends; the job goes on")

    async def _look(self) -> None:
        """Listen for what runs, cut what does not."""
        self._keep_login()
        for epoch, door in list(self._doors.items()):
            if not is_live(self._attempts.get(epoch)):
                await self._shut(epoch, door, "the job has ended")
        for epoch, attempt in list(self._attempts.items()):
            if epoch not in self._doors and is_live(attempt) and len(self._doors) < LISTENED_MAX:
                await self._listen(epoch, attempt)

    async def _listen(self, epoch: int, attempt: Attempt) -> None:
        connection = await self._connected()
        session = self._session()
        facts = Facts(
            market_id=session.market_id,
            job_id=attempt.job_id,
            attempt=attempt.attempt,
            epoch=epoch,
            buyer=attempt.buyer,
            seller=session.wallet,
        )
        door = self._doors[epoch] = _Door(attempt, facts)
        token = tunnel_keys.opening_token(attempt.job_id, epoch, attempt.output_token)
        opening = subjects.tunnel(facts.buyer, facts.seller, token, 0)
        door.subscription = await connection.subscribe(opening, lambda message: self._knocked(door, message))

    async def _connected(self) -> Connection:
        if self._connection is None:
            self._acting = self._session()
            self._connection = await Connection(self._url, _login(self._acting), "tunnels", bulk=True).open()
        return self._connection

    def _keep_login(self) -> None:
        """A connection that breaks comes back with the session key of that day."""
        session = self._session()
        if self._connection is not None and session is not self._acting:
            self._acting, self._connection.identity = session, _login(session)

    async def _shut(self, epoch: int, door: _Door, reason: str) -> None:
        self._doors.pop(epoch, None)
        for met in list(door.sessions.values()):
            met.tunnel.close(reason)
        if door.subscription is not None:
            with contextlib.suppress(BazaarError, OSError):
                await door.subscription.unsubscribe()

    async def _leave(self, reason: str) -> None:
        for epoch, door in list(self._doors.items()):
            await self._shut(epoch, door, reason)
        for task in list(self._streams):
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # ---- letting in

    def _knocked(self, door: _Door, message: Message) -> None:
        if len(self._streams) < TASKS_MAX:
            self._spawn(self._meet(door, message.data))

    async def _meet(self, door: _Door, data: bytes) -> None:
        """Answer a hello; one that comes again gets the same answer."""
        connection, facts = self._connection, door.facts
        if connection is None or self._doors.get(facts.epoch) is not door:
            return
        session = self._session()
        identity = Identity(session.signing_key, session.signed)
        try:
            said = tunnel_keys.read_hello(data, facts, now_ms=int(time.time() * 1000))
            answer, keys = tunnel_keys.welcome(data, said, identity, ephemeral_secret=secrets.token_bytes(32))
        except NotMet as error:
            log.warning("an opening was refused", job=facts.job_id, reason=error.reason, why=str(error))
            return  # nobody who is let in speaks so
        known = door.sessions.get(said.session)
        if known is not None:
            if known.hello == data and not known.tunnel.bytes_received:
                await connection.publish(known.send_on, known.answer)
            return
        send_on = subjects.tunnel(facts.seller, facts.buyer, said.session, 0)
        if len(door.sessions) >= SESSIONS_MAX:
            await connection.publish(send_on, tunnel_keys.refusal("too_many", f"{SESSIONS_MAX} tunnels of this job are open already"))
            return
        tunnel = Tunnel(connection, keys, send_on=send_on, asked=lambda tunnel, number, target: self._asked(door, tunnel, number, target))
        door.sessions[said.session] = _Met(data, answer, tunnel, send_on)
        listening = await connection.subscribe(subjects.tunnel(facts.buyer, facts.seller, said.session, 0), tunnel.heard)
        stop_listening = forget(listening)

        def closed(tunnel: Tunnel) -> None:
            stop_listening(tunnel)
            door.sessions.pop(said.session, None)
            log.info(
                "tunnel closed",
                job=facts.job_id,
                why=tunnel.reason,
                streams=tunnel.streams_opened,
                bytes_in=tunnel.bytes_received,
                bytes_out=tunnel.bytes_sent,
            )

        tunnel.on_closed = closed
        if tunnel.is_closed or self._doors.get(facts.epoch) is not door:
            tunnel.close("the job has ended")
            closed(tunnel)
            return
        log.info("tunnel opened", job=facts.job_id, sessions=len(door.sessions))
        await connection.publish(send_on, answer)

    # ---- streams

    def _asked(self, door: _Door, tunnel: Tunnel, number: int, target: Target) -> None:
        if not is_live(door.attempt):
            tunnel.reset(number, "the job has ended")
            return
        if door.served >= SERVED_MAX:
            tunnel.reset(number, "too many streams of this job were opened and given up")
            return
        door.served += 1
        self._spawn(self._serve_counted(door, tunnel, number, target))

    async def _serve_counted(self, door: _Door, tunnel: Tunnel, number: int, target: Target) -> None:
        try:
            await self._serve(door.attempt, tunnel, number, target)
        finally:
            door.served -= 1

    async def _serve(self, attempt: Attempt, tunnel: Tunnel, number: int, target: Target) -> None:
        """One stream, from its opening to its end."""
        try:
            async with asyncio.timeout(DIAL_MAX_S):
                if target.place:
                    stream = await self._runner.dial(attempt.key, target.place)
                else:
                    terminal = await self._runner.shell(attempt.key, target.argv, target.columns, target.rows)
        except (ConnectionError, RunnerError, OSError) as error:
            tunnel.reset(number, str(error) or type(error).__name__)
            return
        except TimeoutError:
            tunnel.reset(number, f"nothing came about within {DIAL_MAX_S:g} s")
            return
        if target.place:
            await tunnel_ends.join(tunnel, number, stream)
        else:
            await tunnel_ends.join_terminal(tunnel, number, terminal)

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = self._loop.create_task(work)
        self._streams.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._streams.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a tunnel's stream failed", exc_info=task.exception())


def _login(session: Session) -> WalletKey:
    return WalletKey(session.seed, session.token, session.wallet)


def is_live(attempt: Attempt | None) -> bool:
    """Whether a program of the attempt runs, and is to go on."""
    return attempt is not None and attempt.run is Run.RUNNING and attempt.standing is Standing.CLAIMED and attempt.stop is None
