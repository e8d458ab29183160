"""The matcher as a process: intake -> turn -> ledger -> live feeds. It holds no rule of the market; those are in `turn.py` and below.

A page is appended where the last one ended, or not at all; only then is anybody told. When an append fails for certain, another matcher
writes: this one forgets everything, folds the ledger again and stands by.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from nacl.signing import SigningKey

from events import wire
from events.codec import Malformed
from events.connection import Connection
from events.errors import AppendConflict, BazaarError, ConnectionRefused, LogUnavailable, MarketUnreachable
from events.fact import Event
from events.log import Log
from events.market import MarketCreated, MatcherStarted
from events.nats_client import Message
from events.page import encode_page
from events.streams import ensure_streams
from events.subjects import LIVE_MARKET, live
from projections import snapshot
from projections.market import Market
from services.follower import restore
from services.matcher import answers, rules
from services.matcher.desk import Desk
from services.matcher.draft import Closed, Draft
from services.matcher.memory import Memory
from services.matcher.saved_state import SavedState
from services.matcher.turn import Answers, BeatArrival, turn

log = structlog.get_logger("matcher")

TICK_S = 5.0
VERIFIED_FOR_S = 5.0
"""A matcher that has not seen the ledger's tail for longer answers no heartbeat: it may have been replaced."""
STANDBY_AFTER_S = 15.0
"""A leader that is silent for longer is taken over by a standby."""
CLOCK_BEHIND_MS_MAX = 2000
PURGE_EVERY_S = 0.01


class ClockBehind(BazaarError):
    """Time in the ledger would run backwards."""

    what = "This machine's clock is behind the ledger."


class PageClock:
    """The only clock that decides anything: the wall clock read once, advanced by the monotonic one."""

    def __init__(self) -> None:
        self._base_ms = time.time_ns() // 1_000_000
        self._base_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        """Milliseconds since 1970, never running backwards."""
        return self._base_ms + (time.monotonic_ns() - self._base_ns) // 1_000_000


@dataclass(frozen=True)
class MatcherKeys:
    """The market's hot key, the secret behind the names of the live feeds, and the public key that buyers seal secrets to."""

    signing_key: SigningKey
    live_secret: bytes
    sealing_public: bytes = b""

    def live_token(self, wallet: str) -> str:
        """What makes a wallet's feed impossible to name for others."""
        return hmac.new(self.live_secret, wallet.encode(), hashlib.sha256).hexdigest()[:20]


