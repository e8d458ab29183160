"""Tasks end when they are told to, also those that swallow being told."""

from __future__ import annotations

import asyncio
import contextlib

from events.stepping import end_all, for_at_most


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    begun, swallowed = asyncio.Event(), []

    async def stubborn() -> None:
        begun.set()
        for _ in range(2):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            swallowed.append(True)
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await begun.wait()
    await end_all([task])
    assert (True, [True, True]) == (task.cancelled(), swallowed)


async def test_tasks_that_have_ended_or_failed_are_no_trouble() -> None:
    async def fails() -> None:
        raise ValueError

    failed, done = asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(0))
    await asyncio.wait([failed, done])
    await end_all([failed, done])
    await end_all([])
    assert isinstance(failed.exception(), ValueError)


async def test_work_that_takes_too_long_is_ended_also_when_it_swallows_being_told() -> None:
    ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with asyncio.timeout(10):
        await for_at_most(0.01, stubborn())
    assert ended.is_set()


async def test_work_that_fails_in_its_time_disturbs_nobody() -> None:
    async def fails() -> None:
        raise OSError

    await for_at_most(3600, fails())
