"""A party's side of a market: logs in as a wallet, sends its events until they are answered, and hears what concerns it.

Shell, shared by buyers and sellers. It holds no rule of the market: events come in, outcomes, other parties' events and
whole states (after every connect and every gap in the feed) go out by callback, in the reading loop, so callbacks must be quick.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from events import subjects, wire
from events.codec import Malformed
from events.connection import GUEST, Connection, Guest, WalletKey
from events.delegation import seed_text
from events.errors import BazaarError, ConnectionRefused, MarketUnreachable, Refused
from events.fact import Event
from events.feed import Feed, Received
from events.nats_client import Message, Subscription
from events.outbox import Outbox, lane_name
from events.reasons import Refusal
from events.sender import Sender
from events.session import Session
from events.stepping import end_all
from events.ticket import Ticket
from events.wire import FilesAnswer, FilesRequest, Hello, LiveFrame, Outcome, OutputAnswer, OutputFrame, SyncAnswer, SyncRequest, Tick

T = TypeVar("T")
log = logging.getLogger("bazaar.client")

CALL_S = 5.0
SYNC_S = 3.0
FILES_S = 20.0
SYNC_PAUSE_S_MIN, SYNC_PAUSE_S_MAX = 0.02, 2.0
SILENCE_S = 3.0
"""Unanswered events that hear nothing for this long ask where they stand."""
STALE_S = 15.0
"""A feed that is silent while the ledger grows is checked this often: the last message of a dead matcher is seen by nobody."""
LOOK_S = 1.0
RENEW_RETRY_S = 30.0


Renew = Callable[..., Awaitable[Session]]
"""Called with `fresh=True` when the session that lies here is over by the market's clock, whatever ours says."""


async def ask_hello(url: str, *, wait_s: float = 0.0, timeout_s: float = CALL_S) -> Hello:
    """What a market says to strangers. Raises MarketUnreachable, ConnectionRefused."""
    connection = Connection(url, Guest(seed_text(secrets.token_bytes(32))), "hello")
    await connection.open(wait_s=wait_s)
    try:
        return decode_answer(await connection.request(subjects.rpc("hello", GUEST), b"", timeout_s), Hello)
    finally:
        await connection.close()


def _login(session: Session) -> WalletKey:
    return WalletKey(session.seed, session.token, session.wallet)


def _call(tell: Callable[[T], None], what: T) -> None:
    """A callback that fails must not end the feed."""
    try:
        tell(what)
    except Exception:
        log.exception("what hears of %s failed", type(what).__name__)


def decode_answer(data: bytes, shape: type[T]) -> T:
    """An answer of this shape. Raises Refused when it is a refusal, MarketUnreachable when it is neither."""
    try:
        return wire.decode(data, shape)
    except Malformed as error:
        try:
            failure = wire.decode(data, wire.Failure)
            refusal = Refusal(failure.code)
        except (Malformed, ValueError):
            raise MarketUnreachable("The market's answer cannot be read.", why=str(error), hint="Update the client.") from None
        raise Refused(refusal, failure.detail) from None


