"""What the matcher remembers beside the market: renewals, rates, deadlines, the index for matching. None of it is truth.

All of it can be lost: a new matcher starts with an empty memory and a lease of patience. The shell owns one; the pure functions of the turn
read and change it.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from nacl.signing import SigningKey, VerifyKey

from projections.market import Market
from projections.nodes import NodeState
from services.matcher.engine import Engine

EVENTS_PER_S = 10_000
EVENTS_BURST = 20_000
REFUSALS_PER_MINUTE = 10
REFUSALS_PER_MINUTE_MARKET = 600
PATIENCE_S = 5


class Deadline(NamedTuple):
    """Something to look at when its time comes; whether it still matters is decided then."""

    due_ms: int
    kind: str
    subject: str
    epoch: int


class Budget(NamedTuple):
    """What is left of a bucket, and when that was."""

    tokens: float
    at_ms: int


class Memory:
    """The matcher's own memory. `signing_key` is the market's hot key."""

    def __init__(self, market: Market, signing_key: SigningKey, now_ms: int) -> None:
        self.signing_key = signing_key
        self.market_id = bytes.fromhex(market.market_id) if market.market_id else bytes(32)
        self.engine = Engine(market)
        self.heard_ms: dict[str, int] = {}
        """Node -> when a beat of it was last answered."""
        self.boots: dict[str, tuple[str, int]] = {}
        """Node -> (boot of the agent that answers for it, since when)."""
        self.renewed_ms: dict[int, int] = {}
        """Epoch -> when its lease was last renewed."""
        self.deadlines: list[Deadline] = []
        self.patient_until_ms = now_ms + (market.policy.lease_s + PATIENCE_S) * 1000
        """Before this, claims, leases, runs and offers do not expire: a new matcher has heard of nobody yet."""
        self.events_left: dict[str, Budget] = {}
        self.refusals_left: dict[str, Budget] = {}
        self.verify_keys: dict[bytes, VerifyKey] = {}
        self._remember(market, now_ms)

    def _remember(self, market: Market, now_ms: int) -> None:
        """Set every deadline that follows from the market as it stands."""
        policy = market.policy
        for name, node in market.nodes.items():
            if node.presence is NodeState.OFFERED:
                self.heard(name, now_ms, policy.suspect_s, policy.lease_s)
            for epoch in node.allocations:
                self.renewed_ms[epoch] = now_ms
                self.after(now_ms + policy.lease_s * 1000, "lease", name, epoch)
        for job_id, job in market.jobs.items():
            if job.ended_ms:
                continue
            if job.submitted.queue_timeout_s is not None:
                self.after(job.submitted_ms + job.submitted.queue_timeout_s * 1000, "queue", job_id, 0)
            run = job.run
            if run is not None and not run.ended_ms:
                self.after(run.claim_by_ms, "claim", job_id, run.epoch)
                self.after(run.matched_ms + policy.prepare_s * 1000, "prepare", job_id, run.epoch)
                if run.started_ms:
                    self.after(run.started_ms + (job.timeout_s + policy.run_slack_s) * 1000, "run", job_id, run.epoch)

    def after(self, due_ms: int, kind: str, subject: str, epoch: int) -> None:
        """Look at this when `due_ms` has come."""
        heapq.heappush(self.deadlines, Deadline(due_ms, kind, subject, epoch))

    def heard(self, node_id: str, now_ms: int, suspect_s: int, lease_s: int) -> None:
        """A beat of this node is answered now, or it has just been offered."""
        if node_id not in self.heard_ms:
            self.after(now_ms + suspect_s * 1000, "suspect", node_id, 0)
            self.after(now_ms + lease_s * 1000, "node", node_id, 0)
        self.heard_ms[node_id] = now_ms
        self.engine.suspect(node_id, False)

    def verify_key(self, key: bytes) -> VerifyKey:
        """The key in the form that checks signatures; made once."""
        made = self.verify_keys.get(key)
        if made is None:
            made = self.verify_keys[key] = VerifyKey(key)
        return made

    def may_send(self, wallet: str, events: int, now_ms: int) -> bool:
        """Take `events` from the wallet's bucket, if they are there."""
        return _take(self.events_left, wallet, events, now_ms, per_s=EVENTS_PER_S, burst=EVENTS_BURST)

    def may_record_refusal(self, wallet: str, now_ms: int) -> bool:
        """Whether one more refusal of this wallet may enter the ledger."""
        return _take(self.refusals_left, wallet, 1, now_ms, per_s=REFUSALS_PER_MINUTE / 60, burst=REFUSALS_PER_MINUTE) and _take(
            self.refusals_left, "", 1, now_ms, per_s=REFUSALS_PER_MINUTE_MARKET / 60, burst=REFUSALS_PER_MINUTE_MARKET
        )

    def next_wakeup_ms(self) -> int | None:
        """When a turn is due although nobody sends anything; None: not before somebody does."""
        due = [self.deadlines[0].due_ms] if self.deadlines else []
        ready = self.engine.next_wakeup_ms()
        if ready is not None:
            due.append(ready)
        return min(due) if due else None


def _take(buckets: dict[str, Budget], name: str, amount: float, now_ms: int, *, per_s: float, burst: float) -> bool:
    left, at_ms = buckets.get(name, Budget(burst, now_ms))
    left = min(burst, left + max(0, now_ms - at_ms) * per_s / 1000)
    if left < amount:
        buckets[name] = Budget(left, now_ms)
        return False
    buckets[name] = Budget(left - amount, now_ms)
    return True
