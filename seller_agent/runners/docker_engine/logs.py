"""A container's output, copied from Docker's log into the run's two files, each byte exactly once.

The files' own lengths are the cursor: a reader that begins again at the log's first byte skips what the files already hold, so that
neither a killed agent, equal timestamps, partial lines nor a clock set back can lose or repeat anything. Only when Docker has
rotated the log's head away in between is the durable note beside the files needed (`Cursor`). It decides nothing about the job.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec

from seller_agent.runners.docker_engine.daemon.streams import CHUNK_BYTES
from seller_agent.runners.docker_engine.guard.files import read_json, write_json

HEADER_BYTES = 8
PIECE_BYTES = 1 << 14
"""Docker cuts longer lines into pieces of this length."""
TAIL_BYTES = 2 * CHUNK_BYTES
"""More than one reading brings, and so more than a killed reader can have announced and not written."""
STDOUT, STDERR = 1, 2
FILES = {STDOUT: "stdout", STDERR: "stderr"}
GAP = b"\n[gpubazaar] output is missing here: Docker rotated its log before it could be read\n"


def logs_target(container: str, *, follow: bool) -> str:
    """The request for the whole of a container's output, from its first byte."""
    return f"/containers/{container}/logs?stdout=1&stderr=1&timestamps=1&follow={int(follow)}"


class Cursor(msgspec.Struct, kw_only=True):
    """What to go by when the log's head is gone: written before the bytes that it speaks of."""

    first: str = ""
    """The log's first frame when it was last read: another one means that the head was rotated away."""
    base: dict[str, int] = {}
    """Where in each file the log's first byte belongs."""
    last: str = ""
    ordinal: int = 0
    """The last frame taken: its timestamp, and how many frames with it had been taken."""
    at: dict[str, int] = {}
    """Each file's length after that frame."""


class LogSink:
    """The two files of one run. One reader at a time; `begin` before each reading of the log from its start."""

    def __init__(self, log_folder: Path, cursor_path: Path, limit_bytes: int) -> None:
        self.over_limit = False
        self._limit = limit_bytes
        self._cursor_path = cursor_path
        self._files: dict[int, io.FileIO] = {number: open(log_folder / name, "ab", buffering=0) for number, name in FILES.items()}  # noqa: SIM115
        self.begin()

    def begin(self) -> None:
        """The log is about to be read from its first frame."""
        saved = read_json(self._cursor_path)
        self._cursor = msgspec.convert(saved, Cursor) if saved else Cursor()
        self._sizes = {number: os.fstat(file.fileno()).st_size for number, file in self._files.items()}
        self._total = sum(self._sizes.values())
        self._position: dict[int, int] = {STDOUT: 0, STDERR: 0}
        self._buffer = b""
        self._at_first = True
        self._searching: dict[int, tuple[int, bytes]] | None = None
        self._same_time = 0
        self._time = ""
        self._cut: dict[int, tuple[bool, bool]] = {}

    def feed(self, data: bytes) -> None:
        """Take bytes of Docker's multiplexed stream as they come. Raises OSError when the files cannot be written."""
        self._buffer += data
        pieces: dict[int, list[bytes]] = {STDOUT: [], STDERR: []}
        start, end = 0, len(self._buffer)
        while end - start >= HEADER_BYTES:
            length = int.from_bytes(self._buffer[start + 4 : start + 8], "big")
            stop = start + HEADER_BYTES + length
            if stop > end:
                break
            kind = self._buffer[start]
            stamp, _, content = self._buffer[start + HEADER_BYTES : stop].partition(b" ")
            if kind in FILES:
                self._frame(kind, stamp.decode("ascii", "replace"), content, pieces)
            start = stop
        self._buffer = self._buffer[start:]
        self._write(pieces)

    def _frame(self, kind: int, stamp: str, content: bytes, pieces: dict[int, list[bytes]]) -> None:
        if self._at_first:
            self._at_first = False
            self._place(f"{stamp} {kind} {len(content)}", stamp, pieces)
        self._same_time = self._same_time + 1 if stamp == self._time else 1
        self._time = stamp
        content = self._with_lost_line_end(kind, content)
        if self._searching is not None and self._still_searching(kind, stamp, content, pieces):
            return
        before = self._position[kind]
        self._position[kind] = before + len(content)
        self._append(kind, content[max(0, self._sizes[kind] - before) :], pieces)

    def _with_lost_line_end(self, kind: int, content: bytes) -> bytes:
        """Some engines leave away the line end behind the last piece of a line that they cut, the only short piece without one.
        Behind the very last line nothing tells whether there was one; then there is none."""
        after_full, after_last = self._cut.get(kind, (False, False))
        open_ended = not content.endswith(b"\n")
        is_full = open_ended and len(content) == PIECE_BYTES
        self._cut[kind] = (is_full, open_ended and not is_full and after_full)
        return b"\n" + content if after_last else content

    def _append(self, kind: int, new: bytes, pieces: dict[int, list[bytes]]) -> None:
        """Bytes that a file does not hold yet, as far as the limit lets them in."""
        room = max(0, self._limit - self._total)
        if len(new) > room:
            self.over_limit = True
            new = new[:room]
        if new:
            pieces[kind].append(new)
            self._sizes[kind] += len(new)
            self._total += len(new)

    def _place(self, first: str, stamp: str, pieces: dict[int, list[bytes]]) -> None:
        """At the log's first frame: say where in the files it belongs."""
        cursor = self._cursor
        if cursor.first in ("", first):
            self._position = {number: cursor.base.get(str(number), 0) for number in FILES}
        elif stamp > cursor.last:
            for number in FILES:
                self._position[number] = self._sizes[number] + len(GAP)
                pieces[number].append(GAP)
                self._sizes[number] += len(GAP)
            self._total += 2 * len(GAP)
        else:
            self._searching = {STDOUT: (0, b""), STDERR: (0, b"")}
        cursor.first = first
        cursor.base = {str(number): position for number, position in self._position.items()}

    def _still_searching(self, kind: int, stamp: str, content: bytes, pieces: dict[int, list[bytes]]) -> bool:
        """While the head is gone: pass over frames up to the last one taken. False from the first new frame on."""
        assert self._searching is not None
        cursor, beyond = self._cursor, stamp > self._cursor.last
        if not beyond:
            passed = self._searching[kind]
            self._searching[kind] = (passed[0] + len(content), (passed[1] + content)[-TAIL_BYTES:])
            if stamp != cursor.last or self._same_time < cursor.ordinal:
                return True
        for number, (length, tail) in self._searching.items():
            self._position[number] = cursor.at.get(str(number), 0)
            cursor.base[str(number)] = self._position[number] - length
            missing = self._position[number] - self._sizes[number]  # announced by the cursor, but its writer was killed
            if missing > 0:
                self._append(number, tail[-missing:], pieces)
        self._searching = None
        return not beyond

    def _write(self, pieces: dict[int, list[bytes]]) -> None:
        if not any(pieces.values()) or self._searching is not None:
            return
        self._cursor.last, self._cursor.ordinal = self._time, self._same_time
        self._cursor.at = {str(number): position for number, position in self._position.items()}
        write_json(self._cursor_path, msgspec.to_builtins(self._cursor))
        for number, parts in pieces.items():
            data = memoryview(b"".join(parts))
            while data:
                data = data[self._files[number].write(data) or 0 :]

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
