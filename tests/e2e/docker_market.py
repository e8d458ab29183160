"""A market whose nodes run jobs in containers of a Docker engine of the tests' own: the real commands, told of it by DOCKER_HOST."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.market_env import TWO_CARDS, MarketEnv, Running
from integration.docker_engine import IMAGE, Engine, engine, root_file_system, until

__all__ = ["IMAGE", "engine"]

DEFAULT_IMAGE = "python:3.12-slim"
LEFT_AWAY = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo"}
ENDS = {"JobSucceeded", "JobFailed", "JobTimedOut", "JobCancelled"}


def python_root() -> bytes:
    """A root file system with this very Python beside the busybox: the program, its standard library, and what it is linked with."""
    program = os.path.realpath(sys.executable)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = {word for word in linked.split() if word.startswith("/")}
    buffer = io.BytesIO(root_file_system())
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        for path in sorted({program, *libraries}):
            tar.add(os.path.realpath(path), path.lstrip("/"))
        stdlib = sysconfig.get_path("stdlib")
        tar.add(stdlib, stdlib.lstrip("/"), filter=lambda entry: None if Path(entry.name).name in LEFT_AWAY else entry)
        for name in ("bin/python", "bin/python3"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, program
            tar.addfile(link)
    return buffer.getvalue()


class DockerMarket(MarketEnv):
    """A market, and the engine that its nodes use."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        super().__init__(folder)
        self.engine = engine

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{"DOCKER_HOST": f"unix://{self.engine.socket}", **more})

    def left_over(self) -> dict[int, str]:
        """Guards too, which have no trace of this home in their environment."""
        found = super().left_over()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if "seller_agent.runners.docker_engine.guard.guard" in words and str(self.home) in words:
                    found[int(entry.name)] = words
        return found

    def seller(self, name: str, *options: str, **more: str) -> Running:
        """A second node of the same owner, once it is offered."""
        arguments = ("--name", name, "--wallet", "seller", *options)
        running = self.run_on("bazaar-seller", "run", *arguments, **more)
        self.wait_until(lambda: f"Offered {name}" in running.err or running.code is not None, f"{name} is offered")
        assert running.code is None, running.err
        return running

    def node_names(self) -> dict[str, str]:
        """Every offered node's name and whose jobs it takes."""
        return {node["name"]: node["accept"] for node in self.get("/v1/nodes")["items"] if node["state"] == "offered"}

    def own_node(self) -> str:
        """The node that came with the market."""
        [name] = [node["name"] for node in self.get("/v1/nodes")["items"] if node["num_gpus"] == 2]
        return str(name)

    def containers_of(self, job_id: str) -> list[str]:
        """Its containers, ended ones too."""
        return [name for name in self.engine.names() if job_id in name]

    def container(self, job_id: str, state: str) -> str:
        """Its one container, once that is in this state."""

        def reached() -> bool:
            names = self.containers_of(job_id)
            return len(names) == 1 and self.engine.state(names[0]).get("Status") == state

        self.wait_until(reached, f"the container of {job_id} is {state}")
        return self.containers_of(job_id)[0]

    def is_cleared(self, job_id: str) -> None:
        """Nothing of it is left in the engine, soon."""
        self.wait_until(lambda: not self.containers_of(job_id), f"the container of {job_id} is removed")

    def event_types(self, job_id: str) -> list[str]:
        """What the ledger says of it, in order."""
        return [event["type"] for event in self.get(f"/v1/jobs/{job_id}/events?limit=500")["items"]]

    def requeued_for(self, job_id: str) -> list[str]:
        """Why it was queued again, each time."""
        events = self.get(f"/v1/jobs/{job_id}/events?limit=500")["items"]
        return [event["event"]["reason"] for event in events if event["type"] == "JobRequeued"]

    def says(self, job_id: str, output: str) -> None:
        """Its output so far is this, soon."""
        self.wait_until(lambda: self.bazaar("logs", job_id).stdout == output, f"the output of {job_id} is {output!r}")

    def ended_once(self, job_id: str) -> None:
        """Its ledger holds one end, and the engine nothing."""
        kinds = self.event_types(job_id)
        assert 1 == sum(kind in ENDS for kind in kinds), kinds
        self.is_cleared(job_id)


@pytest.fixture(scope="module")
def docker_market(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerMarket]:
    """One market for a module: a node with two simulated 24 GB cards whose jobs run in containers, and one buyer."""
    engine.load(DEFAULT_IMAGE, python_root())
    market = DockerMarket(tmp_path_factory.mktemp("docker-market"), engine)
    try:
        market.start("--runner", "docker", *TWO_CARDS)
        market.bazaar("wallet", "new")
        yield market
    finally:
        market.close()
    until(lambda: not engine.names(), "the last container to be removed", 10)
