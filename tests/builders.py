"""Events with defaults, and markets made of them: `given(node_offered(), job_submitted()) -> Market`.

`make(NodeOffered, **changes)` builds any event; the most used have a function of their own with shorter words. A `History` turns events
into Records the way a ledger would: sequence, time, sender, and contiguous numbers of a session key that it authorises on first use.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, TypeVar

from events import identity, ids, jobs, market, money, nodes
from events.fact import Event
from events.jobs import JobMatched, JobSubmitted
from events.market import Policy
from events.nodes import NodeOffered
from events.page import Record
from events.reasons import Reason, Refusal
from events.subjects import PUBLISHERS
from events.values import Card, OrgRole, Program, Requirements, Role, Tier
from projections.arbiter import apply
from projections.jobs import Job
from projections.market import Applied, Market
from projections.nodes import Node

E = TypeVar("E", bound=Event)

START_MS = 1_800_000_000_000
FOR_EVER_MS = 10**14
USD = 1_000_000


def digest(text: str) -> bytes:
    """32 bytes that stand for a name."""
    return hashlib.sha256(text.encode()).digest()


def wallet(name: str) -> str:
    """The wallet that tests call `name`."""
    return "0x" + digest(f"wallet {name}").hex()[:40]


def job_id(name: str) -> str:
    """The id of the job that tests call `name`."""
    return ids.job_id(digest(f"job {name}"))


BUYER, SELLER, OPERATOR = wallet("buyer"), wallet("seller"), wallet("operator")
JOB = job_id("job")
NODE = ids.node_id(SELLER, "node")
ORG = ids.org_id(BUYER, "org")
HASH = digest("hash").hex()
KEY = digest("key").hex()


def card(index: int = 0, *, node: str = "node", **changes: Any) -> Card:
    """A card of a node; a 24 GB one that reports what such cards report."""
    uuid = f"GPU-{digest(node).hex()[:8]}-{index}"
    values: dict[str, Any] = {"index": index, "uuid": uuid, "model": "NVIDIA GeForce RTX 4090", "vram_mib": 24_564, "cuda": 12_040}
    return Card(**(values | changes))


_JOB: dict[str, Any] = {"job_id": JOB}
_ATTEMPT: dict[str, Any] = {"job_id": JOB, "attempt": 1, "epoch": 1}
_NODE: dict[str, Any] = {"node_id": NODE}
_ORG: dict[str, Any] = {"org_id": ORG}
_AMOUNT: dict[str, Any] = {"wallet": BUYER, "amount_uusd": USD}

DEFAULTS: dict[type[Event], dict[str, Any]] = {
    nodes.NodeOffered: _NODE | {"name": "node", "cards": (card(),), "cores": 16, "memory_mib": 65_536, "price_uusd_per_gpu_hour": 400_000},
    nodes.NodeRepriced: _NODE | {"price_uusd_per_gpu_hour": 300_000},
    nodes.NodeDrained: _NODE,
    nodes.NodeMaintenancePlanned: _NODE | {"from_ms": START_MS + 3_600_000, "until_ms": START_MS + 7_200_000},
    nodes.NodeResumed: _NODE,
    nodes.NodeWithdrawn: _NODE,
    nodes.NodeLost: _NODE,
    nodes.NodeVerified: _NODE | {"tier": Tier.CONSISTENT, "method": "look", "expires_ms": FOR_EVER_MS},
    jobs.JobSubmitted: _JOB | {"name": "job", "program": Program(argv=("true",)), "timeout_s": 3600},
    jobs.JobMatched: _JOB
    | {"attempt": 1, "node_id": NODE, "cards": (card().uuid,), "price_uusd_per_gpu_hour": 400_000, "claim_by_ms": START_MS + 10_000},
    jobs.JobClaimed: _ATTEMPT | {"output_token": "00112233445566ff"},
    jobs.JobDeclined: _ATTEMPT,
    jobs.JobStarted: _ATTEMPT,
    jobs.SessionReady: _ATTEMPT,
    jobs.UsageRecorded: _ATTEMPT | {"ran_ms": 1000},
    jobs.JobSucceeded: _ATTEMPT | {"exit_code": 0, "ran_ms": 1000},
    jobs.JobFailed: _ATTEMPT | {"exit_code": 1, "ran_ms": 1000, "reason": Reason.EXITED_NONZERO},
    jobs.JobTimedOut: _ATTEMPT | {"ran_ms": 1000},
    jobs.JobCancelled: _ATTEMPT | {"ran_ms": 1000},
    jobs.GpusReleased: _ATTEMPT,
    jobs.LeaseExpired: _ATTEMPT | _NODE,
    jobs.JobCancelRequested: _JOB,
    jobs.SessionCloseRequested: _JOB,
    jobs.JobReprioritised: _JOB | {"priority": 75},
    jobs.JobRepriced: _JOB | {"max_price_uusd_per_gpu_hour": 500_000},
    jobs.JobExtended: _JOB | {"extra_s": 3600},
    jobs.JobRequeued: _JOB | {"attempt": 2, "reason": Reason.DECLINED, "not_before_ms": START_MS + 2000},
    jobs.JobExpired: _JOB,
    jobs.GangStopped: _JOB | {"reason": Reason.NODE_LOST},
    market.MarketCreated: {
        "market_id": HASH,
        "name": "market",
        "root": OPERATOR,
        "matcher_key": KEY,
        "delegation": "delegation",
        "root_signature": bytes(65),
        "operators": (OPERATOR,),
    },
    market.MatcherStarted: {"version": "0.1.0"},
    market.OperatorKeyRotated: {"matcher_key": KEY, "delegation": "delegation", "root_signature": bytes(65)},
    market.PolicyChanged: {"policy": Policy(name="fcfs")},
    market.LimitChanged: {"party": BUYER, "gpus": 4},
    market.NodeBanned: _NODE,
    market.MatchingPaused: {},
    market.MatchingResumed: {},
    market.EventRefused: {"key": KEY, "number": 1, "hash": HASH, "reason": Refusal.NOT_YOURS},
    identity.SessionKeyAuthorised: {
        "key": KEY,
        "role": Role.BUYER,
        "expires_ms": FOR_EVER_MS,
        "text": "delegation",
        "wallet_signature": bytes(65),
    },
    identity.SessionKeyRevoked: {"key": KEY},
    identity.OrganisationCreated: _ORG | {"name": "org"},
    identity.MemberAdded: _ORG | {"wallet": SELLER, "role": OrgRole.MEMBER},
    identity.MemberRoleChanged: _ORG | {"wallet": SELLER, "role": OrgRole.VIEWER},
    identity.MemberRemoved: _ORG | {"wallet": SELLER},
    identity.ReadTokenIssued: {"token_sha256": HASH, "name": "token", "expires_ms": FOR_EVER_MS},
    identity.ReadTokenRevoked: {"token_sha256": HASH},
    money.CreditsGranted: _AMOUNT,
    money.FundsDeposited: _AMOUNT | {"chain_ref": "0xabc"},
    money.FundsHeld: _AMOUNT | _JOB,
    money.PaymentCaptured: _JOB | {"buyer": BUYER, "seller": SELLER, "amount_uusd": USD},
    money.HoldReleased: _AMOUNT | _JOB,
    money.WithdrawalRequested: _AMOUNT,
    money.FundsWithdrawn: _AMOUNT | {"chain_ref": "0xabc"},
}
"""What a test that does not care gets, for every kind of event."""


def make(kind: type[E], /, **changes: Any) -> E:
    """An event of this kind, with defaults for whatever is not given."""
    return kind(**(DEFAULTS[kind] | changes))


def job_submitted(name: str = "job", **changes: Any) -> JobSubmitted:
    """A job called `name`. Fields of Requirements may be given as if they were the event's own."""
    asked = {field: changes.pop(field) for field in Requirements.__struct_fields__ if field in changes}
    if asked:
        changes["requirements"] = Requirements(**asked)
    if "max_price" in changes:
        changes["max_price_uusd_per_gpu_hour"] = changes.pop("max_price")
    return make(JobSubmitted, job_id=job_id(name), name=name, **changes)


