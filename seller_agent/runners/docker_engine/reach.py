"""How the agent reaches into a container: its ports, sockets in the job's folder, and programs on a terminal beside the job's own.

A port is dialled from inside the container's network where the agent may enter it (root), else by a small relay that runs in the container
with whatever the image has. What is run beside a job is confined as the job is, and ended with its session when the terminal is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from seller_agent.runners.docker_engine.daemon.host import container_pid
from seller_agent.runners.process.shell import signal_session
from seller_agent.runners.reach import DIAL_S, LOOPBACKS, SocketStream, dial_socket
from seller_agent.runners.runner import RunnerError, Stream

CLONE_NEWNET = 0x40000000
ANSWER_S = 10.0
MARK = "BAZAAR_SHELL"
STDERR = 2
FRAME = struct.Struct("!B3xI")
PICK_SHELL = ("/bin/sh", "-c", "if command -v bash >/dev/null 2>&1; then exec bash; else exec sh; fi")
PYTHON_RELAY = """
import os, socket, sys, threading
s = socket.create_connection(("localhost", int(sys.argv[1])))
def up():
    while True:
        d = os.read(0, 65536)
        if not d:
            break
        s.sendall(d)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while True:
    d = s.recv(65536)
    if not d:
        break
    while d:
        d = d[os.write(1, d):]
"""
RELAY = """
port=$1 hex=$2 found=
for table in /proc/net/tcp /proc/net/tcp6; do
    if [ -r $table ]; then while read -r _ local _ state _; do
        case "$local $state" in *:"$hex 0A") found=1;; esac
    done < $table; fi
done
[ "$found" ] || { echo -; exit 1; }
for python in python3 python; do
    if command -v $python >/dev/null 2>&1; then echo +; exec $python -c "$3" "$port"; fi
done
if command -v socat >/dev/null 2>&1; then echo +; exec socat - TCP:localhost:"$port"; fi
if command -v nc >/dev/null 2>&1; then echo +; exec nc localhost "$port"; fi
if command -v bash >/dev/null 2>&1; then echo +
    exec bash -c 'exec 3<>/dev/tcp/localhost/$0 || exit 1; cat <&3 & cat >&3; wait' "$port"; fi
echo "?"
"""
KILL_MARKED = """
for entry in /proc/[0-9]*; do
    case "$(tr '\\0' ' ' < $entry/environ 2>/dev/null)" in *"$1"*) [ "${entry#/proc/}" = $$ ] || kill -9 "${entry#/proc/}";; esac
