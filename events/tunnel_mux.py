"""One end of an open tunnel as a state machine: many streams over one ordered, sealed channel. Pure: no clock, no I/O.

Messages go in by `receive`, which tells what happened; the methods say what this end wants, and `outgoing` gives the messages to send.
Whatever the other end does that cannot be ends the session with Broken, and nothing else. The buyer's end opens the streams. Every stream
has its own credit each way, so a slow reader holds up nobody else, and neither end ever holds more than it granted.
"""

from __future__ import annotations

from events.tunnel_events import Asked, Data, Ended, Eof, Event, Exited, Granted, Opened, Reset, Resized
from events.tunnel_frames import (
    CHUNK_MAX,
    EARLY_WINDOW,
    HEADER,
    LARGE_WINDOWS,
    PLAIN_MAX,
    SIZE,
    SMALL_WINDOW,
    STREAMS_MAX,
    U32,
    WINDOW,
    Broken,
    Kind,
    Record,
    Target,
    decode_target,
    encode_target,
    header,
    reason_bytes,
    reason_text,
    records,
)
from events.tunnel_keys import Keys, Sealer, Unsealer

MISSED_MAX = 3
"""So many ticks in a row without a word, and the other end is taken for gone."""


class _Stream:
    """What is known of one stream."""

    __slots__ = ("credit", "got_eof", "is_open", "left", "owed", "sent_eof", "sent_reset", "window")

    def __init__(self, window: int, left: int, credit: int) -> None:
        self.window = window
        """What may be on its way to us at most."""
        self.left = left
        """What of it may still come."""
        self.owed = 0
        """Passed on, but not granted again."""
        self.credit = credit
        """What we may send."""
        self.is_open = False
        self.sent_eof = self.got_eof = self.sent_reset = False


