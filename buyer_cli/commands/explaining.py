"""`bazaar why`: why a job is not running, now or at a past moment, and everything it waited for."""

from __future__ import annotations

import re
import time

import click

from buyer_cli import render_why
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import USAGE, Complaint
from buyer_cli.finding import find_job
from events import quantities
from events.quantities import BadValue


def moment(given: str) -> str:
    """A sequence or a time as the API wants it; `10m` means so long ago, and a time without a zone is this machine's."""
    if re.fullmatch(r"\d{1,14}", given, re.ASCII):
        return given
    from datetime import datetime

    try:
        return str(int(datetime.fromisoformat(given).astimezone().timestamp() * 1000))
    except ValueError:
        pass
    try:
        return str(time.time_ns() // 1_000_000 - quantities.duration_s(given) * 1000)
    except BadValue:
        raise Complaint(
            "usage",
            f"--as-of {given[:40]!a} is no moment",
            "a moment is a sequence of the ledger, a time, or how long ago",
            "--as-of 41250, --as-of 2026-03-01T14:02, --as-of 10m",
            exit_code=USAGE,
        ) from None


@click.command()
@click.argument("job")
@click.option("--as-of", metavar="TIME|SEQ", help="A past moment: a time, how long ago (10m), or a sequence of the ledger.")
@click.option("--no-history", is_flag=True, help="Without the wait so far, which is read back from the whole ledger.")
@command_flags
def why(caller: Caller, job: str, as_of: str | None, no_history: bool) -> None:
    """Why a job waits or waited: what each node says, who is before it, and the smallest change that would have placed it."""
    api = Api(caller.settings)
    job_id = find_job(caller, api, job)["id"]
    query = {"as_of": None if as_of is None else moment(as_of), "waits": None if no_history else "true"}
    told = api.get(f"/v1/jobs/{job_id}/why", query)
    if caller.as_json:
        caller.terminal.emit(told)
        return
    for line in render_why.lines(told):
        caller.terminal.data(line)
    if told.get("nodes"):
        caller.terminal.data("")
        caller.terminal.table(render_why.NODE_HEADERS, [render_why.node_row(node) for node in told["nodes"]])
    if told.get("waits"):
        caller.terminal.data("")
        caller.terminal.data(f"It waited {render_why.duration_ms(told['wait_ms'])} in all:")
        caller.terminal.table(render_why.WAIT_HEADERS, [render_why.wait_row(wait, None) for wait in told["waits"]])
