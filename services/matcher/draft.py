"""A turn being written: events are folded into the market as they are put down, and closed into pages.

Pure but for the market and memory it is given, which it changes in place: if the pages cannot be appended, both must be thrown away.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from events.codec import encode_event
from events.envelope import DECISION_KEY, event_hash
from events.fact import Event
from events.identity import MemberAdded, MemberRemoved
from events.jobs import (
    GangStopped,
    GpusReleased,
    JobCancelRequested,
    JobClaimed,
    JobDeclined,
    JobExtended,
    JobMatched,
    JobStarted,
    JobSubmitted,
    LeaseExpired,
)
from events.nodes import NodeOffered
from events.page import PAGE_BYTES_MAX, PAGE_EVENTS_MAX, Origin, Page, Record, make_page, page_hash
from events.reasons import Refusal
from events.wire import LiveEvent, LiveFrame, Outcome
from projections.arbiter import apply
from projections.market import Applied, Market
from services.matcher.consequences import consequences
from services.matcher.memory import Memory

MOVES_CARDS: tuple[type[Event], ...] = (JobMatched, GpusReleased, LeaseExpired, JobDeclined, JobCancelRequested, JobExtended, GangStopped)
"""Events after which the job's node may have more or fewer cards free, or be busy for longer."""


class Closed(NamedTuple):
    """A page, and what to tell whom once it is durable."""

    page: Page
    hash: bytes
    frames: list[tuple[str, LiveFrame]]
    """(wallet, frame)."""


class _Feed:
    """What one wallet is told of the page being written."""

    def __init__(self, prev: int) -> None:
        self.prev = prev
        self.events: list[LiveEvent] = []
        self.outcomes: dict[bytes, list[Outcome]] = {}


