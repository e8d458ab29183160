"""Files to and from a host by SFTP: our programs and the inputs of a run there, its results back.

What a job left is hostile: only regular files with names that can be passed on come back, nothing is followed, and what does not fit is
replaced by something that is visibly too large.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import Collection, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import asyncssh

from events.files import DEPTH_MAX, FILES_MAX, path_problem
from events.stepping import end_all
from seller_agent.runners.runner import RunnerError
from seller_agent.runners.ssh.connection import Access
from seller_agent.runners.ssh.errors import SshFailed

TOGETHER = 8
"""Files under way at once."""
ENTRIES_MAX = 10 * FILES_MAX
STALL_S = 60.0
"""A file of which nothing comes for so long is none."""
TOO_LARGE_BYTES = 1 << 42
"""So large is, on paper, a file that was left behind because of the cap: whoever collects the results sees why."""


@contextlib.contextmanager
def in_words(doing: str) -> Iterator[None]:
    """Errors of files as RunnerError."""
    try:
        yield
    except (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded) as error:
        raise RunnerError("disk_full", f"cannot {doing}: the host's disk is full: {error.reason}") from None
    except asyncssh.SFTPError as error:
        raise RunnerError("container_error", f"cannot {doing}: {error.reason}") from None
    except OSError as error:
        raise RunnerError("container_error", f"cannot {doing}: {error.strerror or error}") from None


async def upload_files(access: Access, folder: str, name: str, files: Mapping[str, bytes]) -> None:
    """Put files into `folder`/`name`, all of them or none. Raises SshFailed."""
    part = f"{folder}/.{name}.{secrets.token_hex(8)}"
    try:
        async with access.files() as client:
            for path in sorted({os.path.dirname(f"{part}/{name}") for name in files}):
                await client.makedirs(path, asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True)
            for path, data in files.items():
                async with client.open(f"{part}/{path}", "wb", asyncssh.SFTPAttrs(permissions=0o600)) as file:
                    await file.write(data)
            try:
                await client.rename(part, f"{folder}/{name}")
            except asyncssh.SFTPError:
                await client.rmtree(part, ignore_errors=True)
                if not await client.isdir(f"{folder}/{name}"):  # else another agent was faster
                    raise
    except asyncssh.SFTPError as error:
        raise SshFailed(f"Our programs cannot be put on {access.entry.name}.", why=f"{folder}: {error.reason}.") from None


async def upload_tree(access: Access, local: Path, remote: str, done: set[str]) -> None:
    """Every regular file below `local`, with its right to be run. `done`: what has arrived; filled here, so that a second try goes on.
    Raises SshFailed, asyncssh's errors of files and OSError for `in_words`."""
    folders, files = [remote], []
    for parent, names, found in os.walk(local):
        below = os.path.relpath(parent, local)
        place = remote if below == "." else f"{remote}/{below}"
        folders += [f"{place}/{name}" for name in names]
        files += [(Path(parent, name), f"{place}/{name}") for name in found]
    async with access.files() as client:
        for folder in folders:
            await client.makedirs(folder, asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True)
        slots = asyncio.Semaphore(TOGETHER)

        async def put(source: Path, target: str) -> None:
            async with slots:
                kind = await asyncio.to_thread(os.lstat, source)
                if target not in done and stat.S_ISREG(kind.st_mode):
                    await client.put(str(source), target, preserve=True)  # times too: what a session did not change is not its work
                    await client.chmod(target, 0o700 if kind.st_mode & 0o100 else 0o600)
                    done.add(target)

        await all_or_none(*(put(source, target) for source, target in files))


