"""What travels inside a tunnel once it is open: records of a few kinds, many in one sealed message. Pure.

A message is its number (8 bytes) and the ciphertext of one or more records; a record is kind, stream, length and content. Everything a
stranger could put here ends in Broken, never in another exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

import msgspec

from events.codec import HOSTILE_DECODE_ERRORS

CHUNK_MAX = 128 * 1024
"""Of one record's content."""
PLAIN_MAX = CHUNK_MAX + 4096
"""Of one message before it is sealed; sealed it stays below what a wallet may publish (144 KiB)."""
WINDOW = 1 << 20
"""Bytes that a stream's receiver takes before it has passed any on."""
SMALL_WINDOW = CHUNK_MAX
"""Likewise, of the streams beyond the first LARGE_WINDOWS of a session: what one session can make a peer hold is bounded."""
LARGE_WINDOWS = 8
EARLY_WINDOW = 64 * 1024
"""Bytes that may be sent on a stream before the other side has said that it is open."""
STREAMS_MAX = 64
"""Open at once in one session."""
REASON_MAX = 200
ARGV_MAX = 64
TARGET_BYTES_MAX = 8192

HEADER = Struct("!BII")
U32 = Struct("!I")
SIZE = Struct("!HH")


class Broken(Exception):
    """The session is over: what the other side sent cannot be."""


class Kind(IntEnum):
    """What a record says about its stream; the last three are about the session and name stream 0."""

    OPEN = 1  # a target: connect me to this
    OPENED = 2  # it is connected; the receiver's window
    DATA = 3
    CREDIT = 4  # so many bytes were passed on: as many more may come
    EOF = 5  # no more data from here
    RESET = 6  # the stream is over, with a reason; answered by another RESET
    RESIZE = 7  # of the terminal: columns, rows
    EXIT = 8  # the program on the terminal ended: its code
    PING = 9
    PONG = 10
    BYE = 11  # the session is over, with a reason


class Record(NamedTuple):
    """One record as it arrived."""

    kind: Kind
    stream: int
    content: memoryview


class Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a stream is to be connected to, inside the run: a `place`, or a program on a terminal when there is none."""

    place: str = ""
    """`tcp:PORT`, `unix:NAME`, or SESSION."""
    argv: tuple[str, ...] = ()
    """The program; none: the run's usual shell."""
    columns: int = 0
    """Of the terminal; none, and no rows: the program gets pipes instead."""
    rows: int = 0


SESSION = "session"
"""The place where a session says how its pages are reached, and with which token."""
_PLACE = re.compile(r"tcp:([1-9]\d{0,4})|unix:([A-Za-z0-9_][A-Za-z0-9_.-]{0,99})|session", re.ASCII)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Target)


def is_place(text: str) -> bool:
    """Whether this is a place that can be dialled: a port, or the name of a socket directly in the job's folder."""
    found = _PLACE.fullmatch(text)
    return found is not None and (found[1] is None or int(found[1]) < 65536)


def _is_size(columns: int, rows: int) -> bool:
    return (0 < columns < 65536 and 0 < rows < 65536) or columns == rows == 0


def encode_target(target: Target) -> bytes:
    """The content of an OPEN."""
    return _encoder.encode(target)


def decode_target(data: bytes | memoryview) -> Target:
    """The target that an OPEN asks for. Raises Broken."""
    try:
        target = _decoder.decode(data)
    except HOSTILE_DECODE_ERRORS:
        raise Broken("a stream was opened to something that cannot be read") from None
    words_are_sane = len(target.argv) <= ARGV_MAX and not any("\0" in word for word in target.argv)
    if not words_are_sane or not _is_size(target.columns, target.rows) or (target.place and not is_place(target.place)):
        raise Broken("a stream was opened to something that cannot be")
    return target


def header(kind: Kind, stream: int, length: int) -> bytes:
    """What stands before a record's content."""
    return HEADER.pack(kind, stream, length)


def reason_bytes(reason: str) -> bytes:
    """A reason as it travels: short."""
    return reason.encode("utf-8", "replace")[:REASON_MAX]


def reason_text(content: memoryview) -> str:
    """A reason as it may be shown: printable."""
    text = bytes(content[:REASON_MAX]).decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def records(plain: bytes) -> Iterator[Record]:
    """The records of a message. Raises Broken."""
    view = memoryview(plain)
    at, end = 0, len(plain)
    if end == 0:
        raise Broken("a message holds nothing")
    while at < end:
        if end - at < HEADER.size:
            raise Broken("a record is cut short")
        number, stream, length = HEADER.unpack_from(view, at)
        at += HEADER.size
        if length > CHUNK_MAX or length > end - at:
            raise Broken("a record is longer than it may be")
        try:
            kind = _KINDS[number]
        except KeyError:
            raise Broken(f"a record of unknown kind {number}") from None
        yield Record(kind, stream, view[at : at + length])
        at += length


_KINDS = {kind.value: kind for kind in Kind}
