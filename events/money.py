"""Facts about money, in integer micro-USD. With payments `none` the ledger holds none of them: the bill is a fold."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from events.fact import Event
from events.values import JobId, Uusd, Wallet

ChainRef = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9:._-]{1,160}\Z", max_length=160)]


class CreditsGranted(Event, frozen=True, kw_only=True):
    """The operator gave a wallet credits."""

    wallet: Wallet
    amount_uusd: Uusd


class FundsDeposited(Event, frozen=True, kw_only=True):
    """A deposit on the chain was confirmed."""

    wallet: Wallet
    amount_uusd: Uusd
    chain_ref: ChainRef


class FundsHeld(Event, frozen=True, kw_only=True):
    """The most that an attempt may cost was set aside."""

    job_id: JobId
    wallet: Wallet
    amount_uusd: Uusd


class PaymentCaptured(Event, frozen=True, kw_only=True):
    """The bill of a job was taken from its hold and given to the seller."""

    job_id: JobId
    buyer: Wallet
    seller: Wallet
    amount_uusd: Uusd


class HoldReleased(Event, frozen=True, kw_only=True):
    """What a job did not use is the buyer's again."""

    job_id: JobId
    wallet: Wallet
    amount_uusd: Uusd


class WithdrawalRequested(Event, frozen=True, kw_only=True):
    """A wallet wants its money out."""

    wallet: Wallet
    amount_uusd: Uusd


class FundsWithdrawn(Event, frozen=True, kw_only=True):
    """A withdrawal was paid on the chain."""

    wallet: Wallet
    amount_uusd: Uusd
    chain_ref: ChainRef
