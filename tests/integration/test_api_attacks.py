"""What hostile readers do to the API: hold on to connections, never read, ask for what is not theirs, lie about names and places."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
import time
from asyncio import constants
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from integration.broker_env import World, until, world
from integration.test_api import READY_S, ApiProcess, Scribe, a_job, scribe

from events import pinning
from events.identity import ReadTokenIssued, ReadTokenRevoked
from services.api import lines, live
from services.api.app import LOCAL, Facing
from services.certificates import own

__all__ = ["scribe", "world"]

HOUR_MS = 3_600_000
IDLE, SLOW = 5_000, 100
TCP_CLOSED = 7


@asynccontextmanager
async def serving(world: World, folder: Path, *, bind: str = "127.0.0.1", facing: Facing = LOCAL) -> AsyncIterator[ApiProcess]:
    """An API whose sockets hold little."""
    made = ApiProcess(world, folder)
    made.bind, made.facing, made.send_buffer_bytes = bind, facing, 8192
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def api(world: World, scribe: Scribe, tmp_path: Path) -> AsyncIterator[ApiProcess]:
    async with serving(world, tmp_path) as made:
        yield made


@pytest.fixture
async def open_api(world: World, scribe: Scribe, tmp_path: Path) -> AsyncIterator[ApiProcess]:
    """One that other machines reach, so that it takes tokens."""
    async with serving(world, tmp_path, bind="0.0.0.0") as made:
        yield made


@pytest.fixture
async def proxied_api(world: World, scribe: Scribe, tmp_path: Path) -> AsyncIterator[ApiProcess]:
    """One behind a proxy of this machine."""
    async with serving(world, tmp_path, facing=Facing(public_hosts=("market.test",))) as made:
        yield made


class Crowd:
    """Many connections of one address of this machine, all closed in the end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sockets: list[socket.socket] = []

    def join(self, source: str, say: bytes = b"", *, receive_bytes: int | None = None) -> socket.socket:
        made = socket.socket()
        self.sockets.append(made)
        if receive_bytes is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.bind((source, 0))
        made.settimeout(READY_S)
        with suppress(ConnectionError):  # one too many is told so at once
            made.connect(("127.0.0.1", self._port))
            made.sendall(say)
        return made

    def many(self, count: int, source: str, say: bytes = b"") -> None:
        for _ in range(count):
            self.join(source, say)

    def hung_up(self) -> int:
        """How many of them the other side has ended."""
        return sum(map(ended, self.sockets))

    def close(self) -> None:
        for made in self.sockets:
            made.close()


def ended(made: socket.socket) -> bool:
    made.setblocking(False)
    try:
        return made.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.fixture
def crowd(api: ApiProcess) -> Iterator[Crowd]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = Crowd(api.port)
    yield made
    made.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- holding on ---


