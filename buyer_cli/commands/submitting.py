"""`bazaar run` and `bazaar submit`: from a script or a command to a job, and with `run` to its output, results and exit code."""

from __future__ import annotations

import asyncio
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from buyer_cli import ending, render, render_usage
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import INTERRUPTED
from buyer_cli.following import Follower, Following
from buyer_cli.gangs import RankTerminal
from buyer_cli.output_printer import OutputPrinter
from buyer_cli.output_reader import OutputReader
from buyer_cli.placing import Manner
from buyer_cli.planning import Asked, Plan, plans
from buyer_cli.session import asks_files, opened, run_async
from buyer_cli.spec_flags import AfterDashes, spec_flags
from buyer_cli.submission import Submitted, submit
from buyer_cli.terminal import Terminal
from events.market_client import MarketClient
from events.reasons import Reason
from events.stepping import end_all
from events.wire import SyncJob


def planned(caller: Caller, asked: Asked, flags: dict[str, object]) -> list[Plan]:
    """What was asked for, with the files and secrets on this machine that it takes. Raises SpecError."""
    terminal = caller.terminal
    return plans(asked, flags, caller.settings.allow_simulated, terminal.note, terminal.ask_secret if terminal.is_interactive else None)


def _submission_flags(function: Any) -> Any:
    """What `run` and `submit` share besides the specification."""
    function = click.option("--now", is_flag=True, help="Refuse (exit 5) when nobody can run it at present.")(function)
    function = click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)
    return click.option("-c", "code", metavar="CODE", help="Run this Python code.")(function)


@click.command(cls=AfterDashes)
@click.argument("script", required=False, metavar="[SCRIPT|-] [-- ARGS...]")
@_submission_flags
@spec_flags
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and leave.")
@click.option("--propagate-exit", is_flag=True, help="Exit with the job's own code.")
@click.option("--raw", is_flag=True, help="Show the job's output as it is, escape sequences too.")
@click.pass_context
@command_flags
def run(
    caller: Caller,
    ctx: click.Context,
    script: str | None,
    code: str | None,
    yes: bool,
    now: bool,
    flags: dict[str, object],
    job_file: str | None,
    detach: bool,
    propagate_exit: bool,
    raw: bool,
) -> int:
    """Run a script or a command on the market: quote, submit, stream its output, fetch its results, exit as it did.

    \b
    bazaar run train.py -- --epochs 3      a script and its arguments
    bazaar run -- nvidia-smi               a command
    bazaar run -c 'print(1)'               Python code; `-` reads it from standard input

    The script and each --in PATH lie in the job's working directory; what it writes to $BAZAAR_OUT is fetched to --out.
    """
    asked = Asked(script, code, ctx.obj, job_file)
    made = planned(caller, asked, flags)
    if detach:
        return detached(caller, made, Manner(yes, now))
    journey = _Journey(caller, made, Manner(yes, now), propagate_exit, raw)
    try:
        return run_async(journey.go())
    except KeyboardInterrupt:
        journey.say_how_to_look()
        return INTERRUPTED


@click.command("submit", cls=AfterDashes)
@click.argument("script", required=False, metavar="[SCRIPT|-] [-- ARGS...]")
@_submission_flags
@spec_flags
@click.pass_context
@command_flags
def submit_(
    caller: Caller,
    ctx: click.Context,
    script: str | None,
    code: str | None,
    yes: bool,
    now: bool,
    flags: dict[str, object],
    job_file: str | None,
) -> int:
    """Submit a job and print its id. Without a script, on a terminal, it asks."""
    asked = Asked(script, code, ctx.obj, job_file)
    if asked == Asked() and caller.terminal.is_interactive:
        asked, flags = _interview(caller, flags)
    return detached(caller, planned(caller, asked, flags), Manner(yes, now))


def _interview(caller: Caller, flags: dict[str, object]) -> tuple[Asked, dict[str, object]]:
    """Script, GPUs, price, timeout from the person; what a flag said is not asked."""
    ask = caller.terminal.ask
    script = ask("Script to run")
    answers = dict(flags)
    for name, question, default in (
        ("gpus", "GPUs", "1"),
        ("max-price", "Most to pay per GPU-hour in USD", "any"),
        ("timeout", "Timeout", "as usual"),
    ):
        if answers.get(name) is None:
            answer = ask(question, default)
            answers[name] = None if answer in ("any", "as usual") else answer
    return Asked(script=script or None), answers


def detached(caller: Caller, made: list[Plan], manner: Manner) -> int:
    """Submit, print the ids, and leave."""

    async def go() -> None:
        api = Api(caller.settings)
        async with opened(caller) as client:
            done = await submit(client, api, caller.terminal, made, manner)
        if not caller.as_json:
            for entry in done:
                caller.terminal.data(entry.order.job_id)
            return
        jobs = [await ending.job_json_at(api, entry.order.job_id, entry.seq) or _fresh(entry) for entry in done]
        caller.terminal.emit(jobs[0] if len(jobs) == 1 else jobs)

    run_async(go())
    return 0


