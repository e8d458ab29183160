"""Ships a run's output to the gateway as it grows: the log files are the spool, the gateway's answer says where to go on.

Nothing is lost while the gateway is away: the bytes stay in the files and shipping is taken up at the recorded offset. It knows neither
the ledger nor the runner.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable

import structlog

from events import wire
from events.errors import BazaarError, Refused
from seller_agent.attempts.attempt import Attempt

log = structlog.get_logger("seller.shipping")

FRAME_BYTES = 64 * 1024
FRAMES_IN_FLIGHT = 4
PAUSE_S = 0.25
PAUSE_MAX_S = 5.0
FRUITLESS_MAX = 3
REFUSED_MAX = 60
"""So many refusals in a row, with pauses, and the gateway means it."""
CHANNELS = (("stdout", 1), ("stderr", 2))

Send = Callable[[wire.OutputFrame], Awaitable[wire.OutputAnswer]]
"""Raises MarketUnreachable."""


class GatewayRefused(Exception):
    """The gateway answered no."""


class Spool:
    """The output of one run: two files that only grow, and how much of them is recorded."""

    def __init__(self, attempt: Attempt, log_folder: str, send: Send) -> None:
        self._attempt = attempt
        self._paths = [f"{log_folder}/{name}" for name, _ in CHANNELS]
        self._send = send
        self._recorded = list(attempt.shipped)
        self._pumping = asyncio.Lock()
        self.full = False
        """The quota is used up, or the gateway will not have it: the rest stays here."""

    def sizes(self) -> tuple[int, int]:
        """Bytes written so far; a file that is not there is empty."""
        return _size(self._paths[0]), _size(self._paths[1])

    @property
    def recorded(self) -> tuple[int, int]:
        """Bytes that the gateway has recorded."""
        return self._recorded[0], self._recorded[1]

    @property
    def is_behind(self) -> bool:
        """Whether there is something to ship."""
        if self.full:
            return False
        stdout, stderr = self.sizes()
        return stdout > self._recorded[0] or stderr > self._recorded[1]

    async def pump(self) -> None:
        """Ship everything that is there now. Raises MarketUnreachable, GatewayRefused."""
        async with self._pumping:
            fruitless = 0
            while self.is_behind:
                before = self.recorded
                await self._ship_window()
                fruitless = fruitless + 1 if before == self.recorded else 0
                if fruitless == FRUITLESS_MAX:
                    raise GatewayRefused("nothing is recorded")

    async def pump_until_done(self) -> None:
        """Ship everything, however long the gateway is away; the run has ended, so nothing more comes."""
        pause_s, refused = PAUSE_S, 0
        while True:
            try:
                return await self.pump()
            except (GatewayRefused, Refused) as error:
                refused += 1
                if refused >= REFUSED_MAX:
                    self.full = True
                    log.warning("the gateway does not take the output", job=self._attempt.job_id, why=str(error))
                    return
            except BazaarError as error:
                log.debug("the gateway is away", job=self._attempt.job_id, why=error.why)
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _ship_window(self) -> None:
        """A few frames in flight; where they were not recorded in order the next window begins where the gateway stands."""
        frames = await asyncio.to_thread(self._frames) if self._is_large() else self._frames()
        attempt, epoch = self._attempt.attempt, self._attempt.epoch
        asking = [self._send(wire.OutputFrame(attempt=attempt, epoch=epoch, chunks=tuple(chunks))) for chunks in frames]
        answers = await asyncio.gather(*asking, return_exceptions=True)
        told = [answer for answer in answers if isinstance(answer, wire.OutputAnswer) and answer.failure is None]
        if told:
            self._recorded = [max(answer.stdout_bytes for answer in told), max(answer.stderr_bytes for answer in told)]
            self._attempt.shipped = self.recorded
            self.full = self.full or any(answer.full for answer in told)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            if answer.failure is not None and not told:
                raise GatewayRefused(f"{answer.failure.code}: {answer.failure.detail}")

    def _is_large(self) -> bool:
        return sum(self.sizes()) - sum(self._recorded) > FRAME_BYTES

    def _frames(self) -> list[list[wire.OutputChunk]]:
        """The next bytes of both files, stdout first, in frames of at most FRAME_BYTES."""
        frames: list[list[wire.OutputChunk]] = [[]]
        room = FRAME_BYTES
        for (_, channel), path, recorded in zip(CHANNELS, self._paths, self._recorded, strict=True):
            offset = recorded
            if _size(path) <= recorded:
                continue
            for data in _read(path, recorded, FRAME_BYTES * FRAMES_IN_FLIGHT):
                while data:
                    piece, data = data[:room], data[room:]
                    frames[-1].append(wire.OutputChunk(channel, offset, piece))
                    offset += len(piece)
                    room -= len(piece)
                    if room == 0:
                        frames.append([])
                        room = FRAME_BYTES
        return [frame for frame in frames[:FRAMES_IN_FLIGHT] if frame]


def output_sha256(log_folder: str) -> str:
    """The hash over stdout, then stderr, as they lie there."""
    digest = hashlib.sha256()
    for name, _ in CHANNELS:
        path = f"{log_folder}/{name}"
        for data in _read(path, 0, _size(path)):
            digest.update(data)
    return digest.hexdigest()


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _read(path: str, offset: int, limit: int) -> list[bytes]:
    """Up to `limit` bytes from `offset` in pieces."""
    pieces: list[bytes] = []
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while limit > 0:
                data = file.read(min(limit, FRAME_BYTES))
                if not data:
                    break
                pieces.append(data)
                limit -= len(data)
    except OSError as error:
        log.warning("output cannot be read", path=path, why=str(error))
    return pieces
