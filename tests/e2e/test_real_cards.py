"""A machine with four cards, as the market sees it: jobs get their own, readings reach the buyer, a card that fails is not let.

The cards are those of the fake library; everything else is the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.market_env import MarketEnv
from integration.test_gpus import library

__all__ = ["library"]  # the fixture

UUID = "GPU-0000000{}-aaaa-bbbb-cccc-000000000000"
HOLDS = 'echo "$CUDA_VISIBLE_DEVICES"; while [ ! -e go ]; do sleep 0.05; done'


class CardMarket(MarketEnv):
    """A market whose seller has the cards that a file describes."""

    def __init__(self, folder: Path, library: Path) -> None:
        super().__init__(folder)
        self._library = library
        self.cards("")

    def cards(self, state: str) -> None:
        """How the cards are from now on."""
        draft = self.work.parent / "cards.draft"
        draft.write_text(state)
        draft.rename(self.work.parent / "cards")

    def environment(self, **more: str) -> dict[str, str]:
        told = {"LD_LIBRARY_PATH": str(self._library), "FAKE_NVML_STATE": str(self.work.parent / "cards")}
        return super().environment(**told, **more)

    def card(self, index: int) -> dict[str, Any]:
        """A card in the API."""
        [node] = self.get("/v1/nodes")["items"]
        found: dict[str, Any] = node["cards"][index]
        return found

    def release(self, job_id: str) -> None:
        """Let a job that holds its cards end."""
        [folder] = (self.home / "seller").glob(f"*/runs/{job_id}*/job")
        (folder / "go").touch()
        self.wait_for_job(job_id, "succeeded")


@pytest.fixture(scope="module")
def market(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CardMarket]:
    made = CardMarket(tmp_path_factory.mktemp("cards"), library)
    try:
        made.start("--seller")
        made.bazaar("wallet", "new")
        made.wait_until(lambda: made.bazaar("quote", code=None).code == 0, "the node takes the new wallet's jobs")
        yield made
    finally:
        made.close()


def test_a_buyer_sees_the_cards_as_their_driver_tells(market: CardMarket) -> None:
    market.cards("load 1 97\n")
    market.wait_until(lambda: market.card(1)["gpu_percent"] == 97, "the load of card 1 is known")
    card = market.card(1)
    assert (UUID.format(1), "NVIDIA GeForce RTX 4090", 24564, "550.54.15", 12040, "00000000:01:00.0", "8.9", False) == tuple(
        card[name] for name in ("uuid", "model", "vram_mib", "driver", "cuda", "pci", "compute_capability", "mig")
    )
    assert (1024, 41, 61, 0, 0, None, "free") == tuple(
        card[name] for name in ("memory_used_mib", "temperature_c", "power_w", "ecc_errors", "processes", "unhealthy", "state")
    )
    [node] = market.get("/v1/nodes")["items"]
    shown = market.bazaar("node", node["id"]).stdout
    assert "4x NVIDIA RTX 4090 (96.0 GiB)" in shown and "97 %" in shown and "61 W" in shown


def test_jobs_have_cards_of_their_own_and_the_third_waits(market: CardMarket) -> None:
    first, second, third = [market.submit("--gpus", "2", "--", "sh", "-c", HOLDS) for _ in range(3)]
    for job_id in (first, second):
        market.wait_for_job(job_id, "running")
    assert "queued" == market.job(third)["state"]
    given = [[card["uuid"] for card in market.job(job_id)["gpus"]] for job_id in (first, second)]
    assert sorted(UUID.format(index) for index in range(4)) == sorted(given[0] + given[1])
    for job_id, uuids in zip((first, second), given, strict=True):
        [output] = (market.home / "seller").glob(f"*/runs/{job_id}*/log/stdout")
        market.wait_until(lambda output=output: "\n" in output.read_text(), f"{job_id} has said what it sees")
        assert set(uuids) == set(output.read_text().strip().split(","))
    market.release(first)
    market.wait_for_job(third, "running")
    market.release(second)
    market.release(third)


def test_a_card_that_falls_off_the_bus_takes_its_job_with_it_and_is_not_let(market: CardMarket) -> None:
    market.cards("")
    market.wait_until(lambda: all(market.card(index)["state"] == "free" for index in range(4)), "all cards are free")
    job_id = market.submit("--gpus", "4", "--retries", "0", "--", "sh", "-c", HOLDS)
    market.wait_for_job(job_id, "running")
    market.cards("fails 2 15\n")
    ended = market.wait_for_job(job_id, "failed")
    assert "gpu_lost" == ended["reason"]
    market.wait_until(lambda: market.card(2)["state"] == "unhealthy", "card 2 is not let")
    assert "fallen off the bus" in market.card(2)["unhealthy"]
    assert 5 == market.bazaar("quote", "--gpus", "4", code=None).code
    assert 0 == market.bazaar("quote", "--gpus", "3", code=None).code
    market.cards("")
    market.wait_until(lambda: market.card(2)["state"] == "free", "card 2 is let again")


def test_a_driver_that_hangs_stops_no_heartbeat(market: CardMarket) -> None:
    market.cards("hang 1\n")
    before = market.get("/v1/nodes")["items"][0]["state"]
    job_id = market.submit("--", "sh", "-c", "echo still here")
    market.wait_for_job(job_id, "succeeded")
    market.cards("")
    assert "offered" == before == market.get("/v1/nodes")["items"][0]["state"]
