"""Runs a coroutine at once up to its first wait, instead of at the next turn of the event loop, for what must leave now; and ends
tasks for good."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, NamedTuple

CANCEL_AGAIN_S = 0.2

_going_on: set[asyncio.Task[None]] = set()


def start_now(work: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
    """Run `work` until it waits or ends; what is left after a first wait goes on as a task. Raises what `work` raises before it
    waits. It must not ask for its own task (no timeouts, no cancellation) before its first wait."""
    try:
        waits_for = work.send(None)
    except StopIteration:
        return
    task = loop.create_task(_rest(work, waits_for))
    _going_on.add(task)
    task.add_done_callback(_ended)


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


def _ended(task: asyncio.Task[None]) -> None:
    _going_on.discard(task)
    if not task.cancelled() and task.exception() is not None:
        task.get_loop().call_exception_handler({"message": "work that was started at once failed later", "exception": task.exception()})


async def _rest(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _resumed(work, waits_for)


@types.coroutine
def _resumed(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    """What a task does with a coroutine, begun in the middle: pass on what it waits for, and hand it what comes back."""
    while True:
        try:
            value = yield waits_for
        except BaseException as error:
            waiting = _step(work.throw, error)
        else:
            waiting = _step(work.send, value)
        if waiting is None:
            return
        waits_for = waiting.what


class _Waiting(NamedTuple):
    what: Any


def _step(step: Callable[[Any], Any], argument: Any) -> _Waiting | None:
    """What the coroutine waits for next; None when it has ended."""
    try:
        return _Waiting(step(argument))
    except StopIteration:
        return None
