"""The filter of `bazaar offers`: `gpus>=2 vram>=24GB price<=0.40` as the API's query. Pure.

Only the directions that a requirement can have: at least for what a node has, at most for what it costs.
"""

from __future__ import annotations

import re

from buyer_cli.spec_keys import BY_NAME
from events.quantities import BadValue

_CONDITION = re.compile(r"\s*([a-z][a-z_-]*)\s*(>=|<=|==|=|>|<)\s*('[^']*'|\"[^\"]*\"|[^\s<>=]+)\s*", re.ASCII)
_CONDITIONS: dict[str, tuple[str, str, str]] = {
    "gpus": ("gpus", ">=", "gpus"),
    "vram": ("vram", ">=", "vram"),
    "total-vram": ("total-vram", ">=", "total_vram"),
    "cuda": ("min-cuda", ">=", "min_cuda"),
    "cores": ("cores", ">=", "cores"),
    "memory": ("memory", ">=", "memory"),
    "price": ("max-price", "<=", "max_price"),
    "model": ("gpu-model", "=", "model"),
}
"""Name in a filter -> key of the specification, direction, name in the query."""


def offer_query(text: str) -> dict[str, object]:
    """The query of a filter; the values are checked and passed on as they were written. Raises BadValue."""
    query: dict[str, object] = {}
    place = 0
    while place < len(text.rstrip()):
        match = _CONDITION.match(text, place)
        if match is None:
            raise BadValue(f"{text[place:].strip()!r} is no condition such as vram>=24GB")
        place = match.end()
        name, operator, value = match[1].replace("_", "-"), match[2].replace("==", "="), match[3].strip("'\"")
        if name not in _CONDITIONS:
            raise BadValue(f"there is no condition {name}; there are {', '.join(_CONDITIONS)}")
        key, direction, parameter = _CONDITIONS[name]
        if operator != direction:
            raise BadValue(f"{name} can only be asked as {name}{direction}{value}")
        try:
            BY_NAME[key].read(value)
        except BadValue as error:
            raise BadValue(f"{name}{direction}{value}: {error.why}", error.hint) from None
        query[parameter] = value
    return query
