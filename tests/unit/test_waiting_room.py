"""Questions that wait for the fold take nobody's place, are as many as they may be, and go on when their job is there."""

from __future__ import annotations

import asyncio

import pytest

from events.errors import Refused
from events.reasons import Refusal
from services import waiting_room
from services.waiting_room import Places, WaitingRoom


def never() -> bool:
    return False


async def wait(room: WaitingRoom, wallet: str = "w", job_id: str = "job", *, size_bytes: int = 1) -> None:
    await room.wait(wallet, job_id, never, size_bytes=size_bytes, timeout_s=3600)


async def begun(*tasks: asyncio.Task[None]) -> None:
    """Every task has come to its first wait."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_waits_gives_his_place_to_somebody_else() -> None:
    places, room, served = Places(1), WaitingRoom(), asyncio.Event()

    async def early() -> None:
        async with places.aside():
            await wait(room)

    async def prompt() -> None:
        served.set()

    for _ in range(50):
        await places.give(early)
    await places.give(prompt)
    async with asyncio.timeout(10):
        await served.wait()
    await places.close()


async def test_work_is_held_back_while_all_places_are_taken() -> None:
    places, go_on, running = Places(2), asyncio.Event(), []

    async def work() -> None:
        running.append(1)
        await go_on.wait()

    async def give() -> None:
        for _ in range(3):
            await places.give(work)

    giving = asyncio.create_task(give())
    for _ in range(5):
        await asyncio.sleep(0)
    assert (2, False) == (len(running), giving.done())
    go_on.set()
    async with asyncio.timeout(10):
        await giving
    await places.close()


async def test_work_that_fails_gives_its_place_back() -> None:
    places, served = Places(1), asyncio.Event()

    async def fails() -> None:
        raise ValueError("no")

    async def prompt() -> None:
        served.set()

    for _ in range(3):
        await places.give(fails)
    await places.give(prompt)
    async with asyncio.timeout(10):
        await served.wait()
    await places.close()


async def test_a_question_goes_on_when_its_job_is_there_and_only_then() -> None:
    room, jobs = WaitingRoom(), set[str]()
    mine, other = (
        asyncio.create_task(room.wait("w", name, lambda name=name: name in jobs, size_bytes=0, timeout_s=3600))  # type: ignore[misc]
        for name in ("mine", "other")
    )
    await begun(mine, other)
    room.changed(["mine"])  # it is not what was waited for
    await begun(mine, other)
    jobs.add("mine")
    room.changed(["", "mine"])
    async with asyncio.timeout(10):
        await mine
    assert not other.done()
    await ended(other)
    assert {} == room._waiting and 0 == room._bytes == room._of.total()


async def test_a_job_that_never_comes_is_waited_for_no_longer_than_said() -> None:
    room = WaitingRoom()
    await room.wait("w", "job", never, size_bytes=5, timeout_s=0.01)
    assert {} == room._waiting and 0 == room._bytes == room._of.total()


async def refused(room: WaitingRoom, wallet: str, size_bytes: int = 1) -> None:
    with pytest.raises(Refused) as caught:
        await wait(room, wallet, size_bytes=size_bytes)
    assert Refusal.RATE_LIMITED is caught.value.refusal


async def test_so_many_questions_of_a_wallet_wait_and_the_next_is_told_to_ask_again() -> None:
    room = WaitingRoom()
    waiting = [asyncio.create_task(wait(room, "flood")) for _ in range(waiting_room.OF_A_WALLET)]
    await begun(*waiting)
    await refused(room, "flood")
    honest = asyncio.create_task(wait(room, "honest"))
    await begun(honest, *waiting)
    await ended(honest, *waiting)


async def test_all_wallets_together_have_so_much_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_room, "IN_ALL", 100)
    room = WaitingRoom()
    waiting = [asyncio.create_task(wait(room, f"wallet {number}")) for number in range(100)]
    await begun(*waiting)
    await refused(room, "one more")
    await ended(*waiting)


async def test_what_waits_is_bounded_in_bytes() -> None:
    room = WaitingRoom()
    large = asyncio.create_task(wait(room, "large", size_bytes=waiting_room.BYTES_MAX))
    await begun(large)
    await refused(room, "other")
    await ended(large)
