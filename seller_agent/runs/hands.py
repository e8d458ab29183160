"""Carries out what `decisions` orders about attempts: claims, prepares, starts, stops, saves, reports, cleans up.

Orders that wait run as tasks; each ends by writing its result into the attempt and asking for the next decision. Events are gathered for a
moment, so that what happens together travels in one envelope. No rule of the market stands here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import structlog

from events.errors import BazaarError
from events.jobs import AttemptEvent, GpusReleased, JobClaimed, JobDeclined, JobStarted
from events.market import Policy
from events.reasons import Reason
from events.stepping import end_all
from events.wire import Outcome
from seller_agent.attempts.attempt import Attempt, Run, Saved, Stop, Work, refused
from seller_agent.attempts.decisions import GRACE_S, Do, Node, decide, guard_until_ms
from seller_agent.attempts.end_lines import EndLines
from seller_agent.attempts.endings import end_event, failure_reason, plain
from seller_agent.attempts.journal import Journal, JournalError
from seller_agent.attempts.link import Market
from seller_agent.attempts.telling import Teller
from seller_agent.runners import workspace
from seller_agent.runners.runner import RunCard, Runner, RunnerError, RunSpec, RunState, RunStatus, StopReason, run_folder
from seller_agent.runs.preparing import fault_of, fetch_inputs, make_spec
from seller_agent.runs.saving import Saver
from seller_agent.runs.secret_files import SecretFiles
from seller_agent.runs.watcher import Watcher
from seller_agent.sessions.keeping import Sessions
from seller_agent.sessions.session import access_to, is_session

log = structlog.get_logger("seller")

EVICT_GRACE_S = 5
STARTED_WAIT_S = 0.002
"""A program that ends within this reports start and end in one envelope."""
RETRY_S = 2.0
EMPTY_TRASH_S = 0.1


class Hands:
    """Everything that is done about the attempts of one node. `attempts` is the node's whole present."""

    def __init__(self, node: Node, runner: Runner, market: Market, journal: Journal, runs: Path) -> None:
        self.node = node
        self.attempts: dict[int, Attempt] = {}
        self.cards: dict[str, RunCard] = {}
        self.default_image: str | None = None
        self.policy = Policy()
        self.phases: dict[int, str] = {}
        self._runner = runner
        self._market = market
        self._journal = journal
        self._runs = str(runs)
        self._saver = Saver(market, runs, self.policy_now)
        self.sessions = Sessions(self, runner, market, self._spawn)
        self.watcher = Watcher(self, runner, journal, output_bytes=self._saver.output_bytes, spawn=self._spawn)
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._teller = Teller(market, self._answered)
        self._trash: list[str] = []
        self._spares = workspace.Spares(runs)
        self.secrets = SecretFiles(runs)
        self._loop = asyncio.get_running_loop()
        self._lines = EndLines(self._loop)

    def policy_now(self) -> Policy:
        """The market's rules as last heard."""
        return self.policy

    async def ship_as_it_grows(self) -> None:
        """Ship the output of everything that runs, for ever."""
        await self._saver.ship_as_it_grows()

    # ---- deciding

    def advance(self, attempt: Attempt) -> None:
        """Do what is due now."""
        while orders := decide(attempt, self.node, boot_ms()):
            for order in orders:
                ORDERS[order](self, attempt)
            if attempt.forgotten:
                return
            self._journal.keep(attempt)

    def advance_all(self) -> None:
        """Look at everything again, for what time alone brings about."""
        for attempt in list(self.attempts.values()):
            self.advance(attempt)

    def take(self, attempt: Attempt) -> None:
        """A new attempt of this node."""
        self.attempts[attempt.epoch] = attempt
        self.advance(attempt)

    def begin(self) -> None:
        """Once, before the first attempt."""
        self._spares.clear()

    def adopt(self, attempt: Attempt) -> None:
        """An attempt of before the restart: follow what runs, go on shipping what was left, then decide."""
        self.attempts[attempt.epoch] = attempt
        if attempt.run is Run.EXITED:
            self._hide_secrets(attempt)
        if attempt.is_active:
            self._spawn(self._follow(attempt))
            self._watch(attempt)
        if attempt.shipping and attempt.saved is Work.DONE:
            self._spawn(self._store(attempt))
        self.advance(attempt)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the agent failed", exc_info=task.exception())

    async def close(self) -> None:
        """Let go of everything here; runs go on."""
        self._teller.flush()
        await end_all(list(self._tasks))
        self._empty_trash()

    # ---- telling

    def tell(self, attempt: Attempt, *events: AttemptEvent, wait_s: float = 0.0) -> None:
        """Publish events in order; with what else comes up in this moment."""
        self._teller.tell(attempt, *events, wait_s=wait_s)

    def _answered(self, attempt: Attempt, event: AttemptEvent, outcome: Outcome) -> None:
        if outcome.reason is None:
            return  # what was accepted is heard as an event of the ledger
        log.warning("the market refused a report", job=attempt.job_id, event=type(event).__name__, reason=outcome.reason.value)
        refused(attempt, event, outcome.reason)
        self.advance(attempt)

    # ---- claim, prepare

    def _claim(self, attempt: Attempt) -> None:
        if not attempt.output_token:
            attempt.output_token = secrets.token_hex(8)
        self.tell(attempt, JobClaimed(**_key(attempt), output_token=attempt.output_token))

    def _decline(self, attempt: Attempt) -> None:
        log.info("declined", job=attempt.job_id, why=attempt.detail)
        self.tell(attempt, JobDeclined(**_key(attempt), detail=plain(attempt.detail, 200)))

    def _prepare(self, attempt: Attempt) -> None:
        self._preparing[attempt.epoch] = self._spawn(self._preparation(attempt))

    def _abandon(self, attempt: Attempt) -> None:
        task = self._preparing.get(attempt.epoch)
        if task is not None:
            task.cancel()
        else:
            attempt.prepared = Work.NONE

    async def _preparation(self, attempt: Attempt) -> None:
        prepared = Work.NONE
        try:
            self._spares.use(self.folder_of(attempt))
            if attempt.order.program.inputs is not None:
                self.phases[attempt.epoch] = "fetching"
                await fetch_inputs(self._market, attempt, self.folder_of(attempt), self.policy.inputs_bytes_max)
            login = await self.secrets.fetch(self._market, attempt) if attempt.order.program.secret_names else None
            spec = msgspec.structs.replace(self.spec_of(attempt), registry_auth=login)
            await self._runner.prepare(spec, lambda phase: self.phases.__setitem__(attempt.epoch, phase))
            prepared = Work.DONE
        except asyncio.CancelledError:
            if not attempt.abandoned:
                raise
        except (RunnerError, BazaarError, TimeoutError, OSError) as error:
            _fail(attempt, *fault_of(error))
        finally:
            self._preparing.pop(attempt.epoch, None)
            self.phases.pop(attempt.epoch, None)
            attempt.prepared = prepared
            if prepared is not Work.DONE:
                self._hide_secrets(attempt)
        self.advance(attempt)

    def _hide_secrets(self, attempt: Attempt) -> None:
        """Take its secrets away from a run that has ended, or that there will never be."""
        if attempt.order.program.secret_names:
            self.secrets.remove(attempt.key.name)

    def folder_of(self, attempt: Attempt) -> str:
        """Where the files of the run lie."""
        return run_folder(self._runs, attempt.key)

    def spec_of(self, attempt: Attempt) -> RunSpec:
        """What the runner is told, with the lease as it is now."""
        return make_spec(
            attempt,
            folder=self.folder_of(attempt),
            cards=tuple(self.cards[uuid] for uuid in attempt.cards),
            default_image=self.default_image,
            output_limit_bytes=self.policy.output_bytes_max,
            lease_until_boot_ms=guard_until_ms(self.node, attempt.lease_sent_boot_ms),
            out_path=self._runner.out_path,
            access=access_to(self.folder_of(attempt), attempt.order) if is_session(attempt.order) else None,
        )

    # ---- run

    def _start(self, attempt: Attempt) -> None:
        self._spawn(self._run(attempt))

    async def _run(self, attempt: Attempt) -> None:
        try:
            status = await self._runner.start(self.spec_of(attempt))
        except RunnerError as error:
            attempt.run = Run.NONE
            _fail(attempt, failure_reason(error.reason), str(error))
            self.advance(attempt)
            return
        self._note(attempt, status)
        self.advance(attempt)
        if status.state is RunState.RUNNING:
            await self._follow(attempt)

    async def _follow(self, attempt: Attempt) -> None:
        """Until the run has exited; a runtime that is away for a while is asked again."""
        while True:
            try:
                status = await self._runner.wait(attempt.key)
                break
            except RunnerError as error:
                log.warning("the runner lost sight of a run", job=attempt.job_id, why=str(error))
                await asyncio.sleep(RETRY_S)
                if await self._is_lost(attempt):
                    attempt.run = Run.NONE
                    _fail(attempt, Reason.RUNTIME_RESTARTED, f"the run is gone: {error}")
                    self.advance(attempt)
                    return
        self._note(attempt, status)
        self.advance(attempt)
        self._others_may_start(attempt)

    async def _is_lost(self, attempt: Attempt) -> bool:
        try:
            return attempt.key not in {status.key for status in await self._runner.adopt()}
        except RunnerError:
            return False

    def _note(self, attempt: Attempt, status: RunStatus) -> None:
        attempt.status = status
        attempt.run = Run.EXITED if status.state is RunState.EXITED else Run.RUNNING
        if attempt.run is Run.RUNNING:
            self._watch(attempt)
        else:
            self._hide_secrets(attempt)
            self.sessions.ended(attempt)

    def _watch(self, attempt: Attempt) -> None:
        self._saver.watch(attempt)
        self.watcher.watch(attempt)
        self.sessions.watch(attempt)

    def _others_may_start(self, attempt: Attempt) -> None:
        if attempt.cards:
            for other in list(self.attempts.values()):
                if other.run is Run.NONE and other.prepared is Work.DONE:
                    self.advance(other)

    def _tell_started(self, attempt: Attempt) -> None:
        log.debug("started", job=attempt.job_id, attempt=attempt.attempt, epoch=attempt.epoch)
        digest = attempt.status.image_digest if attempt.status is not None else ""
        self.tell(attempt, JobStarted(**_key(attempt), image_digest=digest), wait_s=STARTED_WAIT_S)

    def _stop(self, attempt: Attempt) -> None:
        self._spawn(self._end_run(attempt))

    async def _end_run(self, attempt: Attempt) -> None:
        log.info("stopping", job=attempt.job_id, why=attempt.stop)
        self._journal.keep(attempt)
        try:
            await self._journal.commit()  # the reason first, then the signal
        except JournalError as error:
            log.error("the reason of a stop is not on disk", job=attempt.job_id, why=error.why)
        reason = StopReason.LEASE if attempt.stop is Stop.LEASE else StopReason.ASKED
        try:
            await self._runner.stop(attempt.key, reason, EVICT_GRACE_S if attempt.stop is Stop.EVICT else GRACE_S)
        except RunnerError as error:
            log.warning("a run could not be stopped yet", job=attempt.job_id, why=str(error))
            await asyncio.sleep(RETRY_S)
            attempt.stop_told = False
            self.advance(attempt)

    # ---- save and clean up

    def _save(self, attempt: Attempt) -> None:
        """Most small jobs leave nothing, which costs two looks at the disk."""
        if self._saver.left_nothing(attempt):
            attempt.saved_as, attempt.saved = Saved(), Work.DONE
        else:
            self._spawn(self._saving(attempt))

    async def _saving(self, attempt: Attempt) -> None:
        self.phases[attempt.epoch] = "saving"
        attempt.shipping = True
        storing = self._spawn(self._store(attempt))
        attempt.saved_as = await self._saver.describe(attempt, storing)
        attempt.saved = Work.DONE
        self.phases.pop(attempt.epoch, None)
        self.advance(attempt)

    async def _store(self, attempt: Attempt) -> None:
        await self._saver.store(attempt)
        attempt.shipping = False
        if attempt.saved is Work.DONE:
            self.advance(attempt)

    def _report(self, attempt: Attempt) -> None:
        event = end_event(attempt)
        self._lines.note(attempt, event)
        self.tell(attempt, event, GpusReleased(**_key(attempt)))

    def _release(self, attempt: Attempt) -> None:
        self.tell(attempt, GpusReleased(**_key(attempt)))

    def _remove(self, attempt: Attempt) -> None:
        self._spawn(self._removal(attempt))

    async def _removal(self, attempt: Attempt) -> None:
        try:
            await self._runner.remove(attempt.key)
            self._hide_secrets(attempt)
            attempt.removed = Work.DONE
        except RunnerError as error:
            log.warning("a run could not be removed yet", job=attempt.job_id, why=str(error))
            await asyncio.sleep(RETRY_S)
            attempt.removed = Work.NONE
        self.advance(attempt)
        self._others_may_start(attempt)

    def _forget(self, attempt: Attempt) -> None:
        self._journal.forget(attempt.epoch)
        self._saver.forget(attempt)
        del self.attempts[attempt.epoch]
        if not self._trash:
            self._loop.call_later(EMPTY_TRASH_S, self._empty_trash)
        self._trash.append(self.folder_of(attempt))

    def _empty_trash(self) -> None:
        trash, self._trash = self._trash, []
        if trash:
            self._loop.run_in_executor(None, _delete_all, trash, self._spares)


