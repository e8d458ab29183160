"""Nothing that others wrote reaches a terminal as a command."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from buyer_cli.printable import PrintableStream, printable, printable_lines

HARMLESS_FORMAT = {"\u200c", "\u200d"}
"""Joiners: scripts and emoji need them, and they move nothing."""


DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_harmless(text: str, breaks: str = "") -> bool:
    return all(
        character in breaks
        or character in HARMLESS_FORMAT
        or (
            unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
            and unicodedata.bidirectional(character) not in DIRECTIONS
            and character not in "\u200e\u200f\u061c"
        )
        for character in text
    )


hostile = st.text(st.one_of(st.characters(), st.sampled_from("\x1b[]0;m\x07\r\n\t\x9b\u202e\u2066\ud800\x08A")), max_size=80)


@given(hostile)
def test_no_text_reaches_a_line_as_a_command(text: str) -> None:
    assert is_harmless(printable(text))


@given(hostile)
def test_no_output_reaches_a_terminal_as_a_command(text: str) -> None:
    assert is_harmless(printable_lines(text), breaks="\n\t")


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=6))
def test_output_cut_anywhere_is_shown_as_if_it_had_come_whole(data: bytes, cuts: list[int]) -> None:
    stream, places = PrintableStream(), [0, *sorted(cuts), len(data)]
    pieces = "".join(stream.feed(data[start:end]) for start, end in pairwise(places) if start <= end)
    assert PrintableStream().feed(data, final=True) == pieces + stream.finish()


def test_what_hides_is_written_out() -> None:
    assert r"a\x1b]0;owned\x07b" == printable("a\x1b]0;owned\x07b")
    assert r"\u202egnp.exe" == printable("\u202egnp.exe")
    assert r"a\x0ab" == printable("a\nb")
    assert r"\x9b31m" == printable("\x9b31m")


def test_colours_of_a_job_are_dropped_and_its_progress_bar_becomes_lines() -> None:
    assert "red plain\n" == printable_lines("\x1b[31mred\x1b[0m plain\r\n")
    assert "10%\n20%\n" == printable_lines("10%\r20%\r")


def test_dropping_a_colour_cannot_make_a_new_command() -> None:
    assert r"\x1b[2J" == printable_lines("\x1b\x1b[m[2J")


def test_ordinary_text_of_every_script_stays() -> None:
    text = "naïve café 日本語 עברית 👩‍👩‍👧 ✓ — ½"
    assert text == printable(text)