done
"""


class DockerReach:
    """Into the containers of one Docker. `inspected` is what it says of one."""

    def __init__(self, socket_path: str) -> None:
        self._socket = socket_path

    async def dial(self, inspected: Mapping[str, Any] | None, folder: str, place: str) -> Stream:
        """See `runner.Runner.dial`; `folder` is the job's. Raises ConnectionError, RunnerError."""
        kind, _, name = place.partition(":")
        if kind == "unix":
            return await dial_socket(folder, name)
        running = _running(inspected)
        pid = container_pid(running)
        if pid is not None and os.geteuid() == 0:
            return await dial_inside(pid, int(name))
        return await self.relayed(running, int(name))

    async def relayed(self, inspected: Mapping[str, Any], port: int) -> Stream:
        """A port, through a program in the container. Raises ConnectionError, RunnerError."""
        argv = ("/bin/sh", "-c", RELAY, "relay", str(port), f"{port:04X}", PYTHON_RELAY)
        relay = await self._started(inspected, argv, 0, 0, with_stderr=False)
        answer = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while not answer.endswith(b"\n") and (more := await relay.read(1)):
                    answer += more
        if answer == b"+\n":
            return relay
        await relay.close()
        if answer == b"-\n":
            raise ConnectionRefusedError(f"nothing listens on port {port} in the job")
        raise RunnerError("container_error", "the image has neither python, socat, nc nor bash to reach a port with")

    async def shell(self, inspected: Mapping[str, Any] | None, argv: tuple[str, ...], columns: int, rows: int) -> ContainerTerminal:
        """See `runner.Runner.shell`. Raises RunnerError."""
        return await self._started(_running(inspected), argv or PICK_SHELL, columns, rows, with_stderr=True)

    async def _started(
        self, inspected: Mapping[str, Any], argv: tuple[str, ...], columns: int, rows: int, *, with_stderr: bool
    ) -> ContainerTerminal:
        tty, mark = columns > 0, f"{MARK}={secrets.token_hex(8)}"
        container = str(inspected["Id"])
        wanted = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": tty,
            "Cmd": list(argv),
            "Env": [mark, *(["TERM=xterm-256color"] if tty else [])],
        }
        made = await self.ask("POST", f"/containers/{quote(container)}/exec", wanted)
        number = str(made["Id"])
        ends = await self._hijacked(f"/exec/{number}/start", {"Detach": False, "Tty": tty})
        terminal = ContainerTerminal(self, container, number, mark, ends=ends, tty=tty, with_stderr=with_stderr)
        if tty:
            await terminal.resize(columns, rows)
        return terminal

    # ---- Docker's API, as little of it as is needed

    async def ask(self, method: str, target: str, body: object = None) -> dict[str, Any]:
        """One question and its answer. Raises RunnerError."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(_request(method, target, body, "HTTP/1.0", {}))
                    status, _ = await _head(reader)
                    data = await reader.read()
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            raise RunnerError("container_error", f"Docker does not answer at {self._socket} ({error!r})") from error
        if status >= 400:
            raise _refused(status, data)
        return msgspec.json.decode(data, type=dict[str, Any]) if data.strip() else {}

    async def _hijacked(self, target: str, body: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError as error:
            raise RunnerError("container_error", f"Docker does not answer at {self._socket} ({error!r})") from error
        try:
            async with asyncio.timeout(ANSWER_S):
                writer.write(_request("POST", target, body, "HTTP/1.1", {"Connection": "Upgrade", "Upgrade": "tcp"}))
                status, length = await _head(reader)
                if status >= 400:
                    raise _refused(status, await reader.readexactly(length or 0))
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            writer.close()
            raise RunnerError("container_error", f"Docker did not start the program ({error!r})") from error
        except BaseException:
            writer.close()
            raise
        return reader, writer


class ContainerTerminal:
    """A program that runs beside the job's own in its container. See `runner.Terminal`."""

    def __init__(
        self,
        docker: DockerReach,
        container: str,
        number: str,
        mark: str,
        *,
        ends: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        tty: bool,
        with_stderr: bool,
    ) -> None:
        self._reader, self._writer = ends
        self._docker = docker
        self._container = container
        self._number = number
        self._mark = mark
        self._tty = tty
        self._with_stderr = with_stderr
        self._left = 0
        """Of the frame that is being read."""
        self._closed = False

    async def read(self, most: int) -> bytes:
        """Some of what it wrote; empty at the end."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            if self._tty:
                return await self._reader.read(most)
            while not self._left:
                channel, length = FRAME.unpack(await self._reader.readexactly(FRAME.size))
                if channel == STDERR and not self._with_stderr:
                    await self._reader.readexactly(length)
                else:
                    self._left = length
            data = await self._reader.read(min(most, self._left))
            self._left -= len(data)
            return data
        return b""

    async def write(self, data: bytes) -> None:
        """To its stdin. Raises ConnectionError."""
        if self._closed:
            raise ConnectionResetError("the program was left")
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        """The end of its stdin: on a terminal what Control-D says."""
        with contextlib.suppress(ConnectionError):
            if self._tty:
                await self.write(b"\x04")
            elif not self._closed:
                self._writer.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        """The window has another size."""
        with contextlib.suppress(RunnerError):
            await self._docker.ask("POST", f"/exec/{self._number}/resize?h={rows}&w={columns}")

    async def exit_code(self) -> int:
        """Once it has ended."""
        while True:
            told = await self._told()
            if not told.get("Running"):
                return int(told.get("ExitCode") or 0) & 255
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Let go of it, and end everything that it started: Docker would leave it running."""
        if self._closed:
            return
        self._closed = True
        self._writer.close()
        told = await self._told()
        pid = int(told.get("Pid") or 0)
        if told.get("Running") and pid:
            if _is_of(pid, self._container):
                signal_session(pid, 9)
            if not await self._is_gone():
                await self._killed_inside()

    async def _told(self) -> dict[str, Any]:
        try:
            return await self._docker.ask("GET", f"/exec/{self._number}/json")
        except RunnerError:
            return {}  # the container is gone, and it with it

    async def _is_gone(self) -> bool:
        for _ in range(20):
            if not (await self._told()).get("Running"):
                return True
            await asyncio.sleep(0.02)
        return False

    async def _killed_inside(self) -> None:
        """For a machine where the container's processes are not ours to signal."""
        with contextlib.suppress(RunnerError):
            await run_inside(self._docker, self._container, ("/bin/sh", "-c", KILL_MARKED, "kill", self._mark))


