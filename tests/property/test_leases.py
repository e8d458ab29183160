"""Whatever is lost or late between a node and the matcher: the node's run is gone before the matcher gives its cards away.

Both sides are the real ones, each by a clock of its own: the node's counts from its boot and knows nothing of the time of day.
"""

from __future__ import annotations

from typing import NamedTuple

from builders import job_id
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_turn import Trade, World, beat, claimed, party

from events.jobs import JobStarted
from events.values import Role
from projections.job_states import JobState
from seller_agent.attempts.decisions import Node, guard_until_ms
from seller_agent.runners.docker_engine.guard.files import Watch, due

TICK_MS = 5_000
"""So often at least the matcher looks."""


class Sent(NamedTuple):
    """One heartbeat: how long after the one before, how long on its way, and whether it and its answer arrive."""

    gap_ms: int
    travel_ms: int
    arrives: bool
    answered: bool


beats = st.lists(st.builds(Sent, st.integers(1, 150_000), st.integers(0, 90_000), st.booleans(), st.booleans()), max_size=8)


def killed_ms(sent_boot_ms: int) -> int:
    """When the guard of a run whose last answered beat was sent then has killed it, by the node's clock."""
    until_ms = guard_until_ms(Node(), sent_boot_ms)
    watch = Watch(container="c", folder="/nowhere", socket="/nowhere", boot_id="boot", grace_s=30, lease_until_boot_ms=until_ms)
    return due(watch, None, "boot").kill_ms


def running() -> Trade:
    """A world with a run in it."""
    world, buyer, seller = World(), party("buyer", Role.BUYER), party("seller", Role.SELLER)
    world.turn(buyer.hello(), seller.hello())
    trade = Trade(world, buyer, seller)
    claimed(trade)
    return trade


@settings(max_examples=40, deadline=None)
@given(sent=beats, boot_ms=st.integers(0, 10**9))
def test_a_run_is_dead_before_its_cards_are_given_away(sent: list[Sent], boot_ms: int) -> None:
    trade = running()
    world = trade.world
    begun_ms = world.now_ms
    world.turn(trade.seller.say(world.of_run("job", JobStarted)))
    run = world.market.jobs[job_id("job")].run
    assert run is not None
    answered_ms, moment, arrivals = boot_ms, 0, []
    for one in sent:
        moment += one.gap_ms
        if one.arrives:
            arrivals.append((moment + one.travel_ms, moment, one.answered))
    for arrival_ms, sent_ms, answered in [*sorted(arrivals), (10**9, 0, False)]:
        while world.now_ms - begun_ms + TICK_MS < arrival_ms and world.state() is JobState.RUNNING:
            world.turn(after_ms=TICK_MS)
        if world.state() is not JobState.RUNNING:
            break
        renewed = beat(trade, run.epoch, after_ms=max(1, arrival_ms - (world.now_ms - begun_ms))).renewed
        if renewed and answered:
            answered_ms = max(answered_ms, boot_ms + sent_ms)
    assert JobState.RUNNING is not world.state()
    given_away_ms = boot_ms + world.now_ms - begun_ms  # by the node's clock
    assert killed_ms(answered_ms) < given_away_ms
