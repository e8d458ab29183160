"""A job that must wait is passed only by jobs that cannot delay it: it starts by the time at which those before it leave it room."""

from __future__ import annotations

from random import Random
from typing import Any
from unittest import mock

from builders import OPERATOR, By, job_submitted, make, node_offered
from desk import Desk
from hypothesis import given, settings
from hypothesis import strategies as st
from property.test_engine import WORLDS, brute_kept, could_start, placed

from events import jobs, market
from events.market import Policy
from projections.job_states import MATCHED, QUEUED
from services.matcher import heads
from services.matcher.feasibility import Scene
from services.matcher.policies import order_key


class Hall(Desk):
    """Nodes that stay as they are, and runs that end by their timeouts at the latest."""

    def __init__(self, chance: Random, policy: Policy) -> None:
        super().__init__(By(OPERATOR, make(market.PolicyChanged, policy=policy)))
        self.chance = chance
        self.submitted = 0
        self.promised: dict[str, int] = {}
        """Jobs that were the head once, each with when it would have room at the latest."""
        for number in range(chance.randrange(1, 4)):
            self.happen(node_offered(f"node{number}", gpus=chance.choice((1, 2, 4)), price=chance.choice((100_000, 200_000))))

    def submit(self) -> None:
        gpus, timeout_s = self.chance.choice((1, 1, 1, 2, 4)), self.chance.choice((30, 600, 900, 3600, 9000))
        self.submitted += 1
        price = self.chance.choice((None, 100_000))
        self.happen(job_submitted(f"job{self.submitted}", num_gpus=gpus, timeout_s=timeout_s, max_price=price))

    def end_some(self, due_only: bool) -> None:
        for job in list(self.market.jobs.values()):
            run = job.run
            if job.state is not MATCHED or run is None:
                continue
            due = self.now_ms >= run.matched_ms + job.timeout_s * 1000
            if due or (not due_only and self.chance.random() < 0.3):
                attempt: dict[str, Any] = {"job_id": job.submitted.job_id, "attempt": run.attempt, "epoch": run.epoch}
                for kind in (jobs.JobClaimed, jobs.JobStarted, jobs.JobSucceeded, jobs.GpusReleased):
                    self.happen(By(run.node_wallet, make(kind, **attempt)))

    def next_end_ms(self) -> int | None:
        return min(
            (job.run.matched_ms + job.timeout_s * 1000 for job in self.market.jobs.values() if job.state is MATCHED and job.run),
            default=None,
        )

    def look(self) -> None:
        """Match what can be matched; then nobody may wait who was promised a start by now, and the head hears its time."""
        self.match_all()
        state, scene = self.market, Scene(self.market, self.now_ms)
        queued = sorted((job for job in state.jobs.values() if job.state is QUEUED), key=lambda job: order_key(job, state.policy, state))
        late = [job.submitted.name for job in queued if self.promised.get(job.submitted.job_id, self.now_ms + 1) <= self.now_ms]
        assert [] == late
        head = next((job for job in queued if could_start(state, job, scene, 0)), None)
        if head is not None:
            assert placed(state, head, scene, 0) is None
            (from_ms,) = set(brute_kept(state, head, scene).values())
            before_ms = self.promised.setdefault(head.submitted.job_id, from_ms)
            assert from_ms <= before_ms


@settings(max_examples=WORLDS // 2)
@given(st.integers(0, 1 << 32), st.integers(10, 40))
def test_the_head_starts_no_later_than_if_nobody_had_passed_it(seed: int, steps: int) -> None:
    hall = Hall(Random(seed), Policy(name="fcfs", max_queue=1000))
    for _ in range(steps):
        for _ in range(hall.chance.randrange(3)):
            hall.submit()
        hall.look()
        end_ms = hall.next_end_ms()
        if end_ms is not None:  # time goes on, but never past the end of a run
            hall.history.now_ms += hall.chance.choice((0, 1, (end_ms - hall.now_ms) // 2, end_ms - hall.now_ms))
        hall.end_some(due_only=hall.chance.random() < 0.5)
        hall.look()


def test_without_the_rule_small_jobs_pass_a_large_one_for_ever() -> None:
    """What the test above would find: a job for two cards that waits as long as jobs for one card come."""
    assert started_after(20, keep_place=False) is None
    assert started_after(20, keep_place=True) is not None


def test_a_kept_place_moves_to_a_node_that_has_room_sooner_now_however_few_are_remembered() -> None:
    with mock.patch.object(heads, "KNOWN_NODES_MAX", 2):
        prices = {"cheap": 100_000, "middle": 200_000, "dear": 300_000}
        offers = {name: node_offered(name, gpus=2, price=price) for name, price in prices.items()}
        desk = Desk(*offers.values())
        for name, timeout_s in (("cheap", 1800), ("cheap", 7200), ("middle", 3600), ("middle", 3600), ("dear", 9000), ("dear", 9000)):
            desk.happen(job_submitted(f"{name}{desk.market.last_seq}", timeout_s=timeout_s, target_node=offers[name].node_id))
        running = list(desk.match_all())
        end(desk, running[2])
        desk.happen(job_submitted("large", num_gpus=2), job_submitted("small", timeout_s=10_800))
        assert {} == desk.match_all(), "middle is kept"
        end(desk, running[1])
        assert {"small": "middle"} == desk.match_all(), "cheap is kept now"


def started_after(rounds: int, keep_place: bool) -> int | None:
    desk = Desk(node_offered(gpus=2), job_submitted("first", timeout_s=3600), policy=Policy(name="fcfs", keep_place=keep_place))
    desk.match_all()
    desk.happen(job_submitted("second", timeout_s=3600))
    desk.match_all()
    desk.happen(job_submitted("large", num_gpus=2, timeout_s=3600))
    running = ["first", "second"]
    for number in range(rounds):
        desk.happen(job_submitted(f"small{number}", timeout_s=3600))
        desk.history.now_ms += 60_000
        end(desk, running.pop(0))
        started = desk.match_all()
        if "large" in started:
            return number
        running += started
    return None


def end(desk: Desk, name: str) -> None:
    (job,) = [job for job in desk.market.jobs.values() if job.submitted.name == name]
    assert job.run is not None
    for kind in (jobs.JobClaimed, jobs.JobStarted, jobs.JobSucceeded, jobs.GpusReleased):
        desk.happen(By(job.run.node_wallet, make(kind, **desk.attempt(job.submitted.job_id))))
