"""The node's heartbeat: every five seconds what it holds and how it is; the answer renews leases, counted from when it was asked for.

What the answers mean beyond leases (an offer that is gone, another agent with this node's id) is the agent's to decide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import structlog

from events.errors import MarketUnreachable, Refused
from events.wire import Beat, BeatAnswer, BeatCard, BeatLease
from seller_agent.attempts.attempt import Attempt, Run, Standing, Work
from seller_agent.attempts.decisions import guard_until_ms
from seller_agent.attempts.journal import Journal, Leases
from seller_agent.attempts.link import Market
from seller_agent.runners.runner import Runner, RunnerError
from seller_agent.runs.hands import Hands, boot_ms

log = structlog.get_logger("seller.beats")

PERIOD_S = 5.0
ANSWER_S = 4.0
LEASES_MAX = 512


class NodeIdentity(NamedTuple):
    """Who beats."""

    node_id: str
    boot: str
    """Tells two agents with one node id apart; the same after a restart of the agent in the same folder."""
    boot_id: str
    """Of the machine: what tells this start of it from every other."""
    version: str


class Beats:
    """The heartbeat of one node."""

    def __init__(
        self,
        identity: NodeIdentity,
        hands: Hands,
        *,
        runner: Runner,
        market: Market,
        journal: Journal,
        cards: Callable[[], tuple[BeatCard, ...]],
    ) -> None:
        self._identity = identity
        self._hands = hands
        self._runner = runner
        self._market = market
        self._journal = journal
        self._wake = asyncio.Event()
        hands.watcher.on_warning = self.soon
        self._sent: dict[int, int] = {}
        self.on_answer: Callable[[BeatAnswer], Awaitable[None]] | None = None
        self._cards = cards
        self.silent_since_ms = boot_ms()
        """When the last answered beat was sent."""

    def soon(self) -> None:
        """Do not wait for the next period."""
        self._wake.set()

    async def run(self) -> None:
        """Beat for ever."""
        while True:
            try:
                await self.beat()
            except (MarketUnreachable, Refused) as error:
                log.warning("no answer to a heartbeat", why=error.why or str(error), silent_s=(boot_ms() - self.silent_since_ms) // 1000)
            self._wake.clear()
            try:
                async with asyncio.timeout(PERIOD_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def beat(self) -> BeatAnswer:
        """One heartbeat and what follows from its answer. Raises MarketUnreachable, Refused, and what `on_answer` raises."""
        held = [attempt for attempt in self._hands.attempts.values() if _is_held(attempt)][:LEASES_MAX]
        beat = Beat(
            node_id=self._identity.node_id,
            boot=self._identity.boot,
            leases=tuple(self._lease(attempt) for attempt in held),
            cards=self._cards(),
            version=self._identity.version,
        )
        sent_ms = boot_ms()
        answer = await self._market.ask("beat", beat, BeatAnswer, ANSWER_S)
        self.silent_since_ms = sent_ms
        await self._renew(answer.renewed, sent_ms)
        self._take_back(answer.gone, {attempt.epoch for attempt in held})
        if self.on_answer is not None:
            await self.on_answer(answer)
        return answer

    def _lease(self, attempt: Attempt) -> BeatLease:
        status, look = attempt.status, self._hands.watcher.look(attempt.epoch)
        return BeatLease(
            job_id=attempt.job_id,
            attempt=attempt.attempt,
            epoch=attempt.epoch,
            phase=self._phase(attempt)[:40],
            ran_ms=look.ran_ms or (max(0, status.ran_ms or 0) if status is not None else 0),
            gpu_percent=look.gpu_percent,
            memory_mib=look.memory_mib,
            gpu_memory_mib=look.gpu_memory_mib,
            warning=look.warning,
        )

    def _phase(self, attempt: Attempt) -> str:
        if attempt.stop is not None and attempt.is_active:
            return "stopping"
        return self._hands.phases.get(attempt.epoch, "creating" if attempt.prepared is Work.DOING else "")

    async def _renew(self, renewed: tuple[int, ...], sent_ms: int) -> None:
        """First the journal's copy and ours, then the guard outside the agent."""
        attempts = [attempt for epoch in renewed if (attempt := self._hands.attempts.get(epoch)) is not None]
        for attempt in attempts:
            attempt.lease_sent_boot_ms = max(attempt.lease_sent_boot_ms, sent_ms)
        known = self._hands.attempts
        self._sent = {epoch: sent for epoch, sent in self._sent.items() if epoch in known}
        self._sent.update({attempt.epoch: sent_ms for attempt in attempts})
        if attempts:
            self._journal.answered(Leases(boot_id=self._identity.boot_id, sent_boot_ms=dict(self._sent)))
        until_ms = guard_until_ms(self._hands.node, sent_ms)
        guarded = [attempt for attempt in attempts if attempt.is_active or (attempt.prepared is Work.DONE and attempt.run is Run.NONE)]
        outcomes = await asyncio.gather(*(self._runner.renew(attempt.key, until_ms) for attempt in guarded), return_exceptions=True)
        for attempt, outcome in zip(guarded, outcomes, strict=True):
            if isinstance(outcome, RunnerError):
                log.warning("the guard did not take a renewal", job=attempt.job_id, why=str(outcome))
            elif isinstance(outcome, BaseException):
                raise outcome

    def _take_back(self, gone: tuple[int, ...], asked: set[int]) -> None:
        for epoch in gone:
            attempt = self._hands.attempts.get(epoch)
            if attempt is not None and epoch in asked and attempt.standing is not Standing.GONE:
                log.info("the ledger no longer holds an attempt of this node", job=attempt.job_id, epoch=epoch)
                attempt.standing = Standing.GONE
                self._hands.advance(attempt)


def _is_held(attempt: Attempt) -> bool:
    """Whether cards are ours for it, as far as we know, and are to stay so."""
    return attempt.standing is not Standing.GONE and not attempt.disowned
