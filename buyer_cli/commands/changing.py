"""What `extend`, `priority` and `reprice` share: one change said of a job, or of all ranks of a gang together, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from buyer_cli import ending, render
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller
from buyer_cli.complaint import Complaint
from buyer_cli.finding import Json, find_jobs, is_rank, with_ranks
from buyer_cli.gangs import submit_together
from buyer_cli.session import opened, run_async
from events.errors import Refused
from events.fact import Event
from events.market_client import MarketClient
from events.reasons import Refusal
from events.wire import Outcome

ANSWER_S = 30.0


class Words(NamedTuple):
    """How a change is told: of a job as it is then, and of one in whose state nothing of the kind can be changed."""

    of_job: Callable[[Json], str]
    too_late: Callable[[str, str], Complaint]
    """Given its id and its state."""


def change(caller: Caller, asked: str, event: Callable[[str], Event], words: Words) -> int:
    """Say it of the job, of all ranks of its gang, or of all jobs of a group, and show where they stand then."""
    api = Api(caller.settings)
    found = with_ranks(api, find_jobs(caller, api, [asked], market_knows=True))
    going = [job for job in found if job.get("state") not in render.EXIT_CODES] or found
    told = run_async(_said(caller, api, going, event, words))
    if caller.as_json:
        caller.terminal.emit(told[0] if len(told) == 1 else told)
        return 0
    for job in told:
        rank = f" (rank {job.get('rank')})" if is_rank(job) else ""
        caller.terminal.data(f"{job['id']}{rank} {words.of_job(job)}")
    return 0


async def _said(caller: Caller, api: Api, jobs: list[Json], event: Callable[[str], Event], words: Words) -> list[Json]:
    """The jobs as they are then. Raises Complaint, Refused."""
    async with opened(caller) as client:
        outcomes = await submit_together(client, [event(job["id"]) for job in jobs], ANSWER_S)
        refused = [(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True) if outcome.reason is not None]
        if refused:
            done = [job["id"] for job, outcome in zip(jobs, outcomes, strict=True) if outcome.reason is None]
            if done:
                caller.terminal.note(f"changed already: {' '.join(done)}")
            raise await _refusal(client, *refused[0], words)
        return [await _now(client, api, job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]


async def _refusal(client: MarketClient, job: Json, outcome: Outcome, words: Words) -> Exception:
    if outcome.reason is not Refusal.ILLEGAL_IN_STATE:
        assert outcome.reason is not None
        return Refused(outcome.reason, outcome.detail)
    known = await client.sync(job_ids=(job["id"],))
    return words.too_late(job["id"], known.jobs[0].state if known.jobs else "over")


async def _now(client: MarketClient, api: Api, job: Json, outcome: Outcome) -> dict[str, Any]:
    told = await ending.job_json_at(api, job["id"], outcome.seq)
    if told is not None:
        return told
    known = await client.sync(job_ids=(job["id"],))
    return await ending.job_json(api, known.jobs[0]) if known.jobs else {**job}