async def test_thousands_who_say_nothing_and_a_hundred_who_say_it_slowly_hold_nobody_up(
    api: ApiProcess, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "HEAD_S", 5.0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard > 2 * IDLE + 1000, "this machine allows too few descriptors for the attack"
    await asyncio.to_thread(crowd.many, IDLE, "127.0.0.1")
    await asyncio.to_thread(crowd.many, SLOW, "127.0.0.2", b"GET /v1/market HTTP/1.1\r\nHost: local")
    for path in ("/healthz", "/readyz", "/v1/market"):
        answered = await asyncio.to_thread(asked_from, "127.0.0.3", api.port, path)
        assert b" 200 " in answered.splitlines()[0], path
    assert crowd.hung_up() >= IDLE - lines.LINES_OF_THIS_MACHINE, "one address holds so many and no more"
    await until(lambda: crowd.hung_up() == IDLE + SLOW, "all of them were let go")
    assert 200 == (await api.get("/v1/market")).status


def asked_from(source: str, port: int, path: str) -> bytes:
    with socket.socket() as made:
        made.settimeout(READY_S)
        made.bind((source, 0))
        made.connect(("127.0.0.1", port))
        made.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while data := made.recv(65536):
            answer += data
        return answer


async def test_one_address_holds_so_many_connections_and_has_them_back_when_it_lets_go(
    api: ApiProcess, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LINES_OF_ADDRESS", 3)
    await asyncio.to_thread(crowd.many, 5, "127.0.0.2")
    await until(lambda: crowd.hung_up() == 2, "two too many")
    with pytest.raises(ConnectionError):
        assert b"" != await asyncio.to_thread(asked_from, "127.0.0.2", api.port, "/healthz")
        raise ConnectionError("hung up without a word")
    assert b" 200 " in await asyncio.to_thread(asked_from, "127.0.0.3", api.port, "/healthz")
    crowd.close()

    async def served() -> bool:
        with suppress(ConnectionError):
            return b" 200 " in await asyncio.to_thread(asked_from, "127.0.0.2", api.port, "/healthz")
        return False

    deadline = time.monotonic() + READY_S
    while not await served():
        assert time.monotonic() < deadline


async def test_a_letter_at_a_time_is_no_question(api: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not the second one of a connection."""
    monkeypatch.setattr(lines, "HEAD_S", 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READY_S)
    assert b" 200 " in head.splitlines()[0]
    with suppress(ConnectionError):
        async with asyncio.timeout(READY_S):
            while not reader.at_eof():
                writer.write(b"G")
                await writer.drain()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), 0.05)
    writer.close()


async def test_who_never_shakes_hands_is_let_go(world: World, scribe: Scribe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "HEAD_S", 0.5)
    monkeypatch.setattr(constants, "SSL_HANDSHAKE_TIMEOUT", constants.SSL_HANDSHAKE_TIMEOUT)  # put back in the end
    certificate = own(tmp_path / "tls", ["localhost"])
    made = ApiProcess(world, tmp_path)
    made.facing = Facing(tls=certificate)
    await made.start(ready=False)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        with suppress(ConnectionError):
            assert b"" == await asyncio.wait_for(reader.read(), READY_S)
        writer.close()
        url, trusted = f"https://127.0.0.1:{made.port}/healthz", pinning.trusting([certificate.der])
        assert b"ok" in await asyncio.to_thread(lambda: urlopen(url, timeout=READY_S, context=trusted).read())
    finally:
        await made.stop()


async def test_a_stream_that_is_never_read_ends_and_takes_nothing_from_the_others(
    scribe: Scribe, api: ApiProcess, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SEND_TIMEOUT_S", 0.5)
    monkeypatch.setattr(lines, "STALLED_S", 1.0)
    await many_events(scribe)
    deaf = b"GET /v1/events?from_seq=1 HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
    for _ in range(20):
        await asyncio.to_thread(crowd.join, "127.0.0.2", deaf, receive_bytes=4096)
    stream = await api.stream(query="?from_seq=1")
    assert list(range(1, scribe.market.last_seq + 1)) == await stream.read_to(scribe.market.last_seq)
    await until(lambda: all(map(was_cut, crowd.sockets)), "the deaf ones are let go")
    await scribe.submit("still")
    assert scribe.market.last_seq in await stream.read_to(scribe.market.last_seq)
    stream.close()


def was_cut(made: socket.socket) -> bool:
    """Whether the other side has given a connection up, seen without reading a byte of what came over it."""
    return made.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSED


async def test_an_answer_that_is_never_read_is_given_up(
    scribe: Scribe, api: ApiProcess, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "STALLED_S", 0.5)
    await many_events(scribe)
    await api.at("/v1/market", scribe.market.last_seq)
    question = b"GET /v1/events?from_seq=1&limit=500 HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
    made = await asyncio.to_thread(crowd.join, "127.0.0.2", question, receive_bytes=4096)
    await until(lambda: was_cut(made), "it is given up")
    assert 200 == (await api.get("/v1/market")).status


async def many_events(scribe: Scribe) -> None:
    """More than any buffer on the way holds."""
    for batch in range(25):
        filler = {f"k{number}": "x" * 60 for number in range(8)}
        await scribe.say(scribe.buyer, *(a_job(f"job {batch} {number}", labels=filler) for number in range(12)))


async def test_what_is_sent_to_an_api_that_only_reads_is_not_taken_in(api: ApiProcess, crowd: Crowd) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    made = await asyncio.to_thread(crowd.join, "127.0.0.2", head)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def push() -> int:
        made.settimeout(READY_S)
        for sent in range(1000):
            try:
                made.sendall(bytes(1_000_000))
            except OSError:
                return sent
        return 1000

    assert await asyncio.to_thread(push) < 100, "the line is cut long before the end of the body"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50_000


# --- what is another's ---


def issued(text: str, expires_ms: int, org_id: str | None = None) -> ReadTokenIssued:
    return ReadTokenIssued(token_sha256=hashlib.sha256(text.encode()).hexdigest(), name="t", expires_ms=expires_ms, org_id=org_id)


async def test_another_s_job_is_not_there_whatever_is_asked_of_it(scribe: Scribe, open_api: ApiProcess) -> None:
    await scribe.offer()
    theirs, mine = await scribe.submit("theirs", party=scribe.other), await scribe.submit("mine")
    await scribe.say(scribe.buyer, issued("mine", scribe.now_ms + HOUR_MS))
    await scribe.finish(theirs)
    await open_api.at("/v1/market", scribe.market.last_seq)
    token = {"Authorization": "Bearer mine"}
    for path in ("", "/events", "/why", "/logs", "/results"):
        hidden = await open_api.get(f"/v1/jobs/{theirs}{path}", headers=token)
        nowhere = await open_api.get(f"/v1/jobs/j{'a' * 19}{path}", headers=token)
        assert (404, "unknown_job") == (hidden.status, hidden.json["code"]), path
        assert {**hidden.json, "instance": ""} == {**nowhere.json, "instance": ""}, "that it exists is not told either"
        assert (await open_api.get(f"/v1/jobs/{mine}{path}", headers=token)).status in (200, 409), path
    assert ["mine"] == (await open_api.get("/v1/jobs", headers=token)).names
    assert [] == (await open_api.get(f"/v1/jobs?buyer={scribe.other.wallet}", headers=token)).names
    events = await open_api.get("/v1/events?from_seq=1&limit=500", headers={**token, "Accept": "application/json"})
    assert b"theirs" not in events.body and b'"mine"' in events.body


async def test_tokens_end_when_they_expire_are_revoked_or_their_owner_leaves(scribe: Scribe, open_api: ApiProcess) -> None:
    await scribe.say(scribe.buyer, issued("short", scribe.now_ms + 3_000), issued("long", scribe.now_ms + HOUR_MS))
    await open_api.at("/v1/market", scribe.market.last_seq)

    async def status(token: str) -> int:
        return (await open_api.get("/v1/jobs", headers={"X-Auth-Token": token})).status

    assert (200, 200) == (await status("long"), await status("short"))
    deadline = time.monotonic() + READY_S
    while await status("short") != 401:
        assert time.monotonic() < deadline, "it expires"
        await asyncio.sleep(0.05)
    await scribe.say(scribe.buyer, ReadTokenRevoked(token_sha256=hashlib.sha256(b"long").hexdigest()))
    await open_api.at("/v1/market", scribe.market.last_seq)
    assert 401 == await status("long")


# --- lies ---


async def test_names_and_values_that_nobody_knows_are_a_problem_without_their_bytes(api: ApiProcess) -> None:
    odd = (
        "__class__=1",
        "%00=1",
        "limit[]=1",
        "=1",
        "LIMIT=1",
        "limit=1%0d%0aSet-Cookie:x",
        "state=%f0%28%8c",
        "cursor=%ff",
        "limit=%d9%a3",
    )
    for query in (*odd, "a" * 9000 + "=1", "limit=" + "9" * 5000, "&".join(f"label=k%3d{number}" for number in range(200))):
        got = await api.get(f"/v1/jobs?{query}")
        assert (400, "bad_query") == (got.status, got.json["code"]), query[:100]
        assert "set-cookie" not in got.headers
        assert got.json["detail"].isprintable() and len(got.body) < 2000


async def test_a_proxy_says_whose_question_it_is_and_only_its_names_count(proxied_api: ApiProcess) -> None:
    async def status(forwarded: str, host: str = "market.test") -> int:
        return (await proxied_api.get("/v1/nodes", headers={"Host": host, "X-Forwarded-For": forwarded})).status

    assert 421 == await status("192.0.2.1", "rebound.test")
    statuses = [await status("198.51.100.7, 192.0.2.1") for _ in range(200)]
    assert 429 in statuses, "one reader is slowed down"
    assert 200 == await status("192.0.2.1, 198.51.100.7"), "and the others are not; what the reader itself puts in front is hearsay"


# --- traces ---

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


async def test_a_trace_is_taken_over_and_answered(api: ApiProcess, capfd: pytest.CaptureFixture[str]) -> None:
    answer = await api.get("/v1/market", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    version, trace, span, flags = answer.headers["traceresponse"].split("-")
    assert ("00", TRACE, "01") == (version, trace, flags)
    assert "00f067aa0ba902b7" != span and len(span) == 16
    said = capfd.readouterr()
    assert TRACE in said.out + said.err and "/v1/market" in said.out + said.err