class MarketClient:
    """One wallet in one role at one market. Make it with `login.open_client`, or here from a session of your own."""

    def __init__(self, url: str, session: Session, home: Path, *, name: str, lane: str = "", renew: Renew | None = None) -> None:
        """`renew` makes a new session of the same wallet when this one nears its end. Raises OutboxFailed."""
        self.session = session
        self.wallet = session.wallet
        self.market_id = session.market_id
        self.job_ids: set[str] = set()
        """Jobs that every sync tells of."""
        self.node_id: str | None = None
        """Our node that every sync tells of."""
        self.last_sync: SyncAnswer | None = None
        self.last_tick: Tick | None = None
        self._tick_s = 0.0
        self.connection = Connection(url, _login(session), name)
        self._name = name
        self._renew = renew
        self._renewal: asyncio.Task[None] | None = None
        self._outbox = Outbox(home, lane_name(session.market_id, session.wallet, session.role.value, lane))
        self._loop = asyncio.get_running_loop()
        self._sync_wanted = asyncio.Event()
        self._synced = asyncio.Event()
        self._sender = Sender(session, self._outbox, self._publish, self._sync_wanted.set, self._want_session)
        self._intake = subjects.intake(self.wallet)
        self._on_event: list[Callable[[Received], None]] = []
        self._on_resync: list[Callable[[SyncAnswer], None]] = []
        self._token = ""
        self._feed = Feed()
        self._feed_subscription: Subscription | None = None
        self._heard_s = self._loop.time()
        self._trouble: BazaarError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False

    # --- coming and going ---

    async def start(self, *, wait_s: float | None = 0.0, timeout_s: float = CALL_S) -> MarketClient:
        """Connect (trying for `wait_s`, None: for ever) and learn where we stand. Raises MarketUnreachable, ConnectionRefused."""
        self.connection.on_up(self._on_up)
        self.connection.on_refused = self._on_refused
        await self.connection.subscribe(subjects.LIVE_MARKET, self._on_tick)
        self._sender.start()
        try:
            await self.connection.open(wait_s=wait_s)
            self._tasks = [self._loop.create_task(self._sync_loop()), self._loop.create_task(self._look_after())]
            async with asyncio.timeout(None if wait_s is None else max(wait_s, timeout_s)):
                await self._synced.wait()
        except TimeoutError:
            trouble = self._trouble
            await self.close()
            raise trouble or MarketUnreachable(why="the market did not say where we stand", hint="it may be starting; try again") from None
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Leave. What is unanswered stays in the outbox; whoever awaits it gets MarketUnreachable."""
        if self._closing:
            return
        self._closing = True
        tasks = [*self._tasks, *([self._renewal] if self._renewal else [])]
        await end_all(tasks)
        await self.connection.close()
        self._sender.close()
        await asyncio.to_thread(self._outbox.close)

    async def __aenter__(self) -> MarketClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- our events ---

    def enqueue(self, *events: Event) -> list[Ticket]:
        """Take events in, in order; what the window allows has left when this returns, together if they may. They are written to
        disk beside. Raises Refused when one is too large."""
        return self._sender.enqueue(*events)

    async def enqueue_durable(self, *events: Event) -> list[Ticket]:
        """As `enqueue`; returns when they are on disk (or answered): no crash of ours can lose them. Raises also OutboxFailed."""
        tickets = self._sender.enqueue(*events)
        await self._outbox.durable()
        return tickets

    async def submit(self, event: Event, timeout_s: float | None = None) -> Outcome:
        """The market's answer to an event. Raises MarketUnreachable after `timeout_s`: the event was then taken back if it had not
        been sent, else it stays in the outbox (`why` says which)."""
        [ticket] = self._sender.enqueue(event)
        try:
            async with asyncio.timeout(timeout_s):
                return await ticket
        except TimeoutError:
            withdrawn = ticket.withdraw()
            why = "nothing was sent" if withdrawn else "it was sent, but not answered; it is sent again until it is"
            raise MarketUnreachable(why=why, hint="The market may be restarting; look again later.") from None

    async def settled(self, timeout_s: float) -> None:
        """Return when nothing of ours is unanswered. Raises MarketUnreachable after `timeout_s`."""
        deadline_s = self._loop.time() + timeout_s
        while self._sender.unanswered:
            if self._loop.time() >= deadline_s:
                raise MarketUnreachable(why=f"{self._sender.unanswered} events are unanswered after {timeout_s:g} s") from None
            await asyncio.sleep(0.005)

    @property
    def unanswered(self) -> int:
        """Events of ours, also from earlier runs, that the market has not answered."""
        return self._sender.unanswered

    # --- what concerns us ---

    def on_event(self, callback: Callable[[Received], None]) -> None:
        """Call back with every event that concerns this wallet, in order."""
        self._on_event.append(callback)

    def on_resync(self, callback: Callable[[SyncAnswer], None]) -> None:
        """Call back with the whole state after every connect and every gap: it stands for all events up to its `as_of_seq`."""
        self._on_resync.append(callback)

    def resync(self) -> None:
        """Ask the market where we stand, as after a gap."""
        self._feed.gap = True
        self._sync_wanted.set()

    # --- questions ---

    async def ask(self, verb: str, request: object, answer_type: type[T], timeout_s: float = CALL_S) -> T:
        """The answer to `rpc.<verb>`. Raises MarketUnreachable, and Refused when the market answers no."""
        return decode_answer(await self._request(subjects.rpc(verb, self.wallet), wire.encode(request), timeout_s), answer_type)

    async def sync(self, *, job_ids: Iterable[str] = (), node_id: str | None = None, timeout_s: float = SYNC_S) -> SyncAnswer:
        """Where our key, these jobs and this node stand now. Raises as `ask`."""
        request = SyncRequest(key=self._sender.session.key, job_ids=tuple(job_ids)[:100], node_id=node_id)
        return await self.ask("sync", request, SyncAnswer, timeout_s)

    async def ask_bytes(self, verb: str, data: bytes, timeout_s: float = CALL_S) -> bytes:
        """The bytes that `rpc.<verb>` answers to these. Raises MarketUnreachable."""
        return await self._request(subjects.rpc(verb, self.wallet), data, timeout_s)

    async def ask_files(self, request: FilesRequest) -> FilesAnswer:
        """A question to the file store, as `events/files.py` wants it. Raises as `ask`."""
        return await self.ask("files", request, FilesAnswer, FILES_S)

    async def publish_output(self, buyer: str, job_id: str, token: str, frame: OutputFrame, timeout_s: float = CALL_S) -> OutputAnswer:
        """Write a job's output, as its seller; the answer says how far it is recorded. Raises as `ask`."""
        subject = subjects.output(self.wallet, buyer, job_id, token)
        return decode_answer(await self._request(subject, wire.encode(frame), timeout_s), OutputAnswer)

    async def output_live(self, job_id: str, callback: Callable[[OutputFrame], None]) -> Subscription:
        """Call back with a job's output as its seller writes it, as its buyer, until `unsubscribe` of what is returned."""

        def read(message: Message) -> None:
            try:
                frame = wire.decode(message.data, OutputFrame)
            except Malformed as error:
                log.warning("%s: output of %s cannot be read: %.100s", self._name, job_id, error)
                return
            callback(frame)

        return await self.connection.subscribe(subjects.output_of(self.wallet, job_id), read)

    async def _request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        started_s = self._loop.time()
        await self.connection.wait_up(timeout_s)
        return await self.connection.request(subject, data, max(0.001, timeout_s - (self._loop.time() - started_s)))

    # --- the sender's side ---

    def _publish(self, data: bytes) -> bool:
        """Send to the intake without waiting for anything, also not for the broker's acknowledgement: the answer is what counts."""
        try:
            self.connection.publish_now(self._intake, data)  # the window bounds what can lie in the socket's buffer
        except MarketUnreachable:
            return False
        return True

    def _want_session(self) -> None:
        if self._closing or (self._renewal is not None and not self._renewal.done()):
            return
        if self._renew is None:
            self._sender.keep_session()
            return
        self._renewal = self._loop.create_task(self._renew_session(self._renew))

    async def _renew_session(self, renew: Renew) -> None:
        try:
            session = await renew()
            if session.key == self.session.key and session.ends_within(self._market_ms()):
                session = await renew(fresh=True)
        except BazaarError as error:
            log.warning("%s: the session could not be renewed: %s %s", self._name, error.what, error.why)
            self._sender.keep_session()
            await asyncio.sleep(RENEW_RETRY_S)
            return
        if session.key != self.session.key:
            self.session = session
            self.connection.identity = _login(session)
            self._sender.use(session)

    def _on_refused(self, error: ConnectionRefused) -> None:
        self._trouble = error
        if self._renew is not None:
            self._want_session()

    # --- syncs ---

    async def _on_up(self) -> None:
        self._sender.lost()
        self.resync()

    async def _sync_loop(self) -> None:
        pause_s = SYNC_PAUSE_S_MIN
        while True:
            await self._sync_wanted.wait()
            await self.connection.wait_up()
            self._sync_wanted.clear()
            try:
                await self._sync()
                pause_s = SYNC_PAUSE_S_MIN
            except BazaarError as error:
                log.debug("%s: no sync: %s %s", self._name, error.what, error.why)
                self._trouble = error
                self._sync_wanted.set()
                pause_s = min(2 * pause_s, SYNC_PAUSE_S_MAX)
            await asyncio.sleep(pause_s)

    async def _sync(self) -> None:
        answer, asked_s = await self._ask_sync()
        if answer.live_token != self._token:
            if self._feed_subscription is not None:
                await self._feed_subscription.unsubscribe()
            self._feed.gap = True
            self._feed_subscription = await self.connection.subscribe(subjects.live(self.wallet, answer.live_token), self._on_live)
            self._token = answer.live_token
            answer, asked_s = await self._ask_sync()  # what happened before we listened
        self._take(answer, asked_s)

    async def _ask_sync(self) -> tuple[SyncAnswer, float]:
        self._feed.asking()
        asked_s = self._loop.time()
        return await self.sync(job_ids=self.job_ids, node_id=self.node_id), asked_s

    def _take(self, answer: SyncAnswer, asked_s: float) -> None:
        self.last_sync = answer
        self._heard_s = self._loop.time()
        if self._feed.covers(answer.prev):
            told_meanwhile = self._feed.resume(answer.prev)
            for tell in self._on_resync:
                _call(tell, answer)
            self._pass_on(told_meanwhile)
            if self._feed.gap:
                self._sync_wanted.set()
        self._sender.synced(answer, asked_s)
        self._synced.set()

    # --- the feed ---

    def _on_live(self, message: Message) -> None:
        try:
            frame = wire.decode(message.data, LiveFrame)
        except Malformed as error:
            log.warning("%s: a message of the feed cannot be read: %.100s", self._name, error)
            self.resync()
            return
        self._heard_s = self._loop.time()
        had_gap = self._feed.gap
        self._pass_on(self._feed.hear(frame))
        if self._feed.gap and not had_gap:
            log.info("%s: the feed has a gap after %d", self._name, self._feed.last_seen)
            self._sync_wanted.set()
        if frame.outcomes:
            self._sender.answered(frame.key, frame.outcomes)

    def _pass_on(self, received: list[Received]) -> None:
        for one in received:
            for tell in self._on_event:
                _call(tell, one)

    def _on_tick(self, message: Message) -> None:
        try:
            self.last_tick = wire.decode(message.data, Tick)
            self._tick_s = self._loop.time()
        except Malformed as error:
            log.warning("%s: a tick cannot be read: %.100s", self._name, error)

    async def _look_after(self) -> None:
        """What no message brings about: silence, and the end of the session."""
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self._loop.time()
            if self._sender.silent_for_s() > SILENCE_S:
                self._sender.lost()
            tick, known = self.last_tick, self.last_sync
            if tick is not None and known is not None and tick.seq > known.as_of_seq and now_s - self._heard_s > STALE_S:
                self._sync_wanted.set()
            if self._renew is not None and self.session.ends_within(self._market_ms()):
                self._want_session()

    def _market_ms(self) -> int:
        """The market's clock: it decides when a session is over. Ours stands in before the first tick."""
        if self.last_tick is None:
            return int(time.time() * 1000)
        return self.last_tick.time_ms + int((self._loop.time() - self._tick_s) * 1000)
