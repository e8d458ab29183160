"""The work of a session: what lies in its folder and in `out/`, chosen, and made safe to read while its programs go on writing.

Blocking code for a thread; no connection. Caches and inputs that nobody changed are left out, and of too much the newest is kept. What runs
is hostile: for a snapshot every file is opened through descriptors and then linked or copied to where the job cannot reach, so that
nothing of the seller's can be put in its place between the look and the reading.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from events.files import FILES_MAX, MANIFEST_BYTES_MAX, LocalFile
from seller_agent.runners.workspace import SKIPPED, Collected, Walk

ENTRIES_MAX = 10 * FILES_MAX
GLANCE_MAX = 2000
ENTRY_BYTES = 90
"""What a file costs in a manifest besides its path."""
FRESH_S = 30
"""Written so lately, a file is thought to be written still."""
FRESH_BYTES_MAX = 64 << 20
"""Files larger than this that are being written are left to the next snapshot."""
COPY_BYTES = 1 << 20
INPUTS_FILE = "inputs.json"


class Found(NamedTuple):
    """One file of the work."""

    root: str
    """`job` or `out`."""
    path: str
    size: int
    mtime_ns: int
    inode: int
    executable: bool


class Work(NamedTuple):
    """What is kept of a session."""

    files: tuple[Found, ...]
    left_out: int
    """Files beyond the caps."""
    passed_over: int
    """Entries that are no regular files, cannot be read, or have names that cannot be passed on."""

    @property
    def total_bytes(self) -> int:
        """All files together."""
        return sum(file.size for file in self.files)

    @property
    def words(self) -> str:
        """What its buyer should know; mostly nothing."""
        told = []
        if self.left_out:
            told.append(f"the work is larger than what is kept: the newest {len(self.files)} files were saved, {self.left_out} left out")
        if self.passed_over:
            told.append(f"{self.passed_over} entries are no regular files and were left out")
        return "; ".join(told)


class _Look(Walk):
    def __init__(self, folder: str, root: str) -> None:
        super().__init__(f"{folder}/{root}", ENTRIES_MAX, SKIPPED)
        self.part = root
        self.found: list[Found] = []

    def file(self, path: str, kind: os.stat_result, descriptor: int) -> None:
        self.found.append(Found(self.part, path, kind.st_size, kind.st_mtime_ns, kind.st_ino, bool(kind.st_mode & 0o100)))


class _Stage(Walk):
    """Puts the chosen files where their job cannot reach them."""

    def __init__(self, folder: str, root: str, chosen: Iterable[Found], place: str) -> None:
        super().__init__(f"{folder}/{root}", ENTRIES_MAX, SKIPPED)
        self.wanted = {file.path for file in chosen if file.root == root}
        self.part = root
        self.place = place
        self.files: list[LocalFile] = []
        self.fresh_from_ns = time.time_ns() - FRESH_S * 10**9

    def file(self, path: str, kind: os.stat_result, descriptor: int) -> None:
        if path not in self.wanted:
            return
        staged = f"{self.place}/{self.part}-{len(self.files)}"
        fresh = kind.st_mtime_ns >= self.fresh_from_ns
        if fresh and kind.st_size > FRESH_BYTES_MAX:
            return
        if fresh or not self._linked(path, kind, staged):
            if kind.st_size > FRESH_BYTES_MAX:
                return
            _copy(descriptor, staged, kind.st_size)
        self.files.append(LocalFile(path, Path(staged), bool(kind.st_mode & 0o100), kind.st_size))

    def _linked(self, path: str, kind: os.stat_result, staged: str) -> bool:
        """Another name for the very file that was opened; whatever its path may mean by now."""
        try:
            os.link(f"{self.root}/{path}", staged, follow_symlinks=False)
        except OSError:
            return False
        there = os.lstat(staged)
        if (there.st_dev, there.st_ino) == (kind.st_dev, kind.st_ino):
            return True
        os.unlink(staged)
        return False


def _copy(descriptor: int, target: str, size: int) -> None:
    """At most so many bytes: its writer may make the file larger faster than it is read."""
    with open(descriptor, "rb", closefd=False) as source, open(target, "wb") as copy:
        while size and (data := source.read(min(size, COPY_BYTES))):
            size -= copy.write(data)


def look(folder: str, bytes_max: int) -> Work:
    """The work as it lies there now. Raises OSError."""
    found: list[Found] = []
    passed_over = 0
    for root in ("out", "job"):
        walk = _Look(folder, root)
        with contextlib.suppress(FileNotFoundError):
            walk.run()
        found += walk.found
        passed_over += walk.passed_over
    return choose(found, read_inputs(folder), bytes_max, passed_over)


def newest_ns(folder: str) -> int:
    """When a file of the work was written last, as far as a short look tells. Raises OSError, ValueError when there is none."""
    walk = _Look(folder, "job")
    walk.entries_max = GLANCE_MAX
    walk.run()
    return max(file.mtime_ns for file in walk.found)


def choose(found: Iterable[Found], inputs: dict[str, tuple[int, int]], bytes_max: int, passed_over: int) -> Work:
    """Of all that was found, what is kept: no unchanged input, `out/` before the folder where both have a name, the newest first."""
    everything = list(found)
    results = {file.path for file in everything if file.root == "out"}
    folders = {parent for path in results for parent in _parents(path)}
    mine = []
    for file in everything:
        if file.root == "job":
            if inputs.get(file.path) == (file.size, file.mtime_ns):
                continue
            if file.path in results or file.path in folders or not results.isdisjoint(_parents(file.path)):
                passed_over += 1
                continue
        mine.append(file)
    kept: list[Found] = []
    left, names_left = bytes_max, MANIFEST_BYTES_MAX - 16
    for file in sorted(mine, key=lambda file: (-file.mtime_ns, file.path)):
        cost = len(file.path.encode()) + ENTRY_BYTES
        if file.size <= left and cost <= names_left and len(kept) < FILES_MAX:
            kept.append(file)
            left -= file.size
            names_left -= cost
    return Work(tuple(sorted(kept)), len(mine) - len(kept), passed_over)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def collected(folder: str, bytes_max: int) -> tuple[Collected, str]:
    """The work of a session that has ended, and what there is to say about it. Raises OSError."""
    work = look(folder, bytes_max)
    files = [LocalFile(file.path, Path(f"{folder}/{file.root}/{file.path}"), file.executable, file.size) for file in work.files]
    return Collected(files, work.total_bytes, False, work.passed_over), work.words


def stage(folder: str, work: Work, place: str) -> list[LocalFile]:
    """The files of the work as they are at this moment, under names of their own in the empty folder `place`. Raises OSError."""
    unstage(place)
    os.mkdir(place, 0o700)
    files: list[LocalFile] = []
    for root in ("out", "job"):
        walk = _Stage(folder, root, work.files, place)
        with contextlib.suppress(FileNotFoundError):
            walk.run()
        files += walk.files
    return files


def unstage(place: str) -> None:
    """Let go of what was staged."""
    shutil.rmtree(place, ignore_errors=True)


def note_inputs(folder: str, paths: Iterable[str]) -> None:
    """Remember the inputs as they were brought, so that unchanged ones are not taken for work. Raises OSError."""
    known = {}
    for path in paths:
        state = os.lstat(f"{folder}/job/{path}")
        known[path] = (state.st_size, state.st_mtime_ns)
    Path(folder, INPUTS_FILE).write_text(json.dumps(known))


def read_inputs(folder: str) -> dict[str, tuple[int, int]]:
    """What `note_inputs` wrote; empty when there were none."""
    try:
        known = json.loads(Path(folder, INPUTS_FILE).read_bytes())
        return {path: (size, mtime_ns) for path, (size, mtime_ns) in known.items()}
    except (OSError, ValueError):
        return {}