async def all_or_none(*works: Coroutine[Any, Any, None]) -> None:
    """Wait for all; the first that fails ends the others, and its error is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end_all(tasks)


class Wanted(NamedTuple):
    """A result to fetch."""

    path: str
    size: int
    executable: bool
    mtime_s: int


async def fetch_tree(access: Access, remote: str, local: Path, bytes_max: int, done: set[str]) -> None:
    """The regular files below `remote` in `local`, at most `bytes_max` together, in the order in which results are counted.
    `done` as in `upload_tree`. Raises the same."""
    async with access.files() as client:
        found = await listing(client, remote)
        left = bytes_max
        slots = asyncio.Semaphore(TOGETHER)

        async def get(wanted: Wanted, fits: bool) -> None:
            target = local / wanted.path
            async with slots:
                if wanted.path in done:
                    return
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if await fetch_file(client, f"{remote}/{wanted.path}", target, wanted, fits=fits):
                    os.chmod(target, 0o700 if wanted.executable else 0o600)
                done.add(wanted.path)

        works = []
        for wanted in found:
            fits = wanted.size <= left
            left -= wanted.size if fits else 0
            works.append(get(wanted, fits))
        await all_or_none(*works)


async def fetch_file(client: asyncssh.SFTPClient, remote: str, target: Path, wanted: Wanted, *, fits: bool) -> bool:
    """One file, or what stands for one that does not fit; False when it is left out: the host does not give it out, as when its job
    forbade that, or has put something else in its place since it was listed. Raises asyncssh's errors of a lost connection, OSError,
    and TimeoutError when nothing comes, as from a pipe: then nothing more comes over this client."""
    if not fits:
        return _stand_in(target)
    loop, is_whole = asyncio.get_running_loop(), False
    try:
        async with asyncio.timeout(STALL_S) as patience:

            def moved(source: bytes, to: bytes, copied: int, size: int) -> None:
                if size > wanted.size:
                    raise asyncssh.SFTPFailure("the file has grown since it was listed")
                patience.reschedule(loop.time() + STALL_S)

            await client.get(remote, str(target), progress_handler=moved)
        is_whole = stat.S_ISREG(target.lstat().st_mode)
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection):
        is_whole = True  # what is here of it by now: the next try goes over it
        raise
    except asyncssh.SFTPError:
        pass
    finally:
        if not is_whole:
            target.unlink(missing_ok=True)
    return is_whole


def _stand_in(target: Path) -> bool:
    """A file of holes that is too large for any limit; False where the file system has none so large."""
    try:
        with open(target, "wb") as file:
            file.truncate(TOO_LARGE_BYTES)
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True


async def listing(client: asyncssh.SFTPClient, root: str, skipped: Collection[str] = ()) -> list[Wanted]:
    """The regular files below `root` in order of their paths, as results are counted; nothing with a name of `skipped` in its path."""
    look = _Listing(client, skipped)
    await look.folder(root, "")
    return look.found


class _Listing:
    """One look at a tree that a job left: names are bytes until they are known to be fit, and there may be millions."""

    def __init__(self, client: asyncssh.SFTPClient, skipped: Collection[str]) -> None:
        self._client = client
        self._skipped = skipped
        self._entries = 0
        self.found: list[Wanted] = []

    async def folder(self, root: str, prefix: str) -> None:
        entries = []
        try:
            async for entry in self._client.scandir(os.fsencode(f"{root}/{prefix}".rstrip("/"))):
                self._entries += 1
                if self._entries > ENTRIES_MAX:
                    break
                entries.append(entry)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPPermissionDenied):
            return
        for entry in sorted(entries, key=lambda entry: bytes(entry.filename)):  # type: ignore[arg-type]
            await self._entry(root, prefix, entry)

    async def _entry(self, root: str, prefix: str, entry: asyncssh.SFTPName) -> None:
        name = bytes(entry.filename).decode(errors="replace")  # type: ignore[arg-type]
        path = prefix + name
        if name in ("", ".", "..") or name in self._skipped or "\ufffd" in name or path_problem(path) is not None:
            return
        if entry.attrs.type == asyncssh.FILEXFER_TYPE_DIRECTORY and path.count("/") < DEPTH_MAX - 1:
            await self.folder(root, path + "/")
        elif entry.attrs.type == asyncssh.FILEXFER_TYPE_REGULAR and len(self.found) < FILES_MAX:
            executable = bool((entry.attrs.permissions or 0) & 0o100)
            self.found.append(Wanted(path, entry.attrs.size or 0, executable, entry.attrs.mtime or 0))
