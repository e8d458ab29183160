"""What the SSH runner ends has ended, also where the library swallows being told (it dials inside `wait_for`, as of Python 3.11)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from seller_agent.runners.ssh.files import all_or_none
from seller_agent.runners.ssh.host import Host
from seller_agent.runners.ssh.output import Output
from seller_agent.runners.ssh.work import Works

NOBODY = cast(Host, None)


async def swallows_one_cancellation() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3600)
    await asyncio.sleep(3600)


async def begun() -> asyncio.Task[None]:
    task = asyncio.create_task(swallows_one_cancellation())
    await asyncio.sleep(0)
    return task


async def closes(close: Callable[[], Coroutine[Any, Any, None]], task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(10):
        await close()
    assert task.done()


async def test_the_follower_of_output_ends(tmp_path: Path) -> None:
    output, task = Output(NOBODY, tmp_path, "there"), await begun()
    output._task = task
    await closes(output.close, task)


async def test_the_fetching_of_work_ends(tmp_path: Path) -> None:
    works, task = Works(NOBODY, tmp_path, "there", bytes_max=1), await begun()
    works._tasks["run"] = task
    await closes(works.close, task)


async def test_when_one_file_cannot_be_brought_the_others_are_given_up() -> None:
    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise OSError("no room")

    async with asyncio.timeout(10):
        with pytest.raises(OSError, match="no room"):
            await all_or_none(swallows_one_cancellation(), fails())
