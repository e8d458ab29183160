"""`bazaar wait`, `logs`, `results`, `cancel`: what is done with jobs that are submitted already."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from buyer_cli import ending, render
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import INTERRUPTED, NOT_FINISHED, NOT_FOUND, USAGE, Complaint
from buyer_cli.finding import Json, find_job, find_jobs, is_rank, with_ranks
from buyer_cli.following import Follower, Following
from buyer_cli.output_merge import STDERR, STDOUT
from buyer_cli.output_printer import OutputCollector, OutputPrinter, Tail
from buyer_cli.output_reader import OutputReader
from buyer_cli.session import asks_files, opened, run_async
from events.errors import Refused
from events.jobs import JobCancelRequested
from events.market_client import MarketClient
from events.quantities import BadValue, duration_s
from events.reasons import Refusal
from events.values import BlobRef
from events.wire import FilesRequest, SyncJob

ANSWER_S = 30.0


def _until_interrupted(caller: Caller, jobs: list[Json], work: Coroutine[Any, Any, int]) -> int:
    """Ctrl-C stops looking, never a job."""
    try:
        return run_async(work)
    except KeyboardInterrupt:
        for job in jobs:
            caller.terminal.note(f"\n{job['id']} goes on. Look: bazaar logs -f {job['id']}")
        return INTERRUPTED


def _has_ended(job: Json) -> bool:
    return job.get("state") in render.EXIT_CODES


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB|GROUP...")
@click.option("--for", "limit", metavar="TIME", help="Give up (exit 101) after this time, such as 10m.")
@click.option("--propagate-exit", is_flag=True, help="Exit with the job's own code.")
@command_flags
def wait(caller: Caller, jobs: tuple[str, ...], limit: str | None, propagate_exit: bool) -> int:
    """Wait until jobs have ended, and exit as the first did that did not succeed."""
    try:
        limit_s = duration_s(limit) if limit is not None else None
    except BadValue as error:
        raise Complaint("usage", f"--for {limit}", error.why, error.hint, exit_code=USAGE) from None
    api = Api(caller.settings)
    found = find_jobs(caller, api, jobs, market_knows=True)

    async def go() -> int:
        if not all(_has_ended(job) for job in found):
            try:
                async with asyncio.timeout(limit_s), opened(caller) as client:
                    await asyncio.gather(*(_wait_for(caller, client, api, job) for job in found if not _has_ended(job)))
            except TimeoutError:
                still = [job["id"] for job in found if not _has_ended(job)]
                why = f"{', '.join(still)} did not end in {limit}."
                raise Complaint("not_finished", "Not finished.", why, f"bazaar logs -f {still[0]}", exit_code=NOT_FINISHED) from None
        if caller.as_json:
            caller.terminal.emit(found)
        else:
            for job in found:
                caller.terminal.note(f"{job['id']} {render.ended_sentence(job)}")
        codes = [ending.exit_code_of(job["state"], job.get("exit_code"), propagate_exit) for job in found]
        return next((code for code in codes if code), 0)

    return _until_interrupted(caller, found, go())


async def _wait_for(caller: Caller, client: MarketClient, api: Api, job: Json) -> None:
    ended = await Follower(job["id"], None, Following(client, api, caller.terminal, None, quiet=caller.as_json)).follow()
    job.update(await ending.job_json(api, ended))


@click.command()
@click.argument("job")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, and exit as it did.")
@click.option("--stdout", "only_stdout", is_flag=True, help="Only what it wrote to stdout.")
@click.option("--stderr", "only_stderr", is_flag=True, help="Only what it wrote to stderr.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Begin with the last N lines.")
@click.option("--raw", is_flag=True, help="As it is, escape sequences too.")
@click.option("--propagate-exit", is_flag=True, help="With -f, exit with the job's own code.")
@command_flags
def logs(
    caller: Caller, job: str, follow: bool, only_stdout: bool, only_stderr: bool, tail: int | None, raw: bool, propagate_exit: bool
) -> int:
    """What a job wrote, of its present or last attempt, complete to the last line; its stderr goes to stderr."""
    api = Api(caller.settings)
    found = find_job(caller, api, job, market_knows=True)
    channels = frozenset({STDOUT} if only_stdout and not only_stderr else {STDERR} if only_stderr and not only_stdout else {STDOUT, STDERR})

    async def go() -> int:
        printer = OutputPrinter(caller.terminal, channels, raw)
        collector = OutputCollector(channels) if caller.as_json and not follow else None
        show = printer.show if collector is None else collector.show
        async with opened(caller) as client:
            view = await _as_the_market_has_it(client, found)
            kept = None if tail is None else Tail(tail, channels)
            reader = OutputReader(asks_files(client), found["id"], show if kept is None else kept.show)
            try:
                await _read_so_far(reader, view, found)
                if kept is not None:
                    for piece in kept.release():
                        show(piece)
                    reader.show_with(show)
                if collector is not None:
                    caller.terminal.emit({"id": found["id"], "attempt": reader.attempt, **collector.answer()})
                if not follow:
                    return 0
                ended = (
                    await Follower(found["id"], None, Following(client, api, caller.terminal, reader), seen=view).follow() if view else None
                )
            finally:
                printer.finish()
        state, code = (found["state"], found.get("exit_code")) if ended is None else (ended.state, ended.exit_code)
        return ending.exit_code_of(state, code, propagate_exit)

    return _until_interrupted(caller, [] if _has_ended(found) else [found], go())


async def _as_the_market_has_it(client: MarketClient, job: Json) -> SyncJob | None:
    """The market's own view; None for a job that ended long ago."""
    answer = await client.sync(job_ids=(job["id"],))
    if not answer.jobs and "state" not in job:
        raise Complaint("unknown_job", f"The market does not tell of {job['id']}.", "Its API is away.", "later", exit_code=NOT_FOUND)
    return answer.jobs[0] if answer.jobs else None


