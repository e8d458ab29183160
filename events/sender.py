"""Sends the events of one lane: takes them in, signs them as the window allows, and matches the answers to who waits for them.

Shell between the pure window (`send_window.py`), the disk (`outbox.py`) and whoever owns the connection (`market_client.py`),
which hands in outcomes and syncs and is asked for a sync when the two sides disagree. Everything here runs on one event loop and
never waits: an event leaves in the same call that brings it when the window is open.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from events.codec import EVENT_BYTES_MAX, encode_batch, encode_event
from events.envelope import seal
from events.errors import MarketUnreachable, Refused
from events.fact import Event
from events.outbox import Handover, Outbox, OutboxFailed, new_id
from events.reasons import Refusal
from events.send_window import WINDOW, Entry, SendWindow, Settled
from events.session import Session
from events.subjects import intake
from events.ticket import Ticket
from events.wire import Outcome, SyncAnswer

log = logging.getLogger("bazaar.sender")

LOCK_POLL_S = 0.02
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 2.0
COLLECTED_MAX = 64
"""Answers that are looked for at once; what comes later is looked for at the next poll."""
RESERVED_ID = b""
"""The entry of the key's own authorisation: it is made anew when needed and never stored."""


class Sender:
    """`publish` sends bytes to the intake now and says whether it could; `want_sync` asks for a call of `synced` soon,
    `want_session` for one of `use`."""

    def __init__(
        self,
        session: Session,
        outbox: Outbox,
        publish: Callable[[bytes], bool],
        want_sync: Callable[[], None],
        want_session: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._outbox = outbox
        self._publish = publish
        self._want_sync = want_sync
        self._want_session = want_session
        self._window = SendWindow(session.key, 0)
        self._tickets: dict[bytes, Ticket] = {}
        self._foreign: set[bytes] = set()
        """Entries of other processes of this home, living or dead, that we send."""
        self._done: set[bytes] = set()
        """Entries that are settled, but may still lie in the file."""
        self._queued_behind = False
        """Whether another process sent when we looked last."""
        self._sent: deque[tuple[bytes, list[Entry]]] = deque(maxlen=WINDOW)
        self._ready = False
        """Whether we know where the market stands with our key."""
        self._doubt_s = 0.0
        self._key_known = False
        self._backoff_s = BACKOFF_S_MIN
        self._timer: asyncio.TimerHandle | None = None
        self._release: asyncio.TimerHandle | None = None
        self._busy_s = 0.0
        self._adopted_s = 0.0
        self._closed = False

    @property
    def session(self) -> Session:
        """The key in use."""
        return self._session

    @property
    def unanswered(self) -> int:
        """Events that still want an answer."""
        return self._window.unanswered

    def silent_for_s(self) -> float:
        """How long events have been flying without anything sent or answered; 0 when none fly."""
        return self._loop.time() - self._busy_s if self._window.flying else 0.0

    # --- in ---

    def start(self) -> None:
        """Take in what was left to be sent before anything new. Call once, before the first sync."""
        if self._outbox.lock.held or self._take_lock():
            self._adopt()

    def enqueue(self, *events: Event) -> list[Ticket]:
        """Take events in, in order, and send what the window allows. Raises Refused when one is too large; then none is taken."""
        bodies = [encode_event(event) for event in events]
        for body in bodies:
            if len(body) > EVENT_BYTES_MAX:
                raise Refused(Refusal.TOO_LARGE, f"The event has {len(body)} bytes.")
        if self._closed:
            raise MarketUnreachable("The client is closed.")
        tickets = []
        for body in bodies:
            ticket = Ticket(new_id(), self.withdraw)
            self._tickets[ticket.id] = ticket
            self._window.add(Entry(ticket.id, body))
            tickets.append(ticket)
        self.pump()
        for ticket, body in zip(tickets, bodies, strict=True):
            self._outbox.add(ticket.id, body)
        return tickets

    def withdraw(self, ticket: Ticket) -> bool:
        """Whether an event that was not sent yet by anybody is forgotten now."""
        if not self._outbox.lock.held and not self._take_lock():
            return False
        if ticket.outcome is not None or not self._window.withdraw(ticket.id):
            return False
        del self._tickets[ticket.id]
        self._done.add(ticket.id)
        self._outbox.settle(ticket.id, None, ours=True)
        ticket.fail(MarketUnreachable("The event was withdrawn before it was sent."))
        self._let_go()
        return True

    def close(self) -> None:
        """Nobody is waited for any longer; what is unanswered stays in the outbox."""
        self._closed = True
        for timer in (self._timer, self._release):
            if timer is not None:
                timer.cancel()
        for ticket in self._tickets.values():
            ticket.fail(MarketUnreachable(why="the client was closed before the market answered", hint="the event is kept and sent later"))
        self._tickets.clear()
        if not self._window.unanswered:
            self._hand_over()

    # --- out ---

    def pump(self) -> None:
        """Send what may be sent now."""
        if not self._window.waiting or self._timer is not None or self._closed:
            return
        if not (self._outbox.lock.held or self._take_lock()) or not self._ready:
            return
        self._send()
        if self._busy_s - self._adopted_s > LOCK_POLL_S:  # behind our own: a look into the file costs as much as a signature
            self._adopted_s = self._busy_s
            self._loop.call_soon(self._adopt_and_send)

    def _adopt_and_send(self) -> None:
        if self._outbox.lock.held and not self._closed:
            self._adopt()
            self.pump()

    def _send(self) -> None:
        while taken := self._window.take():
            data = self._seal(taken)
            self._sent.append((data, taken))
            if not self._publish(data):
                self._window.grounded(taken)
                self.lost()
                return
            self._busy_s = self._loop.time()

    def _seal(self, entries: list[Entry]) -> bytes:
        session = self._session
        return seal(
            session.signing_key,
            market_id=bytes.fromhex(session.market_id),
            subject=intake(session.wallet),
            seq=entries[0].number,
            ts_ms=int(time.time() * 1000),
            body=encode_batch([entry.body for entry in entries]),
        )

    # --- what the market says ---

    def answered(self, key: bytes, outcomes: tuple[Outcome, ...]) -> None:
        """The outcomes of one live frame."""
        if key == self._session.key:
            for outcome in outcomes:
                settled = self._window.answered(outcome)
                if settled is not None:
                    self._finish(settled)
        elif not key:
            for outcome in outcomes:
                self._unreadable(outcome)
        else:
            return
        self._busy_s = self._loop.time()
        self._heed_flags()
        self.pump()
        self._let_go()

    def synced(self, answer: SyncAnswer, asked_s: float) -> None:
        """What the market says about our key; `asked_s` is the loop's time when it was asked."""
        self._key_known = answer.key_known
        for settled in self._window.synced(answer.key_last_number, answer.outcomes):
            self._finish(settled)
        if asked_s < self._doubt_s:
            return  # what made us doubt is younger than the question
        self._ready = True
        if not answer.key_known and (self._outbox.lock.held or self._take_lock()) and self._ready:
            self._introduce()
        self.pump()
        self._let_go()

    def lost(self) -> None:
        """The connection is gone, or too long silent: nothing is sent before the next sync."""
        self._ready = False
        self._doubt_s = self._loop.time()
        self._want_sync()

    def use(self, session: Session) -> None:
        """Go on under another key of the same wallet; what is unanswered is signed again."""
        entries = self._window.drain()
        self._window = SendWindow(session.key, 0)
        self._session = session
        self._key_known = False
        for entry in entries:
            if entry.id != RESERVED_ID:
                self._window.add(entry)
        self.lost()

    def keep_session(self) -> None:
        """No other key can be had: what this one may no longer say is refused for good, and the rest goes on."""
        self._window.renewable = False
        self.lost()

    def _introduce(self) -> None:
        """The first event of a key is its wallet's delegation."""
        waiting = self._window.waiting
        if not waiting or waiting[0].id != RESERVED_ID:
            self._window.add_first(Entry(RESERVED_ID, encode_event(self._session.authorisation())))

    def _heed_flags(self) -> None:
        window = self._window
        if window.wants_sync or window.key_unknown:
            window.wants_sync = window.key_unknown = False
            self.lost()
        if window.key_expired:
            window.key_expired = False
            self._ready = False
            self._want_session()
        if window.rate_limited:
            window.rate_limited = False
            self._later(self._backoff_s * (1 + random.random()))
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_S_MAX)

    def _finish(self, settled: Settled) -> None:
        entry, outcome = settled
        if outcome.reason is None:
            self._backoff_s = BACKOFF_S_MIN
        if entry.id == RESERVED_ID:
            self._introduced(outcome)
            return
        self._outbox.settle(entry.id, outcome, ours=entry.id not in self._foreign)
        self._foreign.discard(entry.id)
        self._done.add(entry.id)
        ticket = self._tickets.pop(entry.id, None)
        if ticket is not None:
            ticket.settle(outcome)

    def _introduced(self, outcome: Outcome) -> None:
        if outcome.reason is None:
            self._key_known = True
            return
        log.error("the market refused this session key: %s %s", outcome.reason.value, outcome.detail[:100])
        for entry in self._window.drain():  # without a key none of them can ever be sent
            self._finish(Settled(entry, Outcome(0, b"", reason=outcome.reason, detail=outcome.detail)))

    def _unreadable(self, outcome: Outcome) -> None:
        """The market could not even read a message: which one it was, only its hash tells."""
        for data, entries in self._sent:
            if hashlib.sha256(data).digest() == outcome.hash:
                gone = {entry.id for entry in entries}
                for entry in self._window.drain():
                    if entry.id in gone:
                        self._finish(Settled(entry, outcome))
                    else:
                        self._window.add(entry)
                self.lost()
                return

    # --- one sender of a lane at a time ---

    def _take_lock(self) -> bool:
        """Whether we send now. Else another process of this home does; we look again soon, also for outcomes that it left."""
        ours, left = self._outbox.lock.acquire()
        if self._queued_behind:
            self._collect()
        self._queued_behind = not ours
        if not ours:
            self._later(LOCK_POLL_S)
            return False
        if left is not None and left.key == self._session.key and self._key_known:
            self._window.restart(left.last_number)
        else:  # nobody knows where the key stands: a first start, another key, or a sender that died
            self.lost()
        return True

    def _let_go(self) -> None:
        """With nothing left to answer and nothing left to write, other processes may send."""
        if self._window.unanswered or not self._outbox.lock.held or self._release is not None:
            return
        if self._outbox.clean:
            self._hand_over()
        else:
            self._release = self._loop.call_later(LOCK_POLL_S / 2, self._let_go_later)

    def _let_go_later(self) -> None:
        self._release = None
        self._let_go()

    def _hand_over(self) -> None:
        sure = self._ready and self._key_known
        self._outbox.lock.release(Handover(self._session.key, self._window.last_number) if sure else None)

    def _later(self, delay_s: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        self.pump()
        self._let_go()

    def _adopt(self) -> None:
        """Take in what other processes of this home left to be sent."""
        try:
            if not self._outbox.changed():
                return
            if self._outbox.clean:
                self._done.clear()
            for stored in self._outbox.others(self._foreign | self._done | self._tickets.keys()):
                self._foreign.add(stored.id)
                self._window.add(Entry(stored.id, stored.body))
        except OutboxFailed as error:
            log.error("%s %s", error.what, error.why)

    def _collect(self) -> None:
        """See whether another process has had events of ours answered."""
        try:
            ours = (entry for entry in self._window.waiting if entry.id in self._tickets)
            for entry in list(islice(ours, COLLECTED_MAX)):
                outcome = self._outbox.outcome(entry.id)
                if outcome is not None:
                    self._window.waiting.remove(entry)
                    self._finish(Settled(entry, outcome))
        except OutboxFailed as error:
            log.error("%s %s", error.what, error.why)
