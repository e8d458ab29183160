"""Looks after the sessions of a node while they run: tells when one may be connected to, how long it has run, saves its work now and then,
and notices whether anybody still uses it.

One task for each session, gone with its run. Nothing here ends a run but one that nobody could connect to in time; the work of the end is
saved by `saving`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog

from events.codec import HOSTILE_DECODE_ERRORS
from events.errors import BazaarError
from events.files import put_files
from events.jobs import AttemptEvent, SessionReady, UsageRecorded
from events.market import Policy
from seller_agent.attempts.attempt import Attempt, Run, Stop
from seller_agent.attempts.endings import plain
from seller_agent.attempts.link import Market
from seller_agent.runners.runner import Runner, RunnerError, Stream
from seller_agent.sessions import work as session_work
from seller_agent.sessions.session import Access, is_session, no_notebook_there, read_access

log = structlog.get_logger("seller.sessions")

SAVE_EVERY_VARIABLE = "BAZAAR_SAVE_EVERY_S"
ANSWER_BYTES_MAX = 1 << 20
ANSWER_S = 10.0
PUT_TRIES = 3
TAIL_BYTES = 4096
TAIL_LINES = 3


class Times(NamedTuple):
    """How often what is done."""

    usage_s: float = 60.0
    """What a lost session is billed by is told so often."""
    save_s: float = 300.0
    ready_s: float = 300.0
    """So long a session may take until it answers."""
    look_s: float = 0.25
    """Between two questions whether it answers."""
    activity_s: float = 15.0

    @classmethod
    def from_environment(cls) -> Times:
        """As the owner wants them."""
        given = os.environ.get(SAVE_EVERY_VARIABLE, "")
        return cls(save_s=max(1.0, float(given))) if given.replace(".", "", 1).isdigit() else cls()


class Around(Protocol):
    """What of the agent a session's keeper needs."""

    phases: dict[int, str]
    """What is going on, in words for the buyer."""

    def tell(self, attempt: Attempt, *events: AttemptEvent, wait_s: float = 0.0) -> None:
        """Publish events."""

    def advance(self, attempt: Attempt) -> None:
        """Do what is due now."""

    def folder_of(self, attempt: Attempt) -> str:
        """Where the files of the run lie."""

    def policy_now(self) -> Policy:
        """The market's rules as last heard."""