async def _read_so_far(reader: OutputReader, view: SyncJob | None, job: Json) -> None:
    attempt = view.attempt if view else int(job.get("attempt") or 0)
    if not attempt:
        return
    if view is not None and view.state in render.EXIT_CODES:
        await reader.drain(attempt, view.stdout_bytes, view.stderr_bytes)
    else:
        await reader.catch_up(attempt)


@click.command()
@click.argument("job")
@click.option("--to", "folder", metavar="DIR", help="Where to. Default ./results/JOB.")
@command_flags
def results(caller: Caller, job: str, folder: str | None) -> int:
    """Fetch the files that a job left in $BAZAAR_OUT, and verify every one. Before its end: exit 101."""
    api = Api(caller.settings)
    found = find_job(caller, api, job)
    job_id = found["id"]
    if not _has_ended(found):
        why = f"It is {render.text(found.get('state'))}; results are there when it has ended."
        raise Complaint("not_finished", "Not finished.", why, f"bazaar wait {job_id}", exit_code=NOT_FINISHED)
    target = Path(folder) if folder else Path("results") / job_id

    async def go() -> int:
        async with opened(caller) as client:
            manifest = await _manifest(client, api, found)
            if manifest is None:
                caller.terminal.note(f"{job_id} left no files")
                entries = []
            else:
                entries = await ending.fetch_results(client, caller.terminal, job_id, manifest, target)
        if caller.as_json:
            files = [{"path": entry.path, "sha256": entry.sha256, "size_bytes": entry.size} for entry in entries]
            caller.terminal.emit({"id": job_id, "folder": str(target), "files": files})
        else:
            for entry in entries:
                caller.terminal.data(render.text(str(target / entry.path)))
        return 0

    return run_async(go())


async def _manifest(client: MarketClient, api: Api, job: Json) -> BlobRef | None:
    """Where the list of a job's result files lies: the market knows it of recent jobs, the API of all."""
    view = await _as_the_market_has_it(client, job)
    if view is not None:
        return view.results
    sha256 = job.get("results_sha256")
    if not sha256:
        return None
    answer = await asks_files(client)(FilesRequest(op="get", sha256=sha256, job_id=job["id"]))
    if answer.failure is not None:
        raise Refused(Refusal(answer.failure.code), answer.failure.detail)
    return BlobRef(sha256=sha256, size=answer.size)


@click.command()
@click.argument("jobs", nargs=-1, required=True, metavar="JOB|GROUP...")
@click.option("--wait", "until_gone", is_flag=True, help="Return when nothing of it runs any longer.")
@command_flags
def cancel(caller: Caller, jobs: tuple[str, ...], until_gone: bool) -> int:
    """Cancel jobs; returns when that is in the ledger. A gang is cancelled as a whole, whichever rank is named."""
    api = Api(caller.settings)
    found = with_ranks(api, find_jobs(caller, api, jobs, market_knows=True))

    async def go() -> int:
        async with opened(caller) as client:
            told = [await _cancel(caller, client, api, job, until_gone) for job in found]
        if caller.as_json:
            caller.terminal.emit(told)
        return 0

    return _until_interrupted(caller, found, go())


async def _cancel(caller: Caller, client: MarketClient, api: Api, job: Json, until_gone: bool) -> Json:
    job_id = job["id"]
    outcome = await client.submit(JobCancelRequested(job_id=job_id), ANSWER_S)
    if outcome.reason is not None:
        view = await _as_the_market_has_it(client, job)
        if outcome.reason is not Refusal.ILLEGAL_IN_STATE or view is None:
            raise Refused(outcome.reason, outcome.detail)
        if view.state in render.EXIT_CODES:  # of a gang: it ended with the rank that was cancelled first
            with_it = is_rank(job) and view.state == "cancelled" and job.get("state") not in render.EXIT_CODES
            caller.terminal.note(f"{job_id} {'cancelled' if with_it else f'has ended already: {view.state}'}")
            return await ending.job_json(api, view)
        if view.state != "stopping":
            raise Refused(outcome.reason, outcome.detail)
    if until_gone:
        ended = await Follower(job_id, None, Following(client, api, caller.terminal, None, quiet=True)).follow()
        caller.terminal.note(f"{job_id} {ended.state}")
        return await ending.job_json(api, ended)
    told = await ending.job_json_at(api, job_id, outcome.seq) or {**job, "state": "cancelled"}
    state = str(told.get("state"))
    caller.terminal.note(f"{job_id} {'is being stopped' if state == 'stopping' else state}")
    return told