def node_offered(name: str = "node", *, gpus: int = 1, price: int = 400_000, owner: str = SELLER, **changes: Any) -> NodeOffered:
    """A node of `owner` with `gpus` equal cards; `model`, `vram_mib`, `cuda`, `simulated` and `healthy` are those of the cards."""
    of_cards = {field: changes.pop(field) for field in ("model", "vram_mib", "cuda", "simulated", "healthy", "driver") if field in changes}
    cards = tuple(card(index, node=name, **of_cards) for index in range(gpus))
    values = {"node_id": ids.node_id(owner, name), "name": name, "cards": cards, "price_uusd_per_gpu_hour": price}
    return make(NodeOffered, **(values | changes))


class By(NamedTuple):
    """An event and who sent it, where that is not the usual one."""

    wallet: str
    event: Event


class Later(NamedTuple):
    """Time passes."""

    ms: int


Happening = Event | By | Later


class History:
    """What has happened in a market so far, and the clock of its next event."""

    def __init__(self, state: Market | None = None, *, at_ms: int = START_MS) -> None:
        self.market = Market(operators=(OPERATOR,)) if state is None else state
        self.now_ms = at_ms
        self.records: list[Record] = []

    def happen(self, *happenings: Happening) -> Market:
        """Fold all of it; nothing of it may be refused."""
        for happening in happenings:
            if isinstance(happening, Later):
                self.now_ms += happening.ms
            else:
                result = self.try_event(happening)
                assert not isinstance(result, Refusal), f"{happening} was refused: {result}"
        return self.market

    def try_event(self, happening: Event | By) -> Applied | Refusal:
        """Fold one event, or hear why it has no effect."""
        return self.apply(self.record(happening))

    def apply(self, record: Record) -> Applied | Refusal:
        """Fold a record and keep it, if it had an effect."""
        result = apply(self.market, record)
        if not isinstance(result, Refusal):
            self.records.append(record)
        return result

    def record(self, happening: Event | By) -> Record:
        """The record that this event would be at the ledger's next place."""
        sender, event = happening if isinstance(happening, By) else (sender_of(happening), happening)
        if not sender:
            return self._record(event, "", b"", 0)
        role = role_of(event, sender)
        key = digest(f"{sender} {role}")
        session = self.market.identity.keys.get(key)
        if session is None and not isinstance(event, identity.SessionKeyAuthorised):
            authorised = make(identity.SessionKeyAuthorised, key=key.hex(), role=role)
            assert not isinstance(self.apply(self._record(authorised, sender, key, 1)), Refusal)
            session = self.market.identity.keys[key]
        return self._record(event, sender, key, 1 if session is None else session.last_number + 1)

    def _record(self, event: Event, sender: str, key: bytes, number: int) -> Record:
        seq = self.market.last_seq + 1
        return Record(seq, self.now_ms, event, sender, key, number, digest(f"event {seq}"))


