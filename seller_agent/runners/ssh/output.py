"""The output of a host's runs, fetched as it grows into the same files here: one channel, taken up at the byte after any loss.

The files here are the only record of how far it is. It knows nothing of what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path

import msgspec
import structlog

from events.stepping import end_all
from seller_agent.runners.ssh.connection import Channel
from seller_agent.runners.ssh.errors import SshFailed
from seller_agent.runners.ssh.host import Host

log = structlog.get_logger("seller.ssh")

READ_BYTES = 1 << 18
LINE_MAX_BYTES = 1 << 16
FILES = ("stdout", "stderr")
PAUSE_S, PAUSE_MAX_S = 0.25, 5.0


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the far side; `size` bytes follow it."""

    name: str
    channel: int = 0
    offset: int = 0
    size: int = 0
    cut: int | None = None
    """The file was cut there to so many bytes."""
    last: tuple[int, int] | None = None
    """All has been sent: so large are the files."""
    results: bool = True
    """There is something among the run's results."""


class Broken(Exception):
    """What came cannot be; begin anew."""


class Output:
    """Everything that is fetched from one host."""

    def __init__(self, host: Host, local: Path, remote: str) -> None:
        """`local` and `remote` are the folders of runs, here and there."""
        self._host = host
        self._local = local
        self._remote = remote
        self._followed: dict[str, asyncio.Future[bool] | None] = {}
        """Runs, and for those that have exited whom to tell when all is here."""
        self._channel: Channel | None = None
        self._told: set[str] = set()
        """Runs that the far side of the present channel knows."""
        self._task: asyncio.Task[None] | None = None
        self._decoder = msgspec.json.Decoder(Frame)

    def follow(self, name: str) -> None:
        """From now on the run's output comes."""
        if name not in self._followed:
            self._followed[name] = None
            self._ask(name)
        self._begin()

    async def finish(self, name: str) -> bool:
        """Return once the output of an exited run is here, however long the host is away; whether the run left results."""
        done = self._followed.get(name) or asyncio.get_running_loop().create_future()
        self._followed[name] = done
        self._ask(name)
        self._begin()
        return await asyncio.shield(done)

    def drop(self, name: str) -> None:
        """Let go of a run."""
        if name in self._followed:
            del self._followed[name]
            self._told.discard(name)
            self._post({"name": name, "drop": True})

    async def close(self) -> None:
        if self._task is not None:
            await end_all((self._task,))
            self._task = None

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _ask(self, name: str) -> None:
        log_folder = self._local / name / "log"
        log_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked: dict[str, object] = {"name": name, "last": self._followed[name] is not None}
        if name not in self._told:
            asked["offsets"] = [_size(log_folder / file) for file in FILES]
        if self._channel is not None:
            self._told.add(name)
            self._post(asked)

    def _post(self, message: object) -> None:
        if self._channel is not None:
            self._channel.post(msgspec.json.encode(message) + b"\n")

    async def _run(self) -> None:
        """Connect, fetch, and again."""
        pause_s = PAUSE_S
        while True:
            try:
                if not self._host.work:
                    await self._host.greet()
                channel = await self._host.open("follow", self._remote)
            except SshFailed as error:
                log.debug("output waits", host=self._host.name, why=error.why)
            else:
                self._channel = channel
                self._told.clear()
                try:
                    for name in list(self._followed):
                        self._ask(name)
                    if await self._fetch(channel):
                        pause_s = PAUSE_S
                except (Broken, OSError, msgspec.DecodeError, ValueError) as error:  # what is no frame either way
                    log.warning("output could not be taken", host=self._host.name, why=str(error))
                finally:
                    self._channel = None
                    await channel.close()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _fetch(self, channel: Channel) -> bool:
        """Until the channel ends; whether anything came. Raises Broken, OSError, DecodeError."""
        waiting, came = b"", False
        while data := await channel.read(READ_BYTES):
            came = True
            waiting = self._take_all(waiting + data)
        return came

    def _take_all(self, data: bytes) -> bytes:
        """Every whole frame; what is left of the last."""
        while True:
            line, newline, rest = data.partition(b"\n")
            if not newline:
                if len(data) > LINE_MAX_BYTES:
                    raise Broken("a line that does not end came")
                return data
            frame = self._decoder.decode(line)
            if len(rest) < frame.size:
                return data
            self._take(frame, rest[: frame.size])
            data = rest[frame.size :]

    def _take(self, frame: Frame, data: bytes) -> None:
        if frame.name not in self._followed or frame.channel not in (0, 1):
            return
        folder = self._local / frame.name / "log"
        path = folder / FILES[frame.channel]
        if frame.last is not None:
            for name, size in zip(FILES, frame.last, strict=True):
                _end_at(folder / name, size)
            done = self._followed.pop(frame.name)
            self._told.discard(frame.name)
            if done is not None and not done.done():
                done.set_result(frame.results)
        elif frame.cut is not None:
            _end_at(path, frame.cut)
        else:
            with open(path, "ab") as file:
                have = file.tell()
                if frame.offset > have:
                    raise Broken(f"{frame.name}: byte {have} should have come, {frame.offset} came")
                file.write(data[have - frame.offset :])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _end_at(path: Path, size: int) -> None:
    """Both files exist afterwards, as a runner promises. Raises Broken when bytes are missing."""
    with contextlib.closing(open(path, "ab")) as file:
        have = file.tell()
        if have > size:
            os.truncate(path, size)
        elif have < size:
            raise Broken(f"{path.name} ends at {size}, but only {have} bytes came")