class Mux:
    """One end. `opens`: the buyer's, which opens the streams."""

    def __init__(self, keys: Keys, *, opens: bool) -> None:
        self._sealer, self._unsealer = Sealer(keys.sending, keys.cipher), Unsealer(keys.receiving, keys.cipher)
        self._opens = opens
        self._streams: dict[int, _Stream] = {}
        self._highest = 0
        """Streams are numbered from 1, one by one."""
        self._queue: list[bytes] = []
        self._heard = self._spoke = True
        self._missed = 0
        self.idle_ticks = 0
        """How many ticks in a row there was no stream."""
        self.ended = ""
        """Why the session is over; empty while it lives."""

    # ---- what this end wants

    @property
    def streams(self) -> int:
        """How many there are."""
        return len(self._streams)

    @property
    def is_full(self) -> bool:
        """Whether no further stream may be opened now."""
        return len(self._streams) >= STREAMS_MAX

    def open(self, target: Target) -> int:
        """Ask for a stream; its number. A little may be sent at once."""
        assert self._opens and not self.is_full
        self._highest += 1
        window = self._next_window()
        self._streams[self._highest] = _Stream(window, window, EARLY_WINDOW)
        self._say(Kind.OPEN, self._highest, U32.pack(window) + encode_target(target))
        return self._highest

    def accept(self, number: int) -> None:
        """A stream that was asked for is connected. Nothing when it is over by now."""
        stream = self._streams.get(number)
        if stream is None or stream.sent_reset:
            return
        assert not self._opens and not stream.is_open
        stream.is_open = True
        self._say(Kind.OPENED, number, U32.pack(stream.window - EARLY_WINDOW))
        stream.left += stream.window - EARLY_WINDOW

    def is_open(self, number: int) -> bool:
        """Whether the node has connected it and it is not over."""
        stream = self._streams.get(number)
        return stream is not None and stream.is_open

    def room(self, number: int) -> int:
        """How many bytes `send` takes now; none when the stream is over or ended from here."""
        stream = self._streams.get(number)
        if stream is None or stream.sent_eof or stream.sent_reset:
            return 0
        return min(stream.credit, CHUNK_MAX)

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Send bytes, no more than there is room for."""
        assert 0 < len(data) <= self.room(number)
        self._streams[number].credit -= len(data)
        self._queue += (header(Kind.DATA, number, len(data)), data)  # type: ignore[arg-type]

    def consumed(self, number: int, count: int) -> None:
        """So many of the bytes that arrived were passed on: as many more may come, which is said now and then."""
        stream = self._streams.get(number)
        if stream is None or stream.sent_reset or stream.got_eof:
            return
        stream.owed += count
        if stream.owed * 4 >= stream.window:
            self._say(Kind.CREDIT, number, U32.pack(stream.owed))
            stream.left += stream.owed
            stream.owed = 0

    def eof(self, number: int) -> None:
        """No more data from this end. Nothing when the stream is over or this was said before."""
        stream = self._streams.get(number)
        if stream is not None and not stream.sent_eof and not stream.sent_reset:
            stream.sent_eof = True
            self._say(Kind.EOF, number)
            self._close_if_done(number, stream)

    def reset(self, number: int, reason: str) -> None:
        """End a stream, both ways. Nothing when it is over."""
        stream = self._streams.get(number)
        if stream is not None and not stream.sent_reset:
            stream.sent_reset = True  # and kept, to pass over what is still under way, until the other end has said the same
            self._say(Kind.RESET, number, reason_bytes(reason))

    def resize(self, number: int, columns: int, rows: int) -> None:
        """The window of the terminal here has another size."""
        stream = self._streams.get(number)
        if stream is not None and not stream.sent_eof and not stream.sent_reset:
            self._say(Kind.RESIZE, number, SIZE.pack(columns, rows))

    def exit(self, number: int, code: int) -> None:
        """The program on the terminal has ended."""
        stream = self._streams.get(number)
        if stream is not None and not stream.sent_eof and not stream.sent_reset:
            self._say(Kind.EXIT, number, bytes((code & 255,)))

    def ping(self) -> None:
        """Ask for a word."""
        self._say(Kind.PING, 0)

    def bye(self, reason: str) -> None:
        """End the session; what `outgoing` gives now is the last."""
        if not self.ended:
            self._say(Kind.BYE, 0, reason_bytes(reason))
            self.ended = reason or "closed"

    def tick(self) -> None:
        """A while has passed, the same at both ends: keep the session alive. Raises Broken when the other end was silent for too long."""
        self._missed = 0 if self._heard else self._missed + 1
        if self._missed >= MISSED_MAX:
            self._break("the other end fell silent")
        if not self._heard or not self._spoke:
            self.ping()
        self._heard = self._spoke = False
        self.idle_ticks = 0 if self._streams else self.idle_ticks + 1

    def outgoing(self) -> list[bytes]:
        """Everything that was said since the last time, as messages to be sent in this order."""
        if not self._queue:
            return []
        self._spoke = True
        queue, self._queue = self._queue, []
        if sum(map(len, queue)) <= PLAIN_MAX:
            return [self._sealer.seal(b"".join(queue))]
        messages: list[bytes] = []
        batch: list[bytes] = []
        size = 0
        for at in range(0, len(queue), 2):
            length = len(queue[at]) + len(queue[at + 1])
            if size + length > PLAIN_MAX:
                messages.append(self._sealer.seal(b"".join(batch)))
                batch, size = [], 0
            batch += queue[at : at + 2]
            size += length
        messages.append(self._sealer.seal(b"".join(batch)))
        return messages

    def _say(self, kind: Kind, number: int, content: bytes = b"") -> None:
        self._queue += (header(kind, number, len(content)), content)

    def _next_window(self) -> int:
        return WINDOW if len(self._streams) < LARGE_WINDOWS else SMALL_WINDOW

    def _close_if_done(self, number: int, stream: _Stream) -> None:
        if stream.sent_eof and stream.got_eof:
            del self._streams[number]

    # ---- what the other end says

    def receive(self, message: bytes) -> list[Event]:
        """What a message tells. Raises Broken: the session is over."""
        if self.ended:
            return []
        self._heard = True
        try:
            found = [event for record in records(self._unsealer.unseal(message)) if (event := self._hear(record)) is not None]
        except Broken as error:
            self.ended = str(error)
            raise
        return found

    def _break(self, why: str) -> None:
        self.ended = why
        raise Broken(why)

    def _hear(self, record: Record) -> Event | None:
        kind, number, content = record
        if kind >= Kind.PING:
            return self._hear_session(kind, number, content)
        if kind is Kind.OPEN:
            return self._hear_open(number, content)
        if not 0 < number <= self._highest:
            raise Broken(f"{kind.name} for stream {number}, which was never opened")
        stream = self._streams.get(number)
        if kind is Kind.RESET:
            return self._hear_reset(number, stream, content)
        if stream is None:
            if kind in (Kind.DATA, Kind.EOF, Kind.OPENED):
                raise Broken(f"{kind.name} for stream {number}, which is over")
            return None  # was under way when it ended
        if stream.sent_reset:
            return None
        match kind:
            case Kind.DATA:
                return self._hear_data(number, stream, content)
            case Kind.CREDIT:
                return self._hear_credit(number, stream, content)
            case Kind.EOF:
                return self._hear_eof(number, stream, content)
            case Kind.OPENED:
                return self._hear_opened(number, stream, content)
            case _:
                return self._hear_of_terminal(kind, number, content)

    def _hear_session(self, kind: Kind, number: int, content: memoryview) -> Event | None:
        if number or (content and kind is not Kind.BYE):
            raise Broken(f"{kind.name} says more than it may")
        if kind is Kind.PING:
            self._say(Kind.PONG, 0)
        elif kind is Kind.BYE:
            self.ended = reason_text(content) or "closed by the other end"
            return Ended(self.ended)
        return None

    def _hear_open(self, number: int, content: memoryview) -> Asked:
        if self._opens or number != self._highest + 1 or self.is_full:
            raise Broken(f"stream {number} cannot be opened")
        target = decode_target(content[U32.size :])
        credit = _u32(content[: U32.size])
        if not 0 < credit <= WINDOW:
            raise Broken("a stream was opened with an impossible window")
        self._highest = number
        self._streams[number] = _Stream(self._next_window(), EARLY_WINDOW, credit)
        return Asked(number, target)

    def _hear_opened(self, number: int, stream: _Stream, content: memoryview) -> Opened:
        if not self._opens or stream.is_open:
            raise Broken(f"stream {number} was opened twice")
        stream.is_open = True
        self._add_credit(number, stream, _u32(content))
        return Opened(number)

    def _hear_data(self, number: int, stream: _Stream, content: memoryview) -> Data:
        if not content or stream.got_eof:
            raise Broken(f"data of stream {number} that cannot be")
        if len(content) > stream.left:
            raise Broken(f"{len(content)} bytes of stream {number}, {stream.left} were allowed")
        stream.left -= len(content)
        return Data(number, content)

    def _hear_credit(self, number: int, stream: _Stream, content: memoryview) -> Granted:
        more = _u32(content)
        if not more:
            raise Broken("a grant of nothing")
        self._add_credit(number, stream, more)
        return Granted(number)

    def _add_credit(self, number: int, stream: _Stream, more: int) -> None:
        stream.credit += more
        if stream.credit > WINDOW:
            raise Broken(f"stream {number} was granted more than a window")

    def _hear_eof(self, number: int, stream: _Stream, content: memoryview) -> Eof:
        if stream.got_eof or content:
            raise Broken(f"stream {number} ended twice")
        stream.got_eof = True
        self._close_if_done(number, stream)
        return Eof(number)

    def _hear_reset(self, number: int, stream: _Stream | None, content: memoryview) -> Reset | None:
        if stream is not None:
            del self._streams[number]
            if stream.sent_reset:
                return None
        self._say(Kind.RESET, number)
        return Reset(number, reason_text(content)) if stream is not None else None

    def _hear_of_terminal(self, kind: Kind, number: int, content: memoryview) -> Event:
        if kind is Kind.RESIZE and not self._opens and len(content) == SIZE.size:
            columns, rows = SIZE.unpack(content)
            if columns and rows:
                return Resized(number, columns, rows)
        if kind is Kind.EXIT and self._opens and len(content) == 1:
            return Exited(number, content[0])
        raise Broken(f"{kind.name} that cannot be")


def _u32(content: memoryview) -> int:
    if len(content) != U32.size:
        raise Broken("a number is cut short")
    return int(U32.unpack(content)[0])


assert HEADER.size + CHUNK_MAX <= PLAIN_MAX
