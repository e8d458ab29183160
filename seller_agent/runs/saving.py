"""Saves what a run leaves: its output, shipped as it grows, and the files in `out/`, stored by their hashes.

Storing goes on for as long as the gateway is away; the end of a run does not wait for ever for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from events.errors import MarketUnreachable, Refused
from events.files import FilesDiffer, HostileManifest, put_files
from events.market import Policy
from events.reasons import Reason
from events.values import BlobRef, JobKind
from events.wire import OutputAnswer, OutputFrame
from seller_agent.attempts.attempt import Attempt, Run, Saved
from seller_agent.attempts.link import Market
from seller_agent.runners import workspace
from seller_agent.runners.runner import run_folder
from seller_agent.runners.workspace import Collected
from seller_agent.runs.hints import TAIL_BYTES, hint_for
from seller_agent.runs.shipping import Spool, output_sha256
from seller_agent.sessions import work as session_work

log = structlog.get_logger("seller.saving")

SAVE_BEFORE_END_S = 100.0
"""So long the end of a run waits for its output and results to be stored; then it is reported, and storing goes on."""
POLL_S = 0.1
ANSWER_S = 10.0
RETRY_S = 2.0
DIFFERS_MAX = 3
SMALL_OUTPUT_BYTES = 1 << 18


class Stored:
    """How far storing one run's results is."""

    def __init__(self) -> None:
        self.collected: Collected | None = None
        self.manifest: BlobRef | None = None
        self.problem: Reason | None = None
        self.detail = ""


