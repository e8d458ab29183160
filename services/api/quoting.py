"""Quotes, the same over HTTP and over NATS: who could run this, by the matcher's own conditions."""

from __future__ import annotations

from importlib import import_module

from events.wire import QuoteAnswer, QuoteRequest
from services.api.mirror import Mirror


def quoted(mirror: Mirror, request: QuoteRequest, buyer: str | None, now_ms: int) -> QuoteAnswer:
    """The quote for a buyer; None: for a stranger."""
    market = mirror.market
    suspects = mirror.telemetry.suspects(market.nodes, market.policy.suspect_s, now_ms)
    answer = import_module("services.matcher.quotes").quote(market, request, buyer, now_ms=now_ms, suspects=suspects)
    assert isinstance(answer, QuoteAnswer)
    return answer
