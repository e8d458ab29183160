"""Puts a job's output together from two sources, the live feed and the record, so that no byte is lost or shown twice. Pure.

Both sources name the place of every piece in its channel; what leaves here is contiguous in each channel.
"""

from __future__ import annotations

from typing import NamedTuple

STDOUT, STDERR = 1, 2
HELD_BYTES_MAX = 8 << 20
"""Pieces beyond a gap that are kept; above that they are read from the record again."""


class Piece(NamedTuple):
    """Bytes to show now."""

    channel: int
    data: bytes


class OutputMerge:
    """One attempt's output so far."""

    def __init__(self) -> None:
        self._shown = {STDOUT: 0, STDERR: 0}
        self._held: dict[int, dict[int, bytes]] = {STDOUT: {}, STDERR: {}}
        self._held_bytes = 0

    def shown(self, channel: int) -> int:
        """Bytes of a channel that have left."""
        return self._shown[channel]

    @property
    def has_gap(self) -> bool:
        """Whether a piece waits for an earlier one: then the record must be asked."""
        return any(self._held.values())

    def add(self, channel: int, offset: int, data: bytes) -> list[Piece]:
        """Take in a piece; what can be shown because of it comes back."""
        if channel not in self._shown:
            return []
        at = self._shown[channel]
        if offset > at:
            self._hold(channel, offset, data)
            return []
        fresh = data[at - offset :]
        if not fresh:
            return []
        self._shown[channel] += len(fresh)
        return [Piece(channel, fresh), *self._release(channel)]

    def _hold(self, channel: int, offset: int, data: bytes) -> None:
        known = self._held[channel].get(offset, b"")
        if len(data) > len(known) and self._held_bytes + len(data) - len(known) <= HELD_BYTES_MAX:
            self._held[channel][offset] = data
            self._held_bytes += len(data) - len(known)

    def _release(self, channel: int) -> list[Piece]:
        pieces = []
        held = self._held[channel]
        for offset in sorted(held):
            at = self._shown[channel]
            if offset > at:
                break
            data = held.pop(offset)
            self._held_bytes -= len(data)
            if offset + len(data) > at:
                fresh = data[at - offset :]
                self._shown[channel] += len(fresh)
                pieces.append(Piece(channel, fresh))
        return pieces
