"""Facts to bytes and back: one union, one decoder, and the upcasting of shapes that were written long ago.

Decoding hostile bytes ends in `Malformed` and nothing else, whatever is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union, cast

import msgspec

from events import identity, jobs, market, money, nodes
from events.fact import Event

EVENT_CLASSES: tuple[type[Event], ...] = (
    nodes.NodeOffered,
    nodes.NodeRepriced,
    nodes.NodeDrained,
    nodes.NodeMaintenancePlanned,
    nodes.NodeResumed,
    nodes.NodeWithdrawn,
    nodes.NodeLost,
    nodes.NodeVerified,
    jobs.JobSubmitted,
    jobs.JobMatched,
    jobs.JobClaimed,
    jobs.JobDeclined,
    jobs.JobStarted,
    jobs.SessionReady,
    jobs.UsageRecorded,
    jobs.JobSucceeded,
    jobs.JobFailed,
    jobs.JobTimedOut,
    jobs.JobCancelRequested,
    jobs.JobCancelled,
    jobs.SessionCloseRequested,
    jobs.JobReprioritised,
    jobs.JobRepriced,
    jobs.JobExtended,
    jobs.JobRequeued,
    jobs.JobExpired,
    jobs.GangStopped,
    jobs.LeaseExpired,
    jobs.GpusReleased,
    market.MarketCreated,
    market.MatcherStarted,
    market.OperatorKeyRotated,
    market.PolicyChanged,
    market.LimitChanged,
    market.NodeBanned,
    market.MatchingPaused,
    market.MatchingResumed,
    market.EventRefused,
    identity.SessionKeyAuthorised,
    identity.SessionKeyRevoked,
    identity.OrganisationCreated,
    identity.MemberAdded,
    identity.MemberRoleChanged,
    identity.MemberRemoved,
    identity.ReadTokenIssued,
    identity.ReadTokenRevoked,
    money.CreditsGranted,
    money.FundsDeposited,
    money.FundsHeld,
    money.PaymentCaptured,
    money.HoldReleased,
    money.WithdrawalRequested,
    money.FundsWithdrawn,
)
"""Every kind of fact. A class is added here, to `subjects.py` and to `tests/golden/`; it is never taken away."""

EVENT_BYTES_MAX = 16 * 1024
BATCH_MAX = 64
"""Events that one envelope may carry."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cast(Any, Union[EVENT_CLASSES]))
_raws = msgspec.msgpack.Decoder(list[msgspec.Raw])


class Malformed(Exception):
    """The bytes are not a known event within its bounds."""


HOSTILE_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, MemoryError, ValueError)
"""What decoding arbitrary bytes can raise (measured over a million mutated inputs: two of these are not msgspec's)."""

Upcast = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTS: dict[str, Upcast] = {}
"""Written type name -> how its map becomes a map of today's shape. Chained until the type has no entry left."""


def encode_event(event: Event) -> bytes:
    """The bytes of one fact: a msgpack map with its type name under `type`."""
    return _encoder.encode(event)


def decode_event(body: bytes | msgspec.Raw) -> Event:
    """The fact in `body`, today's shape only. Raises Malformed."""
    try:
        return cast(Event, _decoder.decode(body))
    except HOSTILE_DECODE_ERRORS as error:
        raise Malformed(str(error)[:200]) from None


def decode_written(body: bytes | msgspec.Raw) -> Event:
    """The fact in a page that was written by any earlier version. Raises Malformed when even upcasting does not help."""
    try:
        return cast(Event, _decoder.decode(body))
    except HOSTILE_DECODE_ERRORS as error:
        return _upcast(body, error)


def _upcast(body: bytes | msgspec.Raw, error: Exception) -> Event:
    try:
        shape = msgspec.msgpack.decode(body)
        for _ in range(len(UPCASTS)):
            step = UPCASTS.get(shape["type"])
            if step is None:
                break
            shape = step(shape)
        return cast(Event, _decoder.decode(_encoder.encode(shape)))
    except (*HOSTILE_DECODE_ERRORS, TypeError, KeyError):
        raise Malformed(str(error)[:200]) from None


def encode_batch(bodies: list[bytes]) -> bytes:
    """An envelope's body: the event itself when there is one, else the array of them."""
    assert 1 <= len(bodies) <= BATCH_MAX
    if len(bodies) == 1:
        return bodies[0]
    return _encoder.encode([msgspec.Raw(body) for body in bodies])


def split_batch(body: bytes) -> list[bytes]:
    """The single events of an envelope's body, as the bytes that were signed. Raises Malformed."""
    if body and not _is_array(body[0]):
        return [body]
    try:
        parts = [bytes(part) for part in _raws.decode(body)]
    except HOSTILE_DECODE_ERRORS as error:
        raise Malformed(str(error)[:200]) from None
    if not 2 <= len(parts) <= BATCH_MAX:
        raise Malformed(f"a batch has 2 to {BATCH_MAX} events, this one {len(parts)}")
    return parts


def _is_array(first: int) -> bool:
    """Whether a msgpack value that starts with this byte is an array."""
    return 0x90 <= first <= 0x9F or first in (0xDC, 0xDD)
