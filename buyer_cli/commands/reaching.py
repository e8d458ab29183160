"""`bazaar forward` and `bazaar shell`: into a job that runs, through the tunnel; on this machine on 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import AsyncExitStack
from typing import NamedTuple

import click

from buyer_cli import ending, render
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import INTERRUPTED, USAGE, Complaint
from buyer_cli.finding import Json, find_job
from buyer_cli.following import Follower, Following
from buyer_cli.job_reach import met, reach_of
from buyer_cli.raw_terminal import Interrupted, ShellEnd, is_terminal
from buyer_cli.session import opened, run_async
from buyer_cli.spec_flags import AfterDashes
from buyer_cli.tunnels import LOOPBACK, Reach
from buyer_cli.tunnels import opened as forwarded
from events.tunnel_frames import is_place

_SPEC = re.compile(r"(?:(\d{1,5}):)?(?:(\d{1,5})|(unix:.+))", re.ASCII)


class Route(NamedTuple):
    """One port here, and where it leads."""

    local_port: int
    place: str


def route(text: str) -> Route:
    """What `[LOCAL:]REMOTE` means. Raises Complaint."""
    found = _SPEC.fullmatch(text)
    local, port, socket = found.groups() if found is not None else (None, None, None)
    place = f"tcp:{int(port)}" if port is not None else socket or ""
    if not is_place(place) or int(local or 0) > 65535:
        why = "Write a port of the job, 9000:8888 to choose the port here, or unix:NAME for a socket in the job's folder."
        raise Complaint("usage", f"{text} leads nowhere", why, "bazaar forward JOB 8888", exit_code=USAGE)
    return Route(int(local or 0), place)


@click.command()
@click.argument("job")
@click.argument("remotes", nargs=-1, required=True, metavar="[LOCAL:]REMOTE...")
@command_flags
def forward(caller: Caller, job: str, remotes: tuple[str, ...]) -> int:
    """Reach ports of a running job at 127.0.0.1 of this machine, until Ctrl-C or the job's end.

    \b
    bazaar forward last 8888            any free port here leads to port 8888 of the job
    bazaar forward last 9000:8888       port 9000 here does
    bazaar forward last unix:app.sock   to a socket in the job's folder

    Exits as the job did; Ctrl-C never stops a job.
    """
    routes = [route(remote) for remote in remotes]
    api = Api(caller.settings)
    found = find_job(caller, api, job, market_knows=True)

    async def go() -> int:
        me = asyncio.current_task()
        assert me is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)  # say goodbye then, too
        async with opened(caller) as client, AsyncExitStack() as stack:
            reach = reach_of(client, client.connection.url, found["id"], buyer=_buyer(found))
            stack.push_async_callback(reach.close)
            await met(found["id"], reach.tunnel())
            for one in routes:
                await _listen(caller, stack, reach, one)
            wants = Following(client, api, caller.terminal, None, quiet=True)
            ended = await Follower(found["id"], None, wants).follow()
        caller.terminal.note(f"{found['id']} {ended.state}")
        return ending.exit_code_of(ended.state, ended.exit_code, False)

    try:
        return run_async(go())
    except (KeyboardInterrupt, asyncio.CancelledError):
        caller.terminal.note(f"\n{found['id']} goes on.")
        return INTERRUPTED


async def _listen(caller: Caller, stack: AsyncExitStack, reach: Reach, one: Route) -> None:
    def trouble(why: str) -> None:
        caller.terminal.note(render.text(f"{one.place}: {why}"))

    try:
        port = await stack.enter_async_context(forwarded(reach, one.place, one.local_port, trouble))
    except OSError as error:
        why = error.strerror or str(error)
        raise Complaint("cannot_listen", f"Port {one.local_port} cannot be had.", why, "leave it out, and a free one is taken") from None
    if caller.as_json:
        caller.terminal.emit({"local": f"{LOOPBACK}:{port}", "remote": one.place})
    else:
        caller.terminal.data(f"{LOOPBACK}:{port} -> {one.place.removeprefix('tcp:')}")


@click.command(cls=AfterDashes)
@click.argument("job")
@click.pass_context
@command_flags
def shell(caller: Caller, ctx: click.Context, job: str) -> int:
    """A shell inside a running job, or another program there, on a terminal like this one.

    \b
    bazaar shell last
    bazaar shell last -- nvidia-smi
    echo 'ls -l' | bazaar shell last

    Without a terminal it reads stdin and writes stdout. Exits as the program did. The job does not notice.
    """
    api = Api(caller.settings)
    found = find_job(caller, api, job, market_knows=True)
    try:
        return run_async(_shell(caller, found, ctx.obj or ()))
    except (KeyboardInterrupt, Interrupted):
        return INTERRUPTED


async def _shell(caller: Caller, found: Json, argv: tuple[str, ...]) -> int:
    job_id = found["id"]
    async with opened(caller) as client, AsyncExitStack() as stack:
        reach = reach_of(client, client.connection.url, job_id, buyer=_buyer(found))
        stack.push_async_callback(reach.close)
        tunnel = await met(job_id, reach.tunnel())
        try:
            return await ShellEnd(tunnel, argv, terminal=is_terminal()).run()
        except ConnectionError as error:
            raise Complaint("cut", "The shell was cut off.", str(error), f"bazaar show {job_id}") from None


def _buyer(found: Json) -> str:
    return str(found.get("buyer") or "")
