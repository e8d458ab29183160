"""Why the first jobs wait, in words: at once where nodes are few, found out beside where they are many, never of a job that changed."""

from __future__ import annotations

import asyncio

import pytest
from builders import History, job_of, job_submitted, make, node_offered

from events.jobs import JobCancelRequested
from projections.jobs import Job
from services.api import wait_words
from services.api.tallies import Tallies
from services.api.telemetry import Telemetry
from services.api.wait_words import SERVES_MS_PER_NODE, WaitWords
from services.matcher.verdicts import OfferKeys
from services.matcher.why import Moment, why_in_words

NODES = 4


class Waiting:
    """A market of a few nodes in which some jobs wait."""

    def __init__(self, *jobs: str) -> None:
        self.history = History()
        self.history.happen(*(node_offered(f"n{number}", gpus=1) for number in range(NODES)))
        self.history.happen(*(job_submitted(name, num_gpus=2 + number) for number, name in enumerate(jobs)))
        self.tallies = Tallies(self.history.market, Telemetry(self.now_ms))
        self.tallies.settle(self.now_ms)
        self.words = WaitWords(self.history.market, self.tallies, OfferKeys())

    @property
    def now_ms(self) -> int:
        return self.history.now_ms

    def jobs(self, *names: str) -> list[tuple[int, Job]]:
        return [(place, job_of(self.history.market, name)) for place, name in enumerate(names)]

    def true(self, *names: str) -> dict[str, str]:
        """What the matcher's own functions say now."""
        market = self.history.market
        return {
            job.submitted.job_id: why_in_words(market, job, Moment(self.now_ms, (), (), place), OfferKeys())
            for place, job in self.jobs(*names)
        }

    async def told(self, *names: str, later_ms: int = 0) -> dict[str, str]:
        await self.words.prepare(self.jobs(*names), self.now_ms + later_ms)
        return self.words.tell(self.jobs(*names), self.now_ms + later_ms)

    async def found(self) -> None:
        """Whatever is being found out is found."""
        async with asyncio.timeout(10):
            while any(task.get_name() == "wait words" for task in asyncio.all_tasks()):
                await asyncio.sleep(0.001)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_words, "FEW_NODES", NODES - 1)


async def test_with_few_nodes_every_look_tells_what_is_true_now() -> None:
    market = Waiting("a", "b")
    assert market.true("a", "b") == await market.told("a", "b")
    before = market.true("a")
    market.history.happen(node_offered("large", gpus=8))
    market.tallies.folded(market.history.records[-1])
    market.tallies.settle(market.now_ms)
    assert before != market.true("a") == await market.told("a")


@pytest.mark.usefixtures("many")
async def test_the_first_look_waits_for_its_words_and_later_ones_do_not() -> None:
    market = Waiting("a", "b", "c")
    assert market.true("a", "b") == await market.told("a", "b")
    assert market.true("a") == await market.told("a", "c"), "those of c are being found"
    await market.found()
    assert market.true("a", "c") == await market.told("a", "c")


@pytest.mark.usefixtures("many")
async def test_words_serve_for_a_while_and_are_found_anew_beside() -> None:
    market = Waiting("a")
    before = await market.told("a")
    market.history.happen(node_offered("large", gpus=8))
    assert before == await market.told("a") != market.true("a")
    assert before == await market.told("a", later_ms=NODES * SERVES_MS_PER_NODE), "told once more while it is found anew"
    await market.found()
    assert market.true("a") == await market.told("a", later_ms=NODES * SERVES_MS_PER_NODE)


@pytest.mark.usefixtures("many")
async def test_nothing_is_told_of_a_job_that_has_changed_or_gone() -> None:
    market = Waiting("a", "b")
    await market.told("a", "b")
    market.words.forget(job_of(market.history.market, "a").submitted.job_id)
    assert market.true("b") == market.words.tell(market.jobs("a", "b"), market.now_ms)
    gone = market.jobs("a")
    looking = asyncio.create_task(market.words.prepare(gone, market.now_ms))
    market.history.happen(make(JobCancelRequested, job_id=gone[0][1].submitted.job_id))
    await looking
    await market.found()
    assert {} == market.words.tell(gone, market.now_ms)
