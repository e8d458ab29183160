"""Ends tasks for good."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

CANCEL_AGAIN_S = 0.2


async def end_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel these until they have ended: a wait inside may swallow one cancellation (wait_for of Python 3.11 does)."""
    everyone = set(tasks)
    left = {task for task in everyone if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
    for task in everyone:
        if not task.cancelled():
            task.exception()  # it has been seen: whoever ends a task does not wait for what it says


async def for_at_most(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Do this, and end it when it takes longer, however often it must be told. What it raises is not heard."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        await end_all((task,))
