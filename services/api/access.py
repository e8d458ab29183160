"""Who reads, and what they may see. Pure.

On loopback without a token everything is shown: whoever can connect there owns the machine. Over NATS the subject proves the wallet; with a
read token, its wallet and organisation are seen; other machines without one see only what is public.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from projections.jobs import Job
from projections.market import Market
from services.api.problems import ProblemFound, Trouble


class Viewer(NamedTuple):
    """Who reads. `wallet` None with `sees_all` False: a stranger, who sees what is public."""

    wallet: str | None = None
    orgs: frozenset[str] = frozenset()
    sees_all: bool = False

    def may_see(self, buyer: str, org: str | None) -> bool:
        """Whether a job of this buyer and organisation is this reader's business."""
        return self.sees_all or (self.wallet is not None and buyer == self.wallet) or (org is not None and org in self.orgs)

    def may_see_job(self, job: Job) -> bool:
        return self.may_see(job.buyer, job.submitted.org_id)

    @property
    def bounds(self) -> tuple[str, frozenset[str]] | None:
        """The same as a filter; None when there are none."""
        return None if self.sees_all else (self.wallet or "", self.orgs)


OWNER_OF_THE_MACHINE = Viewer(sees_all=True)
STRANGER = Viewer()


class Grant(NamedTuple):
    """What a reader was let in for, and what that hangs on. Without a token it lasts as long as the process."""

    viewer: Viewer
    token_sha256: str | None = None
    org_id: str | None = None
    """The one organisation that the token is for; None: all of its wallet's."""
    expires_ms: int | None = None


def wallet_viewer(market: Market, wallet: str) -> Viewer:
    """A wallet, with the organisations that it is a member of."""
    orgs = frozenset(org_id for org_id, org in market.identity.orgs.items() if wallet in org.members)
    return Viewer(wallet, orgs)


def token_grant(market: Market, token: str, now_ms: int) -> Grant:
    """What a token is good for. Raises ProblemFound."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    known = market.identity.tokens.get(digest)
    if known is None or known.revoked or known.expires_ms <= now_ms:
        raise ProblemFound(Trouble.TOKEN_REFUSED)
    if known.org_id is None:
        return Grant(wallet_viewer(market, known.wallet), digest, None, known.expires_ms)
    org = market.identity.orgs.get(known.org_id)
    if org is None or known.wallet not in org.members:  # it was issued by a member; who has left takes no token along
        raise ProblemFound(Trouble.TOKEN_REFUSED)
    return Grant(Viewer(known.wallet, frozenset({known.org_id})), digest, known.org_id, known.expires_ms)


def token_in(headers: Mapping[str, str]) -> str | None:
    """The token that a request carries, None when it carries none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-auth-token") or None


def http_grant(market: Market, headers: Mapping[str, str], *, is_loopback: bool, now_ms: int) -> Grant:
    """Who an HTTP request is. Raises ProblemFound for a token that is not valid."""
    token = token_in(headers)
    if token is not None:
        return token_grant(market, token, now_ms)
    return Grant(OWNER_OF_THE_MACHINE if is_loopback else STRANGER)
