"""One turn of the matcher: admit, expire, match, account. Pure but for the market and the memory, which it changes in place.

If any of its pages cannot be appended, market and memory are worthless and must be folded again: the shell does that.
"""

from __future__ import annotations

from typing import NamedTuple

from events.gangs import master_port
from events.jobs import JobMatched
from events.wire import Beat, BeatAnswer, LiveFrame
from projections.market import Market
from projections.nodes import NodeState
from services.matcher.admission import Arrival, admit
from services.matcher.draft import Closed, Draft
from services.matcher.expiry import expired
from services.matcher.matches import Match
from services.matcher.memory import Memory

ARRIVALS_MAX = 256
"""Messages that one turn takes."""


class BeatArrival(NamedTuple):
    """A heartbeat. The broker has proved the wallet."""

    wallet: str
    beat: Beat


class Answers(NamedTuple):
    """What is told besides the pages: answers to messages that left no trace, and to heartbeats."""

    frames: list[tuple[str, LiveFrame]]
    beats: list[BeatAnswer]
    """In the order of the heartbeats."""


def turn(market: Market, arrivals: list[Arrival], beats: list[BeatArrival], now_ms: int, memory: Memory) -> tuple[list[Closed], Answers]:
    """Everything that happens now, as pages to append in order, and the answers to send once they are durable."""
    draft = Draft(market, memory, now_ms)
    for arrival in arrivals:
        admit(draft, arrival)
    heard = [(beat, _renew(market, memory, beat, now_ms)) for beat in beats]
    draft.decide_all(expired(market, memory, now_ms))
    _match(draft)
    # 4. Account: with payments `none` every bill is a fold of its job; holds and captures will be put down here.
    draft.close()
    answers = [_answer(market, renewed, beat, now_ms) for beat, renewed in heard]
    return draft.closed, Answers(draft.loose_frames(), answers)


def _match(draft: Draft) -> None:
    """Give queued jobs free nodes until no queued job fits any."""
    market, engine, now_ms = draft.market, draft.memory.engine, draft.now_ms
    claim_by_ms = now_ms + market.policy.claim_s * 1000
    while (match := engine.next_match(now_ms)) is not None:
        for one in (match, *match.others):
            event = _matched(market, one, claim_by_ms, first=match if match.others else None)
            refused = draft.decide(event)
            assert refused is None, f"the engine made a match that the fold refuses: {refused} {event}"
        draft.break_page()


def _matched(market: Market, match: Match, claim_by_ms: int, *, first: Match | None) -> JobMatched:
    """The event of a match; `first`: that of rank 0, if it is one of a gang's."""
    job = market.jobs[match.job_id]
    attempt = job.attempts + 1
    return JobMatched(
        job_id=match.job_id,
        attempt=attempt,
        node_id=match.node_id,
        cards=match.cards,
        price_uusd_per_gpu_hour=match.price_uusd_per_gpu_hour,
        claim_by_ms=claim_by_ms,
        variant=match.variant,
        master_addr=None if first is None else market.nodes[first.node_id].offer.address,
        master_port=None if first is None else master_port(job.submitted.group_id or "", attempt),
    )


class Renewal(NamedTuple):
    """What a heartbeat renewed."""

    renewed: tuple[int, ...]
    gone: tuple[int, ...]
    other_boot: str
    known: bool


def _renew(market: Market, memory: Memory, arrival: BeatArrival, now_ms: int) -> Renewal:
    """Renew exactly what the ledger says the node holds; of two agents with one node id the second is turned away."""
    beat = arrival.beat
    node = market.nodes.get(beat.node_id)
    if node is None or node.wallet != arrival.wallet:
        return Renewal((), tuple(lease.epoch for lease in beat.leases), "", False)
    boot, since_ms = memory.boots.get(beat.node_id, ("", 0))
    if boot and boot != beat.boot and now_ms - since_ms < market.policy.suspect_s * 1000:
        return Renewal((), (), boot, True)
    memory.boots[beat.node_id] = (beat.boot, now_ms)
    renewed, gone = [], []
    for lease in beat.leases:
        if market.leases.get(lease.epoch) == beat.node_id:
            memory.renewed_ms[lease.epoch] = now_ms
            renewed.append(lease.epoch)
        else:
            gone.append(lease.epoch)
    if node.presence is NodeState.OFFERED:
        memory.heard(beat.node_id, now_ms, market.policy.suspect_s, market.policy.lease_s)
    return Renewal(tuple(renewed), tuple(gone), "", True)


def _answer(market: Market, renewal: Renewal, arrival: BeatArrival, now_ms: int) -> BeatAnswer:
    node = market.nodes.get(arrival.beat.node_id)
    return BeatAnswer(
        time_ms=max(now_ms, market.time_ms),
        seq=market.last_seq,
        page_hash=market.page_hash,
        prev=market.last_seq_of.get(arrival.wallet, 0),
        renewed=renewal.renewed,
        gone=renewal.gone,
        offered=renewal.known and node is not None and node.presence is NodeState.OFFERED,
        other_boot=renewal.other_boot,
    )
