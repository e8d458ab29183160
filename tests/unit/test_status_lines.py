"""What `bazaar-seller status` says of a state."""

from __future__ import annotations

from typing import Any

from seller_agent.commands.looking import status_lines

CARD = {
    "index": 0,
    "model": "RTX 4090",
    "vram_mib": 24564,
    "state": "taken",
    "simulated": False,
    "gpu_percent": 97,
    "memory_used_mib": 20000,
    "temperature_c": 61,
    "power_w": None,
    "unhealthy": None,
    "ecc_errors": 0,
}
JOB = {
    "id": "jabc",
    "state": "claimed",
    "phase": "pulling 43%",
    "gpus": [{"index": 0}],
    "buyer": "0x1",
    "earned_uusd": 0,
    "left_ms": None,
}


def state(**changes: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "name": "box",
        "node": "nabc",
        "owner": "0x2",
        "agent_pid": 7,
        "runner": "docker",
        "market_error": None,
        "unanswered_events": 0,
        "runs": [],
        "delegation": None,
        "state": "offered",
        "suspect": False,
        "beat_age_ms": 2000,
        "lease_s": 180,
        "price_usd": "0.40",
        "offer": {"cores": 4, "memory_mib": 1000, "isolation": "container", "accept": "anyone"},
        "orders": {"draining": False, "drain_reason": None, "drain_deadline_ms": None, "maintenance": None, "banned": False},
        "cards": [CARD],
        "jobs": [JOB],
        "clock_ahead_ms": 100,
    }
    return usual | changes


def line(about: str, **changes: Any) -> str:
    """The one line about this, empty when there is none."""
    found = [one for one in status_lines(state(**changes)) if one.startswith(about)]
    assert len(found) <= 1, found
    return found[0][12:] if found else ""


def test_a_healthy_node_takes_a_few_lines() -> None:
    assert "offered, heard 2 s ago; given up after 180 s" == line("market")
    assert "RTX 4090, 24564 MiB, taken, 97 %, 20000 MiB used, 61 C" == line("card 0")
    assert "jabc  claimed (pulling 43%)  cards 0  buyer 0x1  0.00 USD" == line("job")
    assert ["", "", "", "", ""] == [line(about) for about in ("orders", "outbox", "here", "clock", "delegation")]


def test_what_is_out_of_the_ordinary_has_a_line() -> None:
    orders = {"draining": True, "drain_reason": "dust", "drain_deadline_ms": None, "maintenance": None, "banned": False}
    assert "drained (dust): no new jobs until `bazaar-seller resume`" == line("orders", orders=orders)
    assert "banned" in line("orders", orders={**orders, "draining": False, "banned": True})
    assert "(silent)" in line("market", suspect=True)
    assert "not running, docker runner" == line("agent", agent_pid=None)
    assert "3 events wait for the market's answer" == line("outbox", unanswered_events=3)
    assert "1 h ahead of the market's: set it; nothing here goes by it meanwhile" == line("clock", clock_ahead_ms=3_600_000)
    assert "it is gone" in line("card 0", cards=[{**CARD, "state": "unhealthy", "unhealthy": "it is gone"}])


def test_a_delegation_is_warned_about_when_it_nears_its_end() -> None:
    delegation = {"left_ms": 30 * 86_400_000, "warning": False, "renews_itself": False}
    assert "30 d left" == line("delegation", delegation=delegation)
    assert "2 d left: run `bazaar login" in line("delegation", delegation={**delegation, "left_ms": 2 * 86_400_000, "warning": True})
    assert "over: no new jobs are taken" == line("delegation", delegation={**delegation, "left_ms": 0, "warning": True})
    assert "30 d left, renewed by itself" == line("session", delegation={**delegation, "renews_itself": True})


def test_without_a_market_the_rest_is_still_told() -> None:
    told = status_lines(
        {key: value for key, value in state(market_error="Cannot reach the market.").items() if key not in ("orders", "offer", "cards")}
    )
    assert ["box  nabc  owner 0x2", "agent       process 7, docker runner", "market      Cannot reach the market."] == told