def _fresh(entry: Submitted) -> dict[str, Any]:
    """Job JSON of a job just submitted, when the API is away."""
    order = entry.order
    known: dict[str, Any] = {
        "id": order.job_id,
        "state": "queued",
        "name": order.name,
        "kind": order.kind.value,
        "timeout_s": order.timeout_s,
    }
    return {**dict.fromkeys(render.JOB_KEYS), **known, "num_gpus": order.requirements.num_gpus, "gpus": [], "labels": dict(order.labels)}


class _Journey:
    """One `bazaar run`, from quote to exit code."""

    def __init__(self, caller: Caller, made: list[Plan], manner: Manner, propagate_exit: bool, raw: bool) -> None:
        self._caller = caller
        self._plans = made
        self._manner = manner
        self._propagate_exit = propagate_exit
        self._raw = raw
        self._sent: list[str] = []
        """Jobs that may have been submitted: the market has not answered yet."""
        self._unfinished: list[str] = []

    async def go(self) -> int:
        """The exit code: that of the first job that did not succeed."""
        api, terminal = Api(self._caller.settings), self._caller.terminal
        async with opened(self._caller) as client:
            done = await submit(client, api, terminal, self._plans, self._manner, sending=self._sent.append)
            self._unfinished = [entry.order.job_id for entry in done]
            self._sent.clear()
            for entry in done:
                self._say_submitted(entry)
            codes: list[int] = []
            for _, entries in groupby(done, key=lambda entry: id(entry.plan)):
                codes += await self._together(client, api, list(entries), several=len(done) > 1)
        return next((code for code in codes if code), 0)

    async def _together(self, client: MarketClient, api: Api, ranks: list[Submitted], *, several: bool) -> list[int]:
        """The exit codes of a job, or of all ranks of a gang, that which ended the others first."""
        terminal = self._caller.terminal
        if len(ranks) == 1:
            ended = await self._follow(client, api, ranks[0], terminal)
            return [await self._finish(client, api, ranks[0], ended, terminal, several=several)]
        marked = [RankTerminal(terminal, entry.order.rank, len(ranks)) for entry in ranks]
        tasks = [asyncio.create_task(self._follow(client, api, entry, mine)) for entry, mine in zip(ranks, marked, strict=True)]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_all(tasks)
        codes: list[tuple[bool, int]] = []
        for entry, task, mine in zip(ranks, tasks, marked, strict=True):
            ended = task.result()
            code = await self._finish(client, api, entry, ended, mine, several=several)
            codes.append((ended.reason == Reason.GANG_RANK_FAILED, code))
        return [code for _, code in sorted(codes, key=lambda one: one[0])]

    def _say_submitted(self, entry: Submitted) -> None:
        if self._caller.as_json:
            self._caller.terminal.emit({"type": "submitted", "job": entry.order.job_id, "seq": entry.seq})
        else:
            self._caller.terminal.note(f"submitted {entry.order.job_id}")

    async def _follow(self, client: MarketClient, api: Api, entry: Submitted, terminal: Terminal) -> SyncJob:
        """The job as it ended."""
        job_id = entry.order.job_id
        printer = OutputPrinter(terminal, raw=self._raw)
        reader = OutputReader(asks_files(client), job_id, printer.show)
        try:
            ended = await Follower(job_id, entry.order, Following(client, api, terminal, reader)).follow()
        finally:
            printer.finish()
            if isinstance(terminal, RankTerminal):
                terminal.finish()
        self._unfinished.remove(job_id)
        return ended

    async def _finish(self, client: MarketClient, api: Api, entry: Submitted, ended: SyncJob, terminal: Terminal, *, several: bool) -> int:
        """Fetch its results and say how it ended; the exit code."""
        job_id = entry.order.job_id
        if ended.results is not None:
            out = entry.plan.wish.out
            folder = Path(out) / (job_id if several else "") if out else Path("results") / job_id
            await ending.fetch_results(client, terminal, job_id, ended.results, folder)
        job = await ending.job_json(api, ended, entry.order)
        if self._caller.as_json:
            terminal.emit(job)
        else:
            terminal.note(f"{job_id} {render.ended_sentence(job)}")
            for sentence in render_usage.remarks(job):
                terminal.note(f"{job_id} {sentence}")
        return ending.exit_code_of(ended.state, ended.exit_code, self._propagate_exit)

    def say_how_to_look(self) -> None:
        """Ctrl-C stops looking, never a job."""
        note = self._caller.terminal.note
        if not self._unfinished and not self._sent:
            note("\ninterrupted before anything was submitted")
        for job_id in self._sent:
            note(f"\n{job_id} may have been submitted. Look: bazaar show {job_id}")
        for job_id in self._unfinished:
            note(f"\n{job_id} goes on. Look: bazaar logs -f {job_id}   End it: bazaar cancel {job_id}")
