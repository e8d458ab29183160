"""The endpoints as a FastAPI app: paths, headers, conditional requests, problems, and the document that describes them.

Answers are bytes that the desk has made; nothing here looks into them. FastAPI's own documentation pages are off: they would load scripts
from elsewhere; `pages.py` has ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import msgspec
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api import queries
from services.api.asking import Endpoint
from services.api.desk import Desk
from services.api.door import Door
from services.api.event_feed import EventView
from services.api.live import EVENTS, Reset, Streams, wants_stream
from services.api.metrics import CONTENT_TYPE, exposition
from services.api.pages import add_pages
from services.api.problems import MEDIA_TYPE, Problem, ProblemFound, Trouble
from services.api.pulse import TelemetryFrame
from services.api.queries import AS_OF, EVERYWHERE, Parameter
from services.api.rights import Rights
from services.api.shelf import Answer

TITLE = "GPU Bazaar query API"
SEQ_HEADER = "x-stream-seq"
REFUSES = {"/v1/orgs/{name}": 403, "/v1/jobs/{name}/results": 409}
"""Paths that answer no for what they are asked about: an organisation of others, a job that has not ended."""
STREAMED = (
    "Server-sent events: `id` is the sequence, `data` an EventView. An event named `reset` (data: Reset) tells a reader that comes"
    " back late to read the snapshot; one named `telemetry` (data: TelemetryFrame), for who asks for it, tells the last readings of cards."
)
Handler = Callable[[Request], Awaitable[Response]]
Readiness = Callable[[], str | None]
"""Why the API is not ready; None when it is."""


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: str
    version: str


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Answers are as new as the ledger."""

    status: str
    as_of_seq: int


PLAIN_SHAPES = (Problem, Health, Ready, EventView, Reset, TelemetryFrame)


def make_app(desk: Desk, streams: Streams, readiness: Readiness, *, is_loopback: bool, version: str, is_proxied: bool = False) -> ASGIApp:
    """The app over a desk. `is_loopback`: who connects without a token may see everything. `is_proxied`: see `Door`."""
    app = FastAPI(title=TITLE, version=version, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _answer_problems(app, desk)
    door = Door(desk, is_local=is_loopback, is_proxied=is_proxied)
    readers: dict[str, Handler] = {}
    for endpoint in desk.endpoints:
        read = _reading(desk, endpoint, door)
        readers[endpoint.path] = handler = _following(desk, streams, read, door) if endpoint is EVENTS else read
        _add(app, endpoint.path, handler, endpoint)

    async def healthz() -> Response:
        return _json(msgspec.json.encode(Health(status="ok", version=version)))

    async def readyz() -> Response:
        why = readiness()
        if why is not None or desk.source is None:
            raise ProblemFound(Trouble.NOT_READY, why or "")
        return _json(msgspec.json.encode(Ready(status="ready", as_of_seq=desk.source.mirror.market.last_seq)))

    async def metrics(request: Request) -> Response:
        door.reader(request)
        mirror = desk.ready_source().mirror
        values = queries.read(request.query_params.multi_items(), (queries.DCGM,))
        told = exposition(mirror, desk.now_ms(), dcgm=values.get("dcgm", False))
        return StreamingResponse(told, headers={"cache-control": "no-store", "content-type": CONTENT_TYPE})

    async def openapi() -> Response:
        return _json(msgspec.json.encode(app.openapi()))

    _add(app, "/healthz", healthz, Endpoint("/healthz", _nowhere, Health, "Whether the process is alive."), plain=True)
    _add(app, "/readyz", readyz, Endpoint("/readyz", _nowhere, Ready, "Whether answers are as new as the ledger."), plain=True)
    add_pages(app)
    _add_metrics(app, metrics)
    app.add_api_route("/openapi.json", openapi, include_in_schema=False)
    shapes: list[type[msgspec.Struct]] = [
        Problem,
        Health,
        Ready,
        EventView,
        Reset,
        TelemetryFrame,
        *(endpoint.shape for endpoint in desk.endpoints),
    ]
    app.openapi = lambda: _document(app, shapes)  # type: ignore[method-assign]
    return _Front(app, desk, readers)


class _Front:
    """The endpoints themselves, before FastAPI: what is asked for often goes through as little as possible. The rest goes on to the app."""

    def __init__(self, app: FastAPI, desk: Desk, readers: dict[str, Handler]) -> None:
        self._app = app
        self._desk = desk
        self._readers = readers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        if not path.startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            endpoint, name = self._desk.find(path)
            scope["path_params"] = {"name": name} if name else {}
            response = await self._readers[endpoint.path](request)
        except ProblemFound as problem:
            response = _problem(request, problem, self._desk)
        except Exception:
            await _problem(request, ProblemFound(Trouble.INTERNAL), self._desk)(scope, receive, send)
            raise  # into the log
        await response(scope, receive, send)


def _reading(desk: Desk, endpoint: Endpoint, door: Door) -> Handler:
    async def read(request: Request) -> Response:
        viewer = door.viewer(request)
        pairs = tuple(request.query_params.multi_items())
        answer = await desk.answer(endpoint, request.path_params.get("name", ""), pairs, viewer)
        return _respond(request, answer)

    return read


def _following(desk: Desk, streams: Streams, read: Handler, door: Door) -> Handler:
    async def follow(request: Request) -> Response:
        if not wants_stream(request):
            return await read(request)
        grant, source = door.grant(request), desk.ready_source()
        rights = Rights(grant, source.mirror.market.last_seq, lambda: door.rights(request))
        return streams.respond(request, source, rights)

    return follow


def _respond(request: Request, answer: Answer) -> Response:
    headers = {
        "etag": answer.etag,
        SEQ_HEADER: str(answer.as_of_seq),
        "cache-control": "no-cache",
        "vary": "accept, accept-encoding, authorization, x-auth-token",
    }
    if answer.next_query is not None:
        headers["link"] = f'<{quote(request.url.path)}?{answer.next_query}>; rel="next"'
    if _knows(request.headers.get("if-none-match", ""), answer.etag):
        return Response(status_code=304, headers=headers)
    if answer.is_worth_packing and "gzip" in request.headers.get("accept-encoding", ""):
        return _json(answer.packed(), headers | {"content-encoding": "gzip"})
    return _json(answer.body, headers)


def _knows(if_none_match: str, etag: str) -> bool:
    """Weak comparison, as RFC 9110 asks for with If-None-Match."""
    opaque = etag.removeprefix("W/")
    return any(known.strip() == "*" or known.strip().removeprefix("W/") == opaque for known in if_none_match.split(","))


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, headers={"cache-control": "no-cache"} | (headers or {}), media_type="application/json")


