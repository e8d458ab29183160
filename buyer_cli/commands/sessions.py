"""`bazaar notebook`, `container`, `open` and `close`: jobs that somebody connects to, from the submission to the work that they leave."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click

from buyer_cli import ending, render, render_usage
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.commands.submitting import detached, planned
from buyer_cli.complaint import INTERRUPTED, Complaint
from buyer_cli.finding import Json, find_job
from buyer_cli.following import Follower, Following
from buyer_cli.placing import Manner
from buyer_cli.planning import Asked, Plan
from buyer_cli.session import opened, run_async
from buyer_cli.session_door import open_door
from buyer_cli.spec import SpecError
from buyer_cli.spec_flags import AfterDashes, spec_flags
from buyer_cli.submission import Submitted, submit
from events.errors import BazaarError, Refused
from events.jobs import SessionCloseRequested
from events.market_client import MarketClient
from events.reasons import Refusal
from events.values import JobKind
from events.wire import SyncJob

ANSWER_S = 30.0


def _session_flags(function: Any) -> Any:
    """What both kinds of session share besides the specification."""
    function = click.option("--now", is_flag=True, help="Refuse (exit 5) when nobody can run it at present.")(function)
    function = click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)
    return click.option("-d", "--detach", is_flag=True, help="Print the session's id and leave.")(function)


@click.command(cls=AfterDashes)
@_session_flags
@spec_flags
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the local address; default: a free one.")
@click.pass_context
@command_flags
def notebook(
    caller: Caller, ctx: click.Context, detach: bool, yes: bool, now: bool, flags: dict[str, object], job_file: str | None, port: int
) -> int:
    """Jupyter on rented GPUs: quote, submit, wait until it answers, print a local address for the browser and keep it open.

    \b
    bazaar notebook --gpus 2 --image quay.io/jupyter/pytorch-notebook:cuda12-latest --in data/

    The image must have Jupyter; the files of each --in lie in the notebook's folder, and what is in that folder at the end is saved and
    fetched to --out. Ctrl-C leaves the session running.
    """
    made = _plan(caller, Asked(rest=ctx.obj, job_file=job_file, kind=JobKind.NOTEBOOK), flags)
    if detach:
        return detached(caller, made, Manner(yes, now))
    return _Stay(caller, made, Manner(yes, now), port).until_its_end()


@click.command(cls=AfterDashes)
@_session_flags
@spec_flags
@click.pass_context
@command_flags
def container(
    caller: Caller, ctx: click.Context, detach: bool, yes: bool, now: bool, flags: dict[str, object], job_file: str | None
) -> int:
    """A container to connect to with `bazaar shell` and `bazaar forward`: with a command, or without one until it is closed.

    \b
    bazaar container --image pytorch/pytorch:2.5.1-cuda12.4-cudnn9-runtime
    bazaar container --image vllm/vllm-openai:v0.6.4 -- vllm serve facebook/opt-125m
    """
    made = _plan(caller, Asked(rest=ctx.obj, job_file=job_file, kind=JobKind.CONTAINER), flags)
    if detach:
        return detached(caller, made, Manner(yes, now))
    return _Stay(caller, made, Manner(yes, now), 0).until_its_end()


def _plan(caller: Caller, asked: Asked, flags: dict[str, object]) -> list[Plan]:
    made = planned(caller, asked, flags)
    if len(made) != 1:
        raise SpecError(f"{len(made)} sessions", "one is opened at a time", "name one target")
    return made


class _Stay:
    """One session, from quote to the work that it leaves."""

    def __init__(self, caller: Caller, made: list[Plan], manner: Manner, port: int) -> None:
        self._caller = caller
        self._plans = made
        self._manner = manner
        self._port = port
        self._sent = ""
        self._known = False
        self._moved = asyncio.Event()
        self._open_epoch = 0
        """Of the attempt that may be connected to; 0: none."""

    def until_its_end(self) -> int:
        """The exit code. Ctrl-C stops looking, never the session."""
        try:
            return run_async(self._go())
        except KeyboardInterrupt:
            self._say_how_to_go_on()
            return INTERRUPTED

    async def _go(self) -> int:
        caller, api = self._caller, Api(self._caller.settings)
        async with opened(caller) as client:
            [entry] = await submit(client, api, caller.terminal, self._plans, self._manner, sending=self._sending)
            self._known = True
            if caller.as_json:
                caller.terminal.emit({"type": "submitted", "job": entry.order.job_id, "seq": entry.seq})
            else:
                caller.terminal.note(f"submitted {entry.order.job_id}")
            ended = await self._stay(client, api, entry)
            return await self._end(client, api, entry, ended)

    def _sending(self, job_id: str) -> None:
        self._sent = job_id

    async def _stay(self, client: MarketClient, api: Api, entry: Submitted) -> SyncJob:
        """The session as it ended; meanwhile its address is kept, a new one for every attempt."""
        wants = Following(client, api, self._caller.terminal, None, looked=self._looked)
        following = asyncio.create_task(Follower(entry.order.job_id, entry.order, wants).follow())
        try:
            while not following.done():
                await self._until_moved(following)
                self._moved.clear()
                async with AsyncExitStack() as doors:
                    if self._open_epoch and not following.done():
                        await self._say_ready(client, entry, doors)
                        await self._until_moved(following)
            return await following
        except (BazaarError, Complaint):
            if not following.done():
                self._say_how_to_go_on()  # it runs and costs, whether we reach it or not
            raise
        finally:
            following.cancel()

    async def _until_moved(self, following: asyncio.Task[SyncJob]) -> None:
        moved = asyncio.create_task(self._moved.wait())
        await asyncio.wait([following, moved], return_when=asyncio.FIRST_COMPLETED)
        moved.cancel()

    def _looked(self, job: SyncJob) -> None:
        epoch = job.epoch if job.ready and job.state == "running" else 0
        if epoch != self._open_epoch:
            self._open_epoch = epoch
            self._moved.set()

    async def _say_ready(self, client: MarketClient, entry: Submitted, doors: AsyncExitStack) -> None:
        terminal, job_id = self._caller.terminal, entry.order.job_id
        if entry.order.kind is JobKind.NOTEBOOK:
            url = await doors.enter_async_context(open_door(self._caller, client, job_id, port=self._port))
            if self._caller.as_json:
                terminal.emit({"type": "ready", "job": job_id, "url": url})
                return
            terminal.note("open this in a browser; it works as long as this command runs:")
            terminal.data(url)
            terminal.note(f"Ctrl-C leaves the session running; `bazaar open {job_id}` opens it again, `bazaar close {job_id}` ends it")
        elif self._caller.as_json:
            terminal.emit({"type": "ready", "job": job_id})
        else:
            terminal.note(f"it runs: bazaar shell {job_id}   bazaar forward {job_id} PORT   end it: bazaar close {job_id}")

    async def _end(self, client: MarketClient, api: Api, entry: Submitted, ended: SyncJob) -> int:
        terminal, job_id, out = self._caller.terminal, entry.order.job_id, entry.plan.wish.out
        if ended.results is not None:
            await ending.fetch_results(client, terminal, job_id, ended.results, Path(out) if out else Path("results") / job_id)
        job = await ending.job_json(api, ended, entry.order)
        if self._caller.as_json:
            terminal.emit(job)
        else:
            _say_end(self._caller, job)
        return ending.exit_code_of(ended.state, ended.exit_code, False)

    def _say_how_to_go_on(self) -> None:
        note, job_id = self._caller.terminal.note, self._sent
        if not job_id:
            note("\ninterrupted before anything was submitted")
        elif not self._known:
            note(f"\n{job_id} may have been submitted. Look: bazaar show {job_id}")
        elif self._plans[0].wish.kind is JobKind.NOTEBOOK:
            note(f"\n{job_id} goes on. Open it again: bazaar open {job_id}   End it, with its work saved: bazaar close {job_id}")
        else:
            note(f"\n{job_id} goes on. Connect: bazaar shell {job_id}   End it, with its work saved: bazaar close {job_id}")


@click.command("open")
@click.argument("job")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the local address; default: a free one.")
@command_flags
def open_(caller: Caller, job: str, port: int) -> int:
    """Open a running session again: prints a local address for the browser and keeps it open until Ctrl-C or the session's end."""
    api = Api(caller.settings)
    found = find_job(caller, api, job, market_knows=True)
    job_id = found["id"]

    async def go() -> int:
        async with opened(caller) as client:
            async with open_door(caller, client, job_id, port=port, buyer=str(found.get("buyer") or "")) as url:
                if caller.as_json:
                    caller.terminal.emit({"type": "ready", "job": job_id, "url": url})
                else:
                    caller.terminal.data(url)
                seen = (await client.sync(job_ids=(job_id,))).jobs
                wants = Following(client, api, caller.terminal, None, quiet=caller.as_json)
                ended = await Follower(job_id, None, wants, seen=seen[0] if seen else None).follow()
            return await _tell_closed(caller, api, ended, fetched=False)

    try:
        return run_async(go())
    except KeyboardInterrupt:
        caller.terminal.note(f"\n{job_id} goes on. End it, with its work saved: bazaar close {job_id}")
        return INTERRUPTED


