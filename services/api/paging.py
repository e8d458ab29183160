"""Where a list goes on: opaque cursors over the key that it is sorted by. Never an offset: rows that come or go shift nothing.

A cursor is text that a caller may have made up; whatever it says, reading it ends in a key of the right shape or in a `bad_query`.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from events.codec import HOSTILE_DECODE_ERRORS
from services.api.problems import bad_query

LIMIT_DEFAULT = 50
LIMIT_MAX = 1000
CURSOR_CHARACTERS_MAX = 200

_Place = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]


class BySeq(msgspec.Struct, frozen=True, array_like=True, tag="s", forbid_unknown_fields=True):
    """After the row with this sequence."""

    seq: _Place


class ByPrice(msgspec.Struct, frozen=True, array_like=True, tag="p", forbid_unknown_fields=True):
    """After the node with this price and id."""

    price: _Place
    node_id: Annotated[str, Meta(max_length=16)]


K = TypeVar("K", BySeq, ByPrice)

_decoder = msgspec.msgpack.Decoder(BySeq | ByPrice)
_encoder = msgspec.msgpack.Encoder()


def write(key: BySeq | ByPrice) -> str:
    """The cursor of this place."""
    return urlsafe_b64encode(_encoder.encode(key)).decode().rstrip("=")


def read(text: str | None, shape: type[K]) -> K | None:
    """The place that a cursor names, None for the beginning. Raises ProblemFound."""
    if text is None:
        return None
    try:
        if len(text) > CURSOR_CHARACTERS_MAX or not text.isascii():
            raise ValueError(text)
        key = _decoder.decode(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, *HOSTILE_DECODE_ERRORS):
        raise bad_query("cursor", "it is none of ours; begin again without it") from None
    if not isinstance(key, shape):
        raise bad_query("cursor", "it belongs to another list; begin again without it")
    return key
