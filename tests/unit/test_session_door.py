"""What a session's buyer asks for, and what he believes of a node's answer."""

from __future__ import annotations

import json

import pytest

from buyer_cli.planning import Asked, Plan, plans
from buyer_cli.session_door import SessionDoor, read_door
from buyer_cli.spec import SpecError, submission
from events.jobs import JobSubmitted
from events.values import JobKind

DOOR = {"kind": "notebook", "place": "unix:bazaar.sock", "path": "/bazaar/j1/", "token": "ab12"}


def planned(kind: JobKind, *rest: str, **flags: object) -> Plan:
    [plan] = plans(Asked(rest=rest or None, kind=kind), flags, False, lambda text: None)
    return plan


def submitted(plan: Plan) -> JobSubmitted:
    return submission(plan.wish, plan.argv, "j" + "a" * 19)


@pytest.mark.parametrize(("kind", "timeout_s"), [(JobKind.NOTEBOOK, 7200), (JobKind.CONTAINER, 10800)])
def test_a_session_has_the_timeout_of_its_kind_and_is_not_tried_again(kind: JobKind, timeout_s: int) -> None:
    order = submitted(planned(kind, image="some/image"))
    assert (kind, timeout_s, 0, True) == (order.kind, order.timeout_s, order.retries, order.requirements.sessions)
    assert (kind.value, ()) == (order.name, order.program.argv)


def test_what_is_said_of_a_session_goes_before_what_its_kind_says() -> None:
    order = submitted(planned(JobKind.NOTEBOOK, "code-server", timeout="30m", retries="2", name="mine", gpus="2"))
    assert (1800, 2, "mine", 2, ("code-server",)) == (
        order.timeout_s,
        order.retries,
        order.name,
        order.requirements.num_gpus,
        order.program.argv,
    )


def test_a_container_needs_an_image_or_a_command() -> None:
    with pytest.raises(SpecError, match="neither an image nor a command"):
        planned(JobKind.CONTAINER)


def test_a_batch_job_asks_for_no_node_with_sessions() -> None:
    assert not submitted(planned(JobKind.BATCH, "true")).requirements.sessions


def test_a_door_is_read() -> None:
    assert SessionDoor(**DOOR) == read_door(json.dumps(DOOR).encode())
    assert SessionDoor(kind="container") == read_door(b'{"kind": "container"}')


@pytest.mark.parametrize(
    "lie",
    [
        {"path": "@evil.example/"},
        {"path": "/with space"},
        {"path": "/\x1b[31m"},
        {"path": ""},
        {"token": "a&redirect=evil"},
        {"token": "\n"},
        {"place": "unix:../../run/docker.sock"},
        {"place": "tcp:0"},
        {"kind": 7},
    ],
)
def test_what_cannot_be_meant_makes_no_address(lie: dict[str, object]) -> None:
    assert read_door(json.dumps(DOOR | lie).encode()) is None


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{torn", b"\xff"])
def test_an_answer_that_is_none_makes_no_address(data: bytes) -> None:
    assert read_door(data) is None
