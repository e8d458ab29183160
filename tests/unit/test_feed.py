"""The live feed: order, gaps, and what a whole state covers."""

from __future__ import annotations

import msgspec

from events import wire
from events.codec import encode_event
from events.feed import Feed
from events.jobs import JobCancelRequested
from events.wire import LiveEvent, LiveFrame

JOB = "j" + "a" * 19


def frame(*seqs: int, prev: int) -> LiveFrame:
    told = tuple(LiveEvent(seq, "0x" + "1" * 40, msgspec.Raw(encode_event(JobCancelRequested(job_id=JOB)))) for seq in seqs)
    sent = wire.encode(LiveFrame(b"h" * 32, 1000, 99, prev, told))
    return wire.decode(sent, LiveFrame)


def a_feed(prev: int) -> Feed:
    feed = Feed()
    feed.asking()
    feed.resume(prev)
    return feed


def seqs(received: list[object]) -> list[int]:
    return [one.seq for one in received]  # type: ignore[attr-defined]


def test_frames_that_follow_each_other_are_passed_on() -> None:
    feed = a_feed(3)
    assert [5, 8] == seqs(feed.hear(frame(5, 8, prev=3)))
    assert [] == feed.hear(frame(prev=8))
    assert [9] == seqs(feed.hear(frame(9, prev=8)))
    assert not feed.gap


def test_a_lost_frame_is_noticed_and_nothing_is_passed_on_before_the_state_is_known() -> None:
    feed = a_feed(3)
    assert [] == feed.hear(frame(9, prev=7))
    assert feed.gap
    assert [] == feed.hear(frame(11, prev=9))
    assert [11] == seqs(feed.resume(9)), "what the state covers is not told again"
    assert [12] == seqs(feed.hear(frame(12, prev=11)))


def test_a_lost_frame_is_noticed_also_by_a_frame_without_events() -> None:
    feed = a_feed(3)
    feed.hear(frame(prev=4))
    assert feed.gap


def test_what_was_heard_before_the_question_is_covered_by_the_answer() -> None:
    feed = a_feed(3)
    feed.hear(frame(9, prev=7))
    feed.asking()
    feed.hear(frame(11, prev=9))
    assert [11] == seqs(feed.resume(9))


def test_a_gap_behind_the_gap_is_noticed_again() -> None:
    feed = a_feed(3)
    feed.hear(frame(9, prev=7))
    feed.hear(frame(20, prev=15))
    assert [] == feed.resume(9)
    assert feed.gap
    assert [] == seqs(feed.resume(20))
    assert not feed.gap


def test_an_event_is_never_told_twice() -> None:
    feed = a_feed(3)
    feed.hear(frame(5, 6, prev=3))
    assert [7] == seqs(feed.hear(frame(6, 7, prev=5)))


def test_an_event_of_a_newer_market_is_passed_over() -> None:
    feed = a_feed(3)
    strange = LiveEvent(4, "", msgspec.Raw(msgspec.msgpack.encode({"type": "TimeTravelled"})))
    known = LiveEvent(5, "", msgspec.Raw(encode_event(JobCancelRequested(job_id=JOB))))
    assert [5] == seqs(feed.hear(LiveFrame(b"h" * 32, 1000, 5, 3, (strange, known))))


def test_an_answer_that_tells_nothing_new_is_known_as_such() -> None:
    feed = a_feed(3)
    assert not feed.covers(3)
    assert feed.covers(4)
