"""What an attempt is billed for: the smaller of two clocks, to whom the table of reasons says, never above the buyer's total. Pure."""

from __future__ import annotations

from events.reasons import Payer
from events.values import JobKind

REPORT_SLACK_MS = 2000
"""How much later than the program itself its start may reach the ledger; the bill is bounded by ledger time plus this."""


def longest_ms(started_ms: int, cancel_ms: int, now_ms: int) -> int:
    """The longest that a run can have been by the ledger's own clock; a request to cancel stops it. 0 `started_ms`: it never began."""
    if started_ms == 0:
        return 0
    end_ms = min(now_ms, cancel_ms) if cancel_ms else now_ms
    return max(0, end_ms - started_ms) + REPORT_SLACK_MS


def billed_ms(payer: Payer, kind: JobKind, ran_ms: int, usage_ms: int, timeout_s: int) -> int:
    """The milliseconds that the buyer pays, never more than the time that was asked for: the grace after a deadline is free.
    What is the seller's loss costs nothing for a batch job, and a session to its last usage record."""
    if payer is Payer.BUYER:
        return min(ran_ms, timeout_s * 1000)
    if payer is Payer.SELLER and kind is not JobKind.BATCH:
        return min(usage_ms, timeout_s * 1000)
    return 0


def capped(total_uusd: int, cap_uusd: int | None) -> int:
    """A bill never passes the total that the buyer set."""
    return total_uusd if cap_uusd is None else min(total_uusd, cap_uusd)
