"""Whether a JSON value is what a JSON Schema says, for those words that the API's document uses; any other is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
WORDS = {
    "$ref", "allOf", "anyOf", "oneOf", "type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems",
    "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "propertyNames", "minProperties", "maxProperties", "multipleOf",
}  # fmt: skip
SILENT = {"title", "description", "default", "examples", "format", "discriminator"}
"""Words that allow everything."""


def faults(value: Any, schema: Any, document: dict[str, Any], where: str = "$") -> Iterator[str]:
    """What is wrong with the value, each with its place."""
    if isinstance(schema, bool):
        if not schema:
            yield f"{where}: nothing is allowed here"
        return
    unknown = set(schema) - WORDS - SILENT
    assert not unknown, f"{where}: this check does not know {unknown}"
    if "$ref" in schema:
        yield from faults(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, where)
    for part in schema.get("allOf", ()):
        yield from faults(value, part, document, where)
    for word in ("anyOf", "oneOf"):
        if word in schema and all(any(faults(value, part, document, where)) for part in schema[word]):
            yield f"{where}: {value!r:.80} is none of {word}"
    if "type" in schema:
        wanted = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in wanted):
            yield f"{where}: {value!r:.80} is no {wanted}"
            return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r:.80} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r:.80} is not {schema['const']!r}"
    yield from _inside(value, schema, document, where)


def _inside(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str) -> Iterator[str]:
    match value:
        case dict():
            properties = schema.get("properties", {})
            yield from (f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value)
            for name, inner in value.items():
                more = schema.get("additionalProperties", True)
                yield from faults(inner, properties.get(name, more), document, f"{where}.{name}")
        case list():
            first = schema.get("prefixItems", ())
            for place, inner in enumerate(value):
                part = first[place] if place < len(first) else schema.get("items", True)
                yield from faults(inner, part, document, f"{where}[{place}]")
            if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
                yield f"{where}: {len(value)} items"
        case str():
            if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
                yield f"{where}: {len(value)} characters"
            if "pattern" in schema and re.search(schema["pattern"], value) is None:
                yield f"{where}: {value!r:.80} is not {schema['pattern']}"
        case bool():
            pass
        case int() | float():
            if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
                yield f"{where}: {value} is out of bounds"
