"""Reaching into runs of plain processes: ports, sockets in the job's folder, and programs beside the job's own, with real processes."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from integration.broker_env import until
from integration.test_process_runner import Bench, bench

from seller_agent.runners.runner import RunnerError, RunSpec, StopReason, Stream, Terminal

__all__ = ["bench"]  # the fixture

SERVES = """
import socket, threading

def answer(connection):
    connection.sendall(connection.recv(100)[::-1])
    connection.close()

port, at_socket = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
at_socket.bind("app.sock")
at_socket.listen()
print(port.getsockname()[1], flush=True)
for listener in (port, at_socket):
    threading.Thread(target=lambda listener=listener: [answer(listener.accept()[0]) for _ in range(9)]).start()
"""


async def serving(bench: Bench) -> tuple[RunSpec, int]:
    """A run that serves, and the port that it says."""
    spec = bench.spec("python", "-c", SERVES)
    await bench.start(spec)
    said = Path(spec.folder) / "log" / "stdout"
    return spec, int(await until(lambda: said.read_text().strip(), "the job says its port"))


async def exchanged(stream: Stream, data: bytes) -> bytes:
    await stream.write(data)
    await stream.write_eof()
    return await everything(stream)


async def everything(stream: Stream) -> bytes:
    found = b""
    async with asyncio.timeout(20):
        while data := await stream.read(65536):
            found += data
    await stream.close()
    return found


async def sees(terminal: Terminal, words: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(20):
        while words not in seen:
            data = await terminal.read(1000)
            assert data, seen
            seen += data
    return seen


def alive(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"\0{word}\0".encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


async def test_a_port_and_a_socket_of_a_job_answer(bench: Bench) -> None:
    spec, port = await serving(bench)
    assert b"olleh" == await exchanged(await bench.runner.dial(spec.key, f"tcp:{port}"), b"hello")
    assert b"olleh" == await exchanged(await bench.runner.dial(spec.key, "unix:app.sock"), b"hello")
    with pytest.raises(ConnectionError):
        await bench.runner.dial(spec.key, "unix:other.sock")


async def test_a_shell_is_in_the_jobs_folder_with_its_environment_on_a_terminal(bench: Bench) -> None:
    spec, _ = await serving(bench)
    terminal = await bench.runner.shell(spec.key, (), 91, 37)
    await terminal.write(b"stty size; pwd; echo attempt=$BAZAAR_ATTEMPT\n")
    seen = await sees(terminal, b"attempt=1")
    assert b"37 91" in seen and f"{spec.folder}/job".encode() in seen
    await terminal.resize(40, 10)
    await terminal.write(b"stty size\n")
    await sees(terminal, b"10 40")
    await terminal.write(b"exit 6\n")
    await everything(terminal)
    assert 6 == await terminal.exit_code()


async def test_pipes_carry_any_byte(bench: Bench) -> None:
    spec, _ = await serving(bench)
    data = bytes(range(256)) * 5000
    terminal = await bench.runner.shell(spec.key, ("cat",), 0, 0)
    writing = asyncio.create_task(terminal.write(data))
    found = b""
    async with asyncio.timeout(20):
        while len(found) < len(data):
            found += await terminal.read(65536)
    await writing
    await terminal.write_eof()
    assert data == found and b"" == await terminal.read(1)
    assert 0 == await terminal.exit_code()
    await terminal.close()


async def test_everything_that_a_shell_started_ends_with_it_also_what_ignores_the_hangup(bench: Bench) -> None:
    spec, _ = await serving(bench)
    terminal = await bench.runner.shell(
        spec.key, ("sh", "-c", "trap '' HUP TERM; setsid sleep 98761 & sleep 98762 & echo up; wait"), 80, 24
    )
    await sees(terminal, b"up")
    await until(lambda: alive("98761") and alive("98762"), "both sleep")
    await terminal.close()
    await until(lambda: not alive("98761") and not alive("98762"), "nothing sleeps")


async def test_a_shell_ends_with_the_run_and_none_begins_after(bench: Bench) -> None:
    spec, _ = await serving(bench)
    terminal = await bench.runner.shell(spec.key, ("sleep", "98763"), 0, 0)
    await until(lambda: alive("98763"), "it sleeps")
    await bench.runner.stop(spec.key, StopReason.ASKED, 0)
    await bench.runner.wait(spec.key)
    assert b"" == await terminal.read(1)
    await until(lambda: not alive("98763"), "it is gone")
    with pytest.raises(RunnerError, match="does not run"):
        await bench.runner.shell(spec.key, (), 80, 24)


async def test_who_waits_for_a_shell_learns_that_it_was_closed_though_its_pipes_are_held_open(bench: Bench) -> None:
    spec, _ = await serving(bench)
    terminal = await bench.runner.shell(spec.key, ("sh", "-c", "echo $$; exec sleep 98764"), 0, 0)
    pid = int(await sees(terminal, b"\n"))
    with open(f"/proc/{pid}/fd/0", "rb", buffering=0), open(f"/proc/{pid}/fd/1", "wb", buffering=0):
        reading = asyncio.create_task(terminal.read(1))
        writing = asyncio.create_task(terminal.write(bytes(10_000_000)))
        await asyncio.sleep(0)  # both tasks run until they wait
        await terminal.close()
        async with asyncio.timeout(20):
            assert b"" == await reading
            with pytest.raises(ConnectionError):
                await writing


async def test_a_write_that_waits_learns_that_stdin_was_ended(bench: Bench) -> None:
    spec, _ = await serving(bench)
    terminal = await bench.runner.shell(spec.key, ("sleep", "98765"), 0, 0)
    writing = asyncio.create_task(terminal.write(bytes(10_000_000)))
    await asyncio.sleep(0)  # it runs until it waits
    await terminal.write_eof()
    async with asyncio.timeout(20):
        with pytest.raises(ConnectionError):
            await writing
    await terminal.close()


async def test_a_program_that_is_not_there_says_so(bench: Bench) -> None:
    spec, _ = await serving(bench)
    terminal = await bench.runner.shell(spec.key, ("no-such-program",), 0, 0)
    assert b"no-such-program" in await everything(terminal)
    assert 127 == await terminal.exit_code()
