"""The agent of one node: reconciles, offers, takes matches, beats, and leaves in order. One asyncio process; no truth of its own in memory.

It claims nothing before journal, runner and ledger have been laid side by side. What is to be done about an attempt stands in `decisions`,
how it is done in `hands`; here is only what concerns the node as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from events.errors import BazaarError, MarketUnreachable, Refused
from events.fact import Event
from events.feed import Received
from events.jobs import AttemptEvent, JobMatched
from events.market_client import MarketClient
from events.nodes import NodeLost, NodeOffered, NodeResumed, NodeWithdrawn
from events.stepping import end_all
from events.wire import BeatAnswer, SyncAnswer
from seller_agent.attempts.attempt import Attempt, Standing, hear
from seller_agent.attempts.decisions import Node
from seller_agent.attempts.holding import cards_held
from seller_agent.attempts.journal import Journal, Leases
from seller_agent.attempts.reconcile import attempt_of_match, catch_up, restore
from seller_agent.cards.machine import CardWatch, run_card
from seller_agent.node.beats import Beats, NodeIdentity
from seller_agent.node.steering import Steering
from seller_agent.runners import workspace
from seller_agent.runners.runner import Runner, RunnerError, RunStatus
from seller_agent.runs.hands import Hands, boot_ms
from seller_agent.sessions.reach import reach_runs

log = structlog.get_logger("seller")

TICK_S = 1.0
RESYNC_S = 60.0
RETRY_S = 2.0
OTHER_AGENT_S = 25.0
"""So long an agent that just started waits for an earlier one with its node id to fall silent."""
WALLETS_LOOK_S = 0.2
GIVE_UP_MS = 15_000
LEAVE_S = 60.0
LEAVE_UNREACHABLE_S = 10.0


class OtherAgent(BazaarError):
    """Another agent answers for this node."""

    what = "Another agent answers for this node."


class Agent:
    """One node. `offer` makes the offer as it should be now, `watch` reads the cards; `delegated`: its session cannot be renewed here;
    `keep_price`: that of the ledger stands, not the offer's; `resume`: a drain ends with the offer."""

    def __init__(
        self,
        identity: NodeIdentity,
        folder: Path,
        runner: Runner,
        *,
        offer: Callable[[], NodeOffered],
        watch: CardWatch,
        say: Callable[[str], None],
        delegated: bool = False,
        keep_price: bool = False,
        resume: bool = False,
    ) -> None:
        self._identity = identity
        self._folder = folder
        self._runner = runner
        self._make_offer = offer
        self._watch = watch
        self._say = say
        self._keep_price = keep_price
        self._resume = resume
        self._node = Node(accepting=True)
        self._steering = Steering(self._node, say, delegated=delegated)
        self._journal = Journal(folder / "journal.db")
        self._client: MarketClient | None = None
        self._hands: Hands | None = None
        self._beats: Beats | None = None
        self._waiting: list[Received] | None = []
        """Events that came before the reconcile; None once it is done."""
        self._offer: NodeOffered | None = None
        self._offered_seq = 0
        self._offering = asyncio.Lock()
        self._wants_offer = True
        self._synced_ms = 0
        self._leaving, self._abandoning = asyncio.Event(), asyncio.Event()
        self._failure: BaseException | None = None
        self.ticked_ms = boot_ms()
        """When the agent last looked at everything: one that does not is hung."""
        self.ready = asyncio.Event()
        """Set once the offer stands in the ledger."""

    # ---- life

    async def run(self, client: MarketClient) -> None:
        """Work until told to leave. Raises OtherAgent, Refused, JournalError."""
        self._client = client
        hands = self._hands = Hands(self._node, self._runner, client, self._journal, self._folder / "runs")
        beats = self._beats = Beats(
            self._identity, hands, runner=self._runner, market=client, journal=self._journal, cards=self._watch.for_beat
        )
        beats.on_answer = self._on_beat
        tasks: list[asyncio.Task[None]] = []
        try:
            self._know_cards(self._make_offer())
            await self._be_the_only_one(beats)
            await self._reconcile()
            self._watch.ours = cards_held(hands.attempts, self._runner)
            reaching = reach_runs(client, self._runner, self._folder / "runs", hands.attempts)
            looking = (self._watch.run(), hands.watcher.run(self._watch), reaching)
            work = (beats.run(), hands.ship_as_it_grows(), *looking, self._tick(), self._look_for_wallets(), self._keep_offering())
            tasks = [asyncio.create_task(self._guarded(part)) for part in work]
            await self._leaving.wait()
            if not self._abandoning.is_set():
                await self._leave()
        finally:
            await end_all(tasks)
            await hands.close()
            await self._journal.close()
            await self._runner.close()
        if self._failure is not None:
            raise self._failure

    def priced(self, offer: NodeOffered) -> NodeOffered:
        """The offer at the price that the owner set last."""
        return self._steering.priced(offer)

    def leave(self) -> None:
        """Take no more jobs, stop what runs, then end. Called again: end now, and leave what runs to the next agent."""
        if self._leaving.is_set():
            self._abandoning.set()
        self._leaving.set()

    def hand_over(self) -> None:
        """End now and leave what runs to the next agent, as before an update; it must come before the leases end."""
        self._abandoning.set()
        self._leaving.set()

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        """A part that fails ends the agent: half an agent is worse than none."""
        try:
            await part
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            log.error("the agent cannot go on", exc_info=not isinstance(error, BazaarError), why=str(error))
            self._failure = error
            if isinstance(error, OtherAgent):
                await self._give_everything_up()
            self._abandoning.set()
            self._leaving.set()

    async def _leave(self) -> None:
        assert self._hands is not None and self._client is not None
        running = sum(attempt.is_active for attempt in self._hands.attempts.values())
        self._say(f"Leaving: no new jobs; {running} running jobs are stopped. Once more, and they are left to the next start.")
        self._wants_offer = self._node.accepting = False
        if self._offered_seq:
            self._client.enqueue(NodeWithdrawn(node_id=self._identity.node_id))
        self._node.evicting = True
        self._hands.advance_all()
        leaving = asyncio.create_task(self._gone())
        abandoned = asyncio.create_task(self._abandoning.wait())
        await asyncio.wait([leaving, abandoned], timeout=LEAVE_S, return_when=asyncio.FIRST_COMPLETED)
        for task in (leaving, abandoned):
            task.cancel()

    async def _gone(self) -> None:
        """Nothing runs here, and the market knows it, or cannot be told now."""
        assert self._hands is not None and self._client is not None
        while any(attempt.is_active or _is_to_be_reported(attempt) for attempt in self._hands.attempts.values()):
            await asyncio.sleep(0.02)
        with contextlib.suppress(BazaarError):
            await self._client.settled(LEAVE_UNREACHABLE_S)

    # ---- reconcile

    async def _reconcile(self) -> None:
        """Journal, runner and ledger side by side; nothing is claimed before."""
        assert self._hands is not None
        kept, leases = await self._journal.open()
        found = await self._adopt()
        answer = await self._settled_state()
        same_boot = leases is None or leases.boot_id == self._identity.boot_id
        sent = leases.sent_boot_ms if leases is not None and same_boot else {}
        for attempt in kept:
            attempt.lease_sent_boot_ms = max(attempt.lease_sent_boot_ms, sent.get(attempt.epoch, 0))
        held = answer.node.jobs if answer.node is not None else ()
        attempts = restore(kept, found, held, same_boot=same_boot, now_boot_ms=boot_ms())
        self._journal.answered(Leases(boot_id=self._identity.boot_id, sent_boot_ms=sent))
        self._learn(answer, price=self._keep_price)
        known = {attempt.key.name for attempt in attempts}
        for folder in await asyncio.to_thread(workspace.strays, self._folder / "runs", known):
            await asyncio.to_thread(workspace.delete, folder)
        await asyncio.to_thread(self._hands.secrets.remove_strays, known)
        self._hands.begin()
        if attempts:
            log.info("reconciled", attempts=len(attempts), running=sum(attempt.is_active for attempt in attempts))
        for attempt in attempts:
            self._hands.adopt(attempt)
        waiting, self._waiting = self._waiting or [], None
        for received in waiting:
            if received.seq > answer.as_of_seq:
                self.on_event(received)

    async def _adopt(self) -> list[RunStatus]:
        """Every run that exists here; a runtime that is away is waited for."""
        while True:
            try:
                return await self._runner.adopt()
            except RunnerError as error:
                log.warning("the runtime does not answer yet", why=str(error))
                await asyncio.sleep(RETRY_S)

    async def _settled_state(self) -> SyncAnswer:
        """What the ledger says once everything that we ever sent is answered; what we meant before counts for nothing then."""
        assert self._client is not None
        while True:
            try:
                await self._client.settled(30.0)
                return await self._client.sync(node_id=self._identity.node_id)
            except MarketUnreachable as error:
                log.warning("waiting for the market", why=error.why)
                await asyncio.sleep(RETRY_S)

    def _learn(self, answer: SyncAnswer, *, price: bool) -> None:
        assert self._hands is not None
        self._hands.policy = answer.policy
        self._node.lease_s = answer.policy.lease_s
        self._synced_ms = boot_ms()
        self._steering.learn(answer.node, price=price)
        self._obey()

    def _know_cards(self, offer: NodeOffered) -> None:
        assert self._hands is not None
        self._node.known_cards = frozenset(card.uuid for card in offer.cards)
        self._hands.cards = {card.uuid: run_card(card) for card in offer.cards}
        self._hands.default_image = offer.default_image
        self._node.sessions = offer.sessions

    # ---- what the market tells

    def on_event(self, received: Received) -> None:
        """An event that concerns this wallet."""
        if self._waiting is not None:
            self._waiting.append(received)
            return
        assert self._hands is not None
        event = received.event
        if isinstance(event, JobMatched):
            if event.node_id == self._identity.node_id and received.order is not None:
                self._match(event, received)
        elif isinstance(event, AttemptEvent):
            attempt = self._hands.attempts.get(event.epoch)
            if attempt is not None:
                hear(attempt, event, received.sender)
                self._hands.advance(attempt)
        elif isinstance(event, NodeWithdrawn):
            if event.node_id == self._identity.node_id and self._wants_offer:
                self._say("The node was withdrawn: what runs goes on, then the agent ends.")
                self._wants_offer = False
        elif isinstance(event, NodeLost):
            if event.node_id == self._identity.node_id and self._beats is not None:
                self._beats.soon()  # its answer says whether we must offer again
        elif self._steering.hear(event, self._identity.node_id):
            self._obey()
            self._hands.advance_all()
        else:
            self._hear_of_job(event, received.sender)

    def _match(self, event: JobMatched, received: Received) -> None:
        assert self._hands is not None and received.order is not None
        if received.seq in self._hands.attempts:
            return
        self._hands.take(attempt_of_match(event, received.seq, received.order, received.buyer))

    def _hear_of_job(self, event: Event, sender: str) -> None:
        assert self._hands is not None
        job_id = getattr(event, "job_id", None)
        for attempt in list(self._hands.attempts.values()) if job_id is not None else ():
            if attempt.job_id == job_id:
                hear(attempt, event, sender)
                self._hands.advance(attempt)

    def on_resync(self, answer: SyncAnswer) -> None:
        """The whole state, after a gap."""
        if self._waiting is not None:
            return
        assert self._hands is not None
        self._learn(answer, price=0 < self._offered_seq <= answer.as_of_seq)
        held = answer.node.jobs if answer.node is not None else ()
        for attempt in catch_up(self._hands.attempts, held, answer.as_of_seq):
            if not attempt.lease_sent_boot_ms:
                attempt.lease_sent_boot_ms = boot_ms()
            self._hands.advance(attempt)

    # ---- the offer

    async def _keep_offering(self) -> None:
        """Offer, and again until the market has taken it."""
        await self._offer_now()
        if self._resume and self._steering.orders.draining:
            assert self._client is not None
            self._client.enqueue(NodeResumed(node_id=self._identity.node_id))
        self.ready.set()

    async def _offer_now(self) -> None:
        assert self._client is not None and self._beats is not None
        async with self._offering:
            offer = self._steering.priced(self._make_offer())
            self._know_cards(offer)
            [ticket] = self._client.enqueue(offer)
            outcome = await ticket
            if outcome.reason is not None:
                raise Refused(outcome.reason, outcome.detail)
            self._offer, self._offered_seq = offer, outcome.seq
            log.info("offered", node=offer.node_id, seq=outcome.seq, cards=len(offer.cards), accept=offer.accept.value)
            self._beats.soon()

    async def _look_for_wallets(self) -> None:
        """A wallet made in this home later is taken as well; so is a card's health."""
        while True:
            await asyncio.sleep(WALLETS_LOOK_S)
            if self._wants_offer and self._offer is not None and self._steering.priced(self._make_offer()) != self._offer:
                await self._offer_now()

    async def _on_beat(self, answer: BeatAnswer) -> None:
        self._steering.clock.heard(answer.time_ms, boot_ms())
        if answer.other_boot:
            raise OtherAgent(
                why=f"Its boot is {answer.other_boot[:40]}; this one is {self._identity.boot}.",
                hint="Two agents offer one node: end one of them, or give it another name with --name.",
            )
        if not answer.offered and self._wants_offer and self._offered_seq and answer.seq >= self._offered_seq:
            log.warning("the market had lost this node: reconciling, then offering again")
            assert self._client is not None
            self.on_resync(await self._client.sync(node_id=self._identity.node_id))
            await self._offer_now()

    async def _be_the_only_one(self, beats: Beats) -> None:
        """The matcher turns away the second of two agents. An earlier one may have just died: it is waited for, then we give way."""
        since_ms = boot_ms()
        while True:
            try:
                await beats.beat()
                return
            except OtherAgent:
                if boot_ms() - since_ms >= OTHER_AGENT_S * 1000:
                    raise
            except MarketUnreachable as error:
                log.warning("waiting for the market", why=error.why)
            await asyncio.sleep(TICK_S)

    async def _give_everything_up(self) -> None:
        """What runs here is the other agent's by now: it must not run on."""
        assert self._hands is not None
        for attempt in list(self._hands.attempts.values()):
            attempt.standing = Standing.GONE
        self._hands.advance_all()
        until_ms = boot_ms() + GIVE_UP_MS
        while boot_ms() < until_ms and any(attempt.is_active for attempt in self._hands.attempts.values()):
            await asyncio.sleep(0.05)

    # ---- time

    async def _tick(self) -> None:
        """What time alone brings about."""
        assert self._hands is not None and self._client is not None
        while True:
            await asyncio.sleep(TICK_S)
            self.ticked_ms = boot_ms()
            self._obey()
            self._node.sick = self._watch.sick()
            self._hands.advance_all()
            if boot_ms() - self._synced_ms > RESYNC_S * 1000:
                self._synced_ms = boot_ms()
                self._client.resync()
            if not self._wants_offer and not self._hands.attempts:
                self._leaving.set()

    def _obey(self) -> None:
        """What the owner has ordered and the session allows, unless we are on our way out anyway."""
        assert self._client is not None
        self._steering.look_at_session(self._client.session, boot_ms())
        if not self._leaving.is_set() and self._wants_offer:
            self._steering.obey(boot_ms())


def _is_to_be_reported(attempt: Attempt) -> bool:
    return attempt.standing is Standing.CLAIMED and not attempt.reported
