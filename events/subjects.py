"""Every subject of the broker, and who may publish which fact. Permissions and admission are derived from here.

The one rule: a subject is `<kind>.<from>.<to>...`; a wallet publishes only as `<from>` and subscribes only as `<to>`.
Subjects are built from ids of the alphabet [a-z0-9x] only, never from what somebody typed.
"""

from __future__ import annotations

from events import identity, jobs, market, money, nodes
from events.fact import Event
from events.values import Role

LEDGER_STREAM = "LEDGER"
LEDGER_SUBJECT = "ledger.page"
INTAKE_STREAM = "INTAKE"
INTAKE_ALL = "intake.*"
OUTPUT_STREAM = "OUTPUT"
FILES_STREAM = "FILES"
LIVE_MARKET = "live.market.tick"
RPC_VERBS = ("hello", "sync", "beat", "quote", "why", "files", "read")

MATCHER = "matcher"
BUYER, SELLER, OPERATOR = Role.BUYER.value, Role.SELLER.value, Role.OPERATOR.value
ANY_KEY = (BUYER, SELLER, OPERATOR)

PUBLISHERS: dict[type[Event], tuple[str, ...]] = {
    nodes.NodeOffered: (SELLER,),
    nodes.NodeRepriced: (SELLER,),
    nodes.NodeDrained: (SELLER, OPERATOR),
    nodes.NodeMaintenancePlanned: (SELLER, OPERATOR),
    nodes.NodeResumed: (SELLER, OPERATOR),
    nodes.NodeWithdrawn: (SELLER,),
    nodes.NodeLost: (MATCHER,),
    nodes.NodeVerified: (OPERATOR,),
    jobs.JobSubmitted: (BUYER,),
    jobs.JobMatched: (MATCHER,),
    jobs.JobClaimed: (SELLER,),
    jobs.JobDeclined: (SELLER,),
    jobs.JobStarted: (SELLER,),
    jobs.SessionReady: (SELLER,),
    jobs.UsageRecorded: (SELLER,),
    jobs.JobSucceeded: (SELLER,),
    jobs.JobFailed: (SELLER, MATCHER),
    jobs.JobTimedOut: (SELLER, MATCHER),
    jobs.JobCancelRequested: (BUYER, OPERATOR),
    jobs.JobCancelled: (SELLER,),
    jobs.SessionCloseRequested: (BUYER,),
    jobs.JobReprioritised: (BUYER,),
    jobs.JobRepriced: (BUYER,),
    jobs.JobExtended: (BUYER,),
    jobs.JobRequeued: (MATCHER,),
    jobs.JobExpired: (MATCHER,),
    jobs.GangStopped: (MATCHER,),
    jobs.LeaseExpired: (MATCHER,),
    jobs.GpusReleased: (SELLER,),
    market.MarketCreated: (MATCHER,),
    market.MatcherStarted: (MATCHER,),
    market.OperatorKeyRotated: (MATCHER,),
    market.PolicyChanged: (OPERATOR,),
    market.LimitChanged: (OPERATOR,),
    market.NodeBanned: (OPERATOR,),
    market.MatchingPaused: (OPERATOR,),
    market.MatchingResumed: (OPERATOR,),
    market.EventRefused: (MATCHER,),
    identity.SessionKeyAuthorised: ANY_KEY,
    identity.SessionKeyRevoked: ANY_KEY,
    identity.OrganisationCreated: (BUYER, SELLER),
    identity.MemberAdded: (BUYER, SELLER),
    identity.MemberRoleChanged: (BUYER, SELLER),
    identity.MemberRemoved: (BUYER, SELLER),
    identity.ReadTokenIssued: (BUYER, OPERATOR),
    identity.ReadTokenRevoked: (BUYER, OPERATOR),
    money.CreditsGranted: (OPERATOR,),
    money.FundsDeposited: (MATCHER,),
    money.FundsHeld: (MATCHER,),
    money.PaymentCaptured: (MATCHER,),
    money.HoldReleased: (MATCHER,),
    money.WithdrawalRequested: (BUYER, SELLER),
    money.FundsWithdrawn: (MATCHER,),
}
"""Who says what: the role a session key needs, or the matcher itself."""


def intake(wallet: str) -> str:
    """Where a wallet's signed events go in."""
    return f"intake.{wallet}"


def inbox_prefix(wallet: str) -> str:
    """Where answers to a wallet's requests arrive."""
    return f"_INBOX_{wallet}"


def rpc(verb: str, wallet: str) -> str:
    """Where a wallet asks; the subject proves who asks."""
    assert verb in RPC_VERBS
    return f"rpc.{verb}.{wallet}"


def live(wallet: str, token: str) -> str:
    """A wallet's own feed. Only who knows the token can name it."""
    return f"live.{wallet}.{token}.page"


def output(seller: str, buyer: str, job: str, attempt_token: str) -> str:
    """Where a seller writes a job's output; the buyer reads along live."""
    return f"output.{seller}.{buyer}.{job}.{attempt_token}"


def output_of(buyer: str, job: str) -> str:
    """What a buyer subscribes to for the live output of a job."""
    return f"output.*.{buyer}.{job}.*"


def tunnel(sender: str, receiver: str, session: str, number: int) -> str:
    """One direction of one connection of a session."""
    return f"tunnel.{sender}.{receiver}.{session}.{number}"


def publish_allowed(wallet: str) -> tuple[str, ...]:
    """Everything a wallet's connection may publish to."""
    return (intake(wallet), f"output.{wallet}.*.*.*", *(rpc(verb, wallet) for verb in RPC_VERBS), f"tunnel.{wallet}.*.>")


def subscribe_allowed(wallet: str) -> tuple[str, ...]:
    """Everything a wallet's connection may subscribe to."""
    return (f"{inbox_prefix(wallet)}.>", f"live.{wallet}.>", "live.market.>", f"output.*.{wallet}.>", f"tunnel.*.{wallet}.>")
