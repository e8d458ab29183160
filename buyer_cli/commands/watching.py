"""`bazaar top`: the market in the terminal, drawn again as it changes. Reads `/v1/state` and nothing else."""

from __future__ import annotations

import time
from typing import Any

import click

from buyer_cli import render
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.render import duration, text, usd_plain
from events.errors import MarketUnreachable

Json = dict[str, Any]
LINES_MIN = 12


def heads(state: Json, now_ms: int) -> list[str]:
    """Where the market stands, in two lines."""
    stats, market = state["stats"], state["market"]
    wait = "-" if stats["mean_wait_s"] is None else duration(max(stats["mean_wait_s"], 0))
    age = max(0, now_ms - state["now_ms"]) // 1000
    paused = "  PAUSED" if market["paused"] else ""
    return [
        f"{text(market['name'])}  event {state['as_of_seq']:,}  {text(market['policy'])}{paused}" + (f"  {age} s old" if age > 2 else ""),
        f"{stats['nodes']} nodes  {stats['available_gpus']} of {stats['gpus']} GPUs free ({stats['utilization_percent']} % in use)  "
        f"{stats['waiting']:,} waiting  {stats['running']:,} running  mean wait {wait}  {stats['jobs_per_hour']:,} ended in the last hour",
    ]


def node_rows(state: Json) -> list[tuple[str, ...]]:
    """A line a machine: its cards as letters, so that it can be read without colours."""
    rows: list[tuple[str, ...]] = []
    for node in state["nodes"]:
        cards = "".join({"free": ".", "taken": "#", "unhealthy": "!"}.get(card["state"], "?") for card in node["cards"]) or "-"
        busy = [card["gpu_percent"] for card in node["cards"] if card["gpu_percent"] is not None]
        use = f"{sum(busy) // len(busy)} %" if busy else "-"
        standing = "silent" if node["suspect"] else text(node["state"])
        model = text(node["cards"][0]["model"]) if node["cards"] else "CPU only"
        rows.append((text(node["name"]), standing, usd_plain(node["price_uusd_per_gpu_hour"]), cards, use, model))
    return rows


def job_rows(state: Json, now_ms: int) -> list[tuple[str, ...]]:
    """What runs, then what waits with its reason."""
    rows: list[tuple[str, ...]] = [
        (text(job["id"]), text(job["name"]), render.state(job), render.cards(job), text(job["node_name"])) for job in state["running"]
    ]
    reasons = state.get("reasons") or {}
    for place, job in enumerate(state["queued"], 1):
        told = text(reasons.get(job["id"]) or f"since {render.ago(job['submitted_ms'], now_ms)}")
        rows.append((text(job["id"]), text(job["name"]), f"queued {place}", f"{job['num_gpus']} asked", told))
    return rows


NODE_HEADERS = ("NODE", "STATE", "USD/GPU-H", "CARDS", "USE", "MODEL")
JOB_HEADERS = ("ID", "NAME", "STATE", "GPUS", "WHERE, OR WHY NOT")


@click.command()
@click.option("-n", "--interval", type=click.FloatRange(0.2, 3600), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--once", is_flag=True, help="Print it once and end; without a terminal it is always so.")
@command_flags
def top(caller: Caller, interval: float, once: bool) -> int:
    """The market as it changes: machines, what runs, what waits and why. Ctrl-C ends it."""
    api = Api(caller.settings)
    if caller.as_json:
        caller.terminal.emit(api.get("/v1/state"))
        return 0
    if once or not caller.terminal.is_interactive:
        _print(caller, api.get("/v1/state"))
        return 0
    return _watch(api, interval)


def _print(caller: Caller, state: Json) -> None:
    now_ms = time.time_ns() // 1_000_000
    for line in heads(state, now_ms):
        caller.terminal.data(line)
    caller.terminal.table(NODE_HEADERS, node_rows(state), empty="no node is offered at present")
    rows = job_rows(state, now_ms)
    if rows:
        caller.terminal.table(JOB_HEADERS, rows)


def _watch(api: Api, interval: float) -> int:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
        made = Table(*headers, box=None, header_style="bold", pad_edge=False)
        for row in rows:
            made.add_row(*(Text(cell) for cell in row))
        return made

    def drawn(state: Json, trouble: str) -> Group:
        now_ms = time.time_ns() // 1_000_000
        room = max(LINES_MIN, console.size.height - 6)
        machines = node_rows(state)[: room // 2]
        jobs = job_rows(state, now_ms)[: room - len(machines)]
        lines = [Text(line) for line in heads(state, now_ms)] + ([Text(trouble, style="bold")] if trouble else [])
        return Group(*lines, Text(), table(NODE_HEADERS, machines), Text(), table(JOB_HEADERS, jobs))

    console = Console()
    state = api.get("/v1/state")
    with Live(drawn(state, ""), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            trouble = ""
            try:
                state = api.get("/v1/state")
            except MarketUnreachable as error:
                trouble = f"reconnecting: {error.why or error.what}"
            live.update(drawn(state, trouble), refresh=True)
