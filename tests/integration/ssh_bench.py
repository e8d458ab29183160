"""A folder of runs whose processes are on the node behind the gate of `ssh_env`; what every runner promises can be asked of it too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
from integration.ssh_env import SshWorld, opened_world
from integration.test_process_runner import REPOSITORY, Bench, eventually, supervisors

from seller_agent.runners.process.runner import key_of
from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.runner import RunKey, RunSpec, StopReason
from seller_agent.runners.ssh.connection import Access
from seller_agent.runners.ssh.runner import SshRunner

AGENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from seller_agent.runners.runner import RunSpec
from seller_agent.runners.ssh.connection import open_access
from seller_agent.runners.ssh.host import Host
from seller_agent.runners.ssh.hosts import parse_hosts
from seller_agent.runners.ssh.runner import SshRunner

async def main():
    root, text, specs, verbs = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
    hosts = parse_hosts(text, root)
    host = Host(open_access(hosts, hosts.entries["node-1"], {}))
    await host.greet()
    await host.look()
    runner = SshRunner(root, host, root.name, idle_s=0.3)
    for spec in msgspec.json.decode(specs, type=list[RunSpec]):
        await runner.prepare(spec, lambda phase: None)
        if "start" in verbs:
            await runner.start(spec)
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class SshBench(Bench):
    """As the bench of plain processes; `root` is the folder here, `there` the one on the node."""

    runner: SshRunner  # type: ignore[assignment]

    def __init__(self, root: Path, world: SshWorld) -> None:
        root.mkdir(exist_ok=True)
        self.root = root
        self.world = world
        self.there = world.work / root.name / "runs"
        self.gates: dict[str, Access] = {}
        self._runs = 0

    async def open(self) -> SshBench:
        """With a runner of a fresh agent."""
        host = self.world.host(self.gates)
        await host.greet()
        await host.look()
        self.runner = SshRunner(self.root, host, self.root.name, idle_s=0.3)
        return self

    async def let_go(self) -> None:
        """As when the agent ends and leaves its runs."""
        await self.runner.close()
        for gate in self.gates.values():
            await gate.close()
        self.gates.clear()

    @contextlib.asynccontextmanager
    async def killed_agent(self, *specs: RunSpec, verbs: str = "prepare start") -> AsyncIterator[None]:
        """An agent in another process that did this with the runs, and was killed."""
        words = [str(self.root), self.world.hosts_toml(), msgspec.json.encode(specs).decode(), verbs]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, *words, stdout=subprocess.PIPE, env=environment)
        assert agent.stdout is not None
        assert b"started\n" == await agent.stdout.readline()
        agent.kill()
        await agent.communicate()
        yield

    async def clear(self) -> None:
        """Stop and forget every run."""

        async def forget(key: RunKey) -> None:
            await self.runner.stop(key, StopReason.ASKED, 0)
            await self.runner.wait(key)
            await self.runner.remove(key)

        await asyncio.gather(*(forget(status.key) for status in await self.runner.adopt()))
        left = [name for name in os.listdir(self.there) if name != ".supervisor"]  # prepared and never started
        await asyncio.gather(*(self.runner.remove(key_of(name)) for name in left))

    async def end(self) -> None:
        """Nothing is left: no run, no process, no folder on the node."""
        await self.clear()
        assert [] == await self.runner.adopt()
        await self.let_go()
        await eventually(lambda: not supervisors(self.there), "the idle supervisor ends")
        assert set() == proc.leftovers(str(self.there), {})
        assert [".supervisor"] == os.listdir(self.there)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(f"/dev/shm/gpubazaar-{os.geteuid()}/{self.root.name}")  # no secret is left either


async def opened_bench(root: Path, world: SshWorld) -> AsyncIterator[SshBench]:
    bench = await SshBench(root, world).open()
    yield bench
    await bench.end()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SshBench]:
    """One agent for all tests of a module: going there and leaving again costs more than most of them."""
    with contextlib.contextmanager(opened_world)(tmp_path_factory.mktemp("ssh")) as world:
        async for bench in opened_bench(tmp_path_factory.mktemp("runs"), world):
            yield bench


@pytest_asyncio.fixture(loop_scope="module")
async def bench(opened: SshBench) -> AsyncIterator[SshBench]:
    """No run is left from the test before."""
    yield opened
    await opened.clear()
