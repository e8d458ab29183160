"""Answers that are kept: each as long as nothing it is made of has changed, and a dear one a moment longer.

An answer says of which moment it is (`as_of_seq`), so one that took long to make may serve all who ask in the next few hundredths of a
second; else whoever asks for a long list while the market moves would have it made for each request. Does no I/O.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

KEPT_BYTES = 64 << 20
CHEAP_S = 0.001
"""An answer that took less than this to make serves nobody once something has changed."""
SERVES_TIMES = 6
"""A dearer one serves for so many times as long as it took, so that at most a part of the time goes into making it again,"""
SERVES_S_MAX = 0.1
"""and never longer than this."""
PACKED_FROM_BYTES = 4096
_GZIP_WBITS = 31


class Answer:
    """The bytes of an answer. `etag`: the same as long as nothing but `as_of_seq` differs. `next_query`: the query of the next page."""

    __slots__ = ("_packed", "as_of_seq", "body", "etag", "next_query")

    def __init__(self, body: bytes, etag: str, as_of_seq: int, next_query: str | None = None) -> None:
        self.body = body
        self.etag = etag
        self.as_of_seq = as_of_seq
        self.next_query = next_query
        self._packed: bytes | None = None

    @property
    def is_worth_packing(self) -> bool:
        """Whether compressing it saves more than it costs."""
        return len(self.body) >= PACKED_FROM_BYTES

    def packed(self) -> bytes:
        """The body as gzip, made once."""
        if self._packed is None:
            packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP_WBITS)
            self._packed = packer.compress(self.body) + packer.flush()
        return self._packed


class _Kept(NamedTuple):
    version: int
    second: int
    until_s: float
    answer: Answer


class Shelf:
    """The answers of one desk, by what was asked."""

    def __init__(self) -> None:
        self._kept: dict[object, _Kept] = {}
        self._bytes = 0

    def find(self, key: object, *, version: int, now_ms: int, now_s: float) -> Answer | None:
        """An answer that still holds. `now_s` is a clock that never goes back."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        is_true = kept.version == version and kept.second == now_ms // 1000
        return kept.answer if is_true or now_s < kept.until_s else None

    def keep(self, key: object, answer: Answer, *, version: int, now_ms: int, now_s: float, took_s: float) -> None:
        """Keep an answer of this version of the mirror, which took so long to make."""
        serves_s = min(SERVES_S_MAX, SERVES_TIMES * took_s) if took_s > CHEAP_S else 0.0
        before = self._kept.pop(key, None)
        self._bytes += len(answer.body) - (0 if before is None else len(before.answer.body))
        if self._bytes > KEPT_BYTES:
            self._kept.clear()
            self._bytes = len(answer.body)
        self._kept[key] = _Kept(version, now_ms // 1000, now_s + serves_s, answer)
