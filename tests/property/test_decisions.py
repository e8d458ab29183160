"""Whatever happens in whatever order: never two programs on a card, never one without a claim in the ledger, every end told once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from builders import BUYER, NODE, SELLER, job_id, job_submitted, make
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from events.jobs import GpusReleased, JobCancelRequested, JobClaimed, JobDeclined, JobExtended, JobStarted, LeaseExpired
from events.reasons import Reason
from events.values import Requirements
from seller_agent.attempts.attempt import Attempt, Run, Saved, Standing, Stop, Work, hear
from seller_agent.attempts.decisions import Do, Node, decide, run_time_s
from seller_agent.attempts.endings import end_event
from seller_agent.runners.runner import RunState, RunStatus

CARDS = ("GPU-0", "GPU-1")


class Life:
    """An attempt with the ledger's own view of it and everything that was ordered."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.orders: list[Do] = []
        self.under_way: list[Do] = []
        self.sent: list[Any] = []
        """Our events on their way to the ledger, in order."""
        self.claimed = False
        self.ended = False
        self.cancelled = False
        self.holds = True
        """Whether the ledger still holds cards for it."""

    def ordered(self, order: Do) -> int:
        return self.orders.count(order)


class Decisions(RuleBasedStateMachine):
    """A node, its attempts, a ledger that decides about them, and a runner that takes its time."""

    lives = Bundle("lives")

    def __init__(self) -> None:
        super().__init__()
        self.node = Node(known_cards=frozenset(CARDS))
        self.now_ms = 10**6
        self.all: list[Life] = []

    # the ledger

    @rule(target=lives, cards=st.sampled_from([CARDS[:1], CARDS[1:], CARDS]))
    def match(self, cards: tuple[str, ...]) -> Life:
        taken = {card for life in self.all if life.holds for card in life.attempt.cards}
        cards = tuple(card for card in cards if card not in taken)
        epoch = len(self.all) + 1
        order = job_submitted(f"job {epoch}", requirements=Requirements(num_gpus=len(cards)))
        life = Life(Attempt(job_id=job_id(f"job {epoch}"), attempt=1, epoch=epoch, order=order, buyer=BUYER, cards=cards, timeout_s=60))
        self.all.append(life)
        self._decide(life)
        return life

    @rule(life=lives)
    def take_our_event(self, life: Life) -> None:
        if life.sent:
            self._take(life, life.sent.pop(0))

    @rule(life=lives)
    def cancel(self, life: Life) -> None:
        if life.holds and not life.ended:
            life.cancelled = True
            life.holds = life.claimed
            self._hear(life, JobCancelRequested(job_id=life.attempt.job_id))

    @rule(life=lives)
    def extend(self, life: Life) -> None:
        if life.holds and not life.ended:
            self._hear(life, JobExtended(job_id=life.attempt.job_id, extra_s=60))

    @rule(life=lives)
    def pass_a_limit(self, life: Life) -> None:
        """As it was found to be idle, say."""
        if life.attempt.run is Run.RUNNING and life.attempt.stop is None:
            life.attempt.over = Stop.IDLE
            self._decide(life)

    @rule(life=lives)
    def expire_lease(self, life: Life) -> None:
        if life.holds:
            life.holds, life.ended = False, True
            self._hear(life, self._event(life, LeaseExpired, node_id=NODE))

    @rule(life=lives)
    def get_it_running(self, life: Life) -> None:
        """A stretch in which everything goes well, so that what comes later is met often."""
        for _ in range(6):
            while life.sent:
                self._take(life, life.sent.pop(0))
            for order in [order for order in life.under_way if order in (Do.PREPARE, Do.START) and life.attempt.run is not Run.RUNNING]:
                life.under_way.remove(order)
                DONE[order](self, life, True)
                self._decide(life)

    @rule(life=lives, slow=st.integers(100_000, 140_000))
    def be_slow_to_prepare(self, life: Life, slow: int) -> None:
        """The claim is in the ledger, and then the image takes its time."""
        while life.sent:
            self._take(life, life.sent.pop(0))
        self.now_ms += slow

    @rule(target=lives, life=lives)
    def its_cards_go_to_another_job(self, life: Life) -> Life:
        """The lease ran out, and the cards are matched again before the old program is gone."""
        self.expire_lease(life)
        other = self.match(life.attempt.cards or CARDS[:1])
        self.get_it_running(other)
        return other

    def _take(self, life: Life, event: Any) -> None:
        """As the fold does: what is not legal has no effect."""
        if isinstance(event, JobClaimed | JobDeclined):
            if life.claimed or life.ended or not life.holds:
                return
            life.claimed, life.holds = isinstance(event, JobClaimed), isinstance(event, JobClaimed)
        elif isinstance(event, GpusReleased):
            if not life.holds or not life.ended:
                return
            life.holds = False
        elif not isinstance(event, JobStarted):
            if not life.holds or life.ended:
                return
            life.ended = True
        self._hear(life, event)

    def _hear(self, life: Life, event: Any) -> None:
        hear(life.attempt, event, BUYER if isinstance(event, JobCancelRequested) else SELLER)
        self._decide(life)

    # what takes time here

    @rule(life=lives, data=st.data())
    def something_is_done(self, life: Life, data: st.DataObject) -> None:
        if life.under_way:
            order = data.draw(st.sampled_from(life.under_way))
            life.under_way.remove(order)
            DONE[order](self, life, data.draw(st.booleans()))
            self._decide_all(life)

    def _prepared(self, life: Life, well: bool) -> None:
        if Do.ABANDON in life.under_way:
            life.under_way.remove(Do.ABANDON)
            well = False
        life.attempt.prepared = Work.DONE if well else Work.NONE
        if not well and not life.attempt.abandoned:
            life.attempt.failure = Reason.INPUT_CORRUPT

    def _abandoned(self, life: Life, _: bool) -> None:
        if Do.PREPARE in life.under_way:
            life.under_way.remove(Do.PREPARE)
        life.attempt.prepared = Work.NONE

    def _started(self, life: Life, well: bool) -> None:
        if well:
            life.attempt.run, life.attempt.status = Run.RUNNING, self._status(life, RunState.RUNNING)
            life.under_way.append(Do.START)  # and ends some time
        else:
            life.attempt.run, life.attempt.failure = Run.NONE, Reason.CONTAINER_ERROR

    def _ran(self, life: Life, well: bool) -> None:
        if life.attempt.run is Run.STARTING:
            self._started(life, well)
        else:
            life.attempt.run, life.attempt.status = Run.EXITED, self._status(life, RunState.EXITED)

    def _stopped(self, life: Life, _: bool) -> None:
        if life.attempt.run is Run.RUNNING:
            life.under_way.remove(Do.START)
            life.attempt.run, life.attempt.status = Run.EXITED, self._status(life, RunState.EXITED)

    def _saved(self, life: Life, _: bool) -> None:
        life.attempt.saved, life.attempt.saved_as = Work.DONE, Saved()

    def _removed(self, life: Life, well: bool) -> None:
        life.attempt.removed = Work.DONE if well else Work.NONE

    # the node

    @rule(ms=st.integers(1, 130_000))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms
        self._decide_all()

    @rule(life=lives)
    def a_beat_is_answered(self, life: Life) -> None:
        if life.holds:
            life.attempt.lease_sent_boot_ms = self.now_ms

    @rule()
    def the_owner_wants_it_back(self) -> None:
        self.node.accepting, self.node.evicting = False, True
        self._decide_all()

    @rule(life=consumes(lives))
    def nobody_speaks_of_it_for_a_while(self, life: Life) -> None:
        """Takes the life out of the game until the end."""

    # deciding

    def _decide_all(self, *first: Life) -> None:
        for life in (*first, *self.all):
            self._decide(life)

    def _decide(self, life: Life) -> None:
        for _ in range(20):
            orders = decide(life.attempt, self.node, self.now_ms)
            if not orders:
                return
            for order in orders:
                self._obey(life, order)
        raise AssertionError(f"the same is ordered again and again: {life.orders[-5:]}")

    def _obey(self, life: Life, order: Do) -> None:
        one = life.attempt
        life.orders.append(order)
        if order is Do.START:
            assert life.claimed, "started without a claim in the ledger"
            assert self.now_ms - one.lease_sent_boot_ms < 120_000, "started without a lease"
            for other in self.all:
                assert other is life or not other.attempt.is_active or not set(other.attempt.cards) & set(one.cards), "two on a card"
        if order in (Do.REPORT, Do.RELEASE):
            assert one.run is Run.EXITED or one.removed is Work.DONE, "cards are told free while something may use them"
        if order is Do.FORGET:
            assert not one.is_active and not life.holds and not set(life.under_way) - {Do.STOP}
        if order in DONE:
            life.under_way.append(order)
        for kind in TOLD.get(order, ()):
            life.sent.append(kind(self, life))

    def _event(self, life: Life, kind: Any, **changes: Any) -> Any:
        one = life.attempt
        return make(kind, job_id=one.job_id, attempt=one.attempt, epoch=one.epoch, **changes)

    def _status(self, life: Life, state: RunState) -> RunStatus:
        return RunStatus(key=life.attempt.key, state=state, ran_ms=1, exit_code=0 if state is RunState.EXITED else None)

    @invariant()
    def an_end_is_told_once_and_only_of_what_was_claimed(self) -> None:
        for life in self.all:
            assert life.ordered(Do.REPORT) <= 1 and life.ordered(Do.CLAIM) + life.ordered(Do.DECLINE) <= 1
            assert not life.ordered(Do.REPORT) or life.claimed
            assert life.ordered(Do.REPORT) + life.ordered(Do.RELEASE) <= 1

    @invariant()
    def whoever_guards_a_run_knows_how_long_it_may_take(self) -> None:
        for life in self.all:
            one = life.attempt
            if one.run is Run.RUNNING and one.stop is None and one.standing is Standing.CLAIMED:
                assert one.given_s == run_time_s(one)

    def teardown(self) -> None:
        """When everything under way has come to its end, nothing is left, and no claimed run ended untold."""
        for life in self.all:
            if life.holds and life.claimed and not life.ended:
                self._cancel(life)
        for _ in range(30):
            for life in self.all:
                while life.under_way:
                    DONE[order := life.under_way.pop(0)](self, life, order is not Do.PREPARE)
                    self._decide(life)
                while life.sent:
                    self._take(life, life.sent.pop(0))
            self._decide_all()
        for life in self.all:
            assert life.attempt.forgotten, f"{life.attempt} is left over; ordered {life.orders}"
            taken_back = life.attempt.standing is Standing.GONE and not life.ordered(Do.REPORT) and not life.ordered(Do.RELEASE)
            assert taken_back or life.ended or not life.claimed
        assert {} == self.node.busy

    def _cancel(self, life: Life) -> None:
        life.cancelled = True
        self._hear(life, JobCancelRequested(job_id=life.attempt.job_id))


DONE: dict[Do, Callable[[Decisions, Life, bool], None]] = {
    Do.PREPARE: Decisions._prepared,
    Do.ABANDON: Decisions._abandoned,
    Do.START: Decisions._ran,
    Do.STOP: Decisions._stopped,
    Do.SAVE: Decisions._saved,
    Do.REMOVE: Decisions._removed,
}
TOLD: dict[Do, tuple[Callable[[Decisions, Life], Any], ...]] = {
    Do.CLAIM: (lambda self, life: self._event(life, JobClaimed),),
    Do.DECLINE: (lambda self, life: self._event(life, JobDeclined),),
    Do.TELL_STARTED: (lambda self, life: self._event(life, JobStarted),),
    Do.REPORT: (lambda self, life: end_event(life.attempt), lambda self, life: self._event(life, GpusReleased)),
    Do.RELEASE: (lambda self, life: self._event(life, GpusReleased),),
}

TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
