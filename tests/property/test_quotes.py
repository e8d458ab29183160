"""A quote, against asking every node by itself: who could run a job, who is free now, when the first has room."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from property.test_engine import STEPS, World
from property.test_why import queued, settled

from events.wire import QuoteRequest
from projections.jobs import Job
from projections.nodes import Node
from services.matcher.feasibility import CONDITIONS, Ask, Scene, could_run, obstacle
from services.matcher.quotes import node_free_in_s, quote

WORLDS = settings.default.max_examples * 10 // 3
TIMELY = tuple(condition for condition in CONDITIONS if condition.name in ("maintenance", "limit"))


def request_of(job: Job) -> QuoteRequest:
    asked = job.submitted
    return QuoteRequest(
        requirements=asked.requirements,
        num_nodes=asked.num_nodes,
        max_price_uusd_per_gpu_hour=job.max_price_uusd_per_gpu_hour,
        max_total_uusd=asked.max_total_uusd,
        timeout_s=job.timeout_s,
        org_id=asked.org_id,
    )


def plainly_free_in_s(able: list[Node], ask: Ask, scene: Scene) -> int | None:
    """Looks at every node as closely as can be."""
    waits = []
    for node in able:
        found, wait_s = obstacle(ask, node, scene, TIMELY), node_free_in_s(node, ask.requirements, scene)
        if wait_s is None or (found is not None and found.name == "limit") or obstacle(ask, node, scene, TIMELY[-1:]) is not None:
            continue
        if found is not None and node.maintenance is not None:
            wait_s = max(wait_s, -(-(node.maintenance[1] - scene.now_ms) // 1000))
        waits.append(wait_s)
    return min(waits, default=None)


@settings(max_examples=WORLDS)
@given(STEPS)
def test_a_quote_says_what_every_node_would_say(steps: list[Any]) -> None:
    world: World = settled(steps)
    scene = Scene(world.market, world.now_ms, world.suspects)
    for job in queued(world):
        request = request_of(job)
        org = world.market.identity.orgs.get(request.org_id or "")
        ask = Ask(
            request.requirements,
            job.buyer,
            request.max_price_uusd_per_gpu_hour,
            org_id=request.org_id if org is not None and job.buyer in org.members else None,
            timeout_s=request.timeout_s,
            left_uusd=request.max_total_uusd,
            num_nodes=request.num_nodes,
        )
        able = [node for node in world.market.nodes.values() if could_run(ask, node, scene)]
        free = [node for node in able if obstacle(ask, node, scene) is None]
        answer = quote(world.market, request, job.buyer, world.now_ms, world.suspects)
        needed = request.num_nodes
        assert (len(able) if len(able) >= needed else 0, len(free) if len(free) >= needed else 0) == (answer.could_run, answer.free_now)
        assert (answer.failing is None) is (len(able) >= needed)
        if needed == 1:
            assert answer.free_in_s == (None if free else plainly_free_in_s(able, ask, scene))