def role_of(event: Event, sender: str) -> Role:
    """The role in which `sender` may say this."""
    roles = [Role(role) for role in PUBLISHERS[type(event)] if role in set(Role)] or [Role.BUYER]
    return Role.OPERATOR if sender == OPERATOR and Role.OPERATOR in roles else roles[0]


def sender_of(event: Event) -> str:
    """Who says this when a test does not tell: the matcher where it may, else the buyer, the seller or the operator."""
    publishers = PUBLISHERS[type(event)]
    if "matcher" in publishers and Role.SELLER not in publishers:
        return ""
    return {Role.BUYER: BUYER, Role.SELLER: SELLER, Role.OPERATOR: OPERATOR}[Role(publishers[0])]


def given(*happenings: Happening, policy: Policy | None = None) -> Market:
    """The market after all of this has happened."""
    history = History()
    if policy is not None:
        history.market.policy = policy
    return history.happen(*happenings)


def job_of(state: Market, name: str = "job") -> Job:
    """The job that tests call `name`."""
    return state.jobs[job_id(name)]


def node_of(state: Market, name: str = "node", owner: str = SELLER) -> Node:
    """The node that tests call `name`."""
    return state.nodes[ids.node_id(owner, name)]


def matched(state: Market, name: str = "job", node: str = "node", **changes: Any) -> JobMatched:
    """The match of a queued job with the first free cards of a node."""
    job, place = job_of(state, name), node_of(state, node)
    free = [one.uuid for one in place.offer.cards if one.uuid not in place.taken]
    values = {
        "job_id": job_id(name),
        "attempt": job.attempts + 1,
        "node_id": place.node_id,
        "cards": tuple(free[: job.submitted.requirements.num_gpus]),
        "price_uusd_per_gpu_hour": place.price_uusd_per_gpu_hour,
    }
    return make(JobMatched, **(values | changes))
