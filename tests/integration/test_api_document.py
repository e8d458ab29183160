"""The API keeps to its own document, whatever it is asked: requests are made up from `/openapi.json`, half of them meant to hurt."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections import Counter
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from integration.broker_env import world
from integration.test_api import ApiProcess, Scribe, api, scribe
from schema_check import faults

from events import wire
from services.output_store import OutputStore

__all__ = ["api", "scribe", "world"]

ALLOWED = {200, 304, 400, 401, 403, 404, 409, 503}
HOSTILE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", "-1", "0", "1e9", "9" * 30, "\x00", "../../etc/passwd", "' OR 1=1 --", "%ff", "<script>", "\u202e", "NaN"]),
)
"""What somebody writes who means no good."""


class Question(NamedTuple):
    """One request, and the path of the document that it belongs to."""

    template: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]


def values_for(schema: dict[str, Any], known: list[str]) -> SearchStrategy[str]:
    """Mostly what the schema wants."""
    inner = schema.get("items", schema)
    match inner.get("type"):
        case "integer":
            wanted: SearchStrategy[str] = st.integers(inner.get("minimum", 0), inner.get("maximum", 10_000)).map(str)
        case "boolean":
            wanted = st.sampled_from(["true", "false", "yes", "1", "0"])
        case _:
            wanted = st.sampled_from(inner.get("enum") or [*known, "24GB", "1s", "queued", "succeeded,failed", "12.4", "a=b", "3"])
    return st.one_of(wanted, wanted, wanted, HOSTILE)


def questions(document: dict[str, Any], known: list[str]) -> SearchStrategy[Question]:
    """Every path of the document, with its parameters and now and then another."""

    @st.composite
    def made(draw: st.DrawFn) -> Question:
        template = draw(st.sampled_from(sorted(document["paths"])))
        query = []
        name = ""
        for parameter in document["paths"][template]["get"].get("parameters", ()):
            if parameter["in"] == "path":
                name = draw(st.one_of(st.sampled_from(known), HOSTILE))
            elif parameter["name"] == "wait":
                query.append(("wait", "1s"))  # a longer wait for what never comes would be this test's own
            elif draw(st.integers(0, 4)) == 0:
                query.append((parameter["name"], draw(values_for(parameter["schema"], known))))
        if draw(st.integers(0, 9)) == 0:
            query.append((draw(HOSTILE), draw(HOSTILE)))
        headers = {"Accept": "application/json"}
        if draw(st.booleans()):
            headers["If-None-Match"] = draw(st.sampled_from(["*", 'W/"x"', '"', 'W/"' + "a" * 200]))
        if draw(st.integers(0, 5)) == 0:
            headers["Authorization"] = "Bearer " + draw(st.text("abz_-.0", max_size=30))
        return Question(template, template.replace("{name}", quote(name, safe="")), tuple(query), headers)

    return made()


def ask(port: int, question: Question) -> tuple[int, str, bytes]:
    target = question.path + (f"?{urlencode(question.query, errors='replace')}" if question.query else "")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", target, headers=question.headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), answer.read()


def check(document: dict[str, Any], question: Question, status: int, kind: str, body: bytes) -> None:
    responses = document["paths"][question.template]["get"]["responses"]
    assert status in ALLOWED, (status, body)
    assert str(status) in responses or (status == 404 and "{name}" not in question.template), (status, list(responses))
    if status == 304:
        assert b"" == body
        return
    if status == 200:
        content = responses["200"]["content"]
        assert kind in content, (kind, list(content))
        if kind == "application/json":
            assert [] == list(faults(json.loads(body), content[kind]["schema"], document))
        return
    assert "application/problem+json" == kind
    problem = json.loads(body)
    assert [] == list(faults(problem, {"$ref": "#/components/schemas/Problem"}, document))
    assert status == problem["status"] and problem["title"] and problem["hint"]


async def test_whatever_is_asked_the_answer_is_one_that_the_document_names(scribe: Scribe, api: ApiProcess) -> None:
    node_id = await scribe.offer()
    done, waits = await scribe.submit("done", labels={"a": "b"}), await scribe.submit("waits", gpus=8)
    await OutputStore(scribe.world.services).add(done, 1, (wire.OutputChunk(1, 0, b"out"), wire.OutputChunk(2, 0, b"err")), 10_000)
    await scribe.finish(done)
    await api.at("/v1/market", scribe.market.last_seq)
    document = (await api.get("/openapi.json")).json
    known = [done, waits, node_id, scribe.buyer.wallet, "o" + "a" * 15, "g" + "a" * 19, "j" + "a" * 19]
    seen: Counter[int] = Counter()

    def try_all() -> None:
        @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(questions(document, known))
        def holds(question: Question) -> None:
            status, kind, body = ask(api.port, question)
            seen[status] += 1
            check(document, question, status, kind, body)

        holds()

    await asyncio.to_thread(try_all)
    assert {200, 400, 401, 404} <= set(seen), f"the questions reach everything: {seen}"


async def test_every_path_answers_a_plain_question_as_the_document_says(scribe: Scribe, api: ApiProcess) -> None:
    node_id = await scribe.offer()
    job_id = await scribe.submit("done")
    await scribe.finish(job_id)
    await api.at("/v1/market", scribe.market.last_seq)
    document = (await api.get("/openapi.json")).json
    for template in document["paths"]:
        name = node_id if "/nodes/" in template else job_id
        question = Question(template, template.replace("{name}", name), (), {"Accept": "application/json"})
        status, kind, body = await asyncio.to_thread(ask, api.port, question)
        check(document, question, status, kind, body)
        assert status == (403 if "/orgs/" in template else 200), template
