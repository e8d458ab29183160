"""Which cards our own runs have at this moment, and with which processes, so that nobody takes them for somebody else's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from seller_agent.attempts.attempt import Attempt
from seller_agent.runners.runner import Runner, RunnerError


def cards_held(attempts: Mapping[int, Attempt], runner: Runner) -> Callable[[], Awaitable[dict[str, frozenset[int] | None]]]:
    """What tells it, of these attempts as they are when it is asked. A card whose run cannot be looked into has None."""

    async def held() -> dict[str, frozenset[int] | None]:
        found: dict[str, frozenset[int] | None] = {}
        for attempt in list(attempts.values()):
            pids = await _pids(attempt, runner) if attempt.cards else None
            found.update(dict.fromkeys(attempt.cards, pids))
        return found

    return held


async def _pids(attempt: Attempt, runner: Runner) -> frozenset[int] | None:
    if not attempt.is_active:
        return None  # it comes or goes
    try:
        use = await runner.use(attempt.key)
    except RunnerError:
        return None
    return frozenset(use.pids) or None if use is not None else None
