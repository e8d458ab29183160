"""One agent's home on the tests' own Docker engine: specifications, runners, and agents that can be killed."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration import docker_engine
from integration.docker_engine import IMAGE, Engine

from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.runner import RunKey, RunSpec, RunStatus, run_folder

FAR_MS = 3_600_000


def quiet(phase: str) -> None:
    """Progress that nobody looks at."""


class Home:
    """One agent's home: makes specifications, runners and agents that can be killed."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.runners: list[DockerRunner] = []

    def runner(self, **options: Any) -> DockerRunner:
        self.runners.append(DockerRunner(self.folder, "nodetest", socket_path=self.engine.socket, **options))
        return self.runners[-1]

    def spec(self, script: str, **changes: Any) -> RunSpec:
        key = RunKey(job_id=f"j{secrets.token_hex(6)}", attempt=1, epoch=7)
        spec = RunSpec(
            key=key,
            folder=run_folder(str(self.folder / "runs"), key),
            argv=("sh", "-c", script),
            env={"BAZAAR_OUT": "/out"},
            image=IMAGE,
            memory_mib=64,
            timeout_s=60,
            grace_s=2,
            lease_until_boot_ms=clocks.boot_ms() + FAR_MS,
        )
        return msgspec.structs.replace(spec, **changes)

    def agent(self, spec: RunSpec, target: str) -> subprocess.Popen[str]:
        """An agent in a process of its own, once it has reached the point."""
        arguments = [str(self.folder), self.engine.socket, target, msgspec.json.encode(spec).decode()]
        process = subprocess.Popen([sys.executable, docker_engine.__file__, *arguments], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert f"{target}\n" == process.stdout.readline()
        return process

    def guard_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "guard" / "guard.lock").read_text())
        return None


@pytest.fixture
def home(engine: Engine, tmp_path: Path) -> Iterator[Home]:
    new = Home(engine, tmp_path / "home")
    yield new
    for name in engine.names():
        engine.ask("DELETE", f"/containers/{name}?force=1&v=1")
    pid = new.guard_pid()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


@pytest.fixture
async def runner(home: Home) -> AsyncIterator[DockerRunner]:
    new = home.runner()
    yield new
    await new.close()


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9, and nothing left of it."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def output(spec: RunSpec, name: str = "stdout") -> str:
    return (Path(spec.folder) / "log" / name).read_text()


async def run(runner: DockerRunner, spec: RunSpec) -> RunStatus:
    """A whole run, from prepare to its end."""
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    return await runner.wait(spec.key)
