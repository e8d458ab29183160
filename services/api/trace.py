"""W3C trace context: a request that belongs to somebody's trace says so in our log, and its answer says which part of the trace we were.

A header that is not valid is treated as if it were not there, as the recommendation asks. Only requests that bring one cost anything.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import NamedTuple

import structlog

from services.api.asgi import App, Message, Receive, Scope, Send

HEADER, ANSWER = b"traceparent", b"traceresponse"
SAMPLED = 0x01
_VALUE = re.compile(r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<parent>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?")

log = structlog.get_logger("api.request")


class Trace(NamedTuple):
    """Where in whose trace this request stands; `span`: our part of it."""

    trace_id: str
    parent: str
    span: str
    flags: int

    async def run(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer: everything logged meanwhile names the trace, and so does the answer."""
        status = 0
        started_s = time.perf_counter()

        async def with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                value = f"00-{self.trace_id}-{self.span}-{self.flags:02x}".encode()
                message["headers"] = [*message.get("headers", ()), (ANSWER, value)]
            await send(message)

        with structlog.contextvars.bound_contextvars(trace_id=self.trace_id, span_id=self.span, parent_id=self.parent):
            try:
                await app(scope, receive, with_trace)
            finally:
                say = log.info if self.flags & SAMPLED else log.debug
                took_ms = round((time.perf_counter() - started_s) * 1000, 1)
                say("answered", method=scope["method"], path=scope["path"], status=status, took_ms=took_ms)


def trace_of(scope: Scope) -> Trace | None:
    """The trace that a request brings along; None when it brings none, or none that is valid."""
    found = [value for name, value in scope["headers"] if name == HEADER]
    return read_traceparent(found[0].decode("latin-1")) if len(found) == 1 else None


def read_traceparent(text: str) -> Trace | None:
    """A `traceparent` as the recommendation has it, of version 00 or later."""
    match = _VALUE.fullmatch(text)
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"] is not None):
        return None
    if not int(match["trace"], 16) or not int(match["parent"], 16):
        return None
    return Trace(match["trace"], match["parent"], secrets.token_hex(8), int(match["flags"], 16) & SAMPLED)