class Sessions:
    """The sessions of a node."""

    def __init__(self, around: Around, runner: Runner, market: Market, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self.times = Times.from_environment()
        self._around = around
        self._runner = runner
        self._market = market
        self._spawn = spawn
        self._kept: dict[int, Keeper] = {}

    def watch(self, attempt: Attempt) -> None:
        """From now on, and until it has ended, the session is looked after; a batch job is not."""
        if is_session(attempt.order) and attempt.epoch not in self._kept:
            keeper = self._kept[attempt.epoch] = Keeper(attempt, self._around, self._runner, self._market, self.times)
            self._spawn(self._keep(keeper))

    def active_ms(self, epoch: int) -> int:
        """Run time at which somebody last did something in a session; -1 where nothing is known of that."""
        keeper = self._kept.get(epoch)
        return -1 if keeper is None else keeper.active_ms

    def ended(self, attempt: Attempt) -> None:
        """Its program has ended by itself, or was ended; before anybody could connect, its last words say why."""
        if is_session(attempt.order) and not attempt.ready_told and attempt.stop is None and not attempt.detail:
            missing = no_notebook_there(attempt.order, attempt.status.error if attempt.status is not None else None)
            said = missing or f"it said: {tail(self._around.folder_of(attempt))}"
            attempt.detail = plain(f"it ended before anybody could connect; {said}")

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        finally:
            self._kept.pop(keeper.epoch, None)


class Keeper:
    """Looks after one session."""

    def __init__(self, attempt: Attempt, around: Around, runner: Runner, market: Market, times: Times) -> None:
        self.active_ms = -1
        self._attempt = attempt
        self._around = around
        self._runner = runner
        self._market = market
        self._times = times
        self._folder = around.folder_of(attempt)
        ran_ms = attempt.status.ran_ms if attempt.status is not None else None
        self._begun_ms = _boot_ms() - (ran_ms or 0)
        self._saved: tuple[session_work.Found, ...] | None = None

    @property
    def epoch(self) -> int:
        """Which attempt."""
        return self._attempt.epoch

    @property
    def ran_ms(self) -> int:
        """How long it has run."""
        return max(0, _boot_ms() - self._begun_ms)

    async def run(self) -> None:
        """Until it has ended."""
        access = await asyncio.to_thread(read_access, self._folder)
        if not self._attempt.ready_told:
            self._around.phases[self.epoch] = "waiting until it answers"
            try:
                if not await self._ready(access):
                    return
            finally:
                self._around.phases.pop(self.epoch, None)
        await asyncio.gather(self._tell_usage(), self._save_now_and_then(), self._notice_activity(access))

    def _runs(self) -> bool:
        return self._attempt.run is Run.RUNNING and self._attempt.stop is None

    async def _sleep(self, seconds: float) -> bool:
        """Whether it still runs after that time; returns early when it does not."""
        until = time.monotonic() + seconds
        while self._runs() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))
        return self._runs()

    # ---- ready

    async def _ready(self, access: Access | None) -> bool:
        until = time.monotonic() + self._times.ready_s
        while self._runs():
            if access is None or not access.has_pages or await self._answers(access):
                break
            if time.monotonic() > until:
                await self._give_up()
                return False
            await asyncio.sleep(self._times.look_s)
        if not self._runs():
            return False
        self._attempt.ready_told = True
        self._around.tell(self._attempt, SessionReady(**_key(self._attempt)))
        self._around.advance(self._attempt)
        return True

    async def _answers(self, access: Access) -> bool:
        try:
            return (await self._ask(access, "api"))[0] == 200
        except (OSError, RunnerError, TimeoutError, ValueError):
            return False

    async def _give_up(self) -> None:
        attempt = self._attempt
        said = await asyncio.to_thread(tail, self._folder)
        attempt.detail = plain(f"nobody could connect after {self._times.ready_s:.0f} s; it said: {said}")
        attempt.stop = Stop.UNREADY
        log.warning("a session does not answer", job=attempt.job_id, said=said)
        self._around.advance(attempt)

    async def _ask(self, access: Access, what: str) -> tuple[int, bytes]:
        """One question to its server. Raises OSError, RunnerError, TimeoutError, ValueError."""
        async with asyncio.timeout(ANSWER_S):
            stream = await self._runner.dial(self._attempt.key, access.place)
            try:
                return await _get(stream, access.path + what, access.token)
            finally:
                await stream.close()

    # ---- usage and work

    async def _tell_usage(self) -> None:
        while await self._sleep(self._times.usage_s):
            self._around.tell(self._attempt, UsageRecorded(**_key(self._attempt), ran_ms=self.ran_ms))

    async def _save_now_and_then(self) -> None:
        while await self._sleep(self._times.save_s):
            await self.save()

    async def save(self) -> None:
        """Store the work as it is now, and tell where; nothing when it is what was stored last. What fails is tried the next time."""
        place = f"{self._folder}/snapshot"
        for _ in range(PUT_TRIES):
            try:
                work = await asyncio.to_thread(session_work.look, self._folder, self._around.policy_now().results_bytes_max)
                if work.files == self._saved or not work.files:
                    return
                files = await asyncio.to_thread(session_work.stage, self._folder, work, place)
                manifest, size = await put_files(self._market.ask_files, files, job_id=self._attempt.job_id)
            except (BazaarError, OSError) as error:
                log.info("the work of a session was not saved", job=self._attempt.job_id, why=str(error))
                continue
            finally:
                await asyncio.to_thread(session_work.unstage, place)
            self._saved = work.files
            if self._runs():
                told = UsageRecorded(**_key(self._attempt), ran_ms=self.ran_ms, results=manifest, results_bytes=size)
                self._around.tell(self._attempt, told)
            return

    # ---- activity

    async def _notice_activity(self, access: Access | None) -> None:
        """Only of a session that is ended when it is idle."""
        idle_s = self._attempt.order.idle_timeout_s
        if access is None or not access.has_pages or idle_s is None:
            return
        self.active_ms = self.ran_ms
        looks: tuple[Callable[[], Awaitable[int]], ...] = (
            lambda: self._idle_kernels_ms(access),
            lambda: asyncio.to_thread(self._idle_files_ms),
        )
        while await self._sleep(min(self._times.activity_s, idle_s / 8)):
            for look in looks:
                try:
                    self.active_ms = max(self.active_ms, self.ran_ms - await look())
                except (OSError, RunnerError, TimeoutError, ValueError):
                    continue  # no Jupyter, or one that does not answer now: nothing is known

    async def _idle_kernels_ms(self, access: Access) -> int:
        """For how long nobody has computed in a Jupyter: 0 while a kernel does. What the server itself calls activity is of no use: a page
        that is open asks it for news all the time."""
        status, body = await self._ask(access, "api/kernels?no_track_activity=1")
        if status != 200:
            raise ValueError(f"status {status}")
        return idle_ms(body, time.time_ns() // 1_000_000)

    def _idle_files_ms(self) -> int:
        """For how long no file of the work was written: an open notebook is saved now and then while somebody types."""
        return max(0, time.time_ns() - session_work.newest_ns(self._folder)) // 1_000_000


class _Kernel(msgspec.Struct):
    """What is read of one."""

    last_activity: datetime
    execution_state: str = ""


_kernels = msgspec.json.Decoder(list[_Kernel])


def idle_ms(body: bytes, now_ms: int) -> int:
    """For how long nobody has computed, by a Jupyter's list of kernels, which its job may have made up. Raises ValueError."""
    try:
        kernels = _kernels.decode(body)
        if any(kernel.execution_state == "busy" for kernel in kernels):
            return 0
        return max(0, now_ms - int(max(kernel.last_activity for kernel in kernels).timestamp() * 1000))
    except (*HOSTILE_DECODE_ERRORS, TypeError):
        raise ValueError("that is no list of kernels") from None


async def _get(stream: Stream, path: str, token: str) -> tuple[int, bytes]:
    """Status and body of one answer. Raises OSError, ValueError."""
    head = f"GET {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: token {token}\r\nConnection: close\r\n\r\n"
    await stream.write(head.encode())
    answer = b""
    while len(answer) < ANSWER_BYTES_MAX and (data := await stream.read(65536)):
        answer += data
    top, _, body = answer.partition(b"\r\n\r\n")
    words = top.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("that was no HTTP")
    return int(words[1]), body


def tail(folder: str) -> str:
    """The last lines that the run wrote to stderr, or else to stdout, as one."""
    for name in ("stderr", "stdout"):
        try:
            with open(f"{folder}/log/{name}", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        except OSError:
            continue
        if lines:
            return " / ".join(lines[-TAIL_LINES:])
    return "nothing"


def _key(attempt: Attempt) -> dict[str, Any]:
    return {"job_id": attempt.job_id, "attempt": attempt.attempt, "epoch": attempt.epoch}


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
