"""How long an event loop keeps everybody else waiting: the CPU time of each of its steps, whatever else the machine does meanwhile."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import time
from pathlib import Path
from typing import Any

BOUNDS_MS = (5, 10, 20, 50, 100)


class Stretches:
    """Every step of the running loop, timed. Told into a file at each SIGUSR1, and then begun anew."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._longest_ms, self._longest = 0.0, ""
        self._collecting_ms, self._collecting_since_s = 0.0, 0.0
        self._over = dict.fromkeys(BOUNDS_MS, 0)

    def install(self) -> None:
        """Time the steps of this process's loop from now on."""
        run = asyncio.Handle._run
        clock = time.thread_time

        def timed(handle: Any) -> None:
            began_s = clock()
            run(handle)
            took_ms = (clock() - began_s) * 1000
            if took_ms > BOUNDS_MS[0]:
                self._add(took_ms, handle)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        gc.callbacks.append(self._collects)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._tell)

    def _collects(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since_s = time.thread_time()
        else:
            self._collecting_ms = max(self._collecting_ms, (time.thread_time() - self._collecting_since_s) * 1000)

    def _add(self, took_ms: float, handle: Any) -> None:
        if took_ms > self._longest_ms:
            step = getattr(handle._callback, "__self__", handle._callback)
            self._longest_ms, self._longest = took_ms, step.get_name() if isinstance(step, asyncio.Task) else type(step).__name__
        for bound in BOUNDS_MS:
            self._over[bound] += took_ms > bound

    def _tell(self) -> None:
        told: dict[str, Any] = {"longest_ms": round(self._longest_ms, 1), "of": self._longest}
        told["collecting_ms"] = round(self._collecting_ms, 1)
        told |= {f"over_{bound}_ms": count for bound, count in self._over.items() if count}
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(told))
        part.rename(self._file)
        self._longest_ms, self._longest, self._collecting_ms = 0.0, "", 0.0
        self._over = dict.fromkeys(BOUNDS_MS, 0)
