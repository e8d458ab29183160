"""Facts about the market itself: its birth, its rules, its writer, and what it refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from events.fact import Event
from events.reasons import Refusal
from events.values import KeyHex, MarketId, Name, NodeId, Priority, Seconds, Seq, Sha256, TimeMs, Uusd, Version, Wallet

PolicyName = Annotated[str, Meta(pattern=r"\A[a-z][a-z-]{0,31}\Z", max_length=32)]


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every number that decides something in the market. In force from the PolicyChanged that carries it."""

    name: PolicyName = "priority"
    ageing_s_per_point: Annotated[int, Meta(ge=0, le=10**6)] = 72
    """A point of priority is worth this head start: 25 points (one level) half an hour. 0: priority alone decides."""
    half_life_s: Seconds = 86400
    """Under `fair-share`, GPU time used so long ago counts half."""
    max_concurrent: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    max_queue: Annotated[int, Meta(ge=1, le=10**7)] = 100
    """Queued jobs of one wallet."""
    auto_retry: bool = True
    timeout_batch_s: Seconds = 3600
    timeout_notebook_s: Seconds = 7200
    timeout_container_s: Seconds = 10800
    claim_s: Seconds = 10
    prepare_s: Seconds = 1200
    suspect_s: Seconds = 15
    lease_s: Seconds = 180
    run_slack_s: Seconds = 120
    """Ledger time past the run timeout at which the matcher ends a run whose node has not."""
    retry_backoff_s: Annotated[int, Meta(ge=0, le=3600)] = 2
    """Doubled at every further attempt."""
    avoid_s: Seconds = 60
    """How long a node that failed or declined a job is passed over for it."""
    keep_place: bool = True
    """The first queued job that could run and must wait has a place kept: another may take it only if it is over in time."""
    inputs_bytes_max: Annotated[int, Meta(ge=0)] = 2 << 30
    results_bytes_max: Annotated[int, Meta(ge=0)] = 2 << 30
    output_bytes_max: Annotated[int, Meta(ge=0)] = 50_000_000


class MarketCreated(Event, frozen=True, kw_only=True):
    """The first event of a ledger."""

    market_id: MarketId
    name: Name
    root: Wallet
    """The offline root: may replace the matcher's key."""
    matcher_key: KeyHex
    """The hot key that signs pages."""
    delegation: Annotated[str, Meta(max_length=2000)]
    root_signature: Annotated[bytes, Meta(min_length=65, max_length=65)]
    operators: Annotated[tuple[Wallet, ...], Meta(max_length=16)]
    payments: Annotated[str, Meta(pattern=r"\A(none|credits|chain)\Z", max_length=8)] = "none"
    policy: Policy = Policy()


class MatcherStarted(Event, frozen=True, kw_only=True):
    """A matcher took over; it expires nothing but queue deadlines for one lease."""

    version: Version


class OperatorKeyRotated(Event, frozen=True, kw_only=True):
    """The root gave the market another hot key."""

    matcher_key: KeyHex
    delegation: Annotated[str, Meta(max_length=2000)]
    root_signature: Annotated[bytes, Meta(min_length=65, max_length=65)]


class PolicyChanged(Event, frozen=True, kw_only=True):
    """The operator changed the rules."""

    policy: Policy


class LimitChanged(Event, frozen=True, kw_only=True):
    """The operator limited a wallet or an organisation; `None` lifts that limit."""

    party: Annotated[str, Meta(pattern=r"\A(0x[0-9a-f]{40}|o[a-z2-7]{15})\Z", max_length=42)]
    gpus: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    spend_day_uusd: Uusd | None = None
    spend_month_uusd: Uusd | None = None
    priority_max: Priority | None = None


class NodeBanned(Event, frozen=True, kw_only=True):
    """The operator took a node off the market; only the operator can undo it."""

    node_id: NodeId
    reason: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9 ._@+,:-]{0,100}\Z", max_length=100)] = ""
    lifted: bool = False


class MatchingPaused(Event, frozen=True, kw_only=True):
    """Nothing new is matched until MatchingResumed."""


class MatchingResumed(Event, frozen=True, kw_only=True):
    """Matching goes on."""


class EventRefused(Event, frozen=True, kw_only=True):
    """A well-signed event had no effect; its number is used up. No free text: refusals are for ever, too."""

    key: KeyHex
    number: Seq
    hash: Sha256
    reason: Refusal
    at_ms: TimeMs = 0
