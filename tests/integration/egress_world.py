"""A small world of network namespaces: a seller's machine, and behind its one cable a LAN, an internet and a cloud's metadata service.

Run as a program, inside the seller's namespace, it is an agent that does what each line on stdin says and answers with one line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from seller_agent.runners.docker_engine.egress import firewall as docker_firewall
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.runner import RunnerError, RunSpec

INTERNET, LAN, FAR_LAN, METADATA, SELLER = "203.0.113.7", "198.51.100.2", "10.9.9.9", "169.254.169.254", "198.51.100.1"
PORT = 8080
LISTENS = "import socket,sys\ns=socket.create_server(('0.0.0.0',8080))\nprint('up',flush=True)\nwhile True: s.accept()[0].close()"


class World:
    """The two namespaces, and who listens in them."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self.seller, self.outside = (self._run("unshare", "--net", "sh", "-c", "echo up; exec sleep infinity") for _ in range(2))
        self.network = f"/proc/{self.seller.pid}/ns/net"
        self._shell(self.seller, "ip link set lo up")
        self._shell(self.seller, f"ip link add up0 type veth peer name down0 netns {self.outside.pid}")
        self._shell(self.seller, f"ip addr add {SELLER}/24 dev up0; ip link set up0 up")
        self._shell(self.outside, f"ip link set lo up; ip addr add {LAN}/24 dev down0; ip link set down0 up")
        for address in (INTERNET, FAR_LAN, METADATA):
            self._shell(self.outside, f"ip addr add {address}/32 dev lo")
        self._shell(self.seller, f"ip route add default via {LAN}")
        self.listening_outside = self._run("nsenter", f"--net=/proc/{self.outside.pid}/ns/net", sys.executable, "-c", LISTENS)
        self._run("nsenter", f"--net={self.network}", sys.executable, "-c", LISTENS)

    def _run(self, *command: str) -> subprocess.Popen[str]:
        """A process that goes on, once it has said that it is up."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        assert process.stdout is not None and "up\n" == process.stdout.readline()
        return process

    def _shell(self, where: subprocess.Popen[str], line: str) -> str:
        command = ["nsenter", f"--net=/proc/{where.pid}/ns/net", "sh", "-c", line]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    def on_the_seller(self, line: str) -> str:
        """What a shell command says on the seller's machine."""
        return self._shell(self.seller, line)

    def close(self) -> None:
        """The end of the world."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


class Agent:
    """The agent's process on the seller's machine."""

    def __init__(self, world: World, home: Path, socket_path: str) -> None:
        command = ["nsenter", f"--net={world.network}", sys.executable, __file__, str(home), socket_path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, **more: Any) -> Any:
        """Have it do one thing."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


async def _do(runner: DockerRunner, asked: dict[str, Any], told: list[str]) -> Any:
    match asked["do"]:
        case "open":
            await runner.open_egress(told.append, ((INTERNET, PORT),))
            return runner.egress_network()
        case "prove":
            await runner._prove(told.append)
            return runner.egress_network()
        case "probe":  # as if nobody could put the rules back
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(docker_firewall, "ensure", lambda networks: False)
                await runner._prove(told.append)
            return runner.egress_network()
        case "told":
            return told
        case "path":
            os.environ["PATH"] = asked["path"]
            return None
        case "run":
            spec = msgspec.convert(asked["spec"], RunSpec)
            try:
                await runner.prepare(spec, lambda phase: None)
                await runner.start(spec)
            except RunnerError as error:
                return f"{error.reason}: {error}"
            await runner.wait(spec.key)
            await runner.remove(spec.key)
            return (Path(spec.folder) / "log" / "stdout").read_text()
        case "close":
            await runner.close()
    return None


async def _serve(home: Path, socket_path: str) -> None:
    runner, told = DockerRunner(home, "nodetest", socket_path=socket_path), []  # type: tuple[DockerRunner, list[str]]
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await _do(runner, json.loads(line), told)), flush=True)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for answers
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))
