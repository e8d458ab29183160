"""What the operator's commands ask of the matcher: the rules in force, whom limits are for, and which node, job or party is meant. Pure.

Asked inside the market's own account only (`market.rules`, `market.find`), by who holds its key; nobody else gets an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from events import wire
from events.codec import Malformed
from events.market import Policy
from projections.job_states import TERMINAL
from projections.market import Limit, Market
from projections.parties import Party, spent_this_month_uusd, spent_today_uusd
from services.matcher.policies import row_of

FOUND_MAX = 6


class PartyUse(msgspec.Struct, frozen=True, kw_only=True):
    """A wallet or organisation under limits, and what it uses."""

    party: str
    limit: Limit
    gpus: int = 0
    day_uusd: int = 0
    month_uusd: int = 0
    committed_uusd: int = 0


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of the market at an event."""

    seq: int
    policy: Policy
    sentence: str
    policy_seq: int
    policy_ms: int
    paused: bool
    limits: tuple[PartyUse, ...]


class FindRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which thing is meant by what an operator typed."""

    kind: str
    """`node`, `job` or `party`."""
    text: str


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Something that may be meant."""

    id: str
    name: str
    state: str = ""


class FindAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """All that may be meant, a few at most."""

    found: tuple[Candidate, ...]


def rules(market: Market, now_ms: int) -> Rules:
    """What is in force."""
    uses = tuple(_use(name, limit, market.parties.get(name), now_ms) for name, limit in market.limits.items() if limit != Limit())
    return Rules(
        seq=market.last_seq,
        policy=market.policy,
        sentence=row_of(market.policy).sentence,
        policy_seq=market.policy_seq,
        policy_ms=market.policy_ms,
        paused=market.paused,
        limits=uses,
    )


def _use(name: str, limit: Limit, party: Party | None, now_ms: int) -> PartyUse:
    if party is None:
        return PartyUse(party=name, limit=limit)
    return PartyUse(
        party=name,
        limit=limit,
        gpus=party.gpus,
        day_uusd=spent_today_uusd(party, now_ms),
        month_uusd=spent_this_month_uusd(party, now_ms),
        committed_uusd=party.committed_uusd,
    )


def answer_find(market: Market, data: bytes) -> bytes:
    """The answer to the bytes of a question."""
    try:
        return wire.encode(find(market, wire.decode(data, FindRequest)))
    except Malformed:
        return wire.encode(wire.Failure(code="malformed"))


def find(market: Market, request: FindRequest) -> FindAnswer:
    """What may be meant: that with exactly this id, else those of this name, else those whose id begins so."""
    text = request.text
    candidates = {"node": _nodes, "job": _jobs, "party": _parties}.get(request.kind)
    if candidates is None or not text:
        return FindAnswer(found=())
    by_id, by_name, by_prefix = [], [], []
    for one in candidates(market):
        if one.id == text:
            by_id.append(one)
        elif one.name == text:
            by_name.append(one)
        elif one.id.startswith(text):
            by_prefix.append(one)
    return FindAnswer(found=tuple((by_id or by_name or by_prefix)[:FOUND_MAX]))


def _nodes(market: Market) -> Iterator[Candidate]:
    return (Candidate(id=name, name=node.offer.name, state=node.state.value) for name, node in market.nodes.items())


def _jobs(market: Market) -> Iterator[Candidate]:
    """Jobs that have not ended; one that has is found by its whole id, to hear that it has."""
    return (Candidate(id=name, name="", state=job.state.value) for name, job in market.jobs.items() if job.state not in TERMINAL)


def _parties(market: Market) -> Iterable[Candidate]:
    found = [Candidate(id=name, name=org.name) for name, org in market.identity.orgs.items()]
    return [*found, *(Candidate(id=name, name="") for name in market.parties if name not in market.identity.orgs)]
