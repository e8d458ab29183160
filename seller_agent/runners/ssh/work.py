"""The work of sessions on a host, mirrored into their folders here, so that it can be saved now and then and at the end as any other's.

Only what changed is fetched, by size and time of writing; a file that was written in the very last seconds is fetched again the next time,
because its time does not tell it from the one before. Caches are left there.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import structlog

from events.stepping import end_all
from seller_agent.runners.runner import RunnerError
from seller_agent.runners.ssh.errors import SshFailed
from seller_agent.runners.ssh.files import TOGETHER, TOO_LARGE_BYTES, Wanted, all_or_none, fetch_file, in_words, listing
from seller_agent.runners.ssh.host import Host
from seller_agent.runners.workspace import SESSION_FILE, SKIPPED

log = structlog.get_logger("seller.ssh")

EVERY_S = 60.0
SETTLED_S = 3
PARTS = ("job", "out")
SCRATCH = "fetching"


class Works:
    """The sessions of one host. `local` and `remote` are the folders of runs, here and there."""

    def __init__(self, host: Host, local: Path, remote: str, *, bytes_max: int, every_s: float = EVERY_S) -> None:
        self._host = host
        self._local = local
        self._remote = remote
        self._bytes_max = bytes_max
        self._every_s = every_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._unsettled: dict[str, set[str]] = {}

    def is_session(self, name: str) -> bool:
        """By what the agent keeps beside a session's files."""
        return (self._local / name / SESSION_FILE).exists()

    def follow(self, name: str) -> None:
        """From now on, and until it is fetched for good, the work comes every minute."""
        if name not in self._tasks:
            self._tasks[name] = asyncio.get_running_loop().create_task(self._now_and_then(name))

    async def fetch(self, name: str) -> None:
        """The work as it is now. Raises SshFailed, RunnerError."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            with in_words("fetch the work of a session from the host"):
                for part in PARTS:
                    await self._mirror(name, part)

    def drop(self, name: str) -> None:
        """Nothing more is fetched."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
        self._unsettled.pop(name, None)
        self._locks.pop(name, None)

    async def close(self) -> None:
        await end_all(self._tasks.values())

    async def _now_and_then(self, name: str) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.fetch(name)
            except (SshFailed, RunnerError) as error:
                log.info("the work of a session was not fetched", host=self._host.name, run=name, why=str(error))

    async def _mirror(self, name: str, part: str) -> None:
        local, scratch, remote = self._local / name / part, self._local / name / SCRATCH, f"{self._remote}/{name}/{part}"
        now_s = await self._host.unix_s()
        unsettled = self._unsettled.setdefault(name, set())
        async with self._host.access.files() as client:
            if not await client.isdir(remote):
                return  # nothing is known of it there: what is here stays
            found = await listing(client, remote, SKIPPED)
            await asyncio.to_thread(_forget_others, local, {wanted.path for wanted in found})
            left, slots, works = self._bytes_max, asyncio.Semaphore(TOGETHER), []
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(mode=0o700)

            async def get(number: int, wanted: Wanted, fits: bool) -> None:
                async with slots:
                    fetched = scratch / str(number)
                    if await fetch_file(client, f"{remote}/{wanted.path}", fetched, wanted, fits=fits):
                        _put(fetched, local / wanted.path, wanted)

            for number, wanted in enumerate(sorted(found, key=lambda wanted: -wanted.mtime_s)):  # of too much the newest is kept
                fits = wanted.size <= left
                left -= wanted.size if fits else 0
                key = f"{part}/{wanted.path}"
                if key in unsettled or not _is_same(local / wanted.path, wanted, fits):
                    works.append(get(number, wanted, fits))
                unsettled.discard(key)
                if wanted.mtime_s >= now_s - SETTLED_S:
                    unsettled.add(key)
            await all_or_none(*works)
        shutil.rmtree(scratch, ignore_errors=True)


def _is_same(path: Path, wanted: Wanted, fits: bool) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_size, int(found.st_mtime)) == (wanted.size if fits else TOO_LARGE_BYTES, wanted.mtime_s)


def _put(fetched: Path, target: Path, wanted: Wanted) -> None:
    """Into its place in one step: whoever reads the old file goes on reading it."""
    os.chmod(fetched, 0o700 if wanted.executable else 0o600)
    os.utime(fetched, (wanted.mtime_s, wanted.mtime_s))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.replace(fetched, target)


def _forget_others(root: Path, known: set[str]) -> None:
    """What is not there any more goes here too; a file makes room for a folder of its name, and the other way round."""
    for parent, folders, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(parent, name)
            if str(path.relative_to(root)) not in known:
                path.unlink()
        for name in folders:
            path = Path(parent, name)
            if path.is_symlink():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()
