"""Reading from the query API: pages, problems, streams, and answers that are none. The other side is a real HTTP server that says
what each test wants said; that the market's own API says such things is tested where that API is."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from buyer_cli.api_reads import Api
from buyer_cli.complaint import Complaint
from buyer_cli.finding import find_node
from buyer_cli.offer_filter import FILTERS, LABEL, offer_query
from events.errors import MarketUnreachable
from events.home import resolve
from events.quantities import BadValue
from services.api.market_endpoints import ON_OFFER

Answer = tuple[int, str, bytes]
Say = Callable[[str, dict[str, list[str]], Any], Answer]


class Server:
    """Answers every GET with what `say` returns, and remembers the requests."""

    def __init__(self) -> None:
        self.say: Say = lambda path, query, headers: (200, "application/json", b"{}")
        self.asked: list[tuple[str, dict[str, list[str]], Any]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                request = (parts.path, parse_qs(parts.query), self.headers)
                server.asked.append(request)
                status, kind, body = server.say(*request)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def api(server: Server, tmp_path: Path) -> Api:
    return Api(resolve({"home": str(tmp_path), "api": server.url, "token": "secret-token"}, {}))


def as_json(value: object, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(value).encode()


def test_a_list_is_read_page_after_page(server: Server, api: Api) -> None:
    pages = {None: {"items": [{"id": 1}, {"id": 2}], "next_cursor": "c"}, "c": {"items": [{"id": 3}], "next_cursor": None}}
    server.say = lambda path, query, headers: as_json(pages[query.get("cursor", [None])[0]])
    assert [1, 2, 3] == [item["id"] for item in api.items("/v1/jobs")]
    assert [1] == [item["id"] for item in api.items("/v1/jobs", most=1)]
    assert {"limit": ["1"]} == server.asked[-1][1]


def test_a_query_is_repeated_for_every_value_and_says_nothing_of_what_was_not_asked(server: Server, api: Api) -> None:
    api.get("/v1/jobs", {"state": ["queued", "running"], "buyer": None})
    assert ("/v1/jobs", {"state": ["queued", "running"]}) == server.asked[0][:2]


def test_a_read_token_is_sent(server: Server, api: Api) -> None:
    api.get("/v1/market")
    assert "Bearer secret-token" == server.asked[0][2]["Authorization"]


@pytest.mark.parametrize(("status", "exit_code"), [(400, 2), (401, 4), (403, 4), (404, 3), (422, 2), (500, 1), (503, 6)])
def test_a_problem_is_told_with_the_exit_code_of_its_kind(status: int, exit_code: int, server: Server, api: Api) -> None:
    problem = {"title": "No.", "status": status, "detail": "because", "code": "some_code", "hint": "try"}
    server.say = lambda path, query, headers: as_json(problem, status)
    with pytest.raises(Complaint) as caught:
        api.get("/v1/market")
    told = caught.value
    assert ("some_code", "No.", "because", "try", exit_code, status) == (
        told.code,
        told.what,
        told.why,
        told.hint,
        told.exit_code,
        told.status,
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b"[" * 100_000])
def test_an_answer_that_is_none_is_refused(body: bytes, server: Server, api: Api) -> None:
    server.say = lambda path, query, headers: (200, "text/html", body)
    with pytest.raises(Complaint, match="no JSON object"):
        api.get("/v1/market")
    server.say = lambda path, query, headers: (502, "text/html", body)
    with pytest.raises(Complaint, match="answered 502"):
        api.get("/v1/market")


def test_an_api_that_is_not_there_is_unreachable(tmp_path: Path, unused_tcp_port: int) -> None:
    away = Api(resolve({"home": str(tmp_path), "api": f"http://127.0.0.1:{unused_tcp_port}"}, {}))
    with pytest.raises(MarketUnreachable, match=f"127.0.0.1:{unused_tcp_port}"):
        away.get("/v1/market")


def test_a_stream_is_read_event_after_event_from_behind_the_last_one_seen(server: Server, api: Api) -> None:
    body = b'retry: 1000\n\n: ping\n\nid: 8\ndata: {"seq": 8}\n\nid: 9\ndata: {"a":\ndata: 1}\n\nid: 10\ndata: cut off'
    server.say = lambda path, query, headers: (200, "text/event-stream", body)
    assert [("8", '{"seq": 8}'), ("9", '{"a":\n1}')] == list(api.stream("/v1/events", None, 7))
    assert ("text/event-stream", "7") == (server.asked[0][2]["Accept"], server.asked[0][2]["Last-Event-ID"])


NODES = [{"id": "naaa", "name": "rig"}, {"id": "naab", "name": "rig"}, {"id": "nbbb", "name": "naaa"}]


def test_a_node_is_found_by_id_then_by_name_then_by_a_unique_beginning() -> None:
    assert "naaa" == find_node(NODES, "naaa")["id"]
    assert "nbbb" == find_node(NODES, "nb")["id"]
    assert "naab" == find_node(NODES[1:], "rig")["id"]


@pytest.mark.parametrize(("asked", "exit_code"), [("rig", 2), ("na", 2), ("other", 3), ("", 2)])
def test_a_node_that_may_be_several_or_none_is_refused_with_the_candidates(asked: str, exit_code: int) -> None:
    with pytest.raises(Complaint) as caught:
        find_node(NODES, asked)
    assert exit_code == caught.value.exit_code
    assert "naab (rig)" in caught.value.why


def test_a_filter_becomes_the_query_of_the_api() -> None:
    query = offer_query("gpus>=2 vram >= 24GB price<=0.40 model='RTX 4090'")
    assert {"gpus": "2", "vram": "24GB", "max_price": "0.40", "model": ["RTX 4090"]} == query
    assert {} == offer_query("  ")
    assert {"model": ["A100", "H100"]} == offer_query("model=A100 model=H100"), "any of them"
    query = offer_query("isolation>=container tier>=consistent network=egress label:region=eu label:disk='fast ssd'")
    assert {"isolation": "container", "min_tier": "consistent", "network": "egress", "node_label": ["region=eu", "disk=fast ssd"]} == query


def test_every_condition_of_the_matcher_about_a_machine_can_be_asked_in_a_filter() -> None:
    filtered = {"total-vram": "total_vram", "label:": "labels"}
    names = {filtered.get(name, name) for name in (*FILTERS, LABEL)}
    assert names == {condition.name for condition in ON_OFFER} - {"online"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("speed>=9", "there is no condition speed"),
        ("gpus<=2", "gpus can only be asked as gpus>=2"),
        ("gpus>=2 gpus>=4", "gpus stands there twice"),
        ("price>=0.1", "price can only be asked as price<=0.1"),
        ("isolation>=steel", "isolation>=steel: there is no such choice"),
        ("label:region>=eu", "label:region can only be asked as label:region=eu"),
        ("label:region=$(x)", "label:region=$(x): a label's value"),
        ("vram>=many", "vram>=many:"),
        ("24GB", "is no condition such as"),
    ],
)
def test_a_filter_that_means_nothing_is_refused_with_what_would(text: str, why: str) -> None:
    with pytest.raises(BadValue, match=re.escape(why)):
        offer_query(text)
