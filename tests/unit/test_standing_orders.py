"""What the owner's orders mean for the node, at each moment of the market's clock."""

from __future__ import annotations

from builders import NODE, make, node_offered

from events.market import NodeBanned
from events.nodes import NodeDrained, NodeMaintenancePlanned, NodeRepriced, NodeResumed
from events.wire import SyncNode
from seller_agent.attempts.decisions import Node
from seller_agent.node.steering import Steering
from seller_agent.owner.standing_orders import Bearing, MarketClock, Orders, bearing, hear, learn


def way(orders: Orders, market_ms: int) -> tuple[bool, bool]:
    now: Bearing = bearing(orders, market_ms)
    return now.accepting, now.evicting


def test_without_orders_jobs_are_taken_and_nothing_is_said() -> None:
    assert Bearing(True, False, "") == bearing(Orders(), 0)


def test_a_drain_takes_no_jobs_and_evicts_at_its_deadline() -> None:
    orders = Orders()
    assert hear(orders, make(NodeDrained, reason="dust", deadline_ms=100))
    assert [(False, False), (False, True)] == [way(orders, 99), way(orders, 100)]
    assert "(dust)" in bearing(orders, 0).words
    assert hear(orders, make(NodeResumed))
    assert (True, False) == way(orders, 200)


def test_a_drain_without_a_deadline_lets_everything_finish() -> None:
    orders = Orders()
    hear(orders, make(NodeDrained))
    assert (False, False) == way(orders, 10**15)


def test_maintenance_evicts_when_it_begins_and_is_over_by_itself() -> None:
    orders = Orders()
    hear(orders, make(NodeMaintenancePlanned, from_ms=100, until_ms=200, reason="fan"))
    assert [(True, False), (False, True), (False, True), (True, False)] == [way(orders, at) for at in (99, 100, 199, 200)]
    hear(orders, make(NodeMaintenancePlanned, from_ms=100, until_ms=100))
    assert (True, False) == way(orders, 150)


def test_a_node_still_drained_after_maintenance_stays_so() -> None:
    orders = Orders(draining=True, maintenance=(100, 200, ""))
    assert [(False, True), (False, False)] == [way(orders, 150), way(orders, 250)]


def test_a_banned_node_takes_nothing_and_stops_nothing() -> None:
    orders = Orders()
    hear(orders, make(NodeBanned))
    assert (False, False) == way(orders, 0)
    hear(orders, make(NodeBanned, lifted=True))
    assert (True, False) == way(orders, 0)


def test_what_is_no_order_changes_nothing() -> None:
    orders = Orders()
    assert not hear(orders, node_offered())
    assert Orders() == orders


def test_a_restarted_agent_learns_what_stands() -> None:
    orders = Orders()
    told = SyncNode(
        node_id=NODE, state="draining", price_uusd_per_gpu_hour=7, jobs=(), draining=True, drain_reason="x", maintenance=(1, 2, "y")
    )
    learn(orders, told, price=False)
    assert (None, True, "x", (1, 2, "y")) == (orders.price_uusd_per_gpu_hour, orders.draining, orders.drain_reason, orders.maintenance)
    learn(orders, told, price=True)
    assert 7 == orders.price_uusd_per_gpu_hour


def test_the_offer_carries_the_price_that_was_set_last() -> None:
    steering = Steering(Node(), [].append)
    offer = node_offered(price=5)
    assert offer == steering.priced(offer)
    assert steering.hear(make(NodeRepriced, price_uusd_per_gpu_hour=9), NODE)
    assert 9 == steering.priced(offer).price_uusd_per_gpu_hour


def test_orders_for_another_node_are_not_ours() -> None:
    said: list[str] = []
    node = Node()
    steering = Steering(node, said.append)
    assert not steering.hear(make(NodeDrained), "n" + "z" * 15)
    steering.obey(0)
    assert (True, []) == (node.accepting, said)


def test_each_change_is_said_once_and_so_is_its_end() -> None:
    said: list[str] = []
    node = Node()
    steering = Steering(node, said.append)
    steering.hear(make(NodeDrained, reason="dust"), NODE)
    for _ in range(3):
        steering.obey(0)
    steering.hear(make(NodeResumed), NODE)
    for _ in range(3):
        steering.obey(0)
    assert (2, True, "New jobs are taken again.") == (len(said), said[0].startswith("Draining (dust)"), said[1])


def test_the_markets_clock_goes_on_between_answers_whatever_ours_says() -> None:
    clock = MarketClock()
    assert (False, 0) == (clock.is_known, clock.now_ms(500))
    clock.heard(1_000_000, 500)
    assert (True, 1_000_250) == (clock.is_known, clock.now_ms(750))
