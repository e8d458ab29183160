"""Shows a job's output on the terminal: harmless text, raw bytes when asked for, or JSON lines."""

from __future__ import annotations

from collections import deque

from buyer_cli.output_merge import STDERR, STDOUT, Piece
from buyer_cli.printable import PrintableStream
from buyer_cli.terminal import Terminal

_NAMES = {STDOUT: "stdout", STDERR: "stderr"}


class OutputPrinter:
    """Prints pieces as they come. `channels`: which are wanted; `raw`: the job's own bytes, escapes and all."""

    def __init__(self, terminal: Terminal, channels: frozenset[int] = frozenset({STDOUT, STDERR}), raw: bool = False) -> None:
        self._terminal = terminal
        self._channels = channels
        self._raw = raw
        self._streams = {channel: PrintableStream() for channel in _NAMES}
        self._unfinished_line = False

    def show(self, piece: Piece) -> None:
        """A piece of output, each byte of which comes once."""
        if piece.channel not in self._channels:
            return
        is_error = piece.channel == STDERR
        if self._terminal.as_json:
            self._emit(piece.channel, self._streams[piece.channel].feed(piece.data))
        elif self._raw:
            self._terminal.raw_output(piece.data, is_error)
            self._unfinished_line = not piece.data.endswith(b"\n")
        else:
            self._print(self._streams[piece.channel].feed(piece.data), is_error)

    def finish(self) -> None:
        """What was held back because it might have gone on, and a line end when the last line had none."""
        for channel in sorted(self._channels):
            rest = self._streams[channel].finish()
            if self._terminal.as_json:
                self._emit(channel, rest)
            elif not self._raw:
                self._print(rest, channel == STDERR)
        self._streams = {channel: PrintableStream() for channel in _NAMES}
        if self._unfinished_line and not self._raw and not self._terminal.as_json:
            self._terminal.note("")  # so that the prompt does not stand in the job's last line
        self._unfinished_line = False

    def _print(self, text: str, is_error: bool) -> None:
        if text:
            self._terminal.output(text, is_error)
            self._unfinished_line = not text.endswith("\n")

    def _emit(self, channel: int, text: str) -> None:
        if text:
            self._terminal.emit({"type": "output", "stream": _NAMES[channel], "text": text})


class OutputCollector:
    """Keeps output for one JSON answer. JSON escapes what a terminal could take for a command, so nothing else is changed."""

    def __init__(self, channels: frozenset[int]) -> None:
        self._kept = {channel: bytearray() for channel in sorted(channels)}

    def show(self, piece: Piece) -> None:
        """Keep a piece, if its channel is wanted."""
        if piece.channel in self._kept:
            self._kept[piece.channel] += piece.data

    def answer(self) -> dict[str, str]:
        """The text of each wanted channel by its name; bytes that are no text are replaced."""
        return {_NAMES[channel]: bytes(data).decode(errors="replace") for channel, data in self._kept.items()}


class Tail:
    """Keeps what may be among the last lines of what it is shown, until that is let out. Lines of both channels count alike."""

    def __init__(self, lines: int, channels: frozenset[int]) -> None:
        self._wanted = lines
        self._channels = channels
        self._lines: deque[Piece] = deque()
        """Whole lines; the last one of each channel may still grow."""

    def show(self, piece: Piece) -> None:
        """Take a piece in."""
        if piece.channel not in self._channels or not self._wanted:
            return
        for line in piece.data.splitlines(keepends=True):
            place = self._growing(piece.channel)
            if place is None:
                self._lines.append(Piece(piece.channel, line))
            else:
                self._lines[place] = Piece(piece.channel, self._lines[place].data + line)
        while len(self._lines) > self._wanted + len(_NAMES):
            self._lines.popleft()

    def _growing(self, channel: int) -> int | None:
        """Where the channel's unfinished line stands, if it has one."""
        for place in range(len(self._lines) - 1, -1, -1):
            if self._lines[place].channel == channel:
                return None if self._lines[place].data.endswith((b"\n", b"\r")) else place
        return None

    def release(self) -> list[Piece]:
        """The last lines."""
        found = list(self._lines)[-self._wanted :] if self._wanted else []
        self._lines.clear()
        return found
