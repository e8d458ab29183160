"""What every HTTP request passes first: only GET and HEAD, before a byte of a body is read, and only under a name that is meant.

Plain ASGI, around everything else. Puts the headers that keep a browser from taking any answer for a page on each of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from services.api.asgi import App, Message, Receive, Scope, Send
from services.api.problems import MEDIA_TYPE, ProblemFound, Trouble
from services.api.trace import trace_of

READ_METHODS = ("GET", "HEAD")
PATH_CHARACTERS_MAX = 300
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """The outermost app. `names`: only these and this machine's own are answered to, so that no web page can reach in by rebinding its
    name; None: all are, because everybody may connect anyway and is a stranger without a token."""

    def __init__(self, app: App, *, names: Collection[str] | None) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        problem = self._problem(scope)
        if problem is not None:
            await _refuse(problem, str(scope["path"]), send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                said = {name.lower() for name, _ in headers}  # a page brings a policy of its own, as strict as it can be for a page
                message["headers"] = [*headers, *(header for header in SECURITY_HEADERS if header[0] not in said)]
            await send(message)

        # HEAD is GET to everything inside; the server leaves the body out.
        inner = scope if scope["method"] == "GET" else {**scope, "method": "GET", "bazaar.head": True}
        trace = trace_of(scope)
        if trace is None:
            await self._app(inner, receive, with_headers)
        else:
            await trace.run(self._app, inner, receive, with_headers)

    def _problem(self, scope: Scope) -> ProblemFound | None:
        if scope["method"] not in READ_METHODS:
            return ProblemFound(Trouble.METHOD_NOT_ALLOWED)
        if len(scope["path"]) > PATH_CHARACTERS_MAX:
            return ProblemFound(Trouble.NOT_FOUND)
        if self._names is not None:
            hosts = [host_name(value.decode("latin-1")) for name, value in scope["headers"] if name == b"host"]
            if len(hosts) > 1 or any(host not in self._names and not names_this_machine(host) for host in hosts):
                return ProblemFound(Trouble.WRONG_HOST)
        return None


def host_name(host: str) -> str:
    """The name or address in a Host header, without its port; empty when it is neither."""
    name = host.strip().lower()
    if name.startswith("["):
        name, bracket, port = name[1:].partition("]")
        return name if bracket and (not port or port.startswith(":")) else ""
    return (name.partition(":")[0] if name.count(":") <= 1 else name).rstrip(".")


def names_this_machine(name: str) -> bool:
    """Whether a name can only mean this machine: `localhost`, or a loopback address."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _refuse(problem: ProblemFound, path: str, send: Send) -> None:
    body = problem.body(path[:PATH_CHARACTERS_MAX])
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),  # whatever the request still holds is not read
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
        *SECURITY_HEADERS,
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
