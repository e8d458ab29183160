"""Into a running job from the buyer's machine: ports, sockets in its folder, WebSockets and shells, and who may not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.docker_market import DockerMarket, docker_market, engine
from e2e.market_env import COMMANDS, MarketEnv, Running, market, own_market
from websockets.asyncio.client import connect

__all__ = ["docker_market", "engine", "market", "own_market"]  # the fixtures

pytestmark = pytest.mark.timeout(120)

SERVES = """
import asyncio, base64, hashlib, http.server, threading

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.path.encode() * (200_000 if self.path == "/large" else 1)
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "20"); self.end_headers(); self.wfile.write(b"%20d" % len(body))
    def log_message(self, *words): pass

class AtSocket(http.server.ThreadingHTTPServer):
    import socket; address_family = socket.AF_UNIX
    def server_bind(self): self.socket.bind(self.server_address); self.server_name, self.server_port = "job", 0
    def get_request(self): connection, _ = self.socket.accept(); return connection, ("", 0)

async def echo(reader, writer):
    # a WebSocket that says every message back to front: RFC 6455, as far as an honest client needs it
    request = await reader.readuntil(b"\\r\\n\\r\\n")
    [key] = [line.split(b": ")[1] for line in request.split(b"\\r\\n") if line.lower().startswith(b"sec-websocket-key")]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n")
    writer.write(b"Sec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    message = b""
    while True:
        first, length = await reader.readexactly(2)
        length &= 127
        if length > 125:
            length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8), "big")
        mask, data = await reader.readexactly(4), await reader.readexactly(length)
        data = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        kind = first & 15
        if kind in (0, 1, 2):
            opcode, message = kind or opcode, message + data
            if not first & 128:
                continue
            kind, data, message = opcode, message[::-1], b""
        elif kind == 9:
            kind = 10
        size = bytes([len(data)]) if len(data) < 126 else b"\\x7f" + len(data).to_bytes(8, "big")
        writer.write(bytes([128 | kind]) + size + data)
        if kind == 8:
            return writer.close()

async def main():
    pages = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    at_socket = AtSocket("app.sock", Page)
    for server in (pages, at_socket):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    sockets = await asyncio.start_server(echo, "127.0.0.1", 0)
    print("ports", pages.server_port, sockets.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


SERVES_PLAINLY = """
import socket, threading

def answer(connection):
    path = connection.recv(65536).split(b" ")[1]
    body = path * (200_000 if path == b"/large" else 1)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    connection.close()

def serve(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,)).start()

pages, at_socket = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
at_socket.bind("app.sock")
at_socket.listen()
threading.Thread(target=serve, args=(at_socket,)).start()
print("ports", pages.getsockname()[1], 0, flush=True)
serve(pages)
"""
"""For a Python that has little more than sockets."""


class Serving:
    """A job that serves pages and a WebSocket."""

    def __init__(self, env: MarketEnv, program: str = SERVES) -> None:
        self.env = env
        self.id = env.submit(env.script("serves.py", program))
        env.wait_for_job(self.id, "running")
        env.wait_until(lambda: "ports" in env.bazaar("logs", self.id).stdout, "the job says its ports")
        self.pages, self.sockets = (int(word) for word in env.bazaar("logs", self.id).stdout.split()[1:3])

    def forwarded(self, *remotes: object) -> tuple[Running, list[int]]:
        """`bazaar forward`, and the local ports that it says."""
        running = self.env.run_on("bazaar", "forward", self.id, *(str(remote) for remote in remotes))
        self.env.wait_until(lambda: len(running.lines) == len(remotes) or running.code is not None, f"the ports\n{running.err}")
        assert running.code is None, running.err
        return running, [int(line.split(" ")[0].rpartition(":")[2]) for line in running.lines]


@pytest.fixture(scope="module")
def serving(market: MarketEnv) -> Iterator[Serving]:
    made = Serving(market)
    yield made
    market.bazaar("cancel", made.id, "--wait", BAZAAR_WALLET="default")


def fetch(port: int, path: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data), timeout=20) as answer:
        return bytes(answer.read())


