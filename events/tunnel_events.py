"""What an end of a tunnel learns from the other: plain values, told by `tunnel_mux.Mux.receive`."""

from __future__ import annotations

from typing import NamedTuple

from events.tunnel_frames import Target


class Asked(NamedTuple):
    """The buyer wants a stream; to be answered by `accept` or `reset`."""

    stream: int
    target: Target


class Opened(NamedTuple):
    """The node has connected it."""

    stream: int


class Data(NamedTuple):
    """Bytes arrived; `consumed` gives the credit back."""

    stream: int
    data: memoryview


class Granted(NamedTuple):
    """More may be sent."""

    stream: int


class Eof(NamedTuple):
    """The other side of the stream will send no more."""

    stream: int


class Reset(NamedTuple):
    """The stream is over."""

    stream: int
    reason: str


class Resized(NamedTuple):
    """The terminal's window has another size."""

    stream: int
    columns: int
    rows: int


class Exited(NamedTuple):
    """The terminal's program has ended."""

    stream: int
    code: int


class Ended(NamedTuple):
    """The other end says goodbye."""

    reason: str


Event = Asked | Opened | Data | Granted | Eof | Reset | Resized | Exited | Ended
