"""Ends what has outlived its lease or deadline, whoever is dead: no market, no agent, no wallet is needed, so a timer may run it.

Containers have their watch files, which the guard reads; processes have a supervisor, and when that is gone nobody bounds them any more:
they are ended as the next supervisor would end them. What still has its guard, or its time, is left alone.
"""

from __future__ import annotations

import asyncio
import http.client
from pathlib import Path

import msgspec

from seller_agent.runners.docker_engine.daemon.clocks import boot_ms
from seller_agent.runners.docker_engine.guard.files import due, read_stop
from seller_agent.runners.docker_engine.guard.guard import Guard, container_state, reap
from seller_agent.runners.docker_engine.profile import NAME_PREFIX
from seller_agent.runners.process.link import launch
from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.process.supervisor.daemon import is_serving
from seller_agent.runners.process.supervisor.run import read_record
from seller_agent.runners.runner import RunnerError
from seller_agent.runs.secret_files import SecretFiles

LIVING = ("running", "paused", "restarting")
SUPERVISOR_IDLE_S = 0.25


class Late(msgspec.Struct, frozen=True, kw_only=True):
    """Something that should have ended."""

    run: str
    kind: str
    """`container` or `process`."""
    reason: str
    """`lease`, `deadline`, `asked` ..., `unwatched`, or `unguarded`."""
    late_ms: int = 0
    gone: bool = False
    """Whether it has been ended now."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was late under one node's folder; `trouble`: why it could not all be seen or ended."""

    late: tuple[Late, ...] = ()
    trouble: str = ""


def reap_node(folder: Path, *, dry_run: bool) -> Found:
    """End what is late under this node's folder, grace included, or only say what is. Safe beside agent, guard and another reap."""
    containers, processes = late_containers(folder / "guard"), late_processes(folder / "runs")
    trouble = containers.trouble
    if dry_run:
        return Found(late=containers.late + processes, trouble=trouble)
    late = []
    if (folder / "guard").is_dir():
        if not reap(folder / "guard"):
            trouble = trouble or f"something past its end could not be stopped; see {folder / 'guard' / 'guard.log'}"
        left = {one.run for one in late_containers(folder / "guard").late}
        late += [msgspec.structs.replace(one, gone=one.run not in left) for one in containers.late]
    if processes:
        trouble = _end_processes(folder / "runs") or trouble
        left = {one.run for one in late_processes(folder / "runs")}
        late += [msgspec.structs.replace(one, gone=one.run not in left) for one in processes]
    secrets = SecretFiles(folder / "runs")
    for one in late:
        if one.gone:
            secrets.remove(one.run.removeprefix(NAME_PREFIX))
    return Found(late=tuple(late), trouble=trouble)


def late_containers(directory: Path) -> Found:
    """Containers past their end, by the guard's own rules."""
    if not directory.is_dir():
        return Found()
    guard, now_ms = Guard(directory), boot_ms()
    late, trouble = [], ""
    for _, watch in guard.watches():
        end = due(watch, read_stop(watch.folder), guard.boot)
        if now_ms < end.term_ms:
            continue
        try:
            lives = container_state(watch.socket, watch.container) in LIVING
        except (OSError, http.client.HTTPException) as error:
            lives, trouble = watch.boot_id == guard.boot, f"Docker does not answer at {watch.socket}: {error}"
        if lives:
            late.append(Late(run=watch.container, kind="container", reason=end.reason, late_ms=now_ms - end.term_ms))
    try:
        late += [Late(run=name, kind="container", reason="unwatched") for _, name in guard.strays()]
    except (OSError, http.client.HTTPException) as error:
        trouble = f"Docker does not answer: {error}"
    return Found(late=tuple(late), trouble=trouble)


def late_processes(root: Path) -> tuple[Late, ...]:
    """Runs of plain processes that still live although nobody guards them."""
    state = root / ".supervisor"
    if not state.is_dir() or is_serving(str(state)):
        return ()
    root = root.resolve()  # as it stands in the runs' environment
    boot, found = proc.boot_id(), []
    for entry in sorted(root.iterdir()):
        run = None if entry.name.startswith(".") else read_record(str(entry))
        if run is None or run.exited or run.record.get("boot_id") != boot:
            continue
        first = run.record.get("pid", 0)
        left = proc.leftovers(str(root), {first: run.record.get("start_ticks", 0)} if first else {})
        if any(pid == first or proc.run_by_mark(pid, str(root)) == entry.name for pid in left):
            found.append(Late(run=entry.name, kind="process", reason="unguarded"))
    return tuple(found)


def _end_processes(root: Path) -> str:
    """A new supervisor ends what the dead one left, writes down that it did, and goes; what went wrong, if anything."""
    try:
        asyncio.run(launch(root, SUPERVISOR_IDLE_S))
    except RunnerError as error:
        return str(error)
    return ""