class Draft:
    """The turn's pages, one after another."""

    def __init__(self, market: Market, memory: Memory, now_ms: int) -> None:
        self.market = market
        self.memory = memory
        self.now_ms = now_ms
        self.closed: list[Closed] = []
        self._envelopes: list[tuple[str, bytes]] = []
        self._message: tuple[str, bytes] = ("", b"")
        self._message_number: int | None = None
        """Where the open message stands in the page, once one of its events does."""
        self._entries: list[bytes | Origin] = []
        self._hashes: list[bytes] = []
        self._bytes = 0
        self._first_seq = market.last_seq + 1
        self._feeds: dict[str, _Feed] = {}

    def decide(self, event: Event) -> Refusal | None:
        """Put down a decision of the market's own. A refusal means that it does not apply; the caller knows whether that is a fault."""
        body = encode_event(event)
        seq = self.market.last_seq + 1
        digest = event_hash(DECISION_KEY, seq, body)
        result = apply(self.market, Record(seq, self.now_ms, event, "", b"", 0, digest))
        if isinstance(result, Refusal):
            return result
        self._put(body, body, digest, event, result)
        return None

    def open_envelope(self, wallet: str, data: bytes) -> None:
        """The signed message whose events come next. It enters the page with its first event that is admitted, or not at all."""
        if self._bytes + len(data) > PAGE_BYTES_MAX or len(self._entries) >= PAGE_EVENTS_MAX:
            self.close()
        self._message, self._message_number = (wallet, data), None

    def admit(self, record: Record, body: bytes, index: int) -> Refusal | None:
        """Put down an event of the open message (its `index` there) at its place, unless it is void there."""
        event = record.event
        freed = self.market.leases.get(event.epoch) if type(event) is GpusReleased else None
        result = apply(self.market, record)
        if isinstance(result, Refusal):
            return result
        if self._message_number is None:
            self._message_number = len(self._envelopes)
            self._envelopes.append(self._message)
            self._bytes += len(self._message[1])
        self._put((self._message_number, index), body, record.hash, event, result, sender=record.sender)
        if freed is not None:
            self.memory.engine.touch_node(freed)
        return None

    def answer(self, wallet: str, key: bytes, outcome: Outcome) -> None:
        """Tell a sender how its message ended, with the page of this turn, or without one when nothing was written."""
        self._feed(wallet, None).outcomes.setdefault(key, []).append(outcome)

    def close(self) -> None:
        """End the page, if anything stands on it."""
        if not self._entries:
            return
        page = make_page(
            market_id=self.memory.market_id,
            first_seq=self._first_seq,
            prev_hash=self.market.page_hash,
            time_ms=self.now_ms,
            envelopes=tuple(self._envelopes),
            entries=tuple(self._entries),
            hashes=self._hashes,
            signing_key=self.memory.signing_key,
        )
        digest = page_hash(page)
        self.market.close_page(digest)
        self.closed.append(Closed(page, digest, self._frames(digest)))
        self._envelopes, self._entries, self._hashes, self._bytes = [], [], [], 0
        self._first_seq = self.market.last_seq + 1

    def loose_frames(self) -> list[tuple[str, LiveFrame]]:
        """Answers that no page carries: nothing of this turn was written after them."""
        return self._frames(self.market.page_hash)

    def follow(self, event: Event) -> None:
        """Put down what follows at once from an event that has just been put down, and what follows from that."""
        for decision in consequences(self.market, event, self.now_ms):
            if self.decide(decision) is None:
                self.follow(decision)

    def decide_all(self, decisions: list[Event]) -> None:
        """Put down decisions in order, each with its consequences; a long page ends in between."""
        for decision in decisions:
            if self.decide(decision) is None:
                self.follow(decision)
            self.break_page()

    def break_page(self) -> None:
        """Between two decisions: end a page that has grown long."""
        if len(self._entries) >= PAGE_EVENTS_MAX or self._bytes >= PAGE_BYTES_MAX:
            self.close()

    def _put(self, entry: bytes | Origin, body: bytes, digest: bytes, event: Event, applied: Applied, *, sender: str = "") -> None:
        seq = self.market.last_seq
        self._entries.append(entry)
        self._hashes.append(digest)
        self._bytes += len(body)
        raw = msgspec.Raw(body)
        plain = LiveEvent(seq, sender, raw)
        for wallet, prev in applied:
            told = plain
            if type(event) is JobMatched:
                told = self._with_order(event, seq, raw, wallet) or plain
            self._feed(wallet, prev).events.append(told)
        self._follow_up(event)

    def _with_order(self, event: JobMatched, seq: int, raw: msgspec.Raw, wallet: str) -> LiveEvent | None:
        """For the node's owner the match carries all that is needed to run the job."""
        job = self.market.jobs[event.job_id]
        if job.run is None or job.run.node_wallet != wallet:
            return None
        return LiveEvent(seq, "", raw, job.order, job.buyer)

    def _feed(self, wallet: str, prev: int | None) -> _Feed:
        feed = self._feeds.get(wallet)
        if feed is None:
            last = self.market.last_seq_of.get(wallet, 0) if prev is None else prev
            feed = self._feeds[wallet] = _Feed(last)
        elif prev is not None and not feed.events:
            feed.prev = prev
        return feed

    def _frames(self, digest: bytes) -> list[tuple[str, LiveFrame]]:
        last_seq, frames = self.market.last_seq, []
        for wallet, feed in self._feeds.items():
            events, prev = tuple(feed.events), feed.prev
            for key, outcomes in feed.outcomes.items() or ((b"", []),):
                frames.append((wallet, LiveFrame(digest, self.now_ms, last_seq, prev, events, key, tuple(outcomes))))
                if events:
                    prev, events = events[-1].seq, ()
        self._feeds = {}
        return frames

    def _follow_up(self, event: Event) -> None:
        """Keep index and deadlines in step with what was just folded."""
        market, engine = self.market, self.memory.engine
        job_id: str | None = getattr(event, "job_id", None)
        if job_id is not None:
            engine.touch_job(job_id)
            if type(event) in MOVES_CARDS:
                job = market.jobs.get(job_id)
                if job is not None and job.run is not None:
                    engine.touch_node(job.run.node_id)
        node_id: str | None = getattr(event, "node_id", None)
        if node_id is not None:
            engine.touch_node(node_id)
        org_id: str | None = getattr(event, "org_id", None)
        if org_id is not None and isinstance(event, MemberAdded | MemberRemoved):
            engine.touch_org(org_id)
        self._set_deadlines(event)

    def _set_deadlines(self, event: Event) -> None:
        memory, policy, now_ms = self.memory, self.market.policy, self.now_ms
        match event:
            case JobSubmitted(queue_timeout_s=int(wait_s)):
                memory.after(now_ms + wait_s * 1000, "queue", event.job_id, 0)
            case JobMatched():
                epoch = self.market.last_seq
                memory.renewed_ms[epoch] = now_ms
                memory.after(event.claim_by_ms, "claim", event.job_id, epoch)
                memory.after(now_ms + policy.lease_s * 1000, "lease", event.node_id, epoch)
            case JobClaimed():
                memory.renewed_ms[event.epoch] = now_ms
                memory.after(now_ms + policy.prepare_s * 1000, "prepare", event.job_id, event.epoch)
            case JobStarted() | JobExtended():
                job = self.market.jobs.get(event.job_id)
                if job is not None and job.run is not None and job.run.started_ms:
                    due_ms = job.run.started_ms + (job.timeout_s + policy.run_slack_s) * 1000
                    memory.after(due_ms, "run", event.job_id, job.run.epoch)
            case NodeOffered():
                memory.heard(event.node_id, now_ms, policy.suspect_s, policy.lease_s)
