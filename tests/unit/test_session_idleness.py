"""What a node believes of a notebook's word about how long nobody has computed: whatever the program there answers, nothing breaks."""

from __future__ import annotations

import pytest

from seller_agent.sessions.keeping import idle_ms

NOW_MS = 1_800_000_000_000


def test_a_kernel_that_computes_is_not_idle_and_of_others_the_last_one_counts() -> None:
    assert 0 == idle_ms(b'[{"last_activity": "2020-01-01T00:00:00.0Z", "execution_state": "busy", "name": "python3"}]', NOW_MS)
    two = b'[{"last_activity": "2027-01-15T07:59:00Z", "execution_state": "idle"}, {"last_activity": "2020-01-01T00:00:00Z"}]'
    assert 60_000 == idle_ms(two, NOW_MS)
    assert 0 == idle_ms(b'[{"last_activity": "2999-01-15T07:59:00Z", "execution_state": "idle"}]', NOW_MS)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 500_000,
        b'[{"x": ' + b"[" * 500_000,
        b"[1]",
        b'[{"last_activity": 5, "execution_state": "idle"}]',
        b'[{"last_activity": "0001-01-01T00:00:00", "execution_state": "idle"}]',
        b'[{"last_activity": "2020-01-01T00:00:00"}, {"last_activity": "2020-01-01T00:00:00Z"}]',
        b'[{"execution_state": "idle"}]',
        b"[\xff]",
    ],
)
def test_an_answer_that_cannot_be_meant_tells_nothing(body: bytes) -> None:
    with pytest.raises(ValueError):
        idle_ms(body, NOW_MS)
