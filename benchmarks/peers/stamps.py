"""The no-op job that every system runs, and how its end is known: each job makes one empty file, whose time the kernel sets.

Nothing has to be asked of a system to know when its queue is empty, so its own way of waiting costs it nothing. Standard library only.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

LOOK_S = 0.02
GIVE_UP_S = 600.0


class Stamps:
    """A folder in which each job of a drain leaves one file."""

    def __init__(self, folder: Path, count: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.count = count

    def argv(self, number: int) -> list[str]:
        """The command of a job."""
        return ["touch", str(self.folder / str(number))]

    def wait(self) -> float:
        """Return when all have run; the time of the last one, seconds since 1970."""
        give_up_s = time.monotonic() + GIVE_UP_S
        while len(os.listdir(self.folder)) < self.count:
            if time.monotonic() > give_up_s:
                raise SystemExit(f"only {len(os.listdir(self.folder))} of {self.count} jobs have run")
            time.sleep(LOOK_S)
        return max(entry.stat().st_mtime for entry in os.scandir(self.folder))


class Gate:
    """Keeps the slots of a system that cannot be paused: jobs that wait here, one to a slot, until they are let go together."""

    def __init__(self, folder: Path, slots: int) -> None:
        folder.mkdir(parents=True)
        self._fifo = folder / "gate"
        self._waiting = Stamps(folder / "waiting", slots)
        os.mkfifo(self._fifo)
        self._end = os.open(self._fifo, os.O_RDWR)

    def argv(self, number: int) -> list[str]:
        """The command of a job that waits."""
        return ["sh", "-c", f"{' '.join(self._waiting.argv(number))}; read line < {self._fifo}"]

    def wait(self) -> None:
        """Return when every slot is taken."""
        self._waiting.wait()

    def open(self) -> float:
        """Let all of them end; when that was, seconds since 1970."""
        began = time.time()
        os.write(self._end, b"\n" * self._waiting.count)
        return began


def resident_bytes(pid: int) -> int:
    """Memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024