async def run_inside(docker: DockerReach, container: str, argv: tuple[str, ...]) -> None:
    """Start a program in the container, and wait for nothing. Raises RunnerError."""
    made = await docker.ask("POST", f"/containers/{quote(container)}/exec", {"Cmd": list(argv)})
    await docker.ask("POST", f"/exec/{made['Id']}/start", {"Detach": True})


async def dial_inside(pid: int, port: int) -> SocketStream:
    """Connect to a port of the loopback that a process has, by entering its network for that moment. Raises ConnectionError."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[socket.socket] = loop.create_future()

    def settle(found: socket.socket | None) -> None:
        if found is not None and (made.done() or made.cancelled()):
            found.close()
        elif not made.done():
            if found is not None:
                made.set_result(found)
            else:
                made.set_exception(ConnectionRefusedError(f"nothing listens on port {port} in the job"))

    def work() -> None:
        found = _dial_in_network(pid, port)
        try:
            loop.call_soon_threadsafe(settle, found)
        except RuntimeError:  # the loop has been closed
            if found is not None:
                found.close()

    threading.Thread(target=work, name="dial", daemon=True).start()  # its own: a thread that entered a network is not used again
    return SocketStream(await made)


def _dial_in_network(pid: int, port: int) -> socket.socket | None:
    try:
        network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET) != 0:
            return None
    finally:
        os.close(network)
    for family, host in LOOPBACKS:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.settimeout(DIAL_S)
        try:
            made.connect((host, port))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError:
            made.close()
    return None


def _running(inspected: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if inspected is None or not inspected["State"].get("Running"):
        raise RunnerError("container_error", "the job does not run any more")
    return inspected


def _is_of(pid: int, container: str) -> bool:
    """Whether this number means a process of the container on this machine."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="ascii", errors="replace") as file:
            return container in file.read()
    except OSError:
        return False


def _request(method: str, target: str, body: object, version: str, headers: Mapping[str, str]) -> bytes:
    data = b"" if body is None else msgspec.json.encode(body)
    lines = {"Host": "docker", "Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} {version}\r\n{head}\r\n".encode() + data


async def _head(reader: asyncio.StreamReader) -> tuple[int, int | None]:
    """Status and length of an answer. Raises EOFError, ValueError."""
    top, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    length = next((int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")), None)
    return int(top.split(" ", 2)[1]), length


def _refused(status: int, data: bytes) -> RunnerError:
    try:
        message = str(msgspec.json.decode(data, type=dict[str, Any])["message"])
    except (msgspec.MsgspecError, KeyError):
        message = f"status {status}"
    return RunnerError("container_error", f"Docker refuses: {message[:200]}")
