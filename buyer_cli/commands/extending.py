"""`bazaar extend`: more run time for a job that has not ended."""

from __future__ import annotations

import time
from typing import Any

import click

from buyer_cli import render
from buyer_cli.caller import Caller, command_flags
from buyer_cli.commands.changing import Words, change
from buyer_cli.complaint import USAGE, Complaint
from events.jobs import JobExtended
from events.quantities import BadValue, duration_s


@click.command()
@click.argument("job", metavar="JOB|GROUP")
@click.argument("extra", metavar="TIME")
@command_flags
def extend(caller: Caller, job: str, extra: str) -> int:
    """Add TIME, such as 1h, to the timeout of a job that waits or runs, and print when it ends at the latest.

    Of a rank of a gang, all ranks are extended.
    """
    try:
        extra_s = duration_s(extra)
    except BadValue as error:
        raise Complaint("usage", f"extend {extra}", error.why, error.hint, exit_code=USAGE) from None
    words = Words(lambda told: end_sentence(told, time.time_ns() // 1_000_000), _too_late)
    return change(caller, job, lambda job_id: JobExtended(job_id=job_id, extra_s=extra_s), words)


def _too_late(job_id: str, state: str) -> Complaint:
    why = f"{render.state_sentence(state)}; only a job that waits or runs can be given more time."
    return Complaint("illegal_in_state", f"{job_id} cannot be extended any more.", why, f"bazaar show {job_id}", exit_code=1)


def end_sentence(job: dict[str, Any], now_ms: int) -> str:
    """How long the job may run now, and until when; also when something else ends it before."""
    timeout_s, limit_s, started_ms = job.get("timeout_s") or 0, job.get("limit_s"), job.get("started_ms")
    words = f"may run {render.duration(timeout_s)}"
    if limit_s is not None and limit_s < timeout_s:
        words += f", but its budget or estimate ends it after {render.duration(limit_s)}"
    if not started_ms:
        return f"{words}, counted from its start"
    end_ms = started_ms + min(timeout_s, limit_s or timeout_s) * 1000
    clock = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(end_ms // 1000))
    return f"{words}; it ends at {clock} at the latest, in {render.duration(max(0, end_ms - now_ms) // 1000)}"
