"""Reaching into containers of a real Docker engine: ports through their network or a relay, sockets, and programs beside the job."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from integration.broker_env import until
from integration.docker_engine import engine
from integration.docker_home import Home, home, quiet, runner

from seller_agent.runners.docker_engine.profile import container_name
from seller_agent.runners.docker_engine.reach import KILL_MARKED, DockerReach
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.reach import dial_socket
from seller_agent.runners.runner import RunnerError, RunSpec, StopReason, Stream, Terminal

__all__ = ["engine", "home", "runner"]  # fixtures

pytestmark = pytest.mark.timeout(120)
PORT = 8080
SERVES = """
mkdir -p /tmp/bin; /bin/busybox --install -s /tmp/bin
mkdir /tmp/www; echo inside > /tmp/www/page; seq 1 200000 > /tmp/www/large
httpd -p 127.0.0.1:8080 -h /tmp/www; echo up; while :; do usleep 100000; done
"""


@pytest.fixture
async def serving(home: Home, runner: DockerRunner) -> AsyncIterator[RunSpec]:
    """A container without a network that serves pages on its own loopback."""
    spec = home.spec(SERVES, env={"PATH": "/tmp/bin:/bin", "BAZAAR_OUT": "/out", "MINE": "yes"})
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await until(lambda: (Path(spec.folder) / "log" / "stdout").read_text() == "up\n", "the job serves")
    yield spec
    await runner.stop(spec.key, StopReason.ASKED, 0)
    await runner.wait(spec.key)


async def fetch(stream: Stream, path: str) -> bytes:
    await stream.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return (await everything(stream)).partition(b"\r\n\r\n")[2]


async def everything(stream: Stream) -> bytes:
    found = b""
    async with asyncio.timeout(30):
        while data := await stream.read(65536):
            found += data
    await stream.close()
    return found


async def inspected(runner: DockerRunner, spec: RunSpec) -> dict[str, Any]:
    found = await asyncio.to_thread(runner._engine.inspect, container_name(spec.key))
    assert found is not None
    return found


LARGE = "".join(f"{number}\n" for number in range(1, 200_001)).encode()


async def test_a_port_of_a_container_without_a_network_is_reached_and_only_its_own(runner: DockerRunner, serving: RunSpec) -> None:
    assert b"inside\n" == await fetch(await runner.dial(serving.key, f"tcp:{PORT}"), "/page")
    assert LARGE == await fetch(await runner.dial(serving.key, f"tcp:{PORT}"), "/large")
    with socket.create_server(("127.0.0.1", 0)) as of_the_host, pytest.raises(ConnectionError, match="nothing listens"):
        await runner.dial(serving.key, f"tcp:{of_the_host.getsockname()[1]}")


async def test_a_relay_in_the_container_does_where_its_network_may_not_be_entered(
    home: Home, runner: DockerRunner, serving: RunSpec
) -> None:
    reach, container = DockerReach(home.engine.socket), await inspected(runner, serving)
    assert b"inside\n" == await fetch(await reach.relayed(container, PORT), "/page")
    assert LARGE == await fetch(await reach.relayed(container, PORT), "/large")
    with pytest.raises(ConnectionError, match="nothing listens"):
        await reach.relayed(container, PORT + 1)


async def test_sockets_in_the_jobs_folder_are_reached_and_links_are_not_followed(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200)
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    outside = tmp_path / "outside.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as secret:
        listener.bind(f"/proc/self/fd/{here}/app.sock")
        listener.listen()
        secret.bind(str(outside))
        secret.listen()
        (deep / "link.sock").symlink_to(outside)
        (deep / "file").write_text("no socket")
        stream = await dial_socket(str(deep), "app.sock")
        accepted, _ = listener.accept()
        await stream.write(b"hello")
        assert b"hello" == accepted.recv(10)
        accepted.close()
        assert b"" == await stream.read(10)
        await stream.close()
        for name in ("link.sock", "file", "absent"):
            with pytest.raises(ConnectionError):
                await dial_socket(str(deep), name)
    os.close(here)


async def test_a_program_beside_the_job_is_confined_as_the_job_is(runner: DockerRunner, serving: RunSpec) -> None:
    script = "pwd; echo $MINE; id -u; grep -h -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; touch /etc/x || echo no"
    told = (await everything(await runner.shell(serving.key, ("sh", "-c", script), 0, 0))).decode()
    assert "/job\nyes\n" in told and "NoNewPrivs:\t1" in told and "Seccomp:\t2" in told and "\nno\n" in told
    assert 2 == told.count("0000000000000000")
    assert "\n0\n" not in told


async def test_a_shell_has_a_terminal_with_the_size_of_the_window(runner: DockerRunner, serving: RunSpec) -> None:
    terminal = await runner.shell(serving.key, (), 100, 30)
    await terminal.write(b"stty size; tty\n")
    await _sees(terminal, b"30 100")
    await terminal.resize(77, 21)
    await terminal.write(b"stty size\n")
    await _sees(terminal, b"21 77")
    await terminal.write(b"exit 5\n")
    while await terminal.read(1000):
        pass
    assert 5 == await terminal.exit_code()
    await terminal.close()


async def _sees(terminal: Terminal, words: bytes) -> None:
    seen = b""
    async with asyncio.timeout(20):
        while words not in seen:
            data = await terminal.read(1000)
            assert data, seen
            seen += data


async def test_pipes_carry_stdin_to_its_end_and_the_exit_code_back(runner: DockerRunner, serving: RunSpec) -> None:
    terminal = await runner.shell(serving.key, ("sh", "-c", "cat; echo aside >&2; exit 9"), 0, 0)
    await terminal.write(b"\x00\x03\x04\xff binary\n" * 1000)
    await terminal.write_eof()
    found = b""
    while data := await terminal.read(65536):
        found += data
    assert 1 == found.count(b"aside\n")
    rest = found.replace(b"aside\n", b"")  # the engine carries two pipes, and promises no order between them
    assert rest == b"\x00\x03\x04\xff binary\n" * 1000, f"{len(rest)} bytes"
    assert 9 == await terminal.exit_code()
    await terminal.close()


async def test_what_a_dropped_program_ran_is_ended(home: Home, runner: DockerRunner, serving: RunSpec) -> None:
    terminal = await runner.shell(serving.key, ("sh", "-c", "trap '' HUP TERM; sleep 4321 & echo up; sleep 4322"), 80, 24)
    await _sees(terminal, b"up")
    assert 2 == len(_sleeping())
    await terminal.close()
    await until(lambda: not _sleeping(), "nothing of it is left")
    marked = await runner.shell(serving.key, ("sh", "-c", "sleep 4323 & echo up; sleep 4324"), 0, 0)
    await _sees(marked, b"up")
    killing = await runner.shell(serving.key, ("/bin/sh", "-c", KILL_MARKED, "kill", marked._mark), 0, 0)  # type: ignore[attr-defined]
    await everything(killing)
    await until(lambda: not _sleeping(), "nothing of it is left, killed from the inside")
    await marked.close()


def _sleeping() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"\x00432" in (entry / "cmdline").read_bytes() and b"MINE=yes" in (entry / "environ").read_bytes():
                found.append(entry.name)
    return found


async def test_programs_and_connections_end_with_the_job_and_none_begin_after(runner: DockerRunner, serving: RunSpec) -> None:
    terminal = await runner.shell(serving.key, ("sleep", "4325"), 0, 0)
    stream = await runner.dial(serving.key, f"tcp:{PORT}")
    await runner.stop(serving.key, StopReason.ASKED, 0)
    assert b"" == await asyncio.wait_for(terminal.read(100), 20)
    assert b"" == await asyncio.wait_for(stream.read(100), 20)
    await terminal.close()
    await stream.close()
    with pytest.raises(RunnerError, match="does not run"):
        await runner.shell(serving.key, (), 80, 24)
    with pytest.raises(RunnerError, match="does not run"):
        await runner.dial(serving.key, f"tcp:{PORT}")


async def test_a_program_that_the_image_lacks_is_said(runner: DockerRunner, serving: RunSpec) -> None:
    try:
        terminal = await runner.shell(serving.key, ("no-such-program",), 0, 0)
    except RunnerError as error:
        assert "no-such-program" in str(error)
        return
    assert b"no-such-program" in await everything(terminal)
    assert await terminal.exit_code() in (126, 127)
