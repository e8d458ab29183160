"""The gate of the ledger: what a signed message must pass before the market folds it, from cheap checks to dear ones.

Pure but for the draft of the turn. Size, framing, key, number, rate, signature, decode, quotas; whether the event is legal where the
market stands is decided by the fold itself. Every message is answered; what is refused above a budget leaves no trace in the ledger.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from events import delegation, gangs
from events.codec import EVENT_BYTES_MAX, Malformed, decode_event, split_batch
from events.envelope import ENVELOPE_BYTES_MAX, Envelope, event_hash, open_envelope, signature_is_good
from events.fact import Event
from events.gangs import ranks_from
from events.identity import SessionKeyAuthorised
from events.jobs import JobSubmitted
from events.market import EventRefused
from events.page import Record
from events.reasons import Refusal
from events.subjects import intake
from events.wire import Outcome
from projections.identity import SessionKey
from projections.market import Market
from services.matcher.bounds import too_many
from services.matcher.checks import CHECKS, Problem, check_submission
from services.matcher.draft import Draft


class Arrival(NamedTuple):
    """A message from the intake. The broker has proved the wallet."""

    wallet: str
    data: bytes


class Piece(NamedTuple):
    """One event of a message, not yet decoded."""

    wallet: str
    key: bytes
    number: int
    hash: bytes
    body: bytes
    place: int
    """Its place in the message."""


RECORDED = frozenset(
    {
        Refusal.MALFORMED,
        Refusal.QUOTA_EXCEEDED,
        Refusal.QUEUE_FULL,
        Refusal.TOO_MANY,
        Refusal.NOT_YOURS,
        Refusal.NOT_A_MEMBER,
        Refusal.UNKNOWN_JOB,
        Refusal.UNKNOWN_NODE,
        Refusal.ILLEGAL_IN_STATE,
        Refusal.STALE_EPOCH,
        Refusal.INVALID_REQUIREMENT,
        Refusal.UNKNOWN_TARGET,
        Refusal.INSUFFICIENT_FUNDS,
        Refusal.CAP_EXCEEDED,
    }
)
"""Refusals of a well-signed event in its turn: they use its number up. The others leave it to be sent again."""


def admit(draft: Draft, arrival: Arrival) -> None:
    """Fold what may be folded of one message, and answer all of it."""
    try:
        if len(arrival.data) > ENVELOPE_BYTES_MAX:
            raise Malformed("too large")
        envelope = open_envelope(arrival.data)
        bodies = split_batch(envelope.body)
    except Malformed as error:
        refusal = Refusal.TOO_LARGE if len(arrival.data) > ENVELOPE_BYTES_MAX else Refusal.MALFORMED
        digest = hashlib.sha256(arrival.data).digest()
        draft.answer(arrival.wallet, b"", Outcome(0, digest, reason=refusal, detail=str(error)[:100]))
        return
    _admit_envelope(draft, arrival, envelope, bodies)


def _admit_envelope(draft: Draft, arrival: Arrival, envelope: Envelope, bodies: list[bytes]) -> None:
    wallet, key = arrival.wallet, envelope.key
    session = draft.market.identity.keys.get(key)
    hashes = [event_hash(key, envelope.seq + index, body) for index, body in enumerate(bodies)]
    start = _answer_known(draft, wallet, envelope, hashes, session)
    if start == len(bodies):
        return
    problem = _gate(draft, arrival, envelope, session, first=envelope.seq + start, events=len(bodies) - start)
    if problem is not None:
        expected = 1 if session is None else session.last_number + 1
        for index in range(start, len(bodies)):
            outcome = Outcome(envelope.seq + index, hashes[index], 0, problem.refusal, expected, problem.detail)
            draft.answer(wallet, key, outcome)
        return
    draft.open_envelope(wallet, arrival.data)
    pieces = [Piece(wallet, key, envelope.seq + index, hashes[index], bodies[index], index) for index in range(start, len(bodies))]
    while pieces:
        number = ranks_from(pieces[0].body)
        now, pieces = pieces[:number], pieces[number:]
        admitted = _admit_piece(draft, now[0]) if number == 1 else _admit_gang(draft, now, number)
        if not admitted:
            for late in pieces:
                draft.answer(wallet, key, Outcome(late.number, late.hash, 0, Refusal.OUT_OF_SEQUENCE, now[0].number))
            return


def _answer_known(draft: Draft, wallet: str, envelope: Envelope, hashes: list[bytes], session: SessionKey | None) -> int:
    """Answer again what the key has already had answered; how many events that are."""
    if session is None or session.wallet != wallet:
        return 0
    done = 0
    for index, digest in enumerate(hashes):
        number = envelope.seq + index
        if number > session.last_number:
            break
        kept = session.outcomes.get(number)
        if kept is not None and kept[0] == digest[:16]:
            outcome = Outcome(number, digest, kept[1], kept[2])
        else:
            outcome = Outcome(number, digest, 0, Refusal.OUT_OF_SEQUENCE, session.last_number + 1)
        draft.answer(wallet, envelope.key, outcome)
        done = index + 1
    return done


def _gate(draft: Draft, arrival: Arrival, envelope: Envelope, session: SessionKey | None, *, first: int, events: int) -> Problem | None:
    """What can be said against the message before its events are looked at."""
    market, memory = draft.market, draft.memory
    if session is not None:
        if session.wallet != arrival.wallet:
            return Problem(Refusal.NOT_YOURS)
        if session.revoked:
            return Problem(Refusal.KEY_REVOKED)
        if first != session.last_number + 1:
            return Problem(Refusal.OUT_OF_SEQUENCE)
    elif envelope.seq != 1:
        return Problem(Refusal.UNKNOWN_KEY)
    if not memory.may_send(arrival.wallet, events, draft.now_ms):
        return Problem(Refusal.RATE_LIMITED)
    if session is None:
        problem = _stranger(market, arrival.wallet, envelope, draft.now_ms)
        if problem is not None:
            return problem
    if not signature_is_good(envelope, memory.verify_key(envelope.key), memory.market_id, intake(arrival.wallet)):
        if session is None:
            memory.verify_keys.pop(envelope.key, None)
        return Problem(Refusal.BAD_SIGNATURE)
    return None


def _stranger(market: Market, wallet: str, envelope: Envelope, now_ms: int) -> Problem | None:
    """A key that the market does not know may only bring its wallet's delegation."""
    try:
        event = decode_event(split_batch(envelope.body)[0])
    except Malformed as error:
        return Problem(Refusal.MALFORMED, str(error))
    if not isinstance(event, SessionKeyAuthorised):
        return Problem(Refusal.UNKNOWN_KEY)
    if event.key != envelope.key.hex():
        return Problem(Refusal.NOT_YOURS)
    signed = delegation.SignedDelegation(text=event.text, signature=event.wallet_signature)
    try:
        found = delegation.check(signed, market_id=market.market_id, key_hex=event.key, now_ms=now_ms)
    except delegation.DelegationRefused as error:
        return Problem(error.refusal, error.why)
    if found.wallet != wallet or found.role != event.role or found.expires_ms != event.expires_ms:
        return Problem(Refusal.NOT_YOURS, "the delegation says something else than the event")
    return None


