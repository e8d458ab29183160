"""The API's part of the contract, row by row: every endpoint with every name that it may be asked with, and what each of them shares."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import AsyncIterator, Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from integration.broker_env import world
from integration.test_api import ApiProcess, Scribe, api, scribe

from events import wire
from events.nodes import NodeRepriced
from services.api import live
from services.output_store import OutputStore

__all__ = ["api", "scribe", "world"]

AS_JSON = {"Accept": "application/json"}
JOB_FIELDS = frozenset(
    word
    for line in (
        "id state reason detail phase kind name buyer buyer_alias org group labels node node_name gpus num_gpus image",
        "price_uusd_per_gpu_hour max_price_uusd_per_gpu_hour priority queue_position attempt epoch exit_code submitted_ms",
        "matched_ms started_ms ended_ms updated_ms timeout_s estimate_s charged_uusd",
    )
    for word in line.split()
)
"""Of a job, by the contract."""
NODE_FIELDS = {"id", "name", "owner", "state", "cards", "price_uusd_per_gpu_hour", "gpus_free", "jobs", "backlog_s", "uptime_s"}
LIST_FIELDS = {"items", "next_cursor"}


class Row(NamedTuple):
    """An endpoint: what its answer holds, what each of its items holds, and the queries that the contract names."""

    path: str
    fields: Set[str]
    queries: tuple[str, ...] = ()
    item_fields: Set[str] = frozenset()
    past: bool = True


JOB_QUERIES = (
    "state=queued",
    "state=queued,running&state=succeeded",
    "buyer={buyer}",
    "node={node}",
    "label=team%3Dvision",
    "group=g" + "a" * 19,
    "org=o" + "a" * 15,
    "since_ms=1",
    "until_ms=99999999999999",
    "limit=1000",
)
MACHINE_QUERIES = ("gpus=1", "vram=24GB", "total_vram=24GB", "model=RTX+4090", "min_cuda=12.4", "cores=1", "memory=1GB", "max_price=0.40")
ROWS = (
    Row("/v1/jobs", LIST_FIELDS, JOB_QUERIES, JOB_FIELDS),
    Row("/v1/jobs/{queued}", JOB_FIELDS),
    Row("/v1/jobs/{ended}", JOB_FIELDS),
    Row("/v1/jobs/{ended}/events", LIST_FIELDS, ("limit=2",), {"seq", "time_ms", "type", "sender", "event", "hash"}),
    Row("/v1/jobs/{queued}/why", {"state", "steps", "summary", "waits"}, ("waits=true", "as_of={seq}"), past=False),
    Row("/v1/jobs/{ended}/logs", {"attempt", "items", "cursor"}, ("attempt=1", "cursor=0"), {"stream", "offset", "text"}, past=False),
    Row("/v1/jobs/{ended}/results", {"stdout", "stderr", "exit_code", "files"}, past=False),
    Row("/v1/nodes", LIST_FIELDS, ("state=offered", "limit=1"), NODE_FIELDS),
    Row("/v1/nodes/{node}", NODE_FIELDS),
    Row("/v1/offers", LIST_FIELDS, (*MACHINE_QUERIES, "limit=1"), NODE_FIELDS),
    Row("/v1/queue", {"queued", "running"}),
    Row("/v1/quotes", {"steps", "offers", "could_run", "free_now", "price_from_uusd"}, (*MACHINE_QUERIES, "timeout=4h", "node={node}")),
    Row("/v1/stats", {"available_gpus", "utilization_percent", "waiting", "mean_wait_s", "jobs_per_hour"}),
    Row("/v1/market", {"id", "name", "seq", "page_hash", "paused", "policy"}, ("digest=true",)),
    Row("/v1/policy", {"policy", "sentence"}),
    Row("/v1/events", LIST_FIELDS, ("from_seq=1", "limit=3"), {"seq", "time_ms", "type", "event"}, past=False),
    Row("/v1/state", {"market", "stats", "nodes", "queued", "running", "models", "reasons"}),
    Row("/v1/prices", {"items", "step_ms"}, ("since_ms=1", "until_ms=99999999999999", "model=RTX+4090"), {"model", "points"}, past=False),
    Row("/v1/orgs", LIST_FIELDS),
    Row("/v1/tokens", LIST_FIELDS),
)


MOVE_WITH_TIME = {"/v1/prices", "/v1/state", "/v1/jobs/{queued}/why", "/v1/nodes", "/v1/nodes/{node}", "/v1/offers"}
"""Their answers hold the time, so they change with every second."""


class Told(NamedTuple):
    """A market in which something of everything has happened, and its API."""

    scribe: Scribe
    api: ApiProcess
    names: dict[str, str]

    def path(self, text: str) -> str:
        """A path or a query with real ids in it."""
        return text.format(**self.names)


@pytest.fixture
async def told(scribe: Scribe, api: ApiProcess) -> AsyncIterator[Told]:
    node = await scribe.offer(gpus=2)
    ended = await scribe.submit("ended", labels={"team": "vision"})
    await OutputStore(scribe.world.services).add(ended, 1, (wire.OutputChunk(1, 0, b"hello"),), 10_000)
    await scribe.finish(ended)
    await scribe.submit("runs", gpus=2)
    queued = await scribe.submit("waits", labels={"team": "vision"})
    seq = scribe.market.last_seq
    await api.at("/v1/market", seq)
    yield Told(scribe, api, {"node": node, "ended": ended, "queued": queued, "buyer": scribe.buyer.wallet, "seq": str(seq)})


async def test_every_endpoint_answers_with_its_fields_and_its_place_in_the_ledger(told: Told) -> None:
    document = (await told.api.get("/openapi.json")).json
    for row in ROWS:
        got = await told.api.get(told.path(row.path), headers=AS_JSON)
        assert (200, "application/json") == (got.status, got.headers["content-type"]), row.path
        assert set() == (row.fields | {"as_of_seq"}) - set(got.json), row.path
        assert told.names["seq"] == str(got.json["as_of_seq"]) == got.headers["x-stream-seq"], row.path
        if row.item_fields:
            assert got.json["items"], row.path
            assert set() == row.item_fields - set(got.json["items"][0]), row.path
        documented = re.sub(r"\{(queued|ended|node)\}", "{name}", row.path)
        schema = document["paths"][documented]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert [] == list(faults(got.json, schema, document)), row.path


async def test_every_name_of_the_contract_can_be_asked_and_no_other(told: Told) -> None:
    for row in ROWS:
        path = told.path(row.path)
        for query in (*row.queries, "min_seq=1", f"min_seq={told.names['seq']}&wait=2s", *(("as_of={seq}",) if row.past else ())):
            got = await told.api.get(f"{path}?{told.path(query)}", headers=AS_JSON)
            assert 200 == got.status, (path, query, got.body)
        got = await told.api.get(f"{path}?colour=red", headers=AS_JSON)
        assert (400, "application/problem+json", "bad_query") == (got.status, got.headers["content-type"], got.json["code"]), path
        assert ["colour"] == [error["pointer"] for error in got.json["errors"]], path
    for mean in ("gpus=99", "vram=much", "model=%3Cb%3E", "price=1", "limit=1001", "limit=0", "cursor=guess"):
        assert 400 == (await told.api.get(f"/v1/offers?{mean}")).status, mean


async def test_every_answer_that_has_not_changed_is_a_304(told: Told) -> None:
    for row in ROWS:
        path = told.path(row.path)
        first = await told.api.get(path, headers=AS_JSON)
        assert first.headers["etag"].startswith('W/"'), path
        again = await told.api.get(path, headers=AS_JSON | {"If-None-Match": first.headers["etag"]})
        if row.path not in MOVE_WITH_TIME:
            assert (304, b"") == (again.status, again.body), path


async def test_every_path_refuses_to_be_written_to(told: Told) -> None:
    plain = ("/", "/docs", "/healthz", "/readyz", "/metrics", "/openapi.json")
    for path in (*(told.path(row.path) for row in ROWS), *plain):
        assert 200 == (await told.api.get(path, headers=AS_JSON)).status, path
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            got = await told.api.get(path, method=method)
            assert (405, "method_not_allowed", "GET, HEAD") == (got.status, got.json["code"], got.headers["allow"]), (method, path)


async def test_as_of_shows_every_view_as_it_was(told: Told) -> None:
    then = told.names["seq"]
    await told.scribe.offer("later", price=1)
    await told.scribe.submit("later")
    now = told.scribe.market.last_seq
    for row in ROWS:
        if row.past and not row.path.startswith("/v1/quotes"):
            path = told.path(row.path)
            got = await told.api.get(f"{path}?as_of={then}&min_seq={now}", headers=AS_JSON)
            assert (200, then) == (got.status, got.headers["x-stream-seq"]), path
            assert b'"later"' not in got.body, path
            assert 400 == (await told.api.get(f"{path}?as_of={now + 1000}")).status, path


async def test_long_answers_travel_packed_to_who_can_unpack_them(told: Told) -> None:
    for number in range(6):
        await told.scribe.submit(f"more {number}")
    plain = await told.api.at("/v1/jobs", told.scribe.market.last_seq)
    packed = await told.api.get("/v1/jobs", headers={"Accept-Encoding": "gzip, br"})
    assert ("gzip", plain.json) == (packed.headers["content-encoding"], json.loads(gzip.decompress(packed.body)))
    assert ("content-encoding" not in plain.headers, packed.headers["etag"]) == (True, plain.headers["etag"])
    assert "accept-encoding" in plain.headers["vary"]


# --- cursors ---


async def pages(told: Told, path: str) -> list[dict[str, Any]]:
    """Every item of a list, a few at a time."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        asked = f"{path}&cursor={cursor}" if cursor else path
        page = (await told.api.get(asked, headers=AS_JSON)).json
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("path", ["/v1/jobs?limit=3", "/v1/nodes?limit=3", "/v1/offers?limit=3", "/v1/events?limit=7&from_seq=1"])
async def test_a_list_read_page_by_page_has_no_hole_and_no_double_while_others_write(told: Told, path: str) -> None:
    scribe = told.scribe
    nodes = [await scribe.offer(f"n{number}", price=1000 * number + 1000) for number in range(10)]
    for number in range(12):
        await scribe.submit(f"j{number}", gpus=8)
    await told.api.at("/v1/market", scribe.market.last_seq)
    key = "seq" if "events" in path else "id"
    standing = {item[key] for item in await pages(told, path)}
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await scribe.submit(f"new {number}", gpus=8)
            if number % 3 == 0:
                await scribe.offer(f"new-{number}", price=500 + number)  # a card of it is named after it, and holds no space
            if number % 4 == 0:
                ready = next((job_id for job_id, job in scribe.market.jobs.items() if job.run is not None and job.state == "matched"), None)
                if ready is not None:
                    await scribe.finish(ready)
            await scribe.say(scribe.seller, NodeRepriced(node_id=nodes[-1], price_uusd_per_gpu_hour=11_000 + number))

    writing = asyncio.create_task(write())
    try:
        for _ in range(3):
            seen = [item[key] for item in await pages(told, path)]
            if "offers" in path:  # the one whose price rises all the time moves on in a list by price, and may be met again
                seen = [*dict.fromkeys(one for one in seen if one == nodes[-1]), *(one for one in seen if one != nodes[-1])]
            assert len(seen) == len(set(seen)), "nothing twice"
            assert set() == standing - set(seen), "nothing is left out"
    finally:
        stop.set()
        await writing


