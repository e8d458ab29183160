"""The one gate between bytes that others chose and this terminal: control, escape and direction characters become harmless. Pure.

Every name, label, message and output line from the market passes here, unless `--raw` asked for the bytes themselves.
"""

from __future__ import annotations

import codecs
import re

_HOSTILE_RANGES = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"  # invisible, line and paragraph ends, direction
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff"  # halves of characters, byte order, annotations, tags
)
_HOSTILE = re.compile(f"[{_HOSTILE_RANGES}]")
_HOSTILE_OR_BREAK = re.compile(f"[\t\n{_HOSTILE_RANGES}]")
_COLOUR = re.compile("\x1b\\[[0-9;:]{0,64}m")
_UNFINISHED = re.compile("(?:\r|\x1b(?:\\[[0-9;:]{0,64})?)\\Z")


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str) -> str:
    """One line: whatever a terminal could take for a command is written out, line breaks too."""
    return _HOSTILE_OR_BREAK.sub(_visible, text)


def printable_lines(text: str) -> str:
    """Several lines, such as a job's output. Colours are dropped, a lone carriage return ends the line, all else is written out."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _HOSTILE.sub(_visible, _COLOUR.sub("", text))


class PrintableStream:
    """Output that arrives in pieces cut anywhere: `feed` returns what can be shown now, `finish` the rest."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, data: bytes, final: bool = False) -> str:
        text = self._held + self._decoder.decode(data, final)
        unfinished = None if final else _UNFINISHED.search(text)
        self._held = unfinished[0] if unfinished else ""
        return printable_lines(text[: len(text) - len(self._held)])

    def finish(self) -> str:
        return self.feed(b"", final=True)
