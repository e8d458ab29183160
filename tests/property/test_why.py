"""Why a job waits, against the matcher itself on random worlds: the funnel, the advice, and a wait whose parts add up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
from builders import START_MS, History
from hypothesis import given, settings
from property.test_engine import STEPS, World, brute_force, brute_kept, could_start, play

from events.why import Cause, Nearness
from projections.arbiter import apply
from projections.job_states import CLAIMED, HELD, MATCHED, QUEUED
from projections.jobs import Job
from projections.market import Market
from services.matcher.changes import Question, advice, as_changed
from services.matcher.feasibility import CONDITIONS, Scene, ask_of, could_run, obstacle
from services.matcher.kept_now import kept_now, seen_by
from services.matcher.verdicts import LIMIT, OfferKeys, verdicts
from services.matcher.waits import WaitWatch
from services.matcher.why import Moment, nodes_for, why

WORLDS = settings.default.max_examples * 10 // 3
ABOUT_NODES = tuple(condition for condition in CONDITIONS if condition.name != LIMIT)
"""Those that `verdicts` asks; where no place is kept, `kept` stops nobody."""
WAITING = (QUEUED, MATCHED, CLAIMED)


def settled(steps: list[Any]) -> World:
    """A world in which the matcher has nothing left to do."""
    world = play(steps)
    world.match()
    return world


def queued(world: World) -> list[Job]:
    return [job for job in world.market.jobs.values() if job.state is QUEUED]


@settings(max_examples=WORLDS)
@given(STEPS)
def test_every_node_says_of_every_job_what_the_matcher_asks_first(steps: list[Any]) -> None:
    world = settled(steps)
    scene, keys = Scene(world.market, world.now_ms, world.suspects), OfferKeys()
    for job in queued(world):
        ask = ask_of(job)
        found = verdicts(ask, scene, world.market.nodes.values(), keys)
        for node in world.market.nodes.values():
            expected = obstacle(ask, node, scene, ABOUT_NODES)
            assert (expected and expected.name) == (found.failing(node.node_id) and found.failing(node.node_id).name)  # type: ignore[union-attr]


@settings(max_examples=WORLDS)
@given(STEPS)
def test_a_job_that_waits_while_a_node_is_free_for_it_is_held_back_by_the_market_and_told_so(steps: list[Any]) -> None:
    world = settled(steps)
    for job in queued(world):
        answer = why(world.market, job, Moment(world.now_ms, world.suspects))
        if answer.tiers.get(Nearness.FREE) and job.submitted.num_nodes == 1:  # a gang may need more nodes than are free
            assert answer.cause in (Cause.PAUSED, Cause.RETRY, Cause.MARKET_FULL, Cause.LIMIT, Cause.SILENT)
        if answer.cause is Cause.SILENT and job.submitted.num_nodes == 1:
            assert is_held_back(world, job)
        assert sum(answer.tiers.values()) == len(nodes_for(world.market, job))


def is_held_back(world: World, job: Job) -> bool:
    """Whether something besides its own conditions keeps the matcher from placing it."""
    alone = msgspec.structs.replace(world.market, jobs={job.submitted.job_id: job})
    return brute_force(alone, world.now_ms, world.suspects) is None


@settings(max_examples=WORLDS)
@given(STEPS)
def test_what_is_advised_to_place_a_job_at_once_places_it(steps: list[Any]) -> None:
    world = settled(steps)
    state = world.market
    most = state.policy.max_concurrent
    if state.paused or (most is not None and sum(job.state in HELD for job in state.jobs.values()) >= most):
        return
    scene, keys, in_order = Scene(state, world.now_ms, world.suspects), OfferKeys(), world.in_order
    for job in [job for job in queued(world) if job.not_before_ms <= world.now_ms][:5]:
        first = state.ranks_of(job)[0]  # whose place in the order is the whole gang's
        own = in_order(first)
        ahead = sorted([other for other in queued(world) if in_order(other) < own], key=in_order)
        seen, _ = seen_by(first, ahead, scene, keys)
        found = verdicts(ask_of(job), seen, state.nodes.values(), keys)
        best = advice(Question(job, ask_of(job), seen, ahead), found, keys)
        if best is None:
            continue
        match = brute_force(as_changed(state, job, best.tried.ask), world.now_ms, world.suspects)
        if best.at_once:
            assert match is not None and match.job_id in {rank.submitted.job_id for rank in state.ranks_of(job)}
        else:
            assert all(could_run(best.tried.ask, node, scene) for node in best.nodes)
        assert best.tried.ask.num_nodes == len(best.nodes)


@settings(max_examples=WORLDS)
@given(STEPS)
def test_the_place_that_is_told_is_the_one_that_is_kept(steps: list[Any]) -> None:
    world = settled(steps)
    state, scene = world.market, Scene(world.market, world.now_ms, world.suspects)
    running = sum(job.state in HELD for job in state.jobs.values())
    most = state.policy.max_concurrent
    if state.paused or (most is not None and running >= most):
        return
    order = sorted(queued(world), key=world.in_order)
    head = next((job for job in order if job.not_before_ms <= world.now_ms and could_start(state, job, scene, running)), None)
    kept = kept_now(order, scene, OfferKeys())
    expected = {} if head is None else brute_kept(state, head, scene)
    assert expected == ({} if kept is None else kept.nodes)


@settings(max_examples=WORLDS // 2)
@given(STEPS)
def test_the_intervals_of_a_wait_follow_one_another_and_add_up_to_all_of_it(steps: list[Any]) -> None:
    world = settled(steps)
    for name in list(world.market.jobs)[:3]:
        watch, waited_ms = watched(world, name)
        intervals = watch.end(world.now_ms)
        assert waited_ms == sum(interval.until_ms - interval.from_ms for interval in intervals)
        for before, after in pairwise(intervals):
            assert before.until_ms <= after.from_ms
        assert all(interval.from_ms < interval.until_ms for interval in intervals)


def watched(world: World, name: str) -> tuple[WaitWatch, int]:
    """The same events folded again under a watch, one page each; and how long the job waited by the plainest reckoning."""
    history = History(at_ms=START_MS)
    state: Market = history.market
    watch, waited_ms, before = WaitWatch(name), 0, START_MS
    for record in world.history.records:
        job = state.jobs.get(name)
        if job is not None and job.state in WAITING:
            waited_ms += record.time_ms - before
        before = record.time_ms
        apply(state, record)
        watch.page(state, [record])
    job = state.jobs.get(name)
    if job is not None and job.state in WAITING:
        waited_ms += world.now_ms - before
    return watch, waited_ms