def _admit_piece(draft: Draft, piece: Piece) -> bool:
    """Fold one event or refuse it; whether its number is used up."""
    problem, event = _problem_of(draft, piece)
    if problem is None and event is not None:
        draft.answer(piece.wallet, piece.key, Outcome(piece.number, piece.hash, draft.market.last_seq))
        draft.follow(event)
        return True
    assert problem is not None
    seq = _record_refusal(draft, piece, problem) if problem.refusal in RECORDED else 0
    expected = piece.number if seq == 0 else piece.number + 1
    draft.answer(piece.wallet, piece.key, Outcome(piece.number, piece.hash, seq, problem.refusal, expected, problem.detail))
    return seq > 0


def _admit_gang(draft: Draft, pieces: list[Piece], number: int) -> bool:
    """Fold all ranks of a gang, or refuse all: then no number is used up."""
    problem, events = _problem_of_gang(draft.market, pieces, number)
    for piece, event in zip(pieces, events, strict=True) if problem is None else ():
        record = Record(draft.market.last_seq + 1, draft.now_ms, event, piece.wallet, piece.key, piece.number, piece.hash)
        refusal = draft.admit(record, piece.body, piece.place)
        if refusal is not None:
            assert piece is pieces[0], f"the fold takes some ranks of a gang and refuses others: {refusal}"
            problem = Problem(refusal)
            break
        draft.answer(piece.wallet, piece.key, Outcome(piece.number, piece.hash, draft.market.last_seq))
        draft.follow(event)
    if problem is not None:
        for piece in reversed(pieces):  # so that their sender takes the numbers back one by one
            outcome = Outcome(piece.number, piece.hash, 0, problem.refusal, pieces[0].number, problem.detail)
            draft.answer(piece.wallet, piece.key, outcome)
    return problem is None


