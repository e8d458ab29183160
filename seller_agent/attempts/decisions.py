"""What a node does next about an attempt: pure, level-triggered, called again whenever anything about the attempt changed.

`decide` orders what is due and marks it as begun, so that nothing is ordered twice. One rule stands above all others: nothing is started
before the node's own claim is in the ledger, and nothing runs on without a lease.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from events.values import JobKind
from projections.run_limits import time_limit
from seller_agent.attempts.attempt import Attempt, Run, Standing, Stop, Work

GRACE_S = 10


class Do(StrEnum):
    """What is to be done now."""

    CLAIM = "claim"
    DECLINE = "decline"
    PREPARE = "prepare"
    ABANDON = "abandon"  # stop preparing
    START = "start"
    TELL_STARTED = "tell_started"
    EXTEND = "extend"  # the runner is told how long the run may take now
    STOP = "stop"
    SAVE = "save"  # ship the rest of the output, collect and store the results
    REPORT = "report"  # the end, and that the cards are free
    RELEASE = "release"  # only that the cards are free
    REMOVE = "remove"  # the runner forgets the run
    FORGET = "forget"  # folder and journal row go


class Node(msgspec.Struct, kw_only=True):
    """What of the node itself a decision hangs on."""

    accepting: bool = True
    """New jobs are taken."""
    evicting: bool = False
    """What runs is to be stopped."""
    known_cards: frozenset[str] = frozenset()
    sick: frozenset[str] = frozenset()
    """Cards that do not answer any more."""
    sessions: bool = False
    """Whether notebooks and containers can be served."""
    lease_s: int = 180
    """After this long without an answered beat the matcher takes the cards back (the market's policy)."""
    busy: dict[str, int] = {}
    """Card UUID -> epoch whose program may be using it."""


def decide(attempt: Attempt, node: Node, now_boot_ms: int) -> list[Do]:
    """What is due now, in order; each is marked as begun here and ordered once."""
    if attempt.forgotten:
        return []
    if attempt.run is Run.EXITED or (attempt.run is Run.NONE and attempt.removed is Work.DONE):
        _free(attempt, node)
    if attempt.standing is Standing.MATCHED:
        return _answer(attempt, node, now_boot_ms)
    if attempt.standing is not Standing.CLAIMED:
        return _wind_up(attempt)
    _find_reason_to_stop(attempt, node, now_boot_ms)
    if attempt.reported:
        return _remove(attempt)
    if attempt.run is Run.NONE:
        return _toward_start(attempt, node)
    return _toward_end(attempt)


def lapsed(attempt: Attempt, node: Node, now_boot_ms: int) -> bool:
    """Whether the lease is over by our own count: after two thirds of the matcher's (120 of 180 s), from *sending* the beat."""
    return now_boot_ms - attempt.lease_sent_boot_ms >= node.lease_s * 1000 * 2 // 3


def guard_until_ms(node: Node, sent_boot_ms: int) -> int:
    """When a run whose last answered beat was sent then is gone for good, kill included, whoever is alive: five sixths of the
    matcher's lease (150 of 180 s), less a margin for the kill itself."""
    return sent_boot_ms + node.lease_s * 1000 * 29 // 36


def reason_to_decline(attempt: Attempt, node: Node) -> str:
    """Why this match cannot be taken, in words for the buyer; empty when it can."""
    order = attempt.order
    if not node.accepting:
        return "the node takes no new jobs"
    if order.kind is not JobKind.BATCH and not node.sessions:
        return "the node serves no sessions"
    if order.kind is JobKind.BATCH and not order.program.argv:
        return "the job names no command"
    if any(card not in node.known_cards for card in attempt.cards):
        return "a card of the match is not one of this node"
    if len(set(attempt.cards)) != order.requirements.num_gpus:
        return "the match has another number of cards than the job asks"
    return ""


def run_time_s(attempt: Attempt) -> int:
    """How long the run may take, by the timeout as it is now, the estimate and the budget."""
    return time_limit(attempt.order, attempt.timeout_s, attempt.price_uusd_per_gpu_hour)[0]


def _answer(attempt: Attempt, node: Node, now_boot_ms: int) -> list[Do]:
    if attempt.answered:
        return []
    attempt.answered = True
    attempt.detail = reason_to_decline(attempt, node)
    if attempt.detail:
        return [Do.DECLINE]
    attempt.lease_sent_boot_ms = now_boot_ms
    if attempt.prepared is not Work.NONE:
        return [Do.CLAIM]
    attempt.prepared = Work.DOING
    return [Do.CLAIM, Do.PREPARE]


def _find_reason_to_stop(attempt: Attempt, node: Node, now_boot_ms: int) -> None:
    if attempt.stop is not None or attempt.run is Run.EXITED or attempt.reported:
        return
    if attempt.cancelled_by:
        attempt.stop = Stop.CANCEL
    elif attempt.gang_stopped:
        attempt.stop = Stop.GANG
    elif attempt.closing:
        attempt.stop = Stop.CLOSE
    elif attempt.over is not None:
        attempt.stop = attempt.over
    elif lapsed(attempt, node, now_boot_ms):
        attempt.stop = Stop.LEASE
    elif node.evicting:
        attempt.stop = Stop.EVICT
    elif not node.sick.isdisjoint(attempt.cards):
        attempt.stop = Stop.CARD


def _toward_start(attempt: Attempt, node: Node) -> list[Do]:
    if attempt.stop is not None or attempt.failure is not None:
        return _end_without_run(attempt)
    if attempt.prepared is Work.NONE:
        attempt.prepared = Work.DOING
        return [Do.PREPARE]
    if attempt.prepared is Work.DONE and not any(card in node.busy for card in attempt.cards):
        attempt.run, attempt.given_s = Run.STARTING, run_time_s(attempt)
        for card in attempt.cards:
            node.busy[card] = attempt.epoch
        return [Do.START]
    return []


def _end_without_run(attempt: Attempt) -> list[Do]:
    """What was prepared, or half started, goes first: the cards are free when it is gone."""
    if attempt.prepared is Work.DOING:
        return _abandon(attempt)
    if attempt.removed is not Work.DONE:
        return _remove(attempt)
    attempt.reported = attempt.released = True
    return [Do.REPORT]


def _toward_end(attempt: Attempt) -> list[Do]:
    todo = _tell_started(attempt)
    if attempt.run is Run.RUNNING:
        todo += _stop(attempt) if attempt.stop is not None else _extend(attempt)
    elif attempt.run is Run.EXITED and attempt.saved is Work.NONE:
        attempt.saved = Work.DOING
        todo.append(Do.SAVE)
    elif attempt.run is Run.EXITED and attempt.saved is Work.DONE:
        attempt.reported = attempt.released = True
        todo += [Do.REPORT, *_remove(attempt)]
    return todo


def _tell_started(attempt: Attempt) -> list[Do]:
    """Only of a program that did start."""
    status = attempt.status
    if attempt.started_told or status is None or (status.error is not None and not status.ran_ms):
        return []
    attempt.started_told = True
    return [Do.TELL_STARTED]


def _extend(attempt: Attempt) -> list[Do]:
    """Whoever guards the run goes by the buyer's last word, also when it came while the run was starting or the agent was away."""
    allowed_s = run_time_s(attempt)
    if attempt.given_s == allowed_s:
        return []
    attempt.given_s = allowed_s
    return [Do.EXTEND]


def _stop(attempt: Attempt) -> list[Do]:
    if attempt.stop is None or attempt.stop_told:
        return []
    attempt.stop_told = True
    return [Do.STOP]


def _wind_up(attempt: Attempt) -> list[Do]:
    """The ledger has ended it, or taken it back: leave nothing behind."""
    if attempt.stop is None and attempt.run is not Run.EXITED:
        attempt.stop = Stop.LOST
    if attempt.prepared is Work.DOING:
        return _abandon(attempt)
    if attempt.is_active:
        return _stop(attempt) if attempt.run is Run.RUNNING else []
    if attempt.saved is Work.DOING:
        return []
    todo = _remove(attempt)
    if attempt.standing is Standing.ENDED and not attempt.released and (attempt.run is Run.EXITED or attempt.removed is Work.DONE):
        attempt.released = True
        todo.append(Do.RELEASE)
    if attempt.standing is Standing.GONE and attempt.removed is Work.DONE and not attempt.shipping:
        attempt.forgotten = True
        todo.append(Do.FORGET)
    return todo


def _remove(attempt: Attempt) -> list[Do]:
    if attempt.removed is not Work.NONE:
        return []
    attempt.removed = Work.DOING
    return [Do.REMOVE]


def _abandon(attempt: Attempt) -> list[Do]:
    if attempt.abandoned:
        return []
    attempt.abandoned = True
    return [Do.ABANDON]


def _free(attempt: Attempt, node: Node) -> None:
    for card in attempt.cards:
        if node.busy.get(card) == attempt.epoch:
            del node.busy[card]
