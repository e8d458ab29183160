"""How long an answer that was made serves for others, and what of it travels packed."""

from __future__ import annotations

import gzip

from services.api.shelf import CHEAP_S, KEPT_BYTES, SERVES_S_MAX, SERVES_TIMES, Answer, Shelf

NOW_MS = 1_800_000_000_500


def kept(took_s: float, answer: Answer | None = None) -> tuple[Shelf, Answer]:
    shelf, made = Shelf(), answer or Answer(b"{}", 'W/"a"', 7)
    shelf.keep("question", made, version=1, now_ms=NOW_MS, now_s=100.0, took_s=took_s)
    return shelf, made


def test_an_answer_serves_as_long_as_nothing_has_changed_within_its_second() -> None:
    shelf, made = kept(CHEAP_S / 2)
    assert made is shelf.find("question", version=1, now_ms=NOW_MS + 400, now_s=100.4)
    assert shelf.find("question", version=2, now_ms=NOW_MS, now_s=100.0) is None, "something has changed"
    assert shelf.find("question", version=1, now_ms=NOW_MS + 500, now_s=100.5) is None, "another second"
    assert shelf.find("another", version=1, now_ms=NOW_MS, now_s=100.0) is None


def test_a_dear_answer_serves_a_moment_longer_and_never_long() -> None:
    shelf, made = kept(0.01)
    assert made is shelf.find("question", version=2, now_ms=NOW_MS, now_s=100.0 + 0.009 * SERVES_TIMES)
    assert shelf.find("question", version=2, now_ms=NOW_MS, now_s=100.0 + 0.011 * SERVES_TIMES) is None
    shelf, made = kept(60.0)
    assert shelf.find("question", version=2, now_ms=NOW_MS, now_s=100.01 + SERVES_S_MAX) is None


def test_what_is_kept_is_bounded() -> None:
    shelf = Shelf()
    for number in range(4):
        large = Answer(bytes(KEPT_BYTES // 2), "", number)
        shelf.keep(number, large, version=1, now_ms=NOW_MS, now_s=0.0, took_s=0.0)
    found = [number for number in range(4) if shelf.find(number, version=1, now_ms=NOW_MS, now_s=0.0) is not None]
    assert (1 <= len(found) <= 2, 3) == (True, found[-1]), "the newest stays"


def test_a_long_answer_is_packed_once_and_a_short_one_never() -> None:
    answer = Answer(b"row " * 5000, "", 1)
    assert answer.is_worth_packing
    assert answer.body == gzip.decompress(answer.packed())
    assert answer.packed() is answer.packed()
    assert not Answer(b"{}", "", 1).is_worth_packing
