"""Every shape of every fact that was ever written decodes for ever. The files are added to, never changed: see `write_missing`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import make

from events.codec import EVENT_CLASSES, decode_event, decode_written, encode_event
from events.fact import Event

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted(GOLDEN.glob("*.json"))


def value_of(event: Event) -> dict[str, Any]:
    """The fact as JSON shows it."""
    value: dict[str, Any] = json.loads(msgspec.json.encode(event))
    return value


def write_missing() -> None:
    """A golden file for each class that has none yet: `python -c "import test_golden; test_golden.write_missing()"` in this folder."""
    for kind in EVENT_CLASSES:
        file = GOLDEN / f"{kind.__name__}.json"
        if not file.exists():
            event = make(kind)
            file.write_text(json.dumps({"msgpack": encode_event(event).hex(), "value": value_of(event)}, indent=1) + "\n")


def test_every_fact_has_a_golden_file() -> None:
    assert {kind.__name__ for kind in EVENT_CLASSES} == {file.stem.split("-")[0] for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_was_written_once_is_read_for_ever(file: Path) -> None:
    written = json.loads(file.read_text())
    event = decode_written(bytes.fromhex(written["msgpack"]))
    told = value_of(event)
    assert written["value"] == {name: told[name] for name in written["value"]}


@pytest.mark.parametrize("kind", EVENT_CLASSES, ids=lambda kind: kind.__name__)
def test_a_fact_survives_its_bytes(kind: type[Event]) -> None:
    event = make(kind)
    assert event == decode_event(encode_event(event))


def test_an_old_shape_without_a_gpu_count_asks_for_one_gpu() -> None:
    """Promise 0.15 of the marketplace this replaces: rows from before multi-GPU jobs count as one."""
    body = msgspec.msgpack.encode(
        {
            "type": "JobSubmitted",
            "job_id": "j" + "a" * 19,
            "name": "old",
            "requirements": {},
            "program": {"argv": ["true"]},
            "timeout_s": 3600,
        }
    )
    assert decode_written(body).requirements.num_gpus == 1  # type: ignore[attr-defined]
