"""What readers' rights hang on, noted as it is folded, so that a stream ends at the very event that ends its reader's rights. Pure.

Rights may end between two looks at the market and be given back by the second; so what was lost is remembered by its event, not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from events.identity import MemberAdded, MemberRemoved, OrganisationCreated, ReadTokenRevoked
from events.page import Record
from services.api.access import Grant, Viewer
from services.api.problems import ProblemFound

RightsEvent = OrganisationCreated | MemberAdded | MemberRemoved | ReadTokenRevoked
"""Every event that changes what somebody may see."""


class RightsLog:
    """Which event last took something from a wallet or a token, and which last gave a wallet something: a row for each of them at most."""

    def __init__(self) -> None:
        self._lost: dict[Hashable, int] = {}
        self._gained: dict[str, int] = {}

    def note(self, record: Record) -> None:
        """An event was folded; those that change nobody's rights are passed over."""
        match record.event:
            case ReadTokenRevoked(token_sha256=token):
                self._lost[token] = record.seq
            case MemberRemoved(wallet=wallet, org_id=org_id):
                self._lost[wallet] = self._lost[wallet, org_id] = record.seq
            case MemberAdded(wallet=wallet):
                self._gained[wallet] = record.seq
            case OrganisationCreated():
                self._gained[record.sender] = record.seq

    def lost_seq(self, grant: Grant) -> int:
        """The last event that took something from what was granted; 0: none did."""
        if grant.token_sha256 is None:
            return 0
        wallet = grant.viewer.wallet
        from_wallet = self._lost.get(wallet if grant.org_id is None else (wallet, grant.org_id), 0)
        return max(from_wallet, self._lost.get(grant.token_sha256, 0))

    def gained_seq(self, grant: Grant) -> int:
        """The last event that may have given its wallet more to see; 0: none did."""
        return self._gained.get(grant.viewer.wallet or "", 0)


class Rights:
    """What one reader was let in for, after one event. `again`: asks what it would be let in for now. Raises ProblemFound."""

    def __init__(self, grant: Grant, since_seq: int, again: Callable[[], Viewer]) -> None:
        self.grant = grant
        self._since_seq = since_seq
        self._asked_seq = since_seq
        self._again = again

    def hold(self, log: RightsLog, now_ms: int) -> bool:
        """Whether the reader may still see exactly what it was let in for."""
        expires_ms = self.grant.expires_ms
        if log.lost_seq(self.grant) > self._since_seq or (expires_ms is not None and expires_ms <= now_ms):
            return False
        gained_seq = log.gained_seq(self.grant)
        if gained_seq <= self._asked_seq:
            return True
        self._asked_seq = gained_seq
        try:
            return self._again() == self.grant.viewer
        except ProblemFound:
            return False

    def left_ms(self, now_ms: int) -> int | None:
        """After what time they end by themselves; None: never."""
        expires_ms = self.grant.expires_ms
        return None if expires_ms is None else max(0, expires_ms - now_ms)