class Matcher:
    """One matcher. `run` returns when `stop` was called."""

    def __init__(
        self,
        connection: Connection,
        ledger: Log,
        keys: MatcherKeys,
        *,
        genesis: MarketCreated | None,
        snapshot_file: Path | None,
        version: str,
        standby: bool = False,
    ) -> None:
        self._connection = connection
        self._ledger = ledger
        self._keys = keys
        self._genesis = genesis
        self._saved = SavedState(snapshot_file)
        self._version = version
        self._standby = standby
        self._clock = PageClock()
        self._desk = Desk(connection)
        self._purging: asyncio.Task[None] | None = None
        self._purge_seq = 0
        self._stopping = False
        self._durable_pages = 0
        self._verified_s = 0.0
        self._heard_leader_s = 0.0
        self._tokens: dict[str, str] = {}
        self._created = ""
        self.market = Market()
        self.memory: Memory | None = None
        self.ready = asyncio.Event()
        """Set once this matcher leads and answers."""

    # --- life ---

    async def run(self) -> None:
        """Lead, or stand by and lead when nobody else does, until `stop`."""
        await self._listen()
        connection: Connection | None = None
        while not self._stopping:
            try:
                connection = connection or await self._connection.open()  # trying for ever it would not hear of `stop`
                if self._standby:
                    await self._stand_by()
                await self._lead()
            except AppendConflict:
                log.warning("another matcher writes this ledger: standing by")
                self._standby = True
            except (LogUnavailable, MarketUnreachable, ConnectionRefused) as error:
                log.warning("the ledger is not available", why=error.why or str(error))
                await asyncio.sleep(0.2)
            finally:
                self._desk.is_open = False
                self._desk.clear()
                self.ready.clear()
        self._save_snapshot()

    def stop(self) -> None:
        """End after the present turn."""
        self._stopping = True
        self._desk.wake()

    async def _listen(self) -> None:
        connection = self._connection
        connection.on_up(self._on_up)
        asked: dict[str, Callable[[Message], bytes]] = {"rpc.hello.*": self._hello, "rpc.sync.*": self._sync, "market.digest": self._digest}
        await self._desk.listen(asked | {"market.rules": self._rules, "market.find": self._find})
        await connection.subscribe(LIVE_MARKET, self._on_tick)

    async def _on_up(self) -> None:
        """After every connect: a broker that was restarted has lost the memory stream of the intake."""
        await ensure_streams(self._connection)
        if self._desk.is_open:
            await self._desk.intake.start()

    async def _stand_by(self) -> None:
        """Keep folding, and return when the leader has been silent for long enough."""
        follower, _ = await restore(self._ledger, self._saved.file)
        self._heard_leader_s = time.monotonic()
        while not self._stopping and time.monotonic() - self._heard_leader_s < STANDBY_AFTER_S:
            await follower.catch_up(self._ledger)
            await asyncio.sleep(1.0)
        self._standby = False

    async def _lead(self) -> None:
        follower, how = await restore(self._ledger, self._saved.file)
        self._saved.restored(follower.market.last_seq)
        self._created = (await self._ledger.head()).created
        began = time.monotonic()
        await follower.catch_up(self._ledger)
        self.market = follower.market
        self._durable_pages = self.market.pages
        log.info("ledger folded", how=how, seq=self.market.last_seq, pages=self.market.pages, s=round(time.monotonic() - began, 2))
        if follower.void:
            log.error("the ledger holds events without effect", void=follower.void)
        behind_ms = self.market.time_ms - self._clock.now_ms()
        if behind_ms > CLOCK_BEHIND_MS_MAX:
            raise ClockBehind(why=f"It is {behind_ms} ms behind the last page.", hint="Set the clock, then start again.")
        await self._begin()
        self._desk.clear()
        self._desk.is_open = True
        await self._desk.intake.start()
        self.ready.set()
        log.info("leading", seq=self.market.last_seq)
        await self._turns()

    async def _begin(self) -> None:
        """Write down that this matcher leads; in an empty ledger, that the market exists."""
        first: list[Event] = [MatcherStarted(version=self._version)]
        now_ms = self._now_ms()
        if not self.market.market_id:
            assert self._genesis is not None, "an empty ledger needs a genesis"
            first.insert(0, self._genesis)
        self.memory = Memory(self.market, self._keys.signing_key, now_ms)
        if self._genesis is not None and not self.market.market_id:
            self.memory.market_id = bytes.fromhex(self._genesis.market_id)
        draft = Draft(self.market, self.memory, now_ms)
        for event in first:
            refused = draft.decide(event)
            assert refused is None, f"{type(event).__name__}: {refused}"
        draft.close()
        await self._append(draft.closed)

    def _now_ms(self) -> int:
        return max(self._clock.now_ms(), self.market.time_ms)

    # --- turns ---

    async def _turns(self) -> None:
        next_tick_s = 0.0
        while not self._stopping:
            if time.monotonic() >= next_tick_s:
                await self._tick()
                next_tick_s = time.monotonic() + TICK_S
            if self._desk.is_empty:
                await self._desk.wait(self._patience_s(next_tick_s))
            await self._turn()

    def _patience_s(self, until_s: float) -> float:
        """Until something is due, or it is time to tick."""
        assert self.memory is not None
        wait_s = until_s - time.monotonic()
        due_ms = self.memory.next_wakeup_ms()
        if due_ms is not None:
            wait_s = min(wait_s, (due_ms - self._now_ms()) / 1000)
        return max(0.0, wait_s) + 0.0005

    async def _turn(self) -> None:
        assert self.memory is not None
        taken, beats = self._desk.take_arrivals(), self._desk.take_beats()
        if beats and time.monotonic() - self._verified_s > VERIFIED_FOR_S and not await self._verify():
            beats = []  # it may have been replaced: their nodes ask again
        heard = [beat for beat, _ in beats]
        closed, told = turn(self.market, [arrival for arrival, _ in taken], heard, self._now_ms(), self.memory)
        await self._append(closed)
        self._tell(closed, told)
        await self._respond([question for _, question in beats], [wire.encode(answer) for answer in told.beats])
        await self._answer_questions()
        if taken:
            self._purge(taken[-1][1])
        await self._pass_on(heard)

    def _purge(self, seq: int) -> None:
        """Throw away what is durable now: beside the turns and not after each, for a purge costs as much as a small page. A wallet may have
        twice as many messages in the intake as it may have unanswered, so it never waits for this."""
        self._purge_seq = seq
        if self._purging is None or self._purging.done():
            self._purging = asyncio.create_task(self._purge_on())

    async def _purge_on(self) -> None:
        done = 0
        while done < self._purge_seq:
            await asyncio.sleep(PURGE_EVERY_S)
            done = self._purge_seq
            try:
                await self._desk.intake.purge_to(done)
            except (MarketUnreachable, LogUnavailable) as error:
                log.warning("the intake was not purged", why=error.why or str(error))
                return

    async def _answer_questions(self) -> None:
        asked = self._desk.take_questions()
        await self._respond([message for _, message in asked], [answer(message) for answer, message in asked])

    async def _append(self, closed: list[Closed]) -> None:
        """Make the pages durable, in order. What fails here for certain makes the market in memory worthless."""
        position = self.market.pages - len(closed)
        for page in closed:
            data = encode_page(page.page)
            try:
                await self._ledger.append(data, position)
            except LogUnavailable:
                await self._append_again(data, position)
            position += 1
            self._durable_pages = position
            self._verified_s = time.monotonic()

    async def _append_again(self, data: bytes, position: int) -> None:
        """Unknown whether the page was appended: look, and send the identical bytes until it is known."""
        while not self._stopping:
            await asyncio.sleep(0.1)
            try:
                stored = await self._ledger.read(position + 1)
                if stored is None:
                    await self._ledger.append(data, position)
                elif stored.data != data:
                    raise AppendConflict
                return
            except LogUnavailable as error:
                log.warning("the ledger does not answer; trying again", why=error.why or str(error))
        raise LogUnavailable("stopped before the last page was known to be durable")

    def _tell(self, closed: list[Closed], told: Answers) -> None:
        """Written at once: somebody waits for each of them. The next turn waits for the broker, so they cannot pile up."""
        with suppress(MarketUnreachable):
            for frames in (*(page.frames for page in closed), told.frames):
                for wallet, frame in frames:
                    self._connection.publish_now(live(wallet, self._live_token(wallet)), wire.encode(frame))

    async def _respond(self, questions: list[Message], answered: list[bytes]) -> None:
        with suppress(MarketUnreachable):
            for question, answer in zip(questions, answered, strict=True):
                await self._connection.respond(question, answer)

    async def _pass_on(self, beats: list[BeatArrival]) -> None:
        """Telemetry for the read model, inside the market's own account."""
        with suppress(MarketUnreachable):
            for arrival in beats:
                view = wire.BeatView(beat=arrival.beat, wallet=arrival.wallet, time_ms=self.market.time_ms)
                await self._connection.publish(f"beats.{arrival.beat.node_id}", wire.encode(view))

    def _live_token(self, wallet: str) -> str:
        token = self._tokens.get(wallet)
        if token is None:
            token = self._tokens[wallet] = self._keys.live_token(wallet)
        return token

    async def _tick(self) -> None:
        """Say where the ledger stands, once that is known."""
        if not await self._verify():
            return
        tick = wire.Tick(seq=self.market.last_seq, page_hash=self.market.page_hash, time_ms=self._now_ms())
        with suppress(MarketUnreachable):
            await self._connection.publish(LIVE_MARKET, wire.encode(tick), headers={"Matcher": self._instance})
        if self._saved.is_due(self.market):
            self._save_snapshot()

    async def _verify(self) -> bool:
        """Whether the ledger still ends where this matcher thinks; False when it does not answer. Raises AppendConflict."""
        try:
            head = await self._ledger.head()
        except LogUnavailable as error:
            log.warning("the ledger does not answer", why=error.why or str(error))
            return False
        if head.position != self.market.pages:
            raise AppendConflict
        self._verified_s = time.monotonic()
        return True

    def _save_snapshot(self) -> None:
        """Unless there is no market yet, or it holds a turn that nobody knows to be durable."""
        if self._created and self.market.market_id and self.market.pages == self._durable_pages:
            self._saved.save(self.market, self._created)

    @property
    def _instance(self) -> str:
        return f"{os.getpid()}.{id(self)}"

    # --- what is asked ---

    def _on_tick(self, message: Message) -> None:
        if (message.headers or {}).get("Matcher") != self._instance:
            self._heard_leader_s = time.monotonic()

    def _hello(self, message: Message) -> bytes:
        market = self.market
        hello = wire.Hello(
            market_id=market.market_id,
            name=market.name,
            matcher_key=market.matcher_key,
            time_ms=self._now_ms(),
            seq=market.last_seq,
            page_hash=market.page_hash,
            version=self._version,
        )
        return wire.encode(hello)

    def _sync(self, message: Message) -> bytes:
        wallet = message.subject.rpartition(".")[2]
        try:
            request = wire.decode(message.data, wire.SyncRequest)
        except Malformed:
            return wire.encode(wire.Failure(code="malformed"))
        return wire.encode(answers.sync(self.market, request, wallet, self._live_token(wallet), self._keys.sealing_public))

    def _rules(self, message: Message) -> bytes:
        return wire.encode(rules.rules(self.market, self._now_ms()))

    def _find(self, message: Message) -> bytes:
        return rules.answer_find(self.market, message.data)

    def _digest(self, message: Message) -> bytes:
        market = self.market
        return wire.encode({"seq": market.last_seq, "digest": snapshot.digest(market), "page_hash": market.page_hash})
