"""Who may have the ledger read again at once: nobody holds up everybody, and a moment that several want is read once."""

from __future__ import annotations

import asyncio

import pytest

from events.log import LogHead
from events.memory_log import MemoryLog
from events.reasons import Refusal
from services.api.access import OWNER_OF_THE_MACHINE, STRANGER, Viewer
from services.api.mirror import Mirror
from services.api.past import PER_READER, PLACES, Past, Until
from services.api.problems import ProblemFound


class LongLedger(MemoryLog):
    """One that takes as long to read as it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go = asyncio.Event()
        self.readings = 0

    async def head(self) -> LogHead:
        self.readings += 1
        await self.may_go.wait()
        return await super().head()


def reader(number: int) -> Viewer:
    return Viewer(wallet=f"0x{number:040x}")


def asking(past: Past, moment: int, viewer: Viewer) -> asyncio.Task[Mirror]:
    return asyncio.create_task(past.mirror(Until(seq=moment), viewer))


async def refused(task: asyncio.Task[Mirror]) -> ProblemFound:
    with pytest.raises(ProblemFound) as problem:
        await asyncio.wait_for(task, 5)
    return problem.value


async def test_one_reader_has_few_moments_read_at_once_and_others_still_get_theirs() -> None:
    ledger = LongLedger()
    past = Past(ledger)
    mine = [asking(past, number, reader(1)) for number in range(PER_READER)]
    beyond = await refused(asking(past, 99, reader(1)))
    assert (Refusal.RATE_LIMITED, True) == (beyond.code, bool(beyond.retry_after_s))
    other = asking(past, 100, reader(2))
    strangers = [asking(past, 200 + number, STRANGER) for number in range(PER_READER + 1)]
    assert Refusal.RATE_LIMITED is (await refused(strangers.pop())).code, "all strangers together are one"
    ledger.may_go.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*mine, other, *strangers, return_exceptions=True)
    assert not other.exception()
    assert await asking(past, 1000, reader(1)), "then there is room again"


async def test_all_readers_together_have_so_many_places_and_the_owner_of_the_machine_always_one() -> None:
    ledger = LongLedger()
    past = Past(ledger)
    readers = [asking(past, number, reader(number)) for number in range(PLACES)]
    assert Refusal.RATE_LIMITED is (await refused(asking(past, 99, reader(99)))).code
    owners = asking(past, 100, OWNER_OF_THE_MACHINE)
    ledger.may_go.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*readers, owners)


async def test_a_moment_that_several_want_is_read_once_and_takes_one_place() -> None:
    ledger = LongLedger()
    past = Past(ledger)
    same = [asking(past, 7, reader(number % 2)) for number in range(3 * PLACES)]
    await asyncio.sleep(0)
    same[0].cancel()
    ledger.may_go.set()
    async with asyncio.timeout(5):
        found = await asyncio.gather(*same[1:])
    assert 1 == len({id(mirror) for mirror in found}) == ledger.readings


async def test_a_ledger_that_takes_too_long_to_read_again_holds_up_the_next_only_so_long() -> None:
    ledger = LongLedger()
    past = Past(ledger, fold_s_max=0.05)
    assert Refusal.RATE_LIMITED is not (await refused(asking(past, 1, reader(1)))).code
    ledger.may_go.set()
    assert await asking(past, 2, reader(2))