class Saver:
    """The output and results of every run of a node."""

    def __init__(self, market: Market, runs: Path, policy: Callable[[], Policy]) -> None:
        self._market = market
        self._runs = str(runs)
        self._policy = policy
        self._spools: dict[int, Spool] = {}
        self._stored: dict[int, Stored] = {}
        self._watched: dict[int, Attempt] = {}

    def watch(self, attempt: Attempt) -> None:
        """From now on the attempt's output is shipped as it grows."""
        self._watched[attempt.epoch] = attempt

    def forget(self, attempt: Attempt) -> None:
        """There is nothing left to save."""
        for known in (self._watched, self._spools, self._stored):
            known.pop(attempt.epoch, None)

    def left_nothing(self, attempt: Attempt) -> bool:
        """Whether an exited run wrote nothing at all."""
        is_batch = attempt.order.kind is JobKind.BATCH
        return is_batch and self._spool(attempt).sizes() == (0, 0) and not workspace.has_results(self._folder(attempt))

    def output_bytes(self, attempt: Attempt) -> int:
        """How much the run has written so far, both channels together."""
        return sum(self._spool(attempt).sizes())

    async def ship_as_it_grows(self) -> None:
        """Look at the output of everything that runs, for ever."""
        pumping: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                await asyncio.sleep(POLL_S)
                pumping = {epoch: task for epoch, task in pumping.items() if not task.done()}
                for epoch, attempt in list(self._watched.items()):
                    if attempt.run is not Run.RUNNING:
                        del self._watched[epoch]
                    elif epoch not in pumping and self._spool(attempt).is_behind:
                        pumping[epoch] = asyncio.create_task(_pump(self._spool(attempt)))
        finally:
            for task in pumping.values():
                task.cancel()

    async def store(self, attempt: Attempt) -> None:
        """Ship the rest of the output and store the results; returns when that is done, or will never be."""
        stored = self._stored[attempt.epoch] = Stored()
        await asyncio.gather(self._spool(attempt).pump_until_done(), self._store_results(attempt, stored))

    async def describe(self, attempt: Attempt, storing: asyncio.Task[None]) -> Saved:
        """What the end event tells of output and results: when they are stored, or after a while without that."""
        await asyncio.wait([storing], timeout=SAVE_BEFORE_END_S)
        if not storing.done():
            log.warning("the gateway is slow or away: the end is reported, storing goes on", job=attempt.job_id)
        stored = self._stored[attempt.epoch]
        stdout_bytes, stderr_bytes = self._spool(attempt).sizes()
        return Saved(
            stdout_bytes=stdout_bytes,
            stderr_bytes=stderr_bytes,
            output_sha256=await self._output_sha256(attempt, stdout_bytes + stderr_bytes),
            results=await self._manifest(stored),
            results_bytes=0 if stored.collected is None else stored.collected.total_bytes,
            too_large=stored.collected is not None and stored.collected.too_large,
            failure=stored.problem,
            detail=stored.detail,
            hint="" if attempt.status is None or not attempt.status.exit_code else hint_for(_tail(self._folder(attempt) + "/log/stderr")),
        )

    async def _output_sha256(self, attempt: Attempt, size: int) -> str | None:
        if size == 0:
            return None
        log_folder = self._folder(attempt) + "/log"
        return output_sha256(log_folder) if size <= SMALL_OUTPUT_BYTES else await asyncio.to_thread(output_sha256, log_folder)

    async def _manifest(self, stored: Stored) -> BlobRef | None:
        if stored.manifest is not None or stored.problem is not None or stored.collected is None or not stored.collected.files:
            return stored.manifest
        return await asyncio.to_thread(workspace.manifest_of, stored.collected.files)

    async def _store_results(self, attempt: Attempt, stored: Stored) -> None:
        try:
            collected = await self._collect(attempt, stored)
            if collected is None:
                return
            stored.collected = collected
            if collected.files:
                stored.manifest = await self._put(attempt, collected)
        except OSError as error:
            stored.problem, stored.detail = Reason.DISK_FULL, f"the results could not be read: {error.strerror}"
        except (Refused, FilesDiffer, HostileManifest) as error:
            stored.problem, stored.detail = Reason.OUTPUT_TOO_LARGE, f"the results were not stored: {error.what} {error.why}"
            log.warning("the results were not stored", job=attempt.job_id, why=error.why)

    async def _collect(self, attempt: Attempt, stored: Stored) -> Collected | None:
        """What there is to store: of a session its whole work, else what lies in `out/`. Raises OSError."""
        folder, bytes_max = self._folder(attempt), self._policy().results_bytes_max
        if attempt.order.kind is not JobKind.BATCH:
            work, stored.detail = await asyncio.to_thread(session_work.collected, folder, bytes_max)
            return work
        if not workspace.has_results(folder):
            return None
        collected = await asyncio.to_thread(workspace.collect, folder, bytes_max)
        if collected.passed_over:
            stored.detail = f"{collected.passed_over} entries of the results folder are no regular files and were left out"
        return collected

    async def _put(self, attempt: Attempt, collected: Collected) -> BlobRef:
        """Again and again while the store is away."""
        differs = 0
        while True:
            try:
                return (await put_files(self._market.ask_files, collected.files, job_id=attempt.job_id))[0]
            except MarketUnreachable as error:
                log.debug("the store is away", why=error.why)
            except FilesDiffer:
                differs += 1
                if differs == DIFFERS_MAX:
                    raise
            await asyncio.sleep(RETRY_S)

    def _spool(self, attempt: Attempt) -> Spool:
        spool = self._spools.get(attempt.epoch)
        if spool is None:
            publish, buyer, job_id, token = self._market.publish_output, attempt.buyer, attempt.job_id, attempt.output_token

            def send(frame: OutputFrame) -> Awaitable[OutputAnswer]:
                return publish(buyer, job_id, token, frame, ANSWER_S)

            spool = self._spools[attempt.epoch] = Spool(attempt, self._folder(attempt) + "/log", send)
        return spool

    def _folder(self, attempt: Attempt) -> str:
        return run_folder(self._runs, attempt.key)


def _tail(path: str) -> str:
    """The last words in a file; none when it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


async def _pump(spool: Spool) -> None:
    """What cannot be shipped now stays where it is; a pause, and it is tried again."""
    try:
        await spool.pump()
    except Exception as error:
        log.debug("output waits", why=str(error))
        await asyncio.sleep(RETRY_S)
