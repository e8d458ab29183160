"""Money as double entry: every event is postings that add up to zero, or it is void. Nothing outside this file changes an account.

Accounts: `world` (outside), `avail:<wallet>`, `held:<job>`, `asked:<wallet>` (withdrawal under way), `earned` is `avail` of the seller.
Only `world` may be negative. With payments `none` no event of these comes, and bills are folds of jobs (`projections/jobs.py`).
"""

from __future__ import annotations

import msgspec

from events.fact import Event
from events.money import (
    CreditsGranted,
    FundsDeposited,
    FundsHeld,
    FundsWithdrawn,
    HoldReleased,
    PaymentCaptured,
    WithdrawalRequested,
)
from events.reasons import Refusal

WORLD = "world"

Posting = tuple[str, str, int]
"""(from, to, micro-USD)."""


class Ledger(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Balances in micro-USD by account; an account without entry has 0."""

    balances: dict[str, int] = {}


def postings(event: Event) -> tuple[Posting, ...]:
    """What an event moves; nothing for an event that is not about money."""
    match event:
        case CreditsGranted(wallet=wallet, amount_uusd=amount) | FundsDeposited(wallet=wallet, amount_uusd=amount):
            return ((WORLD, f"avail:{wallet}", amount),)
        case FundsHeld(job_id=job_id, wallet=wallet, amount_uusd=amount):
            return ((f"avail:{wallet}", f"held:{job_id}", amount),)
        case PaymentCaptured(job_id=job_id, seller=seller, amount_uusd=amount):
            return ((f"held:{job_id}", f"avail:{seller}", amount),)
        case HoldReleased(job_id=job_id, wallet=wallet, amount_uusd=amount):
            return ((f"held:{job_id}", f"avail:{wallet}", amount),)
        case WithdrawalRequested(wallet=wallet, amount_uusd=amount):
            return ((f"avail:{wallet}", f"asked:{wallet}", amount),)
        case FundsWithdrawn(wallet=wallet, amount_uusd=amount):
            return ((f"asked:{wallet}", WORLD, amount),)
        case _:
            return ()


def post(ledger: Ledger, event: Event) -> Refusal | None:
    """Move the money, all of it or none."""
    moves = postings(event)
    balances = ledger.balances
    if any(source != WORLD and balances.get(source, 0) < amount for source, _, amount in moves):
        return Refusal.INSUFFICIENT_FUNDS
    for source, target, amount in moves:
        _add(balances, source, -amount)
        _add(balances, target, amount)
    return None


def available_uusd(ledger: Ledger, wallet: str) -> int:
    """What a wallet can spend or withdraw."""
    return ledger.balances.get(f"avail:{wallet}", 0)


def _add(balances: dict[str, int], account: str, amount: int) -> None:
    total = balances.get(account, 0) + amount
    if total == 0:
        balances.pop(account, None)
    else:
        balances[account] = total