# --- streams ---


class Frames:
    """A stream, frame by frame: (name of the event, its id, its data)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def next(self, name: str) -> tuple[str | None, Any]:
        """The next event with this name (empty: of the ledger)."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            while True:
                line = (await self._reader.readline()).decode().rstrip("\r\n")
                field, colon, value = line.partition(": ")
                if colon and field in ("event", "id", "data"):
                    fields[field] = value
                elif not line and fields:
                    if "data" in fields and fields.get("event", "") == name:
                        return fields.get("id"), json.loads(fields["data"])
                    fields = {}

    def close(self) -> None:
        self._writer.close()


async def frames(told: Told, query: str = "", last: int | None = None) -> Frames:
    reader, writer = await asyncio.open_connection("127.0.0.1", told.api.port)
    seen = "" if last is None else f"Last-Event-ID: {last}\r\n"
    writer.write(f"GET /v1/events{query} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{seen}\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert b" 200 " in head.splitlines()[0], head
    return Frames(reader, writer)


async def test_who_comes_back_too_late_is_sent_to_the_snapshot_and_goes_on_from_there(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RESUMED_EVENTS_MAX", 3)
    seq = int(told.names["seq"])
    stream = await frames(told, last=1)
    assert (str(seq), {"snapshot": f"/v1/state?min_seq={seq}", "as_of_seq": seq}) == await stream.next("reset")
    assert seq <= (await told.api.get(f"/v1/state?min_seq={seq}")).json["as_of_seq"]
    await told.scribe.submit("after")
    assert str(seq + 1) == (await stream.next(""))[0], "what follows the snapshot, without a hole"
    stream.close()
    near = await frames(told, last=seq - 2)
    assert str(seq - 1) == (await near.next(""))[0], "who was not away for long misses nothing"
    near.close()
    named = await frames(told, query="?from_seq=2", last=1)
    assert "2" == (await named.next(""))[0], "who names a place is told everything from there on"
    named.close()


async def test_readings_of_cards_are_told_to_who_asks_the_latest_of_each_node(told: Told) -> None:
    stream, silent = await frames(told, query="?telemetry=true"), await frames(told)
    node = told.names["node"]
    for percent in (10, 20, 30):
        beat = wire.Beat(node_id=node, boot="b", cards=(wire.BeatCard("GPU-node-0", True, percent, 300, 61),))
        view = wire.BeatView(beat=beat, wallet=told.scribe.seller.wallet, time_ms=told.scribe.now_ms)
        await told.scribe.world.services.publish(f"beats.{node}", wire.encode(view))
    percents: list[int] = []
    while not percents or percents[-1] != 30:
        number, data = await stream.next("telemetry")
        assert number is None, "a reading is no place in the ledger"
        (seen,) = data["nodes"]
        (card,) = seen["cards"]
        assert node == seen["id"]
        assert ("GPU-node-0", 300, 61, None) == tuple(card[name] for name in ("uuid", "memory_used_mib", "temperature_c", "power_w"))
        percents.append(card["gpu_percent"])
    assert len(percents) <= 3
    await told.scribe.submit("after")
    assert "JobSubmitted" == (await stream.next(""))[1]["type"]
    assert "JobSubmitted" == (await silent.next(""))[1]["type"], "who does not ask is told of events alone"
    stream.close()
    silent.close()


async def test_streams_beside_each_other_get_the_same_frames_and_leave_nothing_behind(told: Told) -> None:
    streams = [await frames(told) for _ in range(20)]
    await told.scribe.submit("for all")
    seqs = {(await stream.next(""))[0] for stream in streams}
    assert 1 == len(seqs)
    for stream in streams:
        stream.close()
    again = await frames(told, query="?from_seq=1")
    assert "1" == (await again.next(""))[0]
    again.close()


# --- the document ---


def faults(value: Any, schema: dict[str, Any], document: dict[str, Any], place: str = "") -> Iterator[str]:
    """Where a value is not what its schema says; for the words of JSON Schema that the document uses."""
    if "$ref" in schema:
        yield from faults(value, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], document, place)
        return
    for part in schema.get("allOf", ()):
        yield from faults(value, part, document, place)
    choices = schema.get("anyOf", ())
    if choices and all(list(faults(value, choice, document, place)) for choice in choices):
        yield f"{place}: {value!r} is none of {len(choices)}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place}: {value!r} is none of {schema['enum']}"
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, kinds[kind]) or (kind == "integer" and isinstance(value, bool))):
        yield f"{place}: {value!r} is no {kind}"
    elif isinstance(value, dict):
        yield from (f"{place}: {name} is not there" for name in schema.get("required", ()) if name not in value)
        more = schema.get("additionalProperties")
        for name, inner in value.items():
            below = schema.get("properties", {}).get(name, more if isinstance(more, dict) else None)
            if below is not None:
                yield from faults(inner, below, document, f"{place}/{name}")
    elif isinstance(value, list):
        first = schema.get("prefixItems", [])
        rest = schema.get("items")
        for index, inner in enumerate(value):
            below = first[index] if index < len(first) else rest
            if isinstance(below, dict):
                yield from faults(inner, below, document, f"{place}/{index}")


