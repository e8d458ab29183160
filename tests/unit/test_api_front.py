"""What every HTTP request passes before anything answers it: names under which the API is served, and whose trace it belongs to."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.guard import Guard
from services.api.lines import LINES_MAX, LINES_OF_ADDRESS, LINES_OF_THIS_MACHINE, most
from services.api.trace import read_traceparent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def status_for(host: str, names: tuple[str, ...] | None) -> int:
    """What a request under this name is answered."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    scope = {"type": "http", "method": "GET", "path": "/v1/jobs", "headers": [(b"host", host.encode("latin-1"))]}
    await Guard(app, names=names)(scope, receive, send)
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8420", "localhost.", "127.0.0.1", "127.9.9.9:1", "[::1]", "[::1]:8420", "::1"])
async def test_this_machine_is_served_under_each_of_its_names(host: str) -> None:
    assert 200 == await status_for(host, ())
    assert 200 == await status_for(host, ("market.test",))


@pytest.mark.parametrize(
    "host",
    [
        "evil.test",
        "evil.test:80",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "[::1].evil.test",
        "[::1",
        "localhost@evil.test",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "10.0.0.1",
        "",
        "market.test.evil.test",
        "xmarket.test",
        "market",
    ],
)
async def test_a_name_that_was_rebound_to_this_machine_is_not(host: str) -> None:
    assert 421 == await status_for(host, ())
    assert 421 == await status_for(host, ("market.test",))


async def test_names_given_by_the_operator_count_and_without_any_every_name_does() -> None:
    assert 200 == await status_for("Market.TEST:443", ("market.test", "other.test"))
    assert 200 == await status_for("market.test.", ("market.test",))
    assert 200 == await status_for("whatever.test", None)


def test_this_machine_may_hold_more_connections_and_a_proxy_as_many_as_there_are() -> None:
    assert LINES_OF_ADDRESS == most("192.0.2.1", proxied=False) == most("192.0.2.1", proxied=True)
    assert LINES_OF_THIS_MACHINE == most("127.0.0.1", proxied=False)
    assert LINES_MAX == most("::1", proxied=True)


def test_a_trace_is_taken_over_with_a_part_of_our_own() -> None:
    trace = read_traceparent(f"00-{TRACE}-{PARENT}-01")
    assert trace is not None
    assert (TRACE, PARENT, 1) == (trace.trace_id, trace.parent, trace.flags)
    assert trace.span != PARENT and len(trace.span) == 16
    later = read_traceparent(f"cc-{TRACE}-{PARENT}-fe-what-the-future-will-be-like")
    assert later is not None and 0 == later.flags


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-x",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-01-x",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-1",
        f" 00-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_a_trace_that_is_none_counts_as_not_sent(text: str) -> None:
    assert read_traceparent(text) is None
