"""The folders of a run on disk: made, emptied of results, and deleted again. Blocking code for a thread; no connection.

`job/` has the inputs, `out/` the results, `log/` the output. What a job left in `out/` is hostile: nothing is followed, only regular
files count, and what goes beyond the caps stays behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from events.files import DEPTH_MAX, FILES_MAX, LocalFile, ManifestEntry, blob_ref, encode_manifest, hash_file, path_problem
from events.values import BlobRef

LEAF_FOLDERS = ["job", "log", "out", "tmp"]
SPARES_MAX = 256
SESSION_FILE = "session.json"
"""Beside the folders of a run that is a session."""
SKIPPED = frozenset(
    {
        "bazaar.sock",
        ".cache",
        ".conda",
        ".config",
        ".ipynb_checkpoints",
        ".ipython",
        ".jupyter",
        ".local",
        ".npm",
        ".nv",
        ".triton",
        ".venv",
        "__pycache__",
        "node_modules",
    }
)
"""Names of what can be made again, wherever they lie."""


class Collected(NamedTuple):
    """The results of a run, in order of their paths."""

    files: list[LocalFile]
    total_bytes: int
    too_large: bool
    """Something was left behind because of a cap."""
    passed_over: int
    """Entries that are no regular files, cannot be read, or have names that cannot be passed on."""


class Walk:
    """One pass over a folder by descriptors, so that nothing can be exchanged for a link on the way."""

    def __init__(self, root: str, entries_max: int, skipped: frozenset[str] = frozenset()) -> None:
        self.root = root
        self.entries_max = entries_max
        self.skipped = skipped
        """Names that are not looked at, wherever they are."""
        self.entries = 0
        self.too_large = False
        self.passed_over = 0

    def run(self) -> None:
        """Look at everything there is. Raises OSError when the folder itself cannot be read, FileNotFoundError when there is none."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.folder(descriptor, "", 1)
        finally:
            os.close(descriptor)

    def folder(self, descriptor: int, prefix: str, depth: int) -> None:
        with os.scandir(descriptor) as entries:
            found = (entry.name for entry in entries if entry.name not in self.skipped)
            names = sorted(islice(found, self.entries_max - self.entries + 1))  # a job makes names by the million for nothing
        for name in names:
            self.entries += 1
            if self.entries > self.entries_max:
                self.too_large = True
                return
            self.entry(descriptor, name, prefix + name, depth)

    def entry(self, parent: int, name: str, path: str, depth: int) -> None:
        if path_problem(path) is not None:
            self.passed_over += 1
            return
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            self.passed_over += 1  # a link, a socket, something unreadable
            return
        try:
            kind = os.fstat(descriptor)
            if stat.S_ISREG(kind.st_mode):
                self.file(path, kind, descriptor)
            elif stat.S_ISDIR(kind.st_mode) and depth < DEPTH_MAX:
                self.folder(descriptor, path + "/", depth + 1)
            else:
                self.passed_over += 1
        finally:
            os.close(descriptor)

    def file(self, path: str, kind: os.stat_result, descriptor: int) -> None:
        """A regular file, open for reading."""
        raise NotImplementedError


class _Results(Walk):
    """What lies in `out/`, up to a cap."""

    def __init__(self, root: str, bytes_max: int) -> None:
        super().__init__(root, FILES_MAX)
        self.left = bytes_max
        self.files: list[LocalFile] = []

    def file(self, path: str, kind: os.stat_result, descriptor: int) -> None:
        if kind.st_size > self.left:
            self.too_large = True
            return
        self.left -= kind.st_size
        self.files.append(LocalFile(path, Path(f"{self.root}/{path}"), bool(kind.st_mode & 0o100), kind.st_size))


def collect(folder: str, bytes_max: int) -> Collected:
    """The results of the run in `folder`, at most `bytes_max` together. Raises OSError when `out/` cannot be read."""
    walk = _Results(f"{folder}/out", bytes_max)
    try:
        walk.run()
    except FileNotFoundError:
        return Collected([], 0, False, 0)
    return Collected(walk.files, bytes_max - walk.left, walk.too_large, walk.passed_over)


def manifest_of(files: list[LocalFile]) -> BlobRef:
    """What the manifest of these files will be once they are stored. Raises OSError."""
    entries = []
    for file in files:
        ref = hash_file(file.source)
        entries.append(ManifestEntry(file.path, ref.sha256, ref.size, file.executable))
    return blob_ref(encode_manifest(entries))


def has_results(folder: str) -> bool:
    """Whether there is anything in `out/`."""
    try:
        with os.scandir(f"{folder}/out") as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def make(folder: str) -> Path:
    """The run's folder with a place for inputs, for its owner only; that place. Raises OSError."""
    place = Path(folder, "job")
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


class Spares:
    """Emptied folders of earlier runs, used again: making and deleting five folders costs more than all else about a small job.

    Only what is empty, ours and closed to others is kept.
    """

    def __init__(self, root: Path) -> None:
        self._root = root / ".spare"
        self._uid = os.geteuid()
        self._kept: list[str] = []
        self._number = 0

    def clear(self) -> None:
        """What an earlier agent kept is not trusted."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def use(self, folder: str) -> None:
        """Give a new run a kept folder, if there is one."""
        if self._kept:
            try:
                os.rename(self._kept.pop(), folder)
            except OSError:
                self._kept.clear()

    def keep(self, folder: str) -> bool:
        """Keep the folder of a run that is over, if it is fit; else it is the caller's to delete."""
        if len(self._kept) >= SPARES_MAX:
            return False
        try:
            for name in ("stdout", "stderr"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{folder}/log/{name}")
            if sorted(os.listdir(folder)) != LEAF_FOLDERS or not all(self._is_fit(f"{folder}/{name}") for name in LEAF_FOLDERS):
                return False
            self._number += 1
            spare = f"{self._root}/{self._number}"
            os.rename(folder, spare)
        except OSError:
            return False
        self._kept.append(spare)
        return True

    def _is_fit(self, path: str) -> bool:
        found = os.lstat(path)
        return stat.S_ISDIR(found.st_mode) and found.st_mode & 0o777 == 0o700 and found.st_uid == self._uid and not os.listdir(path)


def delete(folder: str) -> bool:
    """Take the folder away; whether it is gone. A small one takes a few system calls, anything else the long way."""
    try:
        for name in ("stdout", "stderr"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{folder}/log/{name}")
        for name in LEAF_FOLDERS:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{folder}/{name}")
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        _delete_tree(folder)
    return not os.path.lexists(folder)


def _delete_tree(folder: str) -> None:
    """A job may have taken the rights away from its own folders: they are given back first. Links are not followed."""
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def strays(root: Path, known: set[str]) -> list[str]:
    """Folders of runs that nobody knows any more."""
    try:
        with os.scandir(root) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [entry.path for entry in folders if _is_run(entry.name) and entry.name not in known]


def _is_run(name: str) -> bool:
    return name.startswith("j") and name.count("-") == 2
