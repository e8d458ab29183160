"""The matcher's snapshot on its disk: when a new one is due, and writing it. A shortcut for the next start, never a truth.

Shell. Whether the market may be written down at all is known to whoever appends its pages.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from projections import snapshot
from projections.market import Market

EVERY_S = 60.0
EVENTS_MIN = 50_000
"""So many events are folded again faster than anybody minds."""
BUSY_EVERY_S = 4.0


class SavedState:
    """`file` is None where no snapshot is kept."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._seq = 0
        self._at_s = time.monotonic()

    def restored(self, last_seq: int) -> None:
        """A start has read what lies there: it ends with this event (0: it was of no use)."""
        self._seq = last_seq
        self._at_s = time.monotonic()  # what came after it is written down a little later: everybody waits for the first turn

    def is_due(self, market: Market) -> bool:
        """Once a minute; and sooner when as much has happened as there is to write, so that no start has to fold much."""
        since_s, grown = time.monotonic() - self._at_s, market.last_seq - self._seq
        if since_s > EVERY_S:
            return grown > 0
        return since_s > BUSY_EVERY_S and grown >= max(EVENTS_MIN, len(market.jobs))

    def save(self, market: Market, log_created: str) -> None:
        """Replace the snapshot."""
        if self.file is None:
            return
        temporary = self.file.with_suffix(".new")
        temporary.write_bytes(snapshot.take(market, log_created))
        os.replace(temporary, self.file)
        self._seq, self._at_s = market.last_seq, time.monotonic()
