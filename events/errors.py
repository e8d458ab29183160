"""What the environment can do to us, as one tree. A domain "no" is never an exception; it is a value with a reason.

BazaarError
  MarketUnreachable     no broker, no answer in time
  ConnectionRefused     the broker or the callout would not let us in
  LogError
    LogUnavailable      the ledger cannot be read or appended to just now
    AppendConflict      another writer appended first: refold and stand by
    LogCorrupt          the log is not what its hashes say: halt, an operator decides
  IdentityError         keystore, passphrase, delegation
  Refused               the market answered no; carries the refusal
"""

from __future__ import annotations

from events.reasons import REFUSALS, Refusal


class BazaarError(Exception):
    """Base of all. `what` happened, `why`, and `hint`: what to try."""

    what = "Something went wrong."

    def __init__(self, what: str | None = None, *, why: str = "", hint: str = "") -> None:
        super().__init__(what or self.what)
        self.what = what or self.what
        self.why = why
        self.hint = hint


class MarketUnreachable(BazaarError):
    """Nobody answers at the market's address."""

    what = "Cannot reach the market."


class ConnectionRefused(BazaarError):
    """The broker answered and refused this login."""

    what = "The market refused the login."


class LogError(BazaarError):
    """Base of what can go wrong with the ledger."""

    what = "The ledger failed."


class LogUnavailable(LogError):
    """The ledger cannot be read or appended to just now; whether an append happened may be unknown."""

    what = "The ledger is not available."


class AppendConflict(LogError):
    """Another writer appended first."""

    what = "Another matcher writes this ledger."


class LogCorrupt(LogError):
    """The log does not continue where its hashes say it must."""

    what = "The ledger is damaged."


class IdentityError(BazaarError):
    """A wallet, passphrase or delegation is missing or wrong."""

    what = "No usable identity."


class Refused(BazaarError):
    """The market said no."""

    def __init__(self, refusal: Refusal, detail: str = "") -> None:
        row = REFUSALS[refusal]
        super().__init__(row.what, why=detail or row.why, hint=row.hint)
        self.refusal = refusal