def test_ports_and_sockets_of_a_job_answer_on_this_machine_only(serving: Serving) -> None:
    forward, [first, second] = serving.forwarded(serving.pages, "unix:app.sock")
    assert b"/hello" == fetch(first, "/hello")
    assert b"/large" * 200_000 == fetch(first, "/large")
    assert 3_000_000 == int(fetch(first, "/up", os.urandom(3_000_000)))
    assert b"/by-socket" == fetch(second, "/by-socket")
    listening = Path(f"/proc/{forward.pid}/net/tcp").read_text()
    assert f"0100007F:{first:04X}" in listening and f"00000000:{first:04X}" not in listening
    forward.tell(signal.SIGINT)
    assert 130 == forward.ended()
    assert "goes on" in forward.err
    assert "running" == serving.env.job(serving.id)["state"]


async def test_websockets_pass(serving: Serving) -> None:
    forward, [port] = await asyncio.to_thread(serving.forwarded, serving.sockets)
    async with (
        connect(f"ws://127.0.0.1:{port}/", max_size=None, proxy=None) as first,
        connect(f"ws://127.0.0.1:{port}/", proxy=None) as second,
    ):
        for number in range(50):
            await first.send(f"message {number}")
            await second.send(bytes([number]) * 1000)
            assert f"message {number}"[::-1] == await first.recv()
            assert bytes([number]) * 1000 == await second.recv()
        large = os.urandom(500_000)
        await first.send(large)
        assert large[::-1] == await first.recv()
    forward.stop()


def test_a_port_where_nothing_listens_is_said(serving: Serving) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        forward, [port] = serving.forwarded(unused.getsockname()[1])
        with pytest.raises(OSError):
            fetch(port, "/")
        serving.env.wait_until(lambda: "nothing listens" in forward.err, "it is said")
    forward.stop()


def test_what_is_no_port_and_what_does_not_run_is_refused_in_words(market: MarketEnv) -> None:
    told = market.bazaar("forward", "j" + "a" * 19, "http://x", code=2)
    assert "leads nowhere" in told.stderr
    assert 3 == market.bazaar("shell", "j" + "a" * 19, code=3).code
    job_id = market.submit("--", "true")
    market.wait_for_job(job_id, "succeeded")
    assert "has ended" in market.bazaar("shell", job_id, code=1).stderr
    waiting = market.submit("--max-price", "0.01", "--", "true")
    assert "does not run yet" in market.bazaar("forward", waiting, "80", code=101).stderr
    market.bazaar("cancel", waiting)


# --- shells ---


