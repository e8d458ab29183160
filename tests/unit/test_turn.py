"""A turn of the matcher: signed bytes in, pages and answers out, with no event loop in sight."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from builders import START_MS, digest, job_id, job_submitted, make, node_offered
from nacl.signing import SigningKey

from events.codec import decode_event, encode_batch, encode_event
from events.envelope import seal
from events.fact import Event
from events.identity import OrganisationCreated
from events.ids import node_id, org_id
from events.jobs import (
    AttemptEvent,
    GpusReleased,
    JobCancelRequested,
    JobClaimed,
    JobFailed,
    JobRequeued,
    JobStarted,
    JobSucceeded,
    JobTimedOut,
    LeaseExpired,
)
from events.log import StoredPage
from events.market import EventRefused, MarketCreated, MatcherStarted, Policy
from events.nodes import NodeLost
from events.page import encode_page
from events.reasons import Reason, Refusal
from events.session import Session, make_session
from events.subjects import intake
from events.values import Role
from events.wallet import KeySigner
from events.wire import Beat, BeatAnswer, BeatLease, LiveFrame, Outcome
from projections import snapshot
from projections.identity import ORGS_MAX
from projections.job_states import JobState
from projections.market import Market
from services.follower import Follower
from services.matcher.admission import Arrival
from services.matcher.draft import Closed, Draft
from services.matcher.memory import Memory
from services.matcher.turn import BeatArrival, turn

MARKET_ID = digest("market").hex()
MATCHER = SigningKey(digest("matcher"))


@dataclass
class Party:
    """Somebody with a wallet and a session key, who numbers what it says."""

    session: Session
    number: int = 1

    @property
    def wallet(self) -> str:
        return self.session.wallet

    def say(self, *events: Event, number: int | None = None) -> Arrival:
        """One message of these events."""
        first = self.number if number is None else number
        body = encode_batch([encode_event(event) for event in events])
        data = seal(
            self.session.signing_key,
            market_id=bytes.fromhex(MARKET_ID),
            subject=intake(self.wallet),
            seq=first,
            ts_ms=START_MS,
            body=body,
        )
        if number is None:
            self.number += len(events)
        return Arrival(self.wallet, data)

    def hello(self) -> Arrival:
        """The first message of the key."""
        return self.say(self.session.authorisation())


def party(name: str, role: Role, *, validity_ms: int = 86_400_000) -> Party:
    signer = KeySigner(digest(f"secret {name}"))
    return Party(make_session(signer, MARKET_ID, role, now_ms=START_MS, validity_ms=validity_ms))


@dataclass
class World:
    """A market with its matcher's memory, and everything that it wrote and told."""

    policy: Policy = field(default_factory=Policy)
    now_ms: int = START_MS
    market: Market = field(default_factory=Market)
    pages: list[bytes] = field(default_factory=list)
    frames: list[tuple[str, LiveFrame]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = Memory(self.market, MATCHER, self.now_ms)
        self.memory.market_id = bytes.fromhex(MARKET_ID)
        created = make(MarketCreated, market_id=MARKET_ID, matcher_key=bytes(MATCHER.verify_key).hex(), policy=self.policy)
        draft = Draft(self.market, self.memory, self.now_ms)
        for event in (created, make(MatcherStarted)):
            assert draft.decide(event) is None
        draft.close()
        self._written(draft.closed)
        self.memory.patient_until_ms = 0

    def _written(self, closed: list[Closed]) -> list[Event]:
        self.pages += [encode_page(page.page) for page in closed]
        self.frames += [frame for page in closed for frame in page.frames]
        follower = Follower()
        for position, data in enumerate(self.pages, 1):
            follower.fold(StoredPage(position, data, 0))
        assert snapshot.digest(follower.market) == snapshot.digest(self.market), "the pages do not tell what the matcher did"
        assert {} == follower.void
        return []

    def turn(self, *arrivals: Arrival, after_ms: int = 1, beats: tuple[BeatArrival, ...] = ()) -> list[BeatAnswer]:
        """One turn, `after_ms` later."""
        self.now_ms += after_ms
        closed, told = turn(self.market, list(arrivals), list(beats), self.now_ms, self.memory)
        self._written(closed)
        self.frames += told.frames
        return told.beats

    def outcomes(self, who: Party) -> list[Outcome]:
        """Every answer to this party's present key so far."""
        return [one for wallet, frame in self.frames if wallet == who.wallet and frame.key == who.session.key for one in frame.outcomes]

    def heard(self, who: Party) -> list[Event]:
        """Every event that was told to this party so far."""
        return [decode_event(bytes(told.body)) for wallet, frame in self.frames if wallet == who.wallet for told in frame.events]

    def last(self, who: Party, kind: type[Event]) -> Event:
        return [event for event in self.heard(who) if type(event) is kind][-1]

    def of_run(self, name: str, kind: type[AttemptEvent], **changes: object) -> AttemptEvent:
        run = self.market.jobs[job_id(name)].run
        assert run is not None
        return make(kind, job_id=job_id(name), attempt=run.attempt, epoch=run.epoch, **changes)

    def state(self, name: str = "job") -> JobState:
        return self.market.jobs[job_id(name)].state


@dataclass
class Trade:
    """A world with a buyer and a seller who are known there."""

    world: World
    buyer: Party
    seller: Party

    def offer(self, name: str = "node", **changes: object) -> Event:
        return node_offered(name, owner=self.seller.wallet, **changes)  # type: ignore[arg-type]


@pytest.fixture
def trade() -> Trade:
    world, buyer, seller = World(), party("buyer", Role.BUYER), party("seller", Role.SELLER)
    world.turn(buyer.hello(), seller.hello())
    return Trade(world, buyer, seller)


def test_a_job_is_matched_in_the_turn_that_admits_it(trade: Trade) -> None:
    world = trade.world
    world.turn(trade.seller.say(trade.offer()))
    world.turn(trade.buyer.say(job_submitted()))
    assert JobState.MATCHED is world.state()
    told = [one for wallet, frame in world.frames if wallet == trade.seller.wallet for one in frame.events][-1]
    assert job_submitted() == told.order, "the seller learns with the match all that it needs to run the job"
    assert trade.buyer.wallet == told.buyer


def test_nothing_happened_no_page(trade: Trade) -> None:
    before = len(trade.world.pages)
    trade.world.turn()
    assert before == len(trade.world.pages)


def test_the_whole_life_of_a_job_in_turns(trade: Trade) -> None:
    world, buyer, seller = trade.world, trade.buyer, trade.seller
    world.turn(seller.say(trade.offer(price=3_600_000)), buyer.say(job_submitted()))
    world.turn(seller.say(world.of_run("job", JobClaimed)))
    world.turn(seller.say(world.of_run("job", JobStarted)))
    ended = world.of_run("job", JobSucceeded, exit_code=0, ran_ms=900)
    world.turn(seller.say(ended, world.of_run("job", GpusReleased)), after_ms=1000)
    assert JobState.SUCCEEDED is world.state()
    assert 900 == world.market.jobs[job_id("job")].charged_uusd
    assert {} == world.market.leases
    assert all(one.reason is None for one in [*world.outcomes(buyer), *world.outcomes(seller)])


def test_the_cheaper_node_wins_then_the_tighter_then_the_lower_id(trade: Trade) -> None:
    world, seller = trade.world, trade.seller
    offers = [trade.offer("dear", price=400_000), trade.offer("cheap", price=200_000), trade.offer("large", price=200_000, gpus=4)]
    world.turn(seller.say(*offers))
    for name, expected in (("first", "cheap"), ("second", "large")):
        world.turn(trade.buyer.say(job_submitted(name)))
        run = world.market.jobs[job_id(name)].run
        assert run is not None
        assert node_id(seller.wallet, expected) == run.node_id


def test_an_event_sent_twice_is_answered_twice_and_happens_once(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    message = buyer.say(job_submitted())
    world.turn(message)
    world.turn(message, message)
    seqs = [one.seq for one in world.outcomes(buyer) if one.number == 2]
    assert 3 == len(seqs)
    assert 1 == len(set(seqs))
    assert 1 == len(world.market.jobs)


def test_a_used_number_with_other_bytes_is_out_of_sequence_and_the_answer_names_the_next(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    world.turn(buyer.say(job_submitted("a")))
    world.turn(buyer.say(job_submitted("b"), number=2))
    answer = world.outcomes(buyer)[-1]
    assert (2, Refusal.OUT_OF_SEQUENCE, 3) == (answer.number, answer.reason, answer.expected)


def test_a_gap_is_refused_and_leaves_no_trace(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    before = len(world.pages)
    world.turn(buyer.say(job_submitted("a"), number=7), buyer.say(job_submitted("b"), job_submitted("c"), number=9))
    assert [(Refusal.OUT_OF_SEQUENCE, 2)] * 3 == [(one.reason, one.expected) for one in world.outcomes(buyer)[-3:]]
    assert before == len(world.pages)


def test_a_batch_with_known_numbers_in_front_goes_on_where_it_is_new(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    world.turn(buyer.say(job_submitted("a")))
    world.turn(buyer.say(job_submitted("a"), job_submitted("b"), number=2))
    assert {job_id("a"), job_id("b")} == set(world.market.jobs)
    assert [None, None, None] == [one.reason for one in world.outcomes(buyer)[-3:]]


def test_a_refusal_of_a_well_signed_event_is_recorded_and_uses_its_number_up(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    world.turn(buyer.say(make(JobCancelRequested), job_submitted()))
    refused, accepted = world.outcomes(buyer)[-2:]
    assert Refusal.UNKNOWN_JOB is refused.reason
    assert 0 < refused.seq < accepted.seq
    assert isinstance(world.last(buyer, EventRefused), EventRefused)


def test_what_was_refused_leaves_none_of_its_bytes_in_the_ledger(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    world.turn(buyer.say(job_submitted("secret-name", target_node="n" + "a" * 15)), trade.seller.say(trade.offer()))
    assert Refusal.UNKNOWN_TARGET is world.outcomes(buyer)[-1].reason
    assert not any(b"secret-name" in page for page in world.pages)


def test_above_its_budget_a_refusal_is_answered_and_not_recorded_and_its_number_stays(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    for _ in range(12):
        world.turn(buyer.say(make(JobCancelRequested), number=world.market.identity.keys[buyer.session.key].last_number + 1))
    answers = world.outcomes(buyer)[-12:]
    assert [True] * 10 + [False] * 2 == [one.seq > 0 for one in answers]
    assert answers[-1].number == answers[-2].number == answers[-1].expected
    buyer.number = answers[-1].expected
    world.turn(buyer.say(job_submitted()))
    assert JobState.QUEUED is world.state()


def test_an_unknown_key_is_answered_and_may_only_bring_its_delegation(trade: Trade) -> None:
    world, stranger = trade.world, party("stranger", Role.BUYER)
    world.turn(stranger.say(job_submitted(), number=1))
    assert [Refusal.UNKNOWN_KEY] == [one.reason for one in world.outcomes(stranger)]
    stranger.number = 1
    world.turn(stranger.hello(), stranger.say(job_submitted()))
    assert JobState.QUEUED is world.state()


def test_a_delegation_for_another_market_key_or_time_is_refused(trade: Trade) -> None:
    world = trade.world
    signer = KeySigner(digest("secret x"))
    elsewhere = Party(make_session(signer, digest("other").hex(), Role.BUYER, now_ms=START_MS))
    over = Party(make_session(signer, MARKET_ID, Role.BUYER, now_ms=START_MS - 10_000, validity_ms=5_000))
    thief = party("thief", Role.BUYER)
    stolen = msgspec.structs.replace(trade.buyer.session.authorisation(), key=thief.session.key.hex())
    world.turn(elsewhere.hello(), over.hello(), thief.say(stolen, number=1))
    assert [Refusal.WRONG_MARKET] == [one.reason for one in world.outcomes(elsewhere)]
    assert [Refusal.KEY_EXPIRED] == [one.reason for one in world.outcomes(over)]
    assert world.outcomes(thief)[0].reason is not None
    assert 2 == len(world.market.identity.keys)


def test_a_message_moved_to_another_wallets_subject_is_refused(trade: Trade) -> None:
    world = trade.world
    message = trade.buyer.say(job_submitted())
    world.turn(message._replace(wallet=trade.seller.wallet))
    assert {} == world.market.jobs


def test_flipped_bits_and_foreign_signatures_are_refused_and_answered(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    message = buyer.say(job_submitted())
    bad = bytearray(message.data)
    bad[-1] ^= 1
    world.turn(message._replace(data=bytes(bad)))
    assert Refusal.BAD_SIGNATURE is world.outcomes(buyer)[-1].reason
    for data in (b"", b"\xc1", b"\x91" * 10_000, bytes(20_000)):
        world.turn(Arrival(buyer.wallet, data))
    assert {Refusal.MALFORMED, Refusal.TOO_LARGE} == {
        one.reason for wallet, frame in world.frames if wallet == buyer.wallet and not frame.key for one in frame.outcomes
    }
    world.turn(message)
    assert JobState.QUEUED is world.state()


def test_a_wallets_queue_is_limited_and_the_refusal_says_so(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    for start in range(0, 101, 50):
        world.turn(*[buyer.say(job_submitted(f"j{number}")) for number in range(start, min(start + 50, 101))])
    assert Refusal.QUEUE_FULL is world.outcomes(buyer)[-1].reason
    assert 100 == len(world.market.jobs)


def test_one_organisation_too_many_is_refused_in_the_ledger_and_the_next_event_goes_on(trade: Trade) -> None:
    world, buyer = trade.world, trade.buyer
    names = [f"org {number}" for number in range(ORGS_MAX + 1)]
    world.turn(*(buyer.say(make(OrganisationCreated, org_id=org_id(buyer.wallet, name), name=name)) for name in names))
    assert ORGS_MAX == len(world.market.identity.orgs)
    last = world.outcomes(buyer)[-1]
    assert (Refusal.TOO_MANY, "32 organisations" in last.detail, True) == (last.reason, True, last.seq > 0)
    world.turn(buyer.say(job_submitted()))
    assert JobState.QUEUED is world.state()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"num_gpus": 0, "vram_mib": 10}, Refusal.INVALID_REQUIREMENT),
        ({"target_cards": (0,)}, Refusal.INVALID_REQUIREMENT),
        ({"target_node": "n" + "a" * 15}, Refusal.UNKNOWN_TARGET),
        ({"org_id": "o" + "a" * 15}, Refusal.NOT_A_MEMBER),
        ({"num_nodes": 2}, Refusal.INVALID_REQUIREMENT),
    ],
)
def test_what_no_node_could_ever_run_is_refused_at_submission(trade: Trade, changes: dict[str, object], refusal: Refusal) -> None:
    trade.world.turn(trade.buyer.say(job_submitted(**changes)))
    assert refusal is trade.world.outcomes(trade.buyer)[-1].reason


def test_a_target_card_that_does_not_exist_is_refused_with_what_exists(trade: Trade) -> None:
    trade.world.turn(trade.seller.say(trade.offer(gpus=2)))
    there = node_id(trade.seller.wallet, "node")
    trade.world.turn(trade.buyer.say(job_submitted(target_node=there, target_cards=(5,))))
    answer = trade.world.outcomes(trade.buyer)[-1]
    assert Refusal.UNKNOWN_TARGET is answer.reason
    assert "[0, 1]" in answer.detail


def test_a_seller_cannot_submit_and_a_buyer_cannot_offer(trade: Trade) -> None:
    world = trade.world
    world.turn(trade.seller.say(job_submitted()), trade.buyer.say(node_offered(owner=trade.buyer.wallet)))
    assert Refusal.NOT_YOURS is world.outcomes(trade.seller)[-1].reason
    assert Refusal.NOT_YOURS is world.outcomes(trade.buyer)[-1].reason


def claimed(trade: Trade) -> None:
    trade.world.turn(trade.seller.say(trade.offer()), trade.buyer.say(job_submitted()))
    trade.world.turn(trade.seller.say(trade.world.of_run("job", JobClaimed)))


def test_a_match_that_is_not_claimed_goes_back_to_the_queue_and_not_to_the_same_node(trade: Trade) -> None:
    world = trade.world
    world.turn(trade.seller.say(trade.offer()), trade.buyer.say(job_submitted()))
    world.turn(after_ms=9_000)
    assert JobState.MATCHED is world.state()
    world.turn(after_ms=1_500)
    assert JobState.QUEUED is world.state()
    assert Reason.CLAIM_LATE is world.last(trade.buyer, LeaseExpired).reason  # type: ignore[attr-defined]
    requeued = world.last(trade.buyer, JobRequeued)
    assert isinstance(requeued, JobRequeued)
    assert node_id(trade.seller.wallet, "node") == requeued.avoid_node
    beat(trade, after_ms=3_000)
    assert JobState.QUEUED is world.state(), "the node is avoided for a while"
    world.turn(trade.seller.say(trade.offer("second", price=900_000)))
    assert JobState.MATCHED is world.state()


def beat(trade: Trade, *epochs: int, after_ms: int, boot: str = "boot") -> BeatAnswer:
    name = node_id(trade.seller.wallet, "node")
    leases = tuple(BeatLease(job_id("job"), 1, epoch) for epoch in epochs)
    arrival = BeatArrival(trade.seller.wallet, Beat(node_id=name, boot=boot, leases=leases))
    return trade.world.turn(after_ms=after_ms, beats=(arrival,))[0]


def test_a_lease_that_is_renewed_lives_on_and_one_that_is_not_expires_after_180_s(trade: Trade) -> None:
    claimed(trade)
    world = trade.world
    world.turn(trade.seller.say(world.of_run("job", JobStarted)))
    run = world.market.jobs[job_id("job")].run
    assert run is not None
    for _ in range(60):
        answer = beat(trade, run.epoch, after_ms=5_000)
        assert (run.epoch,) == answer.renewed
        assert answer.offered
    assert JobState.RUNNING is world.state()
    for _ in range(36):
        beat(trade, after_ms=5_000)
    assert JobState.QUEUED is world.state()
    assert Reason.LEASE_EXPIRED is world.last(trade.buyer, LeaseExpired).reason  # type: ignore[attr-defined]
    answer = beat(trade, run.epoch, after_ms=5_000)
    assert ((), (run.epoch,)) == (answer.renewed, answer.gone)


def test_a_silent_node_gets_no_new_jobs_after_15_s_and_is_lost_after_180(trade: Trade) -> None:
    world = trade.world
    world.turn(trade.seller.say(trade.offer(gpus=2)))
    world.turn(after_ms=15_100)
    world.turn(trade.buyer.say(job_submitted()))
    assert JobState.QUEUED is world.state()
    assert beat(trade, after_ms=1_000).offered
    assert JobState.MATCHED is world.state(), "it speaks again, and gets what waited"
    world.turn(trade.seller.say(world.of_run("job", JobClaimed)))
    world.turn(after_ms=181_000)
    assert isinstance(world.last(trade.seller, NodeLost), NodeLost)
    assert JobState.QUEUED is world.state()
    assert {} == world.market.leases
    assert not beat(trade, after_ms=1_000).offered, "it must reconcile and offer again"


def test_a_new_matcher_is_patient_for_one_lease(trade: Trade) -> None:
    claimed(trade)
    world = trade.world
    world.memory = Memory(world.market, MATCHER, world.now_ms)
    world.turn(after_ms=184_000)
    assert JobState.CLAIMED is world.state()
    world.turn(after_ms=2_000)
    assert JobState.QUEUED is world.state()


def test_a_queue_deadline_expires_at_once_even_under_a_new_matcher(trade: Trade) -> None:
    world = trade.world
    world.turn(trade.buyer.say(job_submitted(queue_timeout_s=30)))
    world.memory = Memory(world.market, MATCHER, world.now_ms)
    world.turn(after_ms=30_000)
    assert JobState.EXPIRED is world.state()


def test_a_node_that_does_not_end_a_run_in_time_is_overruled_with_slack(trade: Trade) -> None:
    world = trade.world
    world.turn(trade.seller.say(trade.offer()), trade.buyer.say(job_submitted(timeout_s=60)))
    world.turn(trade.seller.say(world.of_run("job", JobClaimed)))
    world.turn(trade.seller.say(world.of_run("job", JobStarted)))
    epoch = world.market.jobs[job_id("job")].run.epoch  # type: ignore[union-attr]
    for _ in range(35):
        beat(trade, epoch, after_ms=5_000)
    assert JobState.RUNNING is world.state()
    beat(trade, epoch, after_ms=6_000)
    assert isinstance(world.last(trade.buyer, JobTimedOut), JobTimedOut)
    assert 1 == len(world.market.leases), "the card stays taken until the node says that it is clean"


def test_of_two_agents_with_one_node_id_the_second_is_turned_away(trade: Trade) -> None:
    trade.world.turn(trade.seller.say(trade.offer()))
    assert "" == beat(trade, after_ms=10, boot="first").other_boot
    assert "first" == beat(trade, after_ms=10, boot="second").other_boot
    assert "" == beat(trade, after_ms=10, boot="first").other_boot
    assert "" == beat(trade, after_ms=20_000, boot="second").other_boot, "the first has been silent for long enough"


def test_a_retry_waits_its_back_off_and_then_takes_another_node(trade: Trade) -> None:
    world = trade.world
    claimed(trade)
    world.turn(trade.seller.say(trade.offer("second", price=900_000)))
    failed = world.of_run("job", JobFailed, reason=Reason.CONTAINER_ERROR)
    world.turn(trade.seller.say(failed, world.of_run("job", GpusReleased)))
    assert JobState.QUEUED is world.state()
    assert world.memory.next_wakeup_ms() is not None
    world.turn(after_ms=2_100)
    assert JobState.MATCHED is world.state()
    assert node_id(trade.seller.wallet, "second") == world.market.jobs[job_id("job")].run.node_id  # type: ignore[union-attr]


def test_an_expired_key_may_still_report_the_end_of_what_it_claimed() -> None:
    world, buyer, seller = World(), party("buyer", Role.BUYER), party("seller", Role.SELLER, validity_ms=60_000)
    trade = Trade(world, buyer, seller)
    world.turn(buyer.hello(), seller.hello())
    claimed(trade)
    world.turn(seller.say(world.of_run("job", JobStarted)), after_ms=1000)
    ended, released = world.of_run("job", JobSucceeded, exit_code=0), world.of_run("job", GpusReleased)
    world.turn(seller.say(trade.offer("late")), after_ms=60_000)
    assert Refusal.KEY_EXPIRED is world.outcomes(seller)[-1].reason
    seller.number -= 1
    world.turn(seller.say(ended, released))
    assert JobState.SUCCEEDED is world.state()
    assert {} == world.market.leases


def test_each_wallet_hears_only_what_concerns_it_and_every_gap_is_visible(trade: Trade) -> None:
    world, other = trade.world, party("other", Role.BUYER)
    world.turn(other.hello())
    claimed(trade)
    assert [type(other.session.authorisation())] == [type(event) for event in world.heard(other)]
    for who in (trade.buyer, trade.seller):
        last = 0
        for wallet, frame in world.frames:
            if wallet == who.wallet and frame.events:
                assert last == frame.prev
                last = frame.events[-1].seq
        assert world.market.last_seq_of[who.wallet] == last


def test_a_thousand_matches_make_several_pages_each_complete() -> None:
    world = World(policy=Policy(max_queue=10_000))
    buyer, seller = party("buyer", Role.BUYER), party("seller", Role.SELLER)
    world.turn(buyer.hello(), seller.hello())
    names = [f"j{number}" for number in range(3000)]
    for start in range(0, 3000, 50):
        world.turn(buyer.say(*[job_submitted(name, num_gpus=0) for name in names[start : start + 50]]))
    before = len(world.pages)
    world.turn(seller.say(node_offered("huge", owner=seller.wallet, gpus=0, cores=4096)))
    assert all(world.state(name) is JobState.MATCHED for name in names)
    assert len(world.pages) > before + 1