@click.command()
@click.argument("job")
@click.option("--to", "folder", metavar="DIR", help="Fetch the work there at once.")
@command_flags
def close(caller: Caller, job: str, folder: str | None) -> int:
    """End a session with its work saved; returns when that is done, and says where it is."""
    api = Api(caller.settings)
    found = find_job(caller, api, job, market_knows=True)

    async def go() -> int:
        async with opened(caller) as client:
            outcome = await client.submit(SessionCloseRequested(job_id=found["id"]), ANSWER_S)
            if outcome.reason is Refusal.ILLEGAL_IN_STATE:
                await _refuse_to_close(client, found)
            elif outcome.reason is not None:
                raise Refused(outcome.reason, outcome.detail)
            caller.terminal.note(f"{found['id']} is being closed: its work is saved first")
            ended = await Follower(found["id"], None, Following(client, api, caller.terminal, None, quiet=True)).follow()
            if ended.results is not None and folder is not None:
                await ending.fetch_results(client, caller.terminal, ended.job_id, ended.results, Path(folder))
            return await _tell_closed(caller, api, ended, fetched=folder is not None)

    try:
        return run_async(go())
    except KeyboardInterrupt:
        caller.terminal.note(f"\n{found['id']} is being closed. Look: bazaar wait {found['id']}")
        return INTERRUPTED


