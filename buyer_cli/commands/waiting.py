"""`bazaar priority` and `bazaar reprice`: what a buyer may change of a job while it waits in the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from buyer_cli import render
from buyer_cli.caller import Caller, command_flags
from buyer_cli.commands.changing import Words, change
from buyer_cli.complaint import USAGE, Complaint
from events import quantities
from events.fact import Event
from events.jobs import JobRepriced, JobReprioritised
from events.quantities import BadValue

ANY = "any"
PRICE_MAX = 10**12


@click.command()
@click.argument("job", metavar="JOB|GROUP")
@click.argument("level", metavar="low|normal|high|critical|0-100")
@command_flags
def priority(caller: Caller, job: str, level: str) -> int:
    """Give a queued job another priority. Under it the job stands behind those that have it already. Of a gang, all ranks get it."""
    changed = _read("priority", level, quantities.priority)
    return _change(caller, job, lambda job_id: JobReprioritised(job_id=job_id, priority=changed))


@click.command()
@click.argument("job", metavar="JOB|GROUP")
@click.argument("price", metavar="USD")
@command_flags
def reprice(caller: Caller, job: str, price: str) -> int:
    """Change what a queued job may cost per GPU-hour, such as 0.45; `any`: whatever the cheapest node asks. Of a gang, for all ranks."""
    most = None if price == ANY else _read("reprice", price, lambda text: quantities.uusd(text, PRICE_MAX))
    return _change(caller, job, lambda job_id: JobRepriced(job_id=job_id, max_price_uusd_per_gpu_hour=most))


def _read(command: str, text: str, read: Callable[[str], int]) -> int:
    try:
        return read(text)
    except BadValue as error:
        raise Complaint("usage", f"{command} {text}", error.why, error.hint, exit_code=USAGE) from None


def _change(caller: Caller, job: str, event: Callable[[str], Event]) -> int:
    """Say it, and show where the job stands then."""
    return change(caller, job, event, Words(standing, _too_late))


def _too_late(job_id: str, state: str) -> Complaint:
    why = (
        f"{render.state_sentence(state)}; only what waits in the queue can be changed: the price of a run is locked when it gets its node."
    )
    hint = f"bazaar cancel {job_id}, then submit it anew" if state in render.UNFINISHED else f"bazaar show {job_id}"
    return Complaint("illegal_in_state", f"{job_id} does not wait any more.", why, hint, exit_code=1)


def standing(job: dict[str, Any]) -> str:
    """Priority, price and place of a job, in a sentence."""
    if job.get("state") not in ("queued", None):
        return f"has its node now: it is {render.text(job.get('state'))}"
    most = job.get("max_price_uusd_per_gpu_hour")
    words = f"has priority {job.get('priority', render.ABSENT)} and pays {'any price' if most is None else 'at most ' + render.price(most)}"
    place = job.get("queue_position")
    return words if place is None else f"{words}; {place} {'job is' if place == 1 else 'jobs are'} before it"
