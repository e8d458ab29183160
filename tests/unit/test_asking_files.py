"""How a client asks the file store: again where that can help, and no longer than it says."""

from __future__ import annotations

import pytest

from events import files
from events.errors import MarketUnreachable, Refused
from events.files import put_bytes
from events.reasons import Refusal
from events.wire import Failure, FilesAnswer, FilesRequest
from services.children import BACKOFF_S_MAX

STORED = FilesAnswer(next_offset=1, stored=True)
TOO_MUCH = FilesAnswer(failure=Failure(code=Refusal.RATE_LIMITED))
NOT_YOURS = FilesAnswer(failure=Failure(code=Refusal.NOT_YOURS))


class Store:
    """Answers in this order, the last one for ever."""

    def __init__(self, *answers: FilesAnswer | MarketUnreachable) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, request: FilesRequest) -> FilesAnswer:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, MarketUnreachable):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ASKED_AGAIN_S", (0.001, 0.001, 0.0))


def test_who_asks_outlasts_the_longest_pause_before_a_part_of_the_market_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert BACKOFF_S_MAX < sum(files.ASKED_AGAIN_S)
    assert 0 == files.ASKED_AGAIN_S[-1]


@pytest.mark.parametrize("trouble", [TOO_MUCH, MarketUnreachable()], ids=["too much was asked", "nobody answered"])
async def test_what_passes_is_asked_again(trouble: FilesAnswer | MarketUnreachable) -> None:
    store = Store(trouble, trouble, STORED)
    await put_bytes(store, b"x")
    assert 3 == store.asked


async def test_a_store_that_always_has_too_much_to_do_is_not_asked_for_ever() -> None:
    store = Store(TOO_MUCH)
    with pytest.raises(Refused) as caught:
        await put_bytes(store, b"x")
    assert (Refusal.RATE_LIMITED, 3) == (caught.value.refusal, store.asked)


async def test_a_store_that_never_answers_is_not_asked_for_ever() -> None:
    store = Store(MarketUnreachable())
    with pytest.raises(MarketUnreachable):
        await put_bytes(store, b"x")
    assert 3 == store.asked


async def test_any_other_no_is_heard_at_once() -> None:
    store = Store(NOT_YOURS)
    with pytest.raises(Refused):
        await put_bytes(store, b"x")
    assert 1 == store.asked