# --- problems ---


def _problem(request: Request, problem: ProblemFound, desk: Desk) -> Response:
    """A problem, with where the ledger stood."""
    seq = None if desk.source is None else desk.source.mirror.market.last_seq
    headers = {"cache-control": "no-store", **problem.headers}
    return Response(problem.body(quote(request.url.path), seq), problem.status, headers, media_type=MEDIA_TYPE)


def _answer_problems(app: FastAPI, desk: Desk) -> None:
    """Whatever goes wrong is answered as a problem, here as in front."""

    def respond(request: Request, problem: ProblemFound) -> Response:
        return _problem(request, problem, desk)

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemFound)
        return respond(request, error)

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(request, ProblemFound(Trouble.NOT_FOUND if error.status_code == 404 else Trouble.INTERNAL))

    async def on_failure(request: Request, error: Exception) -> Response:
        return respond(request, ProblemFound(Trouble.INTERNAL))

    app.add_exception_handler(ProblemFound, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_failure)


# --- the document ---


async def _nowhere(asked: Any) -> Any:
    raise AssertionError("served by the app itself")


def _add(app: FastAPI, path: str, handler: Callable[..., Awaitable[Response]], endpoint: Endpoint, *, plain: bool = False) -> None:
    parameters = (
        [] if plain else [_parameter(parameter) for parameter in (*endpoint.parameters, *((AS_OF,) if endpoint.past else ()), *EVERYWHERE)]
    )
    if "{name}" in path:
        parameters.insert(0, {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}, "description": "The id."})
    problem = {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": _reference(Problem)}}}
    app.add_api_route(
        path,
        handler,
        methods=["GET"],
        summary=endpoint.summary,
        operation_id=endpoint.shape.__name__ + path.replace("/", "_").replace("{name}", "one").replace(".", "_"),
        response_class=Response,
        responses={
            200: {"description": endpoint.summary, "content": _content(endpoint, plain)},
            **({} if plain else {304: {"description": "Nothing has changed since the ETag that was sent."}}),
            **({} if plain else {400: problem, 401: problem, 429: problem}),
            **({404: problem} if "{name}" in path else {}),
            **({REFUSES[path]: problem} if path in REFUSES else {}),
            503: problem,
        },
        openapi_extra={"parameters": parameters},
    )


def _add_metrics(app: FastAPI, handler: Handler) -> None:
    problem = {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": _reference(Problem)}}}
    told = {"description": "Figures for Prometheus.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    app.add_api_route(
        "/metrics",
        handler,
        methods=["GET"],
        summary="Figures for Prometheus.",
        operation_id="metrics",
        response_class=Response,
        responses={200: told, 400: problem, 401: problem, 429: problem, 503: problem},
        openapi_extra={"parameters": [_parameter(queries.DCGM)]},
    )


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = dict(parameter.schema)
    if parameter.many:
        schema = {"type": "array", "items": schema}
    return {"name": parameter.name, "in": "query", "required": False, "description": parameter.about, "schema": schema}


def _content(endpoint: Endpoint, plain: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _answer_schema(endpoint.shape, plain)}}
    if endpoint is EVENTS:
        content["text/event-stream"] = {"schema": {"type": "string", "description": STREAMED}}
    return content


def _reference(shape: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _answer_schema(shape: type[msgspec.Struct], plain: bool) -> dict[str, Any]:
    if plain:
        return dict(_reference(shape))
    seq = {"type": "integer", "description": "The sequence of the last event that the answer takes into account."}
    return {"allOf": [_reference(shape), {"type": "object", "properties": {"as_of_seq": seq}, "required": ["as_of_seq"]}]}


def _document(app: FastAPI, shapes: list[type[msgspec.Struct]]) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes, openapi_version="3.1.0")
        _, components = msgspec.json.schema_components(list(dict.fromkeys(shapes)), ref_template="#/components/schemas/{name}")
        document.setdefault("components", {})["schemas"] = components
        app.openapi_schema = document
    return app.openapi_schema