async def test_the_document_is_openapi_3_1_complete_and_whole(told: Told) -> None:
    document = (await told.api.get("/openapi.json")).json
    assert re.fullmatch(r"3\.1\.\d", document["openapi"])
    assert {"title", "version"} <= set(document["info"])
    schemas = document["components"]["schemas"]
    references = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document))
    assert references
    assert set() == set(references) - set(schemas)
    assert {"JobView", "NodeView", "StateView", "Reset", "TelemetryFrame", "OrgView", "TokenView", "Why", "Problem"} <= set(schemas)
    documented = {re.sub(r"\{(queued|ended|node)\}", "{name}", row.path) for row in ROWS} | {"/v1/orgs/{name}"}
    assert documented | {"/healthz", "/readyz", "/metrics"} == set(document["paths"])
    for path, item in document["paths"].items():
        operation = item["get"]
        assert operation["summary"] and operation["operationId"], path
        assert "200" in operation["responses"], path
        problems = {code for code, answer in operation["responses"].items() if "application/problem+json" in answer.get("content", {})}
        assert ({"400", "401", "429", "503"} if path not in ("/healthz", "/readyz") else {"503"}) <= problems, path
        assert ("{name}" in path) == ("404" in problems), path
        for parameter in operation.get("parameters", ()):
            assert {"name", "in", "schema", "description"} <= set(parameter), (path, parameter)
        assert re.findall(r"\{(\w+)\}", path) == [one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"], path


def test_the_guide_names_every_path_with_an_example() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()
    for row in ROWS:
        path = re.sub(r"\{(queued|ended|node)\}", "ID", row.path)
        assert f"`{path}`" in text, path
    for plain in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/"):
        assert f"`{plain}`" in text, plain