def _problem_of_gang(market: Market, pieces: list[Piece], number: int) -> tuple[Problem | None, list[Event]]:
    events: list[Event] = []
    try:
        events = [decode_event(piece.body) for piece in pieces]
    except Malformed as error:
        return Problem(Refusal.MALFORMED, str(error)[:100]), events
    first = events[0]
    assert isinstance(first, JobSubmitted)
    told = gangs.fault(events, number)
    if told:
        return Problem(Refusal.INVALID_REQUIREMENT, told), events
    ids = [event.job_id for event in events if isinstance(event, JobSubmitted)]
    known = [job_id for job_id in ids if job_id in market.jobs]
    if known or first.group_id in market.gangs:
        same = known == ids and all(market.jobs[event.job_id].submitted == event for event in events if isinstance(event, JobSubmitted))
        return None if same else Problem(Refusal.ILLEGAL_IN_STATE, "there is a job or a gang of that id"), events
    problems = (check_submission(market, pieces[0].wallet, event, ranks=number) for event in events if isinstance(event, JobSubmitted))
    return next((problem for problem in problems if problem is not None), None), events


def _record_refusal(draft: Draft, piece: Piece, problem: Problem) -> int:
    """Where the refusal stands in the ledger; 0 when it is not written: the key is unknown, or there were many."""
    if piece.key not in draft.market.identity.keys or not draft.memory.may_record_refusal(piece.wallet, draft.now_ms):
        return 0
    refused = EventRefused(key=piece.key.hex(), number=piece.number, hash=piece.hash.hex(), reason=problem.refusal, at_ms=draft.now_ms)
    return draft.market.last_seq if draft.decide(refused) is None else 0


def _problem_of(draft: Draft, piece: Piece) -> tuple[Problem | None, Event | None]:
    if len(piece.body) > EVENT_BYTES_MAX:
        return Problem(Refusal.TOO_LARGE), None
    try:
        event = decode_event(piece.body)
    except Malformed as error:
        return Problem(Refusal.MALFORMED, str(error)[:100]), None
    check = CHECKS.get(type(event))
    if check is not None:
        problem = check(draft.market, piece.wallet, event)
        if problem is not None:
            return problem, None
    told = too_many(draft.market, piece.wallet, event)
    if told:
        return Problem(Refusal.TOO_MANY, told), None
    record = Record(draft.market.last_seq + 1, draft.now_ms, event, piece.wallet, piece.key, piece.number, piece.hash)
    refusal = draft.admit(record, piece.body, piece.place)
    return (None, event) if refusal is None else (Problem(refusal), None)
