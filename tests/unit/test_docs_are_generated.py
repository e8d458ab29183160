"""The pages of docs/ that repeat what the code decides are the ones the code would write today."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
assert spec is not None and spec.loader is not None
generate = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = generate
spec.loader.exec_module(generate)


@pytest.mark.parametrize(("name", "text"), generate.pages().items(), ids=lambda value: value if value.endswith(".md") else "")
def test_the_page_in_the_repository_is_the_generated_one(name: str, text: str) -> None:
    assert text == (DOCS / name).read_text(), "run `make docs`"


def test_every_event_state_and_reason_has_its_place_in_the_pages() -> None:
    pages = generate.pages()
    assert [] == [cls.__name__ for cls in generate.codec.EVENT_CLASSES if f"### {cls.__name__}\n" not in pages["events.md"]]
    assert [] == [state for state in generate.job_states.JobState if state.value not in pages["job-states.md"]]
    assert [] == [reason for reason in generate.reasons.Reason if f"`{reason.value}`" not in pages["reasons.md"]]
