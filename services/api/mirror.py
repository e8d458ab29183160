"""The market as the API has folded it, with everything that answers are made of: indexes, heartbeats, recent events, rows not yet on disk.

Changed in one place only, `fold`, between two awaits, so whoever reads without awaiting reads one moment of the market. Does no I/O.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import msgspec

from events.identity import MemberAdded, MemberRemoved
from events.jobs import JobMatched
from events.log import StoredPage
from events.market import PolicyChanged
from events.nodes import NodeLost, NodeOffered, NodeRepriced, NodeWithdrawn
from events.page import Record
from events.wire import BeatView
from projections.job_states import QUEUED, TERMINAL
from projections.jobs import Job
from projections.market import FINISHED_KEPT, Market
from projections.nodes import Node, NodeState
from services.api.candles import Candle, Candles, Key
from services.api.event_feed import EventFeed, Owner
from services.api.market_views import Waits, remembered
from services.api.read_model import FinishedJob, Progress
from services.api.rights import RightsEvent, RightsLog
from services.api.sorted_nodes import SortedNodes
from services.api.standing import Standing
from services.api.tallies import Tallies
from services.api.telemetry import Telemetry
from services.api.views import JobView, job_view
from services.api.wait_words import WaitWords
from services.follower import Follower
from services.matcher.verdicts import OfferKeys

ENDED_LATELY = 1000
ROWS_KEPT = 5000
PLACE = b'"queue_position":null'
"""Stands in the JSON of a job once: what anybody wrote is in quotes, which JSON escapes inside of text."""
_encoder = msgspec.json.Encoder()


class Batch(NamedTuple):
    """What goes to disk in one transaction."""

    jobs: list[FinishedJob]
    places: list[tuple[str, int]]
    progress: Progress
    candles: list[tuple[Key, Candle]]


class Mirror:
    """The folded market. `on_disk_pages`: up to which page the read model's rows are there already."""

    def __init__(self, follower: Follower, *, log_created: str, on_disk_pages: int, now_ms: int, standing: Standing | None = None) -> None:
        self.follower = follower
        self.telemetry = Telemetry(now_ms)
        self.standing = Standing(follower.market) if standing is None else standing
        self.hour = remembered(follower.market.jobs)
        self.feed = EventFeed(follower.market.last_seq)
        self.rights = RightsLog()
        self.offer_keys = OfferKeys()
        self.candles = Candles()
        self.waits = Waits()
        self.tallies = Tallies(follower.market, self.telemetry)
        self.words = WaitWords(follower.market, self.tallies, self.offer_keys)
        self._rows: dict[str, tuple[bytes, bytes]] = {}
        self._by_name: SortedNodes[str] | None = None
        self._by_price: SortedNodes[int] | None = None
        self.version = 0
        """Counts the changes of anything that an answer may be made of."""
        self._log_created = log_created
        self._on_disk_pages = on_disk_pages
        self._jobs: dict[str, FinishedJob] = {}
        self._places: list[tuple[str, int]] = []
        self._recent: dict[str, FinishedJob] = {}
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def market(self) -> Market:
        """As far as it is folded."""
        return self.follower.market

    # --- changing ---

    def fold(self, stored: StoredPage) -> None:
        """The next page of the ledger. Raises LogCorrupt."""
        page, folded = self.follower.fold(stored)
        touched: dict[str, None] = {}
        for record, _ in folded:
            job_id: str | None = getattr(record.event, "job_id", None)
            if job_id is not None:
                touched[job_id] = None
            self._note(record, job_id, is_on_disk=stored.position <= self._on_disk_pages)
        for job_id in touched:
            self._touch(job_id, page.first_seq)
            self.tallies.touch(job_id)
            if stored.position > self._on_disk_pages:
                self._places.append((job_id, stored.position))
        self.version += 1
        self._wake()

    def _note(self, record: Record, job_id: str | None, *, is_on_disk: bool) -> None:
        event, job = record.event, None if job_id is None else self.market.jobs.get(job_id)
        self.feed.add(record, None if job is None else owner_of(job))
        self.tallies.folded(record)
        if isinstance(event, JobMatched) and job is not None:
            self.hour.matched(record.time_ms, record.time_ms - job.submitted_ms)
            self.waits.matched(record.time_ms - job.submitted_ms)
            if not is_on_disk:
                self.candles.matched(event, self.market, record.time_ms)
        elif isinstance(event, PolicyChanged):
            self.standing.reorder()
            self.tallies.count_anew()
        elif isinstance(event, NodeWithdrawn | NodeLost):
            self.telemetry.forget(event.node_id)
        elif isinstance(event, NodeOffered | NodeRepriced):
            self._put_in_order(self.market.nodes[event.node_id])
        elif isinstance(event, RightsEvent):
            self.rights.note(record)
            if isinstance(event, MemberAdded | MemberRemoved):
                self._rows.clear()  # they hold members' names

    def _touch(self, job_id: str, first_seq: int) -> None:
        job = self.market.jobs.get(job_id)
        self.standing.touch(job_id, job)
        self._rows.pop(job_id, None)
        self.words.forget(job_id)
        if job is None or job.state not in TERMINAL or job.updated_seq < first_seq:
            return
        self.hour.ended(job.ended_ms)
        row = finished_row(job, self.market)
        if self.market.pages > self._on_disk_pages:
            self._jobs[job_id] = row
        self._recent[job_id] = row
        if len(self._recent) > FINISHED_KEPT:
            del self._recent[next(iter(self._recent))]

    def heard(self, view: BeatView, now_ms: int) -> None:
        """A node's heartbeat, passed on by the matcher."""
        node = self.market.nodes.get(view.beat.node_id)
        if node is None or node.wallet != view.wallet or node.presence is not NodeState.OFFERED:
            return
        self.telemetry.note(view, now_ms)
        self.tallies.heard(node.node_id)
        self.version += 1

    def remember_ended(self) -> None:
        """Of a market that nobody writes to disk: keep the rows of what ended last, which the disk may not have yet."""
        for job_id in islice(reversed(self.market.finished), ENDED_LATELY):
            self._jobs[job_id] = finished_row(self.market.jobs[job_id], self.market)

    # --- waiting ---

    async def reached(self, seq: int, timeout_s: float) -> bool:
        """Whether the event with this sequence is folded, after waiting for it for so long."""
        if self.market.last_seq >= seq:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (seq, waiter)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
        return self.market.last_seq >= seq

    def _wake(self) -> None:
        last_seq = self.market.last_seq
        if self._waiters:
            for seq, waiter in self._waiters:
                if seq <= last_seq and not waiter.done():
                    waiter.set_result(None)
            self._waiters = [entry for entry in self._waiters if entry[0] > last_seq]
        self.feed.wake()

    # --- reading ---

    def view_of(self, job: Job) -> JobView:
        """The JSON of a job that has not ended, now."""
        lease = None if job.run is None else self.telemetry.lease(job.run.epoch)
        position = self.standing.queue.position(job.submitted.job_id)
        return job_view(job, self.market, lease=lease, queue_position=position)

    def row_of(self, job: Job) -> bytes:
        """The same as bytes; of a queued job, in which only its place changes without an event of its own, kept."""
        if job.state is not QUEUED:
            return _encoder.encode(self.view_of(job))
        job_id = job.submitted.job_id
        kept = self._rows.get(job_id)
        if kept is None:
            head, tail = _encoder.encode(job_view(job, self.market)).split(PLACE, 1)
            kept = (head + PLACE[:-4], tail)
            if len(self._rows) >= ROWS_KEPT:
                self._rows.clear()
            self._rows[job_id] = kept
        position = self.standing.queue.position(job_id)
        return b"%s%s%s" % (kept[0], b"null" if position is None else b"%d" % position, kept[1])

    def cheapest_first(self, after: tuple[int, str] | None) -> Iterator[Node]:
        """Nodes, whatever their state, by price and id, behind a place."""
        if self._by_price is None:
            self._by_price = SortedNodes((node.price_uusd_per_gpu_hour, node.node_id) for node in self.market.nodes.values())
        return (self.market.nodes[name] for name in self._by_price.after(after))

    def by_name(self) -> Iterator[Node]:
        """Nodes, whatever their state, by name and id."""
        if self._by_name is None:
            self._by_name = SortedNodes((node.offer.name, node.node_id) for node in self.market.nodes.values())
        return (self.market.nodes[name] for name in self._by_name.after())

    def _put_in_order(self, node: Node) -> None:
        if self._by_price is not None:
            self._by_price.put(node.node_id, node.price_uusd_per_gpu_hour)
        if self._by_name is not None:
            self._by_name.put(node.node_id, node.offer.name)

    def finished(self, job_id: str) -> FinishedJob | None:
        """A job that has ended lately or is not on disk yet."""
        return self._recent.get(job_id) or self._jobs.get(job_id)

    def unwritten(self) -> Iterable[FinishedJob]:
        """Jobs that have ended and are not on disk yet."""
        return self._jobs.values()

    def unwritten_places(self, job_id: str) -> list[int]:
        """Pages that speak of a job and are not listed on disk yet."""
        return [page for name, page in self._places if name == job_id]

    # --- to disk ---

    @property
    def unwritten_rows(self) -> int:
        return len(self._jobs) + len(self._places)

    def batch(self) -> Batch | None:
        """What the disk does not know yet; None when nothing."""
        market = self.market
        if market.pages <= self._on_disk_pages:
            return None
        progress = Progress(self._log_created, market.pages, market.last_seq, market.page_hash)
        return Batch(list(self._jobs.values()), list(self._places), progress, self.candles.leave(market.pages))

    def written(self, batch: Batch) -> None:
        """The batch is on disk."""
        for row in batch.jobs:
            if self._jobs.get(row.job_id) is row:
                del self._jobs[row.job_id]
        del self._places[: len(batch.places)]
        self.candles.left()
        self._on_disk_pages = batch.progress.pages


def owner_of(job: Job) -> Owner:
    """Who may see what is said of a job."""
    return Owner(job.buyer, job.submitted.org_id)


def finished_row(job: Job, market: Market) -> FinishedJob:
    """A job that has just ended, as it will be kept."""
    view = job_view(job, market)
    return FinishedJob(
        submitted_seq=job.submitted_seq,
        job_id=view.id,
        ended_seq=job.updated_seq,
        submitted_ms=job.submitted_ms,
        state=view.state,
        buyer=job.buyer,
        node=view.node,
        org=view.org,
        group=view.group,
        labels=tuple(f"{key}={value}" for key, value in view.labels.items()),
        body=_encoder.encode(view),
    )