def boot_ms() -> int:
    """Milliseconds of CLOCK_BOOTTIME, which counts while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _key(attempt: Attempt) -> dict[str, Any]:
    return {"job_id": attempt.job_id, "attempt": attempt.attempt, "epoch": attempt.epoch}


def _fail(attempt: Attempt, reason: Reason, detail: str) -> None:
    log.warning("failed before it ran", job=attempt.job_id, reason=reason.value, why=detail)
    attempt.failure, attempt.detail = reason, plain(detail)


def _delete_all(folders: list[str], spares: workspace.Spares) -> None:
    for folder in folders:
        if not spares.keep(folder) and not workspace.delete(folder):
            log.warning("a folder could not be deleted", folder=folder)


ORDERS: dict[Do, Callable[[Hands, Attempt], None]] = {
    Do.CLAIM: Hands._claim,
    Do.DECLINE: Hands._decline,
    Do.PREPARE: Hands._prepare,
    Do.ABANDON: Hands._abandon,
    Do.START: Hands._start,
    Do.TELL_STARTED: Hands._tell_started,
    Do.EXTEND: lambda hands, attempt: hands.watcher.extend(attempt),
    Do.STOP: Hands._stop,
    Do.SAVE: Hands._save,
    Do.REPORT: Hands._report,
    Do.RELEASE: Hands._release,
    Do.REMOVE: Hands._remove,
    Do.FORGET: Hands._forget,
}