async def _refuse_to_close(client: MarketClient, found: Json) -> None:
    """Say why it cannot be closed. Raises Complaint, always."""
    answer = await client.sync(job_ids=(found["id"],))
    job_id, state = found["id"], answer.jobs[0].state if answer.jobs else found.get("state")
    if state in render.EXIT_CODES:
        why, hint = f"It has ended: {render.text(state)}.", f"bazaar results {job_id}"
    elif state in ("queued", "matched", "claimed"):
        why, hint = f"It has not begun: it is {state}.", f"bazaar cancel {job_id}"
    elif state == "stopping":
        why, hint = "It is being stopped already.", f"bazaar wait {job_id}"
    else:
        why, hint = "It is no session.", f"bazaar cancel {job_id}"
    raise Complaint("illegal_in_state", f"{job_id} cannot be closed.", why, hint)


async def _tell_closed(caller: Caller, api: Api, ended: SyncJob, *, fetched: bool) -> int:
    job = await ending.job_json(api, ended)
    if caller.as_json:
        caller.terminal.emit(job)
        return ending.exit_code_of(ended.state, ended.exit_code, False)
    _say_end(caller, job)
    if ended.results is None:
        caller.terminal.note("it left no files")
    elif not fetched:
        caller.terminal.note(f"its work ({render.data_size(ended.results_bytes)}) is saved: bazaar results {ended.job_id}")
    return ending.exit_code_of(ended.state, ended.exit_code, False)


def _say_end(caller: Caller, job: Json) -> None:
    """How it ended, and what its node said of it: also of a good end, when not all of the work was kept."""
    caller.terminal.note(f"{job['id']} {render.ended_sentence(job)}")
    for sentence in ([render.text(job["detail"])] if job.get("detail") else []) + render_usage.waste(job):
        caller.terminal.note(f"{job['id']} {sentence}")
