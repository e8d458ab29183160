"""Whether the disk under the market has room: a full one stops the ledger, and room alone does not start it again."""

from __future__ import annotations

import os
from pathlib import Path

FULL_BYTES = 4 << 20
"""With less the broker is about to fail, or has."""
ROOM_BYTES = 16 << 20


class Disk:
    """Watches the file system of one folder. `look` as often as you like; it costs a system call."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.is_full = False

    def look(self) -> str | None:
        """What to tell the operator when that has changed, else None."""
        room = os.statvfs(self._folder)
        free = room.f_bavail * room.f_frsize
        if not self.is_full and free < FULL_BYTES:
            self.is_full = True
            return f"the disk is full: nothing is accepted until there is room in {self._folder}; what was acknowledged is kept"
        if self.is_full and free >= ROOM_BYTES:
            self.is_full = False
            return "there is room on the disk again; starting the broker anew"
        return None
