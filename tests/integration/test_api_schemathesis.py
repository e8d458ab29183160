"""Schemathesis over the API's own document: whatever it makes of it, answers are those that are described, and never a failure of ours."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from integration.broker_env import world
from integration.test_api import ApiProcess, Scribe, api, scribe
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

__all__ = ["api", "scribe", "world"]


def no_failure_of_ours(context: Any, answer: Any, case: schemathesis.Case) -> None:
    """503 is an answer (the ledger is not read that far); 500 is none."""
    assert answer.status_code != 500, answer.text


CHECKS = [
    no_failure_of_ours,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 8


def check_all(port: int) -> int:
    """Ask everything that the document describes, in ways of schemathesis' own; how many operations that were."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            if "/events" in case.path and case.path.count("/") == 2:  # else the answer is a stream without an end
                case.headers = {**(case.headers or {}), "Accept": "application/json"}
            if "min_seq" in (case.query or {}):  # it lies ahead, mostly: no need to wait long for it
                case.query["wait"] = "1s"
            case.call_and_validate(checks=CHECKS, timeout=30)

        ask()
        checked += 1
    return checked


async def test_whatever_schemathesis_makes_of_the_document_is_answered_as_it_says(scribe: Scribe, api: ApiProcess) -> None:
    await scribe.offer()
    job = await scribe.submit()
    await scribe.finish(job)
    await scribe.submit("waits", gpus=8)
    await api.at("/v1/market", scribe.market.last_seq)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own dependencies' deprecations are not ours to mend
        assert await asyncio.to_thread(check_all, api.port) >= 20
