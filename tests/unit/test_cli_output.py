"""A job's output on its way to the terminal: nothing lost, nothing twice, whatever comes in which order."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buyer_cli.output_merge import STDERR, STDOUT, OutputMerge, Piece
from buyer_cli.output_printer import OutputCollector, OutputPrinter, Tail
from buyer_cli.output_reader import OutputReader
from buyer_cli.terminal import Terminal
from events.errors import Refused
from events.wire import Failure, FilesAnswer, FilesRequest, OutputChunk, OutputFrame

JOB = "j" + "a" * 19


def joined(pieces: list[Piece], channel: int) -> bytes:
    return b"".join(piece.data for piece in pieces if piece.channel == channel)


@given(st.binary(min_size=1, max_size=300), st.randoms(use_true_random=False))
def test_pieces_in_any_order_and_any_overlap_leave_whole_and_once(data: bytes, chance: random.Random) -> None:
    cuts = sorted({0, len(data), *(chance.randrange(len(data)) for _ in range(6))})
    pieces = [(start, data[start : min(len(data), end + chance.randrange(20))]) for start, end in pairwise(cuts)]
    pieces += [chance.choice(pieces) for _ in range(3)]
    chance.shuffle(pieces)
    merge, shown = OutputMerge(), []
    for offset, piece in pieces:
        shown += merge.add(STDOUT, offset, piece)
    assert data == joined(shown, STDOUT)
    assert not merge.has_gap


def test_a_missing_piece_is_a_gap_until_it_comes() -> None:
    merge = OutputMerge()
    assert [] == merge.add(STDOUT, 5, b"world")
    assert merge.has_gap
    assert [Piece(STDERR, b"x")] == merge.add(STDERR, 0, b"x")
    assert [Piece(STDOUT, b"hello"), Piece(STDOUT, b"world")] == merge.add(STDOUT, 0, b"hello")
    assert not merge.has_gap


class Record:
    """A recorded output that grows, answered a few chunks at a time as the gateway does."""

    def __init__(self, *chunks: OutputChunk) -> None:
        self.chunks = list(chunks)
        self.lag = 0

    async def ask(self, request: FilesRequest) -> FilesAnswer:
        if self.lag:
            self.lag -= 1
            return FilesAnswer(cursor=request.cursor)
        found = tuple(self.chunks[request.cursor : request.cursor + 2])
        return FilesAnswer(chunks=found, cursor=request.cursor + len(found))


async def test_the_record_is_read_to_its_end_and_the_live_feed_adds_what_is_newer() -> None:
    record = Record(*(OutputChunk(STDOUT, number, b"%d" % number) for number in range(5)))
    shown: list[Piece] = []
    reader = OutputReader(record.ask, JOB, shown.append)
    await reader.catch_up(1)
    reader.take_live(OutputFrame(attempt=1, epoch=1, chunks=(OutputChunk(STDOUT, 3, b"3456"), OutputChunk(STDERR, 0, b"e"))))
    assert (b"0123456", b"e") == (joined(shown, STDOUT), joined(shown, STDERR))


async def test_live_frames_of_another_attempt_are_not_shown() -> None:
    shown: list[Piece] = []
    reader = OutputReader(Record().ask, JOB, shown.append)
    await reader.catch_up(2)
    reader.take_live(OutputFrame(attempt=1, epoch=1, chunks=(OutputChunk(STDOUT, 0, b"old"),)))
    assert [] == shown


async def test_a_new_attempt_starts_anew() -> None:
    shown: list[Piece] = []
    reader = OutputReader(Record(OutputChunk(STDOUT, 0, b"again")).ask, JOB, shown.append)
    await reader.catch_up(1)
    await reader.catch_up(2)
    assert b"againagain" == joined(shown, STDOUT)


async def test_an_ended_job_is_waited_for_until_its_last_byte_is_recorded() -> None:
    record = Record(OutputChunk(STDOUT, 0, b"all of it"))
    record.lag = 3
    shown: list[Piece] = []
    assert 0 == await OutputReader(record.ask, JOB, shown.append).drain(1, 9, 0)
    assert b"all of it" == joined(shown, STDOUT)


async def test_a_refused_reading_is_raised() -> None:
    async def ask(request: FilesRequest) -> FilesAnswer:
        return FilesAnswer(failure=Failure(code="not_yours"))

    with pytest.raises(Refused):
        await OutputReader(ask, JOB, lambda piece: None).catch_up(1)


def printed(
    pieces: list[Piece], capfd: pytest.CaptureFixture[str], *, raw: bool = False, channels: frozenset[int] | None = None
) -> tuple[str, str]:
    printer = OutputPrinter(Terminal(), channels or frozenset({STDOUT, STDERR}), raw)
    for piece in pieces:
        printer.show(piece)
    printer.finish()
    return capfd.readouterr()


def test_a_jobs_streams_stay_apart_and_its_escapes_do_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    pieces = [Piece(STDOUT, b"out\x1b[2J\n"), Piece(STDERR, b"err\n")]
    assert ("out\\x1b[2J\n", "err\n") == printed(pieces, capfd)
    assert ("out\x1b[2J\n", "err\n") == printed(pieces, capfd, raw=True)
    assert ("", "err\n") == printed(pieces, capfd, channels=frozenset({STDERR}))


def test_a_character_cut_in_two_is_whole_again(capfd: pytest.CaptureFixture[str]) -> None:
    euro = "€".encode()
    assert "€\n" == printed([Piece(STDOUT, euro[:1]), Piece(STDOUT, euro[1:] + b"\n")], capfd)[0]


def test_json_output_is_lines_of_objects(capfd: pytest.CaptureFixture[str]) -> None:
    printer = OutputPrinter(Terminal(as_json=True))
    printer.show(Piece(STDERR, b"a\x1b\n"))
    printer.finish()
    assert '{"type": "output", "stream": "stderr", "text": "a\\\\x1b\\n"}\n' == capfd.readouterr().out


@pytest.mark.parametrize(("wanted", "text"), [(2, b"three\nfour"), (1, b"four"), (0, b""), (9, b"one\ntwo\nthree\nfour")])
def test_a_tail_is_the_last_lines_wherever_they_were_cut(wanted: int, text: bytes) -> None:
    tail = Tail(wanted, frozenset({STDOUT}))
    for data in (b"one\ntw", b"o\nthr", b"ee\nfo", b"ur"):
        tail.show(Piece(STDOUT, data))
        tail.show(Piece(STDERR, b"not wanted\n"))
    assert text == joined(tail.release(), STDOUT)


def test_collected_output_is_whole_and_only_what_was_wanted() -> None:
    collector = OutputCollector(frozenset({STDOUT}))
    for data in ("€".encode()[:1], "€".encode()[1:], b"\x1b[2J"):
        collector.show(Piece(STDOUT, data))
        collector.show(Piece(STDERR, data))
    assert {"stdout": "€\x1b[2J"} == collector.answer()