class Typist:
    """Somebody at a terminal, who types into a command and reads what it says."""

    def __init__(self, env: MarketEnv, *arguments: str) -> None:
        self.seen = b""
        ours, theirs = pty.openpty()
        self.resize(100, 30, ours)
        self.terminal = ours
        self.process = subprocess.Popen(
            [str(COMMANDS / "bazaar"), *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env.environment(COLUMNS=""),
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.theirs = theirs
        os.set_blocking(ours, False)

    def resize(self, columns: int, rows: int, terminal: int | None = None) -> None:
        fcntl.ioctl(self.terminal if terminal is None else terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def sees(self, condition: Callable[[str], object], timeout_s: float = 30) -> str:
        until = time.monotonic() + timeout_s
        while not condition(self.seen.decode(errors="replace")):
            assert time.monotonic() < until, f"not seen within {timeout_s} s: {self.seen[-2000:]!r}"
            with contextlib.suppress(BlockingIOError, OSError):
                self.seen += os.read(self.terminal, 65536)
            time.sleep(0.01)
        return self.seen.decode(errors="replace")

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.theirs)

    def leaves(self, timeout_s: float = 30) -> int:
        until = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < until, f"still there: {self.seen[-2000:]!r}"
            with contextlib.suppress(BlockingIOError, OSError):
                self.seen += os.read(self.terminal, 65536)
            time.sleep(0.01)
        return int(self.process.returncode)


def test_a_shell_has_a_terminal_that_follows_the_window(serving: Serving) -> None:
    person = Typist(serving.env, "shell", serving.id)
    before = person.modes()
    person.types("stty size; tty; echo job=$BAZAAR_JOB_ID; pwd\n")
    seen = person.sees(lambda text: "job=j" in text and "/job" in text)
    assert "30 100" in seen and "/dev/pts/" in seen and f"job={serving.id}" in seen
    person.resize(77, 21)
    person.types("stty size\n")
    person.sees(lambda text: "21 77" in text)
    person.types("sleep 4320\n")
    serving.env.wait_until(lambda: shells_of(serving.id, "4320"), "it sleeps")
    person.types("\x03")
    serving.env.wait_until(lambda: not shells_of(serving.id, "4320"), "Control-C ends it")
    person.types("exit 7\n")
    assert 7 == person.leaves()
    assert before == person.modes()


def test_a_program_in_the_job_reads_stdin_writes_stdout_and_gives_its_exit_code(serving: Serving) -> None:
    env = serving.env
    assert f"{serving.id}\n" == env.bazaar("shell", serving.id, "--", "printenv", "BAZAAR_JOB_ID").stdout
    text = "".join(f"line {number}\n" for number in range(100_000))
    assert text == env.bazaar("shell", serving.id, "--", "cat", stdin=text).stdout
    assert "hello\n" == env.bazaar("shell", serving.id, stdin="echo hello\n").stdout
    assert 3 == env.bazaar("shell", serving.id, "--", "sh", "-c", "exit 3", code=3).code
    assert 127 == env.bazaar("shell", serving.id, "--", "no-such-program", code=127).code


def shells_of(job_id: str, word: str) -> list[int]:
    """Processes with this word in their command and this job in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            called = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if word.encode() in called and f"BAZAAR_JOB_ID={job_id}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def test_what_a_dropped_shell_ran_is_ended(serving: Serving) -> None:
    env = serving.env
    person = Typist(env, "shell", serving.id)
    person.types("trap '' HUP; sleep 4321 & sleep 4322\n")
    env.wait_until(lambda: shells_of(serving.id, "4321") and shells_of(serving.id, "4322"), "the shell runs something")
    person.process.send_signal(signal.SIGHUP)  # as a closed window does
    assert 130 == person.leaves()
    env.wait_until(lambda: not shells_of(serving.id, "432"), "nothing of the shell is left")


# --- others ---


def test_somebody_elses_job_is_refused(serving: Serving) -> None:
    market = serving.env
    market.bazaar("wallet", "new", "other")
    told = market.bazaar("shell", serving.id, "--wallet", "other", "--", "true", code=None)
    assert told.code in (3, 4), told


# --- containers ---


def test_a_container_without_a_network_is_reached_all_the_same(docker_market: DockerMarket) -> None:
    serving = Serving(docker_market, SERVES_PLAINLY)
    forward, [port, at_socket] = serving.forwarded(serving.pages, "unix:app.sock")
    assert b"/hello" == fetch(port, "/hello")
    assert b"/large" * 200_000 == fetch(port, "/large")
    assert b"/by-socket" == fetch(at_socket, "/by-socket")
    person = Typist(docker_market, "shell", serving.id)
    person.types("busybox stty size; pwd; echo job=$BAZAAR_JOB_ID\n")
    person.sees(lambda text: "30 100" in text and "/job" in text and f"job={serving.id}" in text)
    person.resize(77, 21)
    person.types("busybox stty size\n")
    person.sees(lambda text: "21 77" in text)
    person.types("exit 4\n")
    assert 4 == person.leaves()
    docker_market.bazaar("cancel", serving.id, "--wait")
    assert 103 == forward.ended()


# --- ends ---


def test_the_end_of_a_job_cuts_what_leads_into_it_and_an_agents_restart_does_not(own_market: MarketEnv) -> None:
    env = own_market
    serving = Serving(env)
    forward, [port] = serving.forwarded(serving.pages)
    assert b"/before" == fetch(port, "/before")
    env.kill(next(name for name in env.pids() if "seller" in name))
    env.wait_until(lambda: _answers(port), "the port answers again", 40)
    env.kill("broker")
    env.wait_until(lambda: _answers(port), "the port answers again after the broker's end", 40)
    person = Typist(env, "shell", serving.id)
    person.types("echo he''re\n")
    person.sees(lambda text: "here" in text)
    env.bazaar("cancel", serving.id, "--wait")
    assert 103 == forward.ended()
    assert person.leaves() in (1, 129)  # cut off, or the shell's own end


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return fetch(port, "/again") == b"/again"
    return False
