"""A container's output into two files, each byte exactly once, whoever dies and whatever Docker rotates away."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from seller_agent.runners.docker_engine.logs import FILES, GAP, STDERR, STDOUT, LogSink

Frame = tuple[int, int, bytes]
"""Stream, time, content."""


def encoded(frames: list[Frame]) -> bytes:
    """As Docker sends them."""
    out = b""
    for kind, time, content in frames:
        payload = f"2026-01-01T00:00:00.{time:09d}Z ".encode() + content
        out += bytes([kind, 0, 0, 0]) + len(payload).to_bytes(4, "big") + payload
    return out


def wanted(frames: list[Frame], kind: int) -> bytes:
    return b"".join(content for stream, _, content in frames if stream == kind)


class Output:
    """The files of one run, read and written by readers that come and go."""

    def __init__(self, folder: Path, limit: int = 1 << 30) -> None:
        self._folder = folder
        self._limit = limit
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, log: bytes, piece: int = 1 << 18) -> bool:
        """One reader takes the log from its start, in pieces; whether it met too much."""
        with contextlib.closing(LogSink(self._folder, self._folder / "cursor.json", self._limit)) as sink:
            for start in range(0, len(log), piece):
                sink.feed(log[start : start + piece])
                if sink.over_limit:
                    break
            return sink.over_limit

    def tear(self, kind: str, size: int) -> None:
        """As if the reader had been killed after noting what it was about to write, and before all of it was written."""
        path = self._folder / kind
        with path.open("rb+") as file:
            file.truncate(max(0, path.stat().st_size - size))

    def __getitem__(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()


def test_both_streams_land_in_their_files(tmp_path: Path) -> None:
    output = Output(tmp_path)
    output.read(encoded([(STDOUT, 1, b"a\n"), (STDERR, 2, b"b\n"), (STDOUT, 2, b"c")]), piece=3)
    assert (b"a\nc", b"b\n") == (output["stdout"], output["stderr"])


def test_a_line_end_that_the_engine_left_away_behind_a_long_line_comes_back(tmp_path: Path) -> None:
    full = b"x" * (1 << 14)
    output = Output(tmp_path)
    log = [(STDOUT, 1, full), (STDOUT, 2, full), (STDERR, 2, b"aside\n"), (STDOUT, 3, b"tail"), (STDOUT, 4, full), (STDOUT, 5, b"end\n")]
    output.read(encoded(log[:4]))
    output.read(encoded(log))
    assert full * 2 + b"tail\n" + full + b"end\n" == output["stdout"]
    assert b"aside\n" == output["stderr"]


frames_strategy = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(0, 3), st.binary(min_size=1, max_size=12)), min_size=1, max_size=30
)


@given(frames=frames_strategy, cuts=st.lists(st.integers(0, 800), max_size=6), piece=st.integers(1, 200), tear=st.integers(0, 20))
def test_readers_killed_anywhere_lose_and_repeat_nothing(
    tmp_path_factory: object, frames: list[Frame], cuts: list[int], piece: int, tear: int
) -> None:
    output = Output(tmp_path_factory.mktemp("log"))  # type: ignore[attr-defined]
    log = encoded(frames)
    for cut in cuts:
        output.read(log[:cut], piece)
        output.tear("stdout", tear)
    output.read(log, piece)
    output.read(log)
    assert (wanted(frames, STDOUT), wanted(frames, STDERR)) == (output["stdout"], output["stderr"])


@given(
    gaps=st.lists(
        st.tuples(st.sampled_from([STDOUT, STDERR]), st.integers(0, 1), st.binary(min_size=1, max_size=12)), min_size=4, max_size=30
    ),
    data=st.data(),
)
def test_a_head_rotated_away_after_it_was_read_costs_nothing(tmp_path_factory: object, gaps: list[Frame], data: st.DataObject) -> None:
    now, frames = 0, []
    for kind, step, content in gaps:  # times never fall, and often stand still
        now += step
        frames.append((kind, now, content))
    output = Output(tmp_path_factory.mktemp("log"))  # type: ignore[attr-defined]
    taken = data.draw(st.integers(2, len(frames)), "frames read before")
    output.read(encoded(frames[:taken]))
    last = frames[taken - 1][1]
    # Only the pieces of one long line have equal times; a rotation right between two of them cannot be told apart.
    heads = [index for index, frame in enumerate(frames) if frame[1] <= last and (index == 0 or frames[index - 1][1] < frame[1])]
    gone = data.draw(st.sampled_from(heads), "frames rotated away")
    kind, _, content = frames[taken - 1]
    output.tear(FILES[kind], data.draw(st.integers(0, len(content)), "bytes not written when the reader was killed"))
    for _ in range(2):
        output.read(encoded(frames[gone:]), piece=data.draw(st.integers(1, 300)))
    assert (wanted(frames, STDOUT), wanted(frames, STDERR)) == (output["stdout"], output["stderr"])


def test_a_head_rotated_away_before_it_was_read_leaves_a_mark(tmp_path: Path) -> None:
    output = Output(tmp_path)
    frames = [(STDOUT, time, b"line %d\n" % time) for time in range(10)]
    output.read(encoded(frames[:3]))
    for _ in range(2):
        output.read(encoded(frames[6:]))
    assert b"line 0\nline 1\nline 2\n" + GAP + b"line 6\nline 7\nline 8\nline 9\n" == output["stdout"]


@given(frames=frames_strategy, cuts=st.lists(st.integers(0, 800), max_size=4), limit=st.integers(1, 100))
def test_the_limit_cuts_at_the_same_byte_however_often_it_is_read(
    tmp_path_factory: object, frames: list[Frame], cuts: list[int], limit: int
) -> None:
    whole = Output(tmp_path_factory.mktemp("whole"), limit)  # type: ignore[attr-defined]
    over = whole.read(encoded(frames))
    pieces = Output(tmp_path_factory.mktemp("pieces"), limit)  # type: ignore[attr-defined]
    for cut in cuts:
        pieces.read(encoded(frames)[:cut])
    assert over == pieces.read(encoded(frames))
    assert (whole["stdout"], whole["stderr"]) == (pieces["stdout"], pieces["stderr"])
    total = sum(len(content) for _, _, content in frames)
    assert (total > limit, min(limit, total)) == (over, len(whole["stdout"]) + len(whole["stderr"]))
