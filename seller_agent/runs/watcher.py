"""Looks at every run every few seconds: what it uses, what its cards do, and by the rules of `watching` whether it is warned or ended.

Also tells the runner when a run may take longer. Keeps the last look for the heartbeat; what was used so far stands in the attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

import structlog

from events.reasons import Reason
from events.values import JobKind
from events.wire import BeatCard
from projections.run_limits import time_limit
from seller_agent.attempts.attempt import Attempt, Run, Stop
from seller_agent.attempts.decisions import run_time_s
from seller_agent.attempts.journal import Journal
from seller_agent.runners.runner import RunCard, Runner, RunnerError, RunUse
from seller_agent.runs import watching
from seller_agent.runs.watching import Limits, Sample, Watch

log = structlog.get_logger("seller.watcher")

PERIOD_S = 5.0
PERIOD_MIN_S = 0.5
"""A run with short limits is looked at more often, or its warning would come with its end."""
KEEP_EVERY = 12
"""Looks between two entries of the usage in the journal: what a crash of the agent forgets is a minute of it."""
RETRY_S = 2.0
STOPS = {Reason.IDLE: Stop.IDLE, Reason.LOW_UTILISATION: Stop.LOW_USE, Reason.GPU_MEMORY_EXCEEDED: Stop.GPU_MEMORY}


class Look(NamedTuple):
    """A run as last looked at, for the heartbeat; -1: unknown."""

    ran_ms: int = 0
    gpu_percent: int = -1
    memory_mib: int = 0
    gpu_memory_mib: int = -1
    warning: str = ""


class Readings(Protocol):
    """Whoever reads the cards."""

    def readings(self) -> tuple[BeatCard, ...]:
        """As last read."""

    def show_simulated(self, doing: Mapping[str, tuple[int, int]]) -> None:
        """What cards that do not exist are to be shown doing (percent, MiB); those not named: nothing."""


class Sessions(Protocol):
    """Whoever knows when somebody last used a session."""

    def active_ms(self, epoch: int) -> int:
        """Run time of that; -1 where nothing is known."""


class Around(Protocol):
    """What of the agent the watcher needs."""

    attempts: dict[int, Attempt]
    cards: dict[str, RunCard]

    @property
    def sessions(self) -> Sessions:
        """See there."""

    def advance(self, attempt: Attempt) -> None:
        """Do what is due now."""


class _Seen:
    """What the watcher keeps of one run."""

    def __init__(self, attempt: Attempt, now_ms: int) -> None:
        ran_ms = attempt.status.ran_ms if attempt.status is not None else None
        self.begun_ms = now_ms - (ran_ms or 0)
        self.watch: Watch = watching.begin(attempt.usage)
        self.look = Look()
        self.cpu: tuple[int, int] | None = None
        """Run time and processor time at the look before."""

    @property
    def ran_ms(self) -> int:
        """How long it has run."""
        return _boot_ms() - self.begun_ms


class Watcher:
    """The runs of one node. `output_bytes`: how much a run has written; `spawn`: how the agent starts a task."""

    def __init__(
        self,
        around: Around,
        runner: Runner,
        journal: Journal,
        *,
        output_bytes: Callable[[Attempt], int],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._around = around
        self._runner = runner
        self._journal = journal
        self._output_bytes = output_bytes
        self._spawn = spawn
        self._seen: dict[int, _Seen] = {}
        self.on_warning: Callable[[], None] = lambda: None
        """A run is warned now that was not before."""
        self._period_s = PERIOD_S
        self._sooner = asyncio.Event()
        self._extending = asyncio.Lock()

    def watch(self, attempt: Attempt) -> None:
        """The run is there as of now, as its status says."""
        self._seen.setdefault(attempt.epoch, _Seen(attempt, _boot_ms()))
        if (period_s := _period_s(attempt)) < self._period_s:
            self._period_s = period_s
            self._sooner.set()

    def look(self, epoch: int) -> Look:
        """The run as last looked at."""
        seen = self._seen.get(epoch)
        return Look() if seen is None else seen.look._replace(ran_ms=seen.ran_ms)

    async def run(self, cards: Readings) -> None:
        """Look for ever."""
        while True:
            await self._pause()
            running = [attempt for attempt in self._around.attempts.values() if attempt.run is Run.RUNNING]
            known = {attempt.epoch for attempt in running}
            self._seen = {epoch: seen for epoch, seen in self._seen.items() if epoch in known}
            self._period_s = min([PERIOD_S, *map(_period_s, running)])
            watched = [attempt for attempt in running if attempt.stop is None and attempt.epoch in self._seen]
            uses = await asyncio.gather(*(self._use(attempt) for attempt in watched))
            readings = {reading.uuid: (min(100, reading.gpu_percent), reading.memory_used_mib) for reading in cards.readings()}
            simulated: dict[str, tuple[int, int]] = {}
            for attempt, use in zip(watched, uses, strict=True):
                if attempt.run is Run.RUNNING and attempt.stop is None:
                    seen = self._seen[attempt.epoch]
                    doing = _simulated(attempt, self._around.cards, seen, use)
                    simulated |= doing
                    self._look_at(attempt, seen, use, readings | doing)
            cards.show_simulated(simulated)

    async def _pause(self) -> None:
        """Until it is time to look again; sooner when a run comes that wants it."""
        begun_s = asyncio.get_running_loop().time()
        while (left_s := begun_s + self._period_s - asyncio.get_running_loop().time()) > 0:
            self._sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._sooner.wait()

    def extend(self, attempt: Attempt) -> None:
        """Tell the runner how long the run may take now."""
        self._spawn(self._extend(attempt))

    async def _extend(self, attempt: Attempt) -> None:
        try:
            async with self._extending:  # the later word must also be the last
                await self._runner.extend(attempt.key, run_time_s(attempt))
        except RunnerError as error:
            log.warning("a run could not be given more time yet", job=attempt.job_id, why=str(error))
            await asyncio.sleep(RETRY_S)
            attempt.given_s = 0
            self._around.advance(attempt)

    async def _use(self, attempt: Attempt) -> RunUse | None:
        try:
            return await self._runner.use(attempt.key)
        except RunnerError as error:
            log.debug("what a run uses cannot be told", job=attempt.job_id, why=str(error))
            return None

    def _look_at(self, attempt: Attempt, seen: _Seen, use: RunUse | None, doing: Mapping[str, tuple[int, int]]) -> None:
        of_cards = [doing.get(uuid, (-1, -1)) for uuid in attempt.cards]
        sample = Sample(
            ran_ms=seen.ran_ms,
            gpu_percent=tuple(percent for percent, _ in of_cards),
            gpu_memory_mib=tuple(memory_mib for _, memory_mib in of_cards),
            cpu_ms=-1 if use is None else use.cpu_ms,
            memory_mib=0 if use is None else use.memory_mib,
            peak_memory_mib=0 if use is None else use.peak_memory_mib,
            output_bytes=self._output_bytes(attempt),
            active_ms=self._around.sessions.active_ms(attempt.epoch),
        )
        verdict = watching.observe(seen.watch, limits_of(attempt), sample)
        attempt.usage = seen.watch.usage
        if verdict.warning and not seen.look.warning:
            self.on_warning()
        known = [percent for percent in sample.gpu_percent if percent >= 0]
        seen.look = Look(
            gpu_percent=sum(known) // len(known) if known else -1,
            memory_mib=sample.memory_mib,
            gpu_memory_mib=max(sample.gpu_memory_mib, default=-1),
            warning=verdict.warning,
        )
        if verdict.stop is not None:
            log.info("a limit of its buyer ends a run", job=attempt.job_id, reason=verdict.stop.value, why=verdict.detail)
            attempt.over, attempt.detail = STOPS[verdict.stop], verdict.detail
            self._around.advance(attempt)
        elif attempt.usage.samples % KEEP_EVERY == 0:
            self._journal.keep(attempt)


def _period_s(attempt: Attempt) -> float:
    """Four looks at the least between the warning of a limit and its end."""
    return max(PERIOD_MIN_S, min(PERIOD_S, watching.shortest_notice_ms(limits_of(attempt)) / 4000))


def limits_of(attempt: Attempt) -> Limits:
    """What the run's buyer allows, with the timeout as it is now."""
    order = attempt.order
    time_s, reason = time_limit(order, attempt.timeout_s, attempt.price_uusd_per_gpu_hour)
    return Limits(
        time_s=time_s,
        time_reason=reason,
        idle_s=order.idle_timeout_s,
        percent=order.min_utilisation_percent,
        window_s=order.min_utilisation_window_s,
        gpu_memory_mib=order.gpu_memory_limit_mib,
        session=order.kind is not JobKind.BATCH,
    )


def _simulated(attempt: Attempt, cards: Mapping[str, RunCard], seen: _Seen, use: RunUse | None) -> dict[str, tuple[int, int]]:
    """What simulated cards are said to do: exactly what the run's processes do, a busy core being a busy card, one card after the other;
    likewise its main memory. So there is something to see and to test, and nothing is made up."""
    simulated = [cards[uuid] for uuid in attempt.cards if uuid in cards and cards[uuid].simulated]
    if not simulated or use is None:
        return {}
    before_ms, before_cpu_ms = seen.cpu or (0, 0)
    percent = (use.cpu_ms - before_cpu_ms) * 100 // max(1, seen.ran_ms - before_ms)
    seen.cpu = (seen.ran_ms, use.cpu_ms)
    doing, left_mib = {}, use.memory_mib
    for card in simulated:
        taken_mib = min(left_mib, card.vram_mib)
        # What only waits uses no card, and a clock's coarse ticks no second one.
        doing[card.uuid] = (min(100, percent) if percent >= watching.BUSY_PERCENT_SESSION else 0, taken_mib)
        percent, left_mib = percent - 100, left_mib - taken_mib
    return doing


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
