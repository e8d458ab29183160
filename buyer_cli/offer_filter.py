"""The filter of `bazaar offers`: `gpus>=2 vram>=24GB price<=0.40 label:region=eu` as the API's query. Pure.

The conditions are those that a job can have, and the API asks them of the matcher; so only the directions that a requirement can have are
there: at least for what a node has, at most for what it costs.
"""

from __future__ import annotations

import re
from typing import Any

from buyer_cli.spec_keys import BY_NAME
from events.quantities import BadValue

_CONDITION = re.compile(r"\s*(label:[a-z][a-z0-9._-]{0,31}|[a-z][a-z_-]*)\s*(>=|<=|==|=|>|<)\s*('[^']*'|\"[^\"]*\"|[^\s<>=]+)\s*", re.ASCII)
FILTERS: dict[str, tuple[str, str, str]] = {
    "gpus": ("gpus", ">=", "gpus"),
    "vram": ("vram", ">=", "vram"),
    "total-vram": ("total-vram", ">=", "total_vram"),
    "cuda": ("min-cuda", ">=", "min_cuda"),
    "cores": ("cores", ">=", "cores"),
    "memory": ("memory", ">=", "memory"),
    "price": ("max-price", "<=", "max_price"),
    "model": ("gpu-model", "=", "model"),
    "isolation": ("isolation", ">=", "isolation"),
    "tier": ("min-tier", ">=", "min_tier"),
    "network": ("network", "=", "network"),
}
"""Name in a filter -> key of the specification, direction, name in the query."""
MANY = frozenset({"model"})
"""May stand there several times: any of them."""
LABEL = "label:"


def offer_query(text: str) -> dict[str, object]:
    """The query of a filter; the values are checked and passed on as they were written. Raises BadValue."""
    query: dict[str, Any] = {}
    place = 0
    while place < len(text.rstrip()):
        match = _CONDITION.match(text, place)
        if match is None:
            raise BadValue(f"{text[place:].strip()!r} is no condition such as vram>=24GB")
        place = match.end()
        name, operator, value = match[1], match[2].replace("==", "="), match[3].strip("'\"")
        if name.startswith(LABEL):
            _is(name, operator, "=", value)
            _read("node-label", f"{name}={value}", name.removeprefix(LABEL), value)
            query.setdefault("node_label", []).append(f"{name.removeprefix(LABEL)}={value}")
            continue
        name = name.replace("_", "-")
        if name not in FILTERS:
            raise BadValue(f"there is no condition {name}; there are {', '.join(FILTERS)}, and label:NAME")
        key, direction, parameter = FILTERS[name]
        _is(name, operator, direction, value)
        _read(key, f"{name}{direction}{value}", value)
        if name in MANY:
            query.setdefault(parameter, []).append(value)
        elif parameter in query:
            raise BadValue(f"{name} stands there twice")
        else:
            query[parameter] = value
    return query


def _is(name: str, operator: str, direction: str, value: str) -> None:
    if operator != direction:
        raise BadValue(f"{name} can only be asked as {name}{direction}{value}")


def _read(key: str, written: str, *texts: str) -> None:
    try:
        BY_NAME[key].read(*texts)
    except BadValue as error:
        raise BadValue(f"{written}: {error.why}", error.hint) from None
