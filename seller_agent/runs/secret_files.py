"""The secrets of a run on this machine: fetched sealed to this node's session key, kept in files in memory as long as the run lasts.

They lie under /dev/shm, in a folder that only this user may enter, with a link from `folder/secrets`; where that cannot be had, in
`folder/secrets` itself. They are gone before anything of the run is collected, and so are those of runs that nobody knows any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from events import sealing
from events.codec import Malformed
from events.errors import BazaarError, MarketUnreachable
from events.reasons import Refusal
from events.wire import FilesRequest
from seller_agent.attempts.attempt import Attempt
from seller_agent.attempts.link import Market

LINK = "secrets"
REGISTRY_AUTH = "REGISTRY_AUTH"
"""The secret with which the image is pulled; no job sees it."""
FETCH_MAX_S = 120.0
RETRY_S = 0.5
PASSING = frozenset({Refusal.UNKNOWN_KEY, Refusal.RATE_LIMITED})
"""A gateway that has not folded our newest key yet says these."""
PASSING_TRIES = 6


class SecretMissing(BazaarError):
    """A secret of the job could not be had or opened; `why` holds nothing of it."""

    what = "A secret of the job could not be opened."


class SecretFiles:
    """The secrets of all runs below one folder."""

    def __init__(self, runs: Path, memory: Path = Path("/dev/shm")) -> None:
        self._runs = str(runs)
        self._user_folder = memory / f"gpubazaar-{os.geteuid()}"
        self._folder = self._user_folder / hashlib.sha256(os.path.realpath(runs).encode()).hexdigest()[:16]

    async def fetch(self, market: Market, attempt: Attempt) -> tuple[str, str] | None:
        """What the job is promised, in files. The login for its image's registry is answered instead: the job needs it no more.

        Raises SecretMissing, OSError.
        """
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash from here on leaves no image of this memory
        values: dict[str, bytes] = {}
        try:
            async with asyncio.timeout(FETCH_MAX_S):
                for number, name in enumerate(attempt.order.program.secret_names):
                    values[name] = await _fetch(market, attempt, number, name)
        except TimeoutError:
            raise SecretMissing(why="The market's file gateway did not answer in time.") from None
        login = _login(values.pop(REGISTRY_AUTH)) if REGISTRY_AUTH in values else None
        await asyncio.to_thread(self.keep, attempt.key.name, values)
        return login

    def keep(self, name: str, values: Mapping[str, bytes]) -> None:
        """Write the secrets of the run of this name, each readable for this user only. Raises OSError."""
        self.remove(name)
        link = Path(self._runs, name, LINK)
        link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = self._in_memory(name)
        if place is None:
            place = link
            place.mkdir(mode=0o700)
        else:
            link.symlink_to(place, target_is_directory=True)
        for secret, value in values.items():
            descriptor = os.open(place / secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(value)

    def _in_memory(self, name: str) -> Path | None:
        """A fresh folder in memory, None where there is none that only we may enter."""
        place = self._folder / name
        for _ in range(2):  # the run before may just have taken the empty folder away
            with contextlib.suppress(OSError):
                for folder in (self._user_folder, self._folder):
                    folder.mkdir(mode=0o700, exist_ok=True)
                    found = folder.lstat()
                    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                        return None
                place.mkdir(mode=0o700)
                return place
        return None

    def remove(self, name: str) -> None:
        """Take them away; nothing when there are none."""
        shutil.rmtree(self._folder / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # others are in it
            self._folder.rmdir()
        link = Path(self._runs, name, LINK)
        if link.is_symlink():
            link.unlink(missing_ok=True)
        else:
            shutil.rmtree(link, ignore_errors=True)

    def remove_strays(self, known: set[str]) -> None:
        """Take away those of runs that nobody knows any more."""
        try:
            found = [entry.name for entry in os.scandir(self._folder)]
        except OSError:
            return
        for name in found:
            if name not in known:
                self.remove(name)


def _login(value: bytes) -> tuple[str, str]:
    """User and password of `user:password`. Raises SecretMissing."""
    user, colon, password = value.decode(errors="replace").rstrip("\r\n").partition(":")
    if not user or not colon:
        raise SecretMissing(why=f"{REGISTRY_AUTH} must be user:password, for the registry of the job's image.")
    return user, password


async def _fetch(market: Market, attempt: Attempt, number: int, name: str) -> bytes:
    """One secret. Raises SecretMissing."""
    tries = 0
    while True:
        session = market.session
        request = FilesRequest(op="secrets", job_id=attempt.job_id, attempt=attempt.attempt, key=session.key, cursor=number)
        try:
            answer = await market.ask_files(request)
        except MarketUnreachable:
            await asyncio.sleep(RETRY_S)
            continue
        if answer.failure is None:
            break
        tries += 1
        if answer.failure.code not in PASSING or tries >= PASSING_TRIES:
            raise SecretMissing(why=f"The market does not give it out: {answer.failure.detail or answer.failure.code}")
        await asyncio.sleep(RETRY_S)
    try:
        opened = sealing.unseal(answer.data, session.signing_key, job_id=attempt.job_id, buyer=attempt.buyer)
        return opened.only(name).values[name]
    except Malformed as error:
        raise SecretMissing(why=str(error)) from None
