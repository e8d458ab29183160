"""The check that the API's answers are held against finds what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from schema_check import faults

DOCUMENT: dict[str, Any] = {
    "components": {"schemas": {"Row": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}}}
}
ROW = {"$ref": "#/components/schemas/Row"}


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ({}, ROW),
        ({"n": -1}, ROW),
        ({"n": True}, ROW),
        ({"n": "1"}, {"allOf": [{"type": "object"}, ROW]}),
        ([{"n": 1}, {}], {"type": "array", "items": ROW}),
        ("c", {"enum": ["a", "b"]}),
        (1.5, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("xy", {"type": "string", "maxLength": 1}),
        ({"m": 1}, {"type": "object", "additionalProperties": False}),
    ],
)
def test_what_is_wrong_is_found(value: Any, schema: Any) -> None:
    assert [] != list(faults(value, schema, DOCUMENT))


def test_what_is_right_passes() -> None:
    assert [] == list(faults([{"n": 1, "more": None}], {"type": "array", "items": ROW}, DOCUMENT))


def test_a_word_that_is_not_known_is_never_passed_over() -> None:
    with pytest.raises(AssertionError, match="unevaluatedItems"):
        list(faults([], {"unevaluatedItems": False}, DOCUMENT))
