"""The query API as a process would run it: a real broker and ledger, pages made by real turns, HTTP over a socket, questions over NATS."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.client
import json
import os
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import msgspec
import pytest
from integration.broker_env import MARKET_ID, World, login, world

from events import ids, subjects, wire
from events.codec import encode_batch, encode_event
from events.connection import Connection
from events.envelope import seal
from events.errors import LogCorrupt
from events.fact import Event
from events.identity import ReadTokenIssued
from events.jobs import GpusReleased, JobClaimed, JobStarted, JobSubmitted, JobSucceeded
from events.market import MarketCreated, Policy, PolicyChanged
from events.nats_log import NatsLog
from events.nodes import NodeOffered
from events.page import encode_page
from events.session import Session, make_session
from events.values import Card, Labels, Program, Requirements, Role
from events.wallet import KeySigner
from projections import snapshot
from projections.market import Market
from services import genesis
from services.api import app, event_feed, live, upkeep
from services.api.read_model import FinishedJob, JobFilter, Progress, ReadModel
from services.matcher.admission import Arrival
from services.matcher.draft import Closed, Draft
from services.matcher.memory import Memory
from services.matcher.turn import turn
from services.output_store import OutputStore

__all__ = ["world"]

READY_S = 20.0


class Party:
    """A wallet with a session key, which numbers what it says."""

    def __init__(self, number: int, role: Role) -> None:
        signer = KeySigner(number.to_bytes(32, "big"))
        self.session: Session = make_session(signer, MARKET_ID, role, now_ms=time.time_ns() // 1_000_000, validity_ms=3_600_000)
        self.number = 1

    @property
    def wallet(self) -> str:
        return self.session.wallet

    def say(self, *events: Event) -> Arrival:
        said = (self.session.authorisation(), *events) if self.number == 1 else events
        body = encode_batch([encode_event(event) for event in said])
        data = seal(
            self.session.signing_key,
            market_id=bytes.fromhex(MARKET_ID),
            subject=subjects.intake(self.wallet),
            seq=self.number,
            ts_ms=0,
            body=body,
        )
        self.number += len(said)
        return Arrival(self.wallet, data)


class Scribe:
    """Writes the ledger as the matcher would: real turns, real pages, appended one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = NatsLog(world.services)
        self.market = Market()
        self.buyer, self.other = Party(1, Role.BUYER), Party(2, Role.BUYER)
        self.seller, self.operator = Party(3, Role.SELLER), Party(999, Role.OPERATOR)
        self.now_ms = time.time_ns() // 1_000_000
        self.memory = Memory(self.market, world.keys.page_key, self.now_ms)

    async def begin(self) -> Scribe:
        root = KeySigner((999).to_bytes(32, "big"))
        made: MarketCreated = genesis.create(
            root=root.address,
            sign=root.sign_text,
            name="tests",
            matcher_key=bytes(self.world.keys.page_key.verify_key),
            policy=Policy(max_queue=100_000),
            random=bytes(16),
            now_ms=self.now_ms,
        )
        self.memory.market_id = bytes.fromhex(MARKET_ID)
        draft = Draft(self.market, self.memory, self.now_ms)
        assert draft.decide(msgspec.structs.replace(made, market_id=MARKET_ID)) is None
        draft.close()
        await self._append(draft.closed)
        return self

    async def say(self, party: Party, *events: Event) -> int:
        """Everything in one turn; the sequence of its last event."""
        return await self.together((party, *events))

    async def together(self, *said: tuple[Party, *tuple[Event, ...]]) -> int:
        """What several say in one turn, in this order; the sequence of its last event."""
        self.now_ms = max(self.now_ms + 1, time.time_ns() // 1_000_000)
        seq = self.market.last_seq
        closed, _ = turn(self.market, [party.say(*events) for party, *events in said], [], self.now_ms, self.memory)
        assert self.market.last_seq >= seq + sum(len(events) for _, *events in said), "something was refused"
        await self._append(closed)
        return self.market.last_seq

    async def _append(self, closed: list[Closed]) -> None:
        position = self.market.pages - len(closed)
        for page in closed:
            position = await self.ledger.append(encode_page(page.page), position)

    async def offer(self, name: str = "node", *, gpus: int = 2, price: int = 400_000, **changes: Any) -> str:
        node_id = ids.node_id(self.seller.wallet, name)
        cards = tuple(
            Card(index=index, uuid=f"GPU-{name}-{index}", model="NVIDIA GeForce RTX 4090", vram_mib=24_564) for index in range(gpus)
        )
        values = {"node_id": node_id, "name": name, "cards": cards, "cores": 64, "memory_mib": 65_536, "price_uusd_per_gpu_hour": price}
        await self.say(self.seller, NodeOffered(**(values | changes)))
        return node_id

    async def submit(self, name: str = "job", *, party: Party | None = None, gpus: int = 1, labels: Labels | None = None) -> str:
        job = a_job(name, gpus=gpus, labels=labels)
        await self.say(party or self.buyer, job)
        return job.job_id

    async def finish(self, job_id: str) -> None:
        """The node runs a matched job to its end."""
        attempt = self.attempt(job_id)
        await self.say(
            self.seller,
            JobClaimed(**attempt, output_token=os.urandom(8).hex()),
            JobStarted(**attempt),
            JobSucceeded(**attempt, exit_code=0, ran_ms=5),
            GpusReleased(**attempt),
        )

    def attempt(self, job_id: str) -> dict[str, Any]:
        run = self.market.jobs[job_id].run
        assert run is not None, f"{job_id} has no node"
        return {"job_id": job_id, "attempt": run.attempt, "epoch": run.epoch}


def a_job(name: str, *, gpus: int = 1, labels: Labels | None = None) -> JobSubmitted:
    return JobSubmitted(
        job_id=ids.job_id(os.urandom(12)),
        name=name,
        requirements=Requirements(num_gpus=gpus),
        program=Program(argv=("true",)),
        timeout_s=60,
        labels=labels or {},
    )


class Got(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def names(self) -> list[str]:
        return [item["name"] for item in self.json["items"]]


class ApiProcess:
    """The API on a free port of loopback, over the same database whenever it is started."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.database = folder / "api" / "read_model.db"
        self.snapshot = folder / "snapshot.bin"
        self.port = 0
        self.bind = "127.0.0.1"
        self.facing = app.LOCAL
        self.send_buffer_bytes: int | None = None
        self._until = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, ready: bool = True) -> ApiProcess:
        listening = await self._listening()
        if self.send_buffer_bytes is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer_bytes)
        self.port = listening.getsockname()[1]
        self._until = asyncio.Event()
        serving = app.serve(
            self.world.url,
            self.world.keys,
            listening=listening,
            database=self.database,
            snapshot_file=self.snapshot,
            until=self._until,
            facing=self.facing,
        )
        self._task = asyncio.create_task(serving)
        deadline = time.monotonic() + READY_S
        while ready and (got := await self.get("/readyz")).status != 200:
            assert not self._task.done(), self._task
            assert time.monotonic() < deadline, got
            await asyncio.sleep(0.02)
        return self

    async def _listening(self) -> socket.socket:
        """At the port that it had before; somebody's outgoing connection may have that for a moment."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                return socket.create_server((self.bind, self.port), backlog=512)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.05)

    async def ended(self) -> None:
        """Return when it ends by itself; raises what it raised."""
        assert self._task is not None
        await self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._until.set()
            await self._task
            self._task = None

    async def get(self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Got:
        return await asyncio.to_thread(self._get, path, method, headers or {})

    def _get(self, path: str, method: str, headers: dict[str, str]) -> Got:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    async def at(self, path: str, seq: int) -> Got:
        """The answer once the API has read so far."""
        got = await self.get(f"{path}{'&' if '?' in path else '?'}min_seq={seq}&wait=20s")
        assert got.status == 200, got
        return got

    async def stream(self, *, last: int | None = None, query: str = "", token: str = "") -> EventStream:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        seen = ("" if last is None else f"Last-Event-ID: {last}\r\n") + (f"Authorization: Bearer {token}\r\n" if token else "")
        writer.write(f"GET /v1/events{query} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{seen}\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READY_S)
        assert b" 200 " in head.splitlines()[0], head
        return EventStream(reader, writer)


class EventStream:
    """An open stream of events."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.seen: list[dict[str, Any]] = []

    async def read_to(self, seq: int, timeout_s: float = READY_S) -> list[int]:
        """The sequences that came, up to this one."""
        async with asyncio.timeout(timeout_s):
            while not self.seen or self.seen[-1]["seq"] < seq:
                line = await self._reader.readline()
                assert line, f"the stream ended after {self.seen[-1:]}"
                if line.startswith(b"data: "):
                    self.seen.append(json.loads(line[6:]))
        return [event["seq"] for event in self.seen]

    async def read_to_end(self) -> list[int]:
        """All sequences that came before it was ended."""
        async with asyncio.timeout(READY_S):
            while (line := await self._reader.readline()) not in (b"", b"0\r\n"):  # cut off, or the last chunk
                if line.startswith(b"data: "):
                    self.seen.append(json.loads(line[6:]))
        return [event["seq"] for event in self.seen]

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def scribe(world: World) -> Scribe:
    return await Scribe(world).begin()


@pytest.fixture
async def api(world: World, scribe: Scribe, tmp_path: Path) -> AsyncIterator[ApiProcess]:
    made = ApiProcess(world, tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


# --- what is told ---


async def test_a_job_is_told_from_its_submission_to_long_after_its_end(scribe: Scribe, api: ApiProcess) -> None:
    waiting = await scribe.submit("waits", labels={"team": "vision"})
    told = (await api.at(f"/v1/jobs/{waiting}", scribe.market.last_seq)).json
    assert ("queued", 0, {"team": "vision"}, None) == (told["state"], told["queue_position"], told["labels"], told["node"])
    node_id = await scribe.offer()
    told = (await api.at(f"/v1/jobs/{waiting}", scribe.market.last_seq)).json
    assert ("matched", node_id, "node", [0], None) == (
        told["state"],
        told["node"],
        told["node_name"],
        [card["index"] for card in told["gpus"]],
        told["queue_position"],
    )
    await scribe.finish(waiting)
    from_memory = (await api.at(f"/v1/jobs/{waiting}", scribe.market.last_seq)).json
    assert ("succeeded", 0, 0) == (from_memory["state"], from_memory["exit_code"], from_memory["charged_uusd"])
    await api.stop()
    await api.start()
    assert from_memory == (await api.get(f"/v1/jobs/{waiting}")).json, "from disk it is the same"


async def test_nodes_queue_and_figures_follow_the_ledger(scribe: Scribe, api: ApiProcess) -> None:
    cheap, dear = await scribe.offer("cheap", price=200_000), await scribe.offer("dear", price=900_000, gpus=4)
    first = await scribe.submit("first", gpus=2)
    blocked = await scribe.submit("blocked", gpus=8)
    seq = scribe.market.last_seq
    nodes = {node["id"]: node for node in (await api.at("/v1/nodes", seq)).json["items"]}
    assert [("taken", first)] * 2 == [(card["state"], card["job"]) for card in nodes[cheap]["cards"]]
    assert (4, False, "offered", []) == (nodes[dear]["gpus_free"], nodes[dear]["suspect"], nodes[dear]["state"], nodes[dear]["running"])
    queue = (await api.get("/v1/queue")).json
    assert ([blocked], [first]) == ([job["id"] for job in queue["queued"]], [job["id"] for job in queue["running"]])
    stats = (await api.get("/v1/stats")).json
    assert (4, 33, 1, 1, 2) == tuple(stats[name] for name in ("available_gpus", "utilization_percent", "waiting", "running", "nodes"))
    offers = [offer["id"] for offer in (await api.get("/v1/offers?vram=24GB")).json["items"]]
    assert [cheap, dear] == offers, "the cheapest first"
    assert [dear] == [offer["id"] for offer in (await api.get("/v1/offers?gpus=3&max_price=0.9")).json["items"]]
    quote = (await api.get("/v1/quotes?gpus=8")).json
    assert ("gpus", 0, seq) == (quote["failing"], quote["could_run"], quote["as_of_seq"])
    await scribe.finish(first)
    ended = (await api.at(f"/v1/nodes/{cheap}", scribe.market.last_seq)).json
    assert ({"exited_zero": 1}, 2) == (ended["jobs"], ended["gpus_free"])


async def test_the_market_tells_where_it_stands_and_proves_its_state(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    seq = scribe.market.last_seq
    told = (await api.at("/v1/market?digest=1", seq)).json
    assert (MARKET_ID, seq, scribe.market.page_hash.hex(), snapshot.digest(scribe.market).hex(), {}) == (
        told["id"],
        told["as_of_seq"],
        told["page_hash"],
        told["digest"],
        told["void"],
    )
    await scribe.say(scribe.operator, PolicyChanged(policy=Policy(name="fcfs")))
    policy = (await api.at("/v1/policy", scribe.market.last_seq)).json
    assert ("fcfs", scribe.market.policy_seq) == (policy["policy"]["name"], policy["since_seq"])


async def test_telemetry_of_a_node_stands_beside_what_the_ledger_says(scribe: Scribe, api: ApiProcess) -> None:
    node_id, job_id = await scribe.offer(), await scribe.submit()
    attempt = scribe.attempt(job_id)
    await api.at("/v1/market", scribe.market.last_seq)
    beat = wire.Beat(
        node_id=node_id,
        boot="b",
        leases=(wire.BeatLease(job_id, attempt["attempt"], attempt["epoch"], "pulling 43%"),),
        cards=(wire.BeatCard("GPU-node-0", True, 12, 300),),
    )
    for wallet in (scribe.buyer.wallet, scribe.seller.wallet):  # the first is not the node's owner: nothing of it may show
        said = beat if wallet == scribe.seller.wallet else msgspec.structs.replace(beat, cards=(), leases=())
        view = wire.BeatView(beat=said, wallet=wallet, time_ms=scribe.now_ms)
        await scribe.world.services.publish(f"beats.{node_id}", wire.encode(view))
    deadline = time.monotonic() + READY_S
    while (told := (await api.get(f"/v1/jobs/{job_id}")).json)["phase"] is None:
        assert time.monotonic() < deadline, told
    card = (await api.get(f"/v1/nodes/{node_id}")).json["cards"][0]
    assert ("pulling 43%", 12, 300, None) == (told["phase"], card["gpu_percent"], card["memory_used_mib"], card["power_w"])


async def test_output_is_told_as_text_and_only_ended_jobs_have_results(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    job_id = await scribe.submit()
    store = OutputStore(scribe.world.services)
    snowman = "\N{SNOWMAN}".encode()
    chunks = (wire.OutputChunk(1, 0, b"a" + snowman[:1]), wire.OutputChunk(2, 0, b"oops\xff"), wire.OutputChunk(1, 2, snowman[1:]))
    await store.add(job_id, 1, chunks, 10_000)
    logs = (await api.at(f"/v1/jobs/{job_id}/logs", scribe.market.last_seq)).json
    assert ["a", "oops\ufffd", "\N{SNOWMAN}"] == [item["text"] for item in logs["items"]]
    assert [] == (await api.get(f"/v1/jobs/{job_id}/logs?cursor={logs['cursor']}")).json["items"]
    assert (409, "illegal_in_state") == ((early := await api.get(f"/v1/jobs/{job_id}/results")).status, early.json["code"])
    await scribe.finish(job_id)
    results = (await api.at(f"/v1/jobs/{job_id}/results", scribe.market.last_seq)).json
    assert ("a\N{SNOWMAN}", "oops\ufffd", 0, [], False) == tuple(
        results[name] for name in ("stdout", "stderr", "exit_code", "files", "is_cut")
    )


# --- lists ---


async def test_pages_of_ended_and_unfinished_jobs_are_one_list_newest_first(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer(gpus=1)
    for number in range(4):
        await scribe.finish(await scribe.submit(f"ended {number}"))
    for number in range(3):
        await scribe.submit(f"open {number}", party=scribe.other, labels={"n": str(number)})
    await scribe.submit("latest")
    expected = ["latest", "open 2", "open 1", "open 0", "ended 3", "ended 2", "ended 1", "ended 0"]
    got, found = await api.at("/v1/jobs?limit=3", scribe.market.last_seq), []
    while True:
        found += got.names
        if got.json["next_cursor"] is None:
            break
        next_page = got.headers["link"].removeprefix("<").removesuffix('>; rel="next"')
        assert next_page.endswith(f"&cursor={got.json['next_cursor']}")
        got = await api.get(next_page)
    assert expected == found
    for query, names in {
        "state=succeeded": expected[4:],
        "state=queued,matched": expected[:4],
        "state=succeeded&state=queued&limit=500": expected[:3] + expected[4:],
        f"buyer={scribe.other.wallet}": expected[1:4],
        f"buyer={scribe.other.wallet.upper().replace('0X', '0x')}&label=n=1": ["open 1"],
        "label=n=9": [],
        f"node={ids.node_id(scribe.seller.wallet, 'node')}": [expected[3], *expected[4:]],
        f"since_ms={scribe.now_ms}": ["latest"],
        "until_ms=1": [],
    }.items():
        assert names == (await api.get(f"/v1/jobs?{query}")).names, query


async def test_a_page_stays_the_same_while_newer_jobs_come(scribe: Scribe, api: ApiProcess) -> None:
    for number in range(4):
        await scribe.submit(f"job {number}")
    first = await api.at("/v1/jobs?limit=2", scribe.market.last_seq)
    await scribe.submit("newer")
    second = await api.at(f"/v1/jobs?limit=2&cursor={first.json['next_cursor']}", scribe.market.last_seq)
    assert (["job 3", "job 2"], ["job 1", "job 0"]) == (first.names, second.names)


@pytest.mark.parametrize("cursor", ["x", "%00%ff", "kqFzBQ%27%20OR%201=1", "A" * 400, "k6FwAKA"])
async def test_a_made_up_cursor_is_a_problem(api: ApiProcess, cursor: str) -> None:
    got = await api.get(f"/v1/jobs?cursor={cursor}")
    assert (400, "bad_query", "application/problem+json") == (got.status, got.json["code"], got.headers["content-type"])


# --- HTTP ---


async def test_anything_but_reading_is_refused_before_the_body_is_read(api: ApiProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), READY_S)  # to the end: the connection is closed with the body unsent
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 405 " in head.splitlines()[0]
    assert b"allow: GET, HEAD" in head
    assert "method_not_allowed" == json.loads(body)["code"]
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"):
        assert 405 == (await api.get("/v1/jobs", method=method)).status


async def test_every_answer_tells_browsers_that_it_is_no_page(api: ApiProcess) -> None:
    for path in ("/v1/jobs", "/v1/nothing", "/healthz", "/openapi.json"):
        headers = (await api.get(path)).headers
        assert ("nosniff", "DENY") == (headers["x-content-type-options"], headers["x-frame-options"])
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "access-control-allow-origin" not in headers


async def test_a_name_that_was_rebound_to_this_machine_is_not_served(api: ApiProcess) -> None:
    got = await api.get("/v1/jobs", headers={"Host": "evil.example"})
    assert (421, "wrong_host") == (got.status, got.json["code"])
    assert 200 == (await api.get("/v1/jobs", headers={"Host": "localhost:1"})).status


async def test_other_machines_see_what_is_public_and_what_their_token_shows(scribe: Scribe, world: World, tmp_path: Path) -> None:
    await scribe.submit("mine")
    await scribe.submit("theirs", party=scribe.other)
    token, now_ms = "bzr_secret", scribe.now_ms
    issued = ReadTokenIssued(token_sha256=hashlib.sha256(token.encode()).hexdigest(), name="t", expires_ms=now_ms + 3_600_000)
    await scribe.say(scribe.buyer, issued)
    api = ApiProcess(world, tmp_path)
    api.bind = "0.0.0.0"
    await api.start()
    try:
        for path in ("/v1/market", "/v1/nodes", "/v1/offers", "/v1/stats", "/healthz"):
            assert 200 == (await api.get(path)).status, path
        for path in ("/v1/jobs", "/v1/queue", "/v1/events"):
            got = await api.get(path)
            assert (401, "token_required", 'Bearer realm="gpubazaar"') == (got.status, got.json["code"], got.headers["www-authenticate"])
        for headers in ({"Authorization": f"Bearer {token}"}, {"X-Auth-Token": token}):
            assert ["mine"] == (await api.get("/v1/jobs", headers=headers)).names
        refused = await api.get("/v1/market", headers={"Authorization": "Bearer guess"})
        assert (401, "token_refused") == (refused.status, refused.json["code"])
    finally:
        await api.stop()


async def test_an_unchanged_answer_is_not_sent_twice(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.submit()
    got = await api.at("/v1/jobs", scribe.market.last_seq)
    again = await api.get("/v1/jobs", headers={"If-None-Match": f'"other", {got.headers["etag"]}'})
    assert (304, b"", got.headers["etag"]) == (again.status, again.body, again.headers["etag"])
    await scribe.offer("elsewhere", gpus=0)  # an event that changes no job changes no tag, but the place in the ledger moves
    moved = await api.get(f"/v1/jobs?min_seq={scribe.market.last_seq}", headers={"If-None-Match": got.headers["etag"]})
    assert (304, str(scribe.market.last_seq)) == (moved.status, moved.headers["x-stream-seq"])
    await scribe.submit("another")
    assert 200 == (await api.get(f"/v1/jobs?min_seq={scribe.market.last_seq}", headers={"If-None-Match": got.headers["etag"]})).status


async def test_a_reader_waits_for_its_own_write_and_is_told_when_it_does_not_come(scribe: Scribe, api: ApiProcess) -> None:
    seq = scribe.market.last_seq
    asking = asyncio.create_task(api.get(f"/v1/jobs?min_seq={seq + 1}&wait=20s"))
    await asyncio.sleep(0)
    await scribe.submit("mine")
    assert ["mine"] == (await asking).names
    late = await api.get(f"/v1/jobs?min_seq={seq + 1000}&wait=1s")
    assert (503, "not_ready", scribe.market.last_seq) == (late.status, late.json["code"], late.json["as_of_seq"])


async def test_head_is_get_without_a_body(api: ApiProcess) -> None:
    for path in ("/v1/jobs", "/v1/events", "/healthz"):
        got = await api.get(path, method="HEAD")
        assert (200, b"") == (got.status, got.body)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/nothing", 404, "not_found"),
        ("/v1/jobs/", 404, "not_found"),
        ("/v1/jobs/j" + "a" * 19, 404, "unknown_job"),
        ("/v1/jobs/..%2f..%2fetc%2fpasswd", 404, "not_found"),
        ("/v1/jobs/%3Cscript%3E/events", 404, "unknown_job"),
        ("/v1/nodes/n" + "a" * 15, 404, "unknown_node"),
        ("/v1/jobs?colour=red", 400, "bad_query"),
        ("/v1/jobs?limit=1&limit=2", 400, "bad_query"),
        ("/v1/events?from_seq=-1", 400, "bad_query"),
        ("/v1/offers?vram=1e999", 400, "bad_query"),
        ("/redoc", 404, "not_found"),
        ("/" + "x" * 1000, 404, "not_found"),
    ],
)
async def test_every_wrong_question_is_answered_with_a_problem(api: ApiProcess, path: str, status: int, code: str) -> None:
    got = await api.get(path)
    assert (status, code, "application/problem+json") == (got.status, got.json["code"], got.headers["content-type"])
    assert got.json["title"] and got.json["hint"]


async def test_the_document_names_every_path_and_its_problems(api: ApiProcess) -> None:
    document = (await api.get("/openapi.json")).json
    assert document["openapi"].startswith("3.1")
    known = document["components"]["schemas"]
    wanted = [reference.split("/")[-1] for reference in _references(document)]
    assert [] == [name for name in wanted if name not in known]
    for path, item in document["paths"].items():
        assert ["get"] == list(item), path
        assert {"200", "503"} <= set(item["get"]["responses"]), path
    assert {endpoint.path for endpoint in app.ENDPOINTS} <= set(document["paths"])
    operations = [item["get"]["operationId"] for item in document["paths"].values()]
    assert len(operations) == len(set(operations))
    names = {parameter["name"] for parameter in document["paths"]["/v1/jobs"]["get"]["parameters"]}
    assert {"state", "buyer", "label", "limit", "cursor", "min_seq", "wait"} <= names


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for inner in value.values() for found in _references(inner)]
    return [found for inner in value for found in _references(inner)] if isinstance(value, list) else []


# --- events ---


async def test_events_are_told_in_order_page_by_page(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    job_id = await scribe.submit()
    await scribe.finish(job_id)
    seq, seen = scribe.market.last_seq, []
    await api.at("/v1/market", seq)
    path = "/v1/events?from_seq=1&limit=3"
    while path:
        page = (await api.get(path, headers={"Accept": "application/json"})).json
        seen += [(event["seq"], event["type"]) for event in page["items"]]
        path = page["next_cursor"] and f"/v1/events?limit=3&cursor={page['next_cursor']}"
    assert list(range(1, seq + 1)) == [number for number, _ in seen]
    latest = (await api.get("/v1/events?limit=2", headers={"Accept": "application/json"})).json
    assert [seq - 1, seq] == [event["seq"] for event in latest["items"]]
    about = (await api.get(f"/v1/jobs/{job_id}/events?limit=500")).json["items"]
    kinds = ["JobSubmitted", "JobMatched", "JobClaimed", "JobStarted", "JobSucceeded", "GpusReleased"]
    assert kinds == [event["type"] for event in about]
    assert b"output_token" not in (await api.get(f"/v1/jobs/{job_id}/events")).body


async def test_a_stream_goes_on_after_a_restart_without_a_hole(scribe: Scribe, api: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = await api.stream(query="?from_seq=1")
    await scribe.offer()
    await scribe.submit("before")
    first = await stream.read_to(scribe.market.last_seq)
    assert list(range(1, scribe.market.last_seq + 1)) == first
    await api.stop()
    await stream.read_to_end()
    stream.close()
    for number in range(70):
        await scribe.submit(f"while away {number}")
    monkeypatch.setattr(event_feed, "KEPT", 8)  # memory holds the newest few only, and the rest is read back in several goes
    monkeypatch.setattr(live, "EVENTS_PER_CHUNK", 16)
    await api.start()
    again = await api.stream(last=first[-1])
    await scribe.submit("after")
    seen = await again.read_to(scribe.market.last_seq)
    assert list(range(first[-1] + 1, scribe.market.last_seq + 1)) == seen
    again.close()


async def test_old_events_are_told_from_the_ledger_as_new_ones_from_memory(
    scribe: Scribe, api: ApiProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scribe.offer(gpus=1)
    for number in range(30):
        await scribe.finish(await scribe.submit(f"mine {number}", labels={"secret": "yes"}))
    seq = scribe.market.last_seq
    as_json = {"Accept": "application/json"}
    await api.at("/v1/market", seq)
    from_memory = (await api.get("/v1/events?from_seq=2&limit=500", headers=as_json)).json["items"]
    connection = await scribe.world.connect(login(scribe.other.session), "other")
    await api.stop()
    monkeypatch.setattr(event_feed, "KEPT", 8)
    await api.start()
    from_ledger: list[Any] = []
    while len(from_ledger) < seq - 1:
        page = (await api.get(f"/v1/events?from_seq={len(from_ledger) + 2}&limit=100", headers=as_json)).json["items"]
        assert page
        from_ledger += page
    assert from_memory == from_ledger
    hidden = await ask(connection, scribe.other, "/v1/events", from_seq="1", limit="100")
    assert 100 == len(hidden["items"])
    assert "secret" not in json.dumps(hidden)


async def test_a_new_stream_begins_now_and_a_wrong_place_is_a_problem(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.submit("old")
    await api.at("/v1/market", scribe.market.last_seq)
    seq = scribe.market.last_seq
    stream = await api.stream()
    await scribe.submit("new")
    assert seq + 1 == (await stream.read_to(scribe.market.last_seq))[0]
    stream.close()
    got = await api.get("/v1/events", headers={"Last-Event-ID": "-1", "Accept": "text/event-stream"})
    assert (400, "bad_query") == (got.status, got.json["code"])


async def test_the_number_of_streams_is_limited(api: ApiProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAMS_MAX", 1)
    stream = await api.stream(query="?from_seq=1")
    await stream.read_to(1)
    refused = await api.get("/v1/events", headers={"Accept": "text/event-stream"})
    assert (429, "too_many_streams", "10") == (refused.status, refused.json["code"], refused.headers["retry-after"])
    stream.close()
    deadline = time.monotonic() + READY_S
    while True:
        try:
            (await api.stream()).close()
            break
        except AssertionError:
            assert time.monotonic() < deadline, "the place of a reader who left is free again"


# --- the read model ---


async def rows_on_disk(api: ApiProcess) -> int:
    """Ended jobs on disk; the API is stopped."""
    with closing(sqlite3.connect(api.database)) as database:
        return int(database.execute("SELECT count(*) FROM jobs").fetchone()[0])


def a_row(random: Random, number: int) -> FinishedJob:
    return FinishedJob(
        submitted_seq=number,
        job_id=ids.job_id(random.randbytes(12)),
        ended_seq=number + random.randrange(50),
        submitted_ms=number // 3,
        state=random.choice(("succeeded", "failed", "cancelled")),
        buyer=random.choice("bc"),
        node=random.choice((None, "n")),
        org=random.choice((None, "o", "p")),
        group=random.choice((None, "g")),
        labels=tuple(sorted({f"{key}={random.randrange(2)}" for key in random.sample("xy", random.randrange(3))})),
        body=b"{}",
    )


def a_filter(random: Random) -> JobFilter:
    def some(*values: Any) -> Any:
        return random.choice((None, None, *values))

    return JobFilter(
        states=frozenset(random.sample(("succeeded", "failed", "cancelled", "expired", "timed_out", "queued"), random.randrange(7))),
        buyer=some("b"),
        node=some("n"),
        org=some("o"),
        group=some("g"),
        labels=tuple(random.sample(("x=0", "x=1", "y=0"), random.randrange(3))),
        since_ms=some(20),
        until_ms=some(80),
        seen_by=some(("c", frozenset()), ("c", frozenset({"o", "p"}))),
    )


async def test_the_disk_finds_what_looking_at_every_row_finds(tmp_path: Path) -> None:
    random = Random(20)
    rows = [a_row(random, number) for number in range(1, 301)]
    on_disk = await ReadModel.open(tmp_path / "rows.db")
    try:
        await on_disk.write(rows, [], Progress("log", 1, 1, b""))
        for _ in range(300):
            wanted, before_seq, as_of_seq, limit = (
                a_filter(random),
                random.choice((None, 150)),
                random.choice((200, 1000)),
                random.randrange(1, 20),
            )
            passing = [row for row in rows if wanted.passes(row) and row.ended_seq <= as_of_seq]
            expected = [row.submitted_seq for row in reversed(passing) if before_seq is None or row.submitted_seq < before_seq][:limit]
            found = await on_disk.jobs(wanted, before_seq=before_seq, as_of_seq=as_of_seq, limit=limit)
            assert expected == [row.submitted_seq for row in found], wanted
    finally:
        await on_disk.close()


async def test_a_write_that_is_given_up_at_any_moment_leaves_the_file_usable(tmp_path: Path) -> None:
    random = Random(21)
    on_disk = await ReadModel.open(tmp_path / "rows.db")
    try:
        for pauses in range(12):
            rows = [a_row(random, number) for number in range(pauses * 10 + 1, pauses * 10 + 10)]
            writing = asyncio.create_task(on_disk.write(rows, [("job", pauses)], Progress("log", pauses, 1, b"")))
            for _ in range(pauses):
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await on_disk.write(rows, [("job", pauses)], Progress("log", pauses, 1, b""))
        assert list(range(12)) == await on_disk.places("job")
    finally:
        await on_disk.close()


async def five_ended(scribe: Scribe, api: ApiProcess) -> list[str]:
    await scribe.offer(gpus=1)
    for number in range(5):
        await scribe.finish(await scribe.submit(f"ended {number}"))
    return (await api.at("/v1/jobs", scribe.market.last_seq)).names


async def test_rows_on_disk_are_made_anew_when_the_file_is_gone_or_no_database(scribe: Scribe, api: ApiProcess) -> None:
    names = await five_ended(scribe, api)
    for damage in (lambda: api.database.unlink(), lambda: api.database.write_bytes(b"this is no database" * 1000)):
        await api.stop()
        assert 5 == await rows_on_disk(api)
        damage()
        for beside in api.database.parent.glob("*-*"):
            beside.unlink()
        await api.start()
        assert names == (await api.get("/v1/jobs")).names
    await api.stop()
    assert 5 == await rows_on_disk(api)


@pytest.mark.parametrize(
    "doubt", ["view_version = view_version + 1", "fold_version = 0", "log_created = 'another'", "page_hash = x'00'", "pages = pages + 1000"]
)
async def test_rows_that_do_not_continue_this_ledger_are_thrown_away(scribe: Scribe, api: ApiProcess, doubt: str) -> None:
    names = await five_ended(scribe, api)
    await api.stop()
    with closing(sqlite3.connect(api.database)) as database:
        database.execute(f"UPDATE checkpoint SET {doubt}")
        database.execute('UPDATE jobs SET body = \'{"name":"stale"}\'')
        database.commit()
    await api.start()
    assert names == (await api.get("/v1/jobs")).names


async def test_a_snapshot_is_used_only_when_the_rows_reach_as_far(scribe: Scribe, api: ApiProcess) -> None:
    names = await five_ended(scribe, api)
    created = (await scribe.ledger.head()).created
    await api.stop()
    api.snapshot.write_bytes(snapshot.take(scribe.market, created))
    await api.start()
    assert names == (await api.get("/v1/jobs")).names, "from the snapshot, with the rows that were there"
    await api.stop()
    api.database.unlink()
    await api.start()
    assert names == (await api.get("/v1/jobs")).names, "the snapshot is ahead of the empty rows: all is replayed"
    told = (await api.get("/v1/market?digest=1")).json
    assert snapshot.digest(scribe.market).hex() == told["digest"]


async def test_rows_are_the_same_whether_written_live_or_replayed(scribe: Scribe, api: ApiProcess) -> None:
    await five_ended(scribe, api)
    await api.stop()

    def rows() -> list[Any]:
        with closing(sqlite3.connect(api.database)) as database:
            return [
                database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in ("jobs", "labels", "places", "checkpoint")
            ]

    written_live = rows()
    api.database.unlink()
    await api.start()
    await api.stop()
    assert written_live == rows()


async def test_it_is_not_ready_without_the_broker_and_ready_again_with_it(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.submit("before")
    await api.at("/v1/jobs", scribe.market.last_seq)
    scribe.world.broker.process.kill()
    await asyncio.to_thread(scribe.world.broker.process.wait)
    deadline = time.monotonic() + READY_S
    while (got := await api.get("/readyz")).status != 503:
        assert time.monotonic() < deadline
    assert ("not_ready", "application/problem+json") == (got.json["code"], got.headers["content-type"])
    assert ["before"] == (await api.get("/v1/jobs")).names, "what is known is still told"
    assert 200 == (await api.get("/healthz")).status
    await scribe.world.restart_broker()
    await scribe.world.services.wait_up(READY_S)
    await scribe.submit("after")
    assert ["after", "before"] == (await api.at("/v1/jobs", scribe.market.last_seq)).names
    while (await api.get("/readyz")).status != 200:
        assert time.monotonic() < deadline + READY_S


async def test_a_damaged_ledger_is_never_served_from(scribe: Scribe, world: World, tmp_path: Path) -> None:
    await scribe.submit()
    await scribe.ledger.append(b"no page", scribe.market.pages)
    api = ApiProcess(world, tmp_path)
    await api.start(ready=False)
    with pytest.raises(LogCorrupt):
        async with asyncio.timeout(READY_S):
            await api.ended()


async def test_before_the_ledger_is_read_it_says_so(world: World, tmp_path: Path) -> None:
    api = ApiProcess(world, tmp_path)
    world.broker.process.kill()
    await asyncio.to_thread(world.broker.process.wait)
    await api.start(ready=False)
    try:
        for path in ("/readyz", "/v1/jobs", "/v1/market"):
            got = await api.get(path)
            assert (503, "not_ready", "1") == (got.status, got.json["code"], got.headers["retry-after"])
        assert 200 == (await api.get("/healthz")).status
    finally:
        await api.stop()


# --- over NATS ---


async def ask(wallet: Connection, party: Party, path: str, **query: Any) -> Any:
    question = wire.encode({"path": path, "query": query})
    return json.loads(await wallet.request(subjects.rpc("read", party.wallet), question, 10.0))


async def test_a_wallet_reads_its_own_jobs_and_what_is_public(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    mine, theirs = await scribe.submit("mine"), await scribe.submit("theirs", party=scribe.other, labels={"secret": "yes"})
    await scribe.submit("waits", party=scribe.other, gpus=8)
    await api.at("/v1/market", scribe.market.last_seq)
    connection = await scribe.world.connect(login(scribe.buyer.session), "buyer")
    assert ["mine"] == [job["name"] for job in (await ask(connection, scribe.buyer, "/v1/jobs"))["items"]]
    assert ["mine"] == [job["name"] for job in (await ask(connection, scribe.buyer, "/v1/jobs", state=["matched", "queued"]))["items"]]
    assert "unknown_job" == (await ask(connection, scribe.buyer, f"/v1/jobs/{theirs}"))["code"]
    assert "unknown_job" == (await ask(connection, scribe.buyer, f"/v1/jobs/{theirs}/logs"))["code"]
    for path in ("/v1/nodes", "/v1/market", f"/v1/jobs/{mine}"):
        over_http = (await api.get(path)).json
        assert over_http.keys() == (await ask(connection, scribe.buyer, path)).keys()
    queue = await ask(connection, scribe.buyer, "/v1/queue")
    assert [(None, {})] == [(job["name"], job["labels"]) for job in queue["queued"]]
    events = json.dumps(await ask(connection, scribe.buyer, "/v1/events", from_seq="1", limit="500"))
    assert "theirs" not in events and "secret" not in events and "mine" in events


async def test_wrong_questions_over_nats_get_answers_without_the_asker_s_bytes(scribe: Scribe, api: ApiProcess) -> None:
    connection = await scribe.world.connect(login(scribe.buyer.session), "buyer")
    subject = subjects.rpc("read", scribe.buyer.wallet)
    planted = "PLANTED"
    for question in (
        planted.encode(),
        wire.encode({"path": f"/v1/{planted}"}),
        wire.encode({"path": "/v1/jobs", "query": {planted: "1"}}),
        wire.encode({"path": "/v1/jobs", "query": {"cursor": planted}}),
        wire.encode({"path": f"/v1/jobs/{planted}"}),
    ):
        answer = await connection.request(subject, question, 10.0)
        assert planted.encode() not in answer
        assert "code" in json.loads(answer)
    malformed = wire.decode(await connection.request(subjects.rpc("quote", scribe.buyer.wallet), b"\xff", 10.0), wire.QuoteAnswer)
    assert malformed.failure is not None and "malformed" == malformed.failure.code


async def test_a_quote_over_nats_is_the_asker_s_own(scribe: Scribe, api: ApiProcess) -> None:
    node_id = await scribe.offer("open")
    await api.at("/v1/market", scribe.market.last_seq)
    connection = await scribe.world.connect(login(scribe.buyer.session), "buyer")

    async def quoted(gpus: int) -> wire.QuoteAnswer:
        question = wire.encode(wire.QuoteRequest(requirements=Requirements(num_gpus=gpus, vram_mib=20_000)))
        return wire.decode(await connection.request(subjects.rpc("quote", scribe.buyer.wallet), question, 10.0), wire.QuoteAnswer)

    fits = await quoted(2)
    assert ([node_id], 1, None) == ([offer.node_id for offer in fits.offers], fits.free_now, fits.failing)
    assert "gpus" == (await quoted(3)).failing


async def test_an_api_whose_writer_fails_for_a_reason_unheard_of_ends_instead_of_waiting_for_it(
    scribe: Scribe, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scribe.submit()
    really, failed = ReadModel.write, []

    async def write(self: ReadModel, *rows: Any) -> None:
        if failed:
            return await really(self, *rows)
        failed.append(True)
        raise ValueError("unheard of")

    monkeypatch.setattr(ReadModel, "write", write)
    monkeypatch.setattr(upkeep, "ROWS_UNWRITTEN_MAX", 0)
    api = ApiProcess(world, tmp_path)
    await api.start(ready=False)
    with pytest.raises(ValueError, match="unheard of"):
        async with asyncio.timeout(READY_S):
            await api.ended()
