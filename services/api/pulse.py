"""What beats for all streams at once: when there is more to send, and the bytes of it, made once for all readers who may see the same.

Rings at most ten times a second, so that a busy market costs a reader no more than ten frames. Readings of nodes go out four times a second
at most, the latest of each node, so many nodes in a frame; what a slow reader missed of them it never gets.
"""

from __future__ import annotations

import asyncio

import msgspec

from events.wire import BeatView
from services.api.access import Viewer
from services.api.event_feed import Entry
from services.api.history import json_for
from services.api.mirror import Mirror
from services.api.views import known

COALESCE_S = 0.1
TELEMETRY_S = 0.25
TELEMETRY_NODES_MAX = 200
EVENTS_PER_CHUNK = 500
IDLE_S = 60.0


class CardReading(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The last readings of a card, named as in a node's `cards`."""

    uuid: str
    healthy: bool
    gpu_percent: int | None
    memory_used_mib: int
    temperature_c: int | None
    power_w: int | None


class NodeReading(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node's last heartbeat."""

    id: str
    heard_ms: int
    cards: list[CardReading]


class TelemetryFrame(msgspec.Struct, frozen=True, kw_only=True):
    """The data of an SSE event `telemetry`."""

    nodes: list[NodeReading]


def reading(view: BeatView, heard_ms: int) -> NodeReading:
    """What of a heartbeat is everybody's business."""
    cards = [
        CardReading(
            uuid=card.uuid,
            healthy=card.healthy,
            gpu_percent=known(card.gpu_percent),
            memory_used_mib=card.memory_used_mib,
            temperature_c=known(card.temperature_c),
            power_w=known(card.power_w),
        )
        for card in view.beat.cards
    ]
    return NodeReading(id=view.beat.node_id, heard_ms=heard_ms, cards=cards)


def framed(entries: list[Entry], viewer: Viewer) -> bytes:
    """Events as they travel."""
    return b"".join(b"id: %d\ndata: %s\n\n" % (entry.record.seq, json_for(entry, viewer)) for entry in entries)


class Pulse:
    """The clock of the open streams over one mirror; runs while there are any."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.telemetry = b""
        """The last frame of readings,"""
        self.telemetry_number = 0
        """and how many there were."""
        self.rings = 0
        self._frames: dict[tuple[Viewer, int], tuple[bytes, int]] = {}
        self._frames_seq = 0
        self._bells: list[asyncio.Future[None]] = []
        self._readers = 0
        self._telemetry_readers = 0
        self._telemetry_at_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def enter(self, *, telemetry: bool) -> None:
        """One more stream."""
        self._readers += 1
        self._telemetry_readers += telemetry
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="pulse")
        elif telemetry:
            self.mirror.feed.wake()  # it sleeps as long as only events matter

    def leave(self, *, telemetry: bool) -> None:
        """One less."""
        self._readers -= 1
        self._telemetry_readers -= telemetry
        if self._readers == 0 and self._task is not None:
            self._task.cancel()
            self._task = None

    async def after(self, rings: int, most_ms: int | None = None) -> None:
        """Return at the next ring, at once when there was one since so many; after this time in any case."""
        if self.rings != rings:
            return
        loop = asyncio.get_running_loop()
        bell: asyncio.Future[None] = loop.create_future()
        self._bells.append(bell)
        is_soon = most_ms is not None and most_ms < IDLE_S * 1000  # it rings as often as that by itself
        timer = loop.call_later(most_ms / 1000, _let_go, bell) if is_soon and most_ms is not None else None
        try:
            await bell
        finally:
            if timer is not None:
                timer.cancel()

    def ring(self) -> None:
        """Let all streams look."""
        bells, self._bells = self._bells, []
        self.rings += 1
        for bell in bells:
            _let_go(bell)

    def frame(self, after_seq: int, viewer: Viewer) -> tuple[bytes, int] | None:
        """The next events after this place and where they end, the same bytes for all who stand there; None when memory lacks some."""
        feed = self.mirror.feed
        if after_seq < feed.complete_after:
            return None
        if self._frames_seq != self.mirror.market.last_seq:
            self._frames.clear()
            self._frames_seq = self.mirror.market.last_seq
        found = self._frames.get((viewer, after_seq))
        if found is None:
            entries = feed.after(after_seq, EVENTS_PER_CHUNK)
            found = (framed(entries, viewer), entries[-1].record.seq) if entries else (b"", after_seq)
            self._frames[viewer, after_seq] = found
        return found

    async def _run(self) -> None:
        loop, feed = asyncio.get_running_loop(), self.mirror.feed
        rung_seq = self.mirror.market.last_seq
        while True:
            if self.mirror.market.last_seq == rung_seq:
                await feed.more(TELEMETRY_S if self._telemetry_readers else IDLE_S)
            rung_seq = self.mirror.market.last_seq
            if self._telemetry_readers and loop.time() >= self._telemetry_at_s:
                self._telemetry_at_s = loop.time() + TELEMETRY_S
                self._read()
            self.ring()
            await asyncio.sleep(COALESCE_S)

    def _read(self) -> None:
        heard = self.mirror.telemetry.take_fresh(TELEMETRY_NODES_MAX)
        if heard:
            frame = TelemetryFrame(nodes=[reading(view, heard_ms) for heard_ms, view in heard])
            self.telemetry = b"event: telemetry\ndata: %s\n\n" % msgspec.json.encode(frame)
            self.telemetry_number += 1


def _let_go(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)
