"""What may stand in a query: one row a name, read here into values, documented from the same rows in /openapi.json. Pure.

An unknown name, a name given twice where once is meant, and a value out of bounds are each a `bad_query` that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from events import quantities
from events.quantities import BadValue
from events.values import ISOLATION_RANK, TIER_RANK
from projections.job_states import JobState
from projections.nodes import NodeState
from services.api.paging import LIMIT_DEFAULT, LIMIT_MAX
from services.api.problems import bad_query

SEQ_MAX = 1 << 62
TIME_MS_MAX = 10**14
WAIT_S_DEFAULT = 2
WAIT_S_MAX = 30
VALUES_MAX = 32
VALUE_CHARACTERS_MAX = 500
PRICE_UUSD_MAX = 10**12

Read = Callable[[str], Any]


class Parameter(NamedTuple):
    """One name of a query. `many`: may be repeated; its values come as a tuple."""

    name: str
    read: Read
    about: str
    schema: Mapping[str, object]
    many: bool = False


def _whole(low: int, high: int) -> Read:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,19}", text, re.ASCII) or not low <= int(text) <= high:
            raise BadValue(f"it is no whole number from {low} to {high}")
        return int(text)

    return read


def _matching(pattern: str, what: str) -> Read:
    compiled = re.compile(pattern, re.ASCII)

    def read(text: str) -> str:
        if not compiled.fullmatch(text):
            raise BadValue(f"it is not {what}")
        return text

    return read


def _one_of(*words: str) -> Read:
    def read(text: str) -> str:
        if text not in words:
            raise BadValue(f"it is none of {', '.join(words)}")
        return text

    return read


def _some_of(words: Iterable[str]) -> Read:
    """A comma-separated list; with repetition, the lists are joined."""
    one = _one_of(*words)
    return lambda text: tuple(one(word.strip()) for word in text.split(",") if word.strip())


def _label(text: str) -> str:
    key, value = quantities.pair(text)
    if not re.fullmatch(r"[a-z][a-z0-9._-]{0,31}", key, re.ASCII) or not re.fullmatch(r"[A-Za-z0-9 ._@:/+-]{0,63}", value, re.ASCII):
        raise BadValue("it is not a label", "team=vision")
    return f"{key}={value}"


_WALLET = _matching(r"0x[0-9a-fA-F]{40}", "a wallet: 0x and 40 hexadecimal digits")
_TEXT: Mapping[str, object] = {"type": "string"}
_NUMBER: Mapping[str, object] = {"type": "integer", "minimum": 0}
_YES: Mapping[str, object] = {"type": "boolean"}


def moment(text: str) -> int:
    """A place in the past: a sequence of the ledger, or a time (milliseconds since 1970, or as ISO 8601) as milliseconds."""
    if re.fullmatch(r"\d{1,14}", text, re.ASCII):
        return int(text)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise BadValue("it is neither a sequence nor a time", "41250, or 2026-03-01T14:02:00Z") from None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return max(FIRST_TIME_MS, int(when.timestamp() * 1000))


FIRST_TIME_MS = 10**12
"""A smaller number is a sequence, a larger one a time."""
AS_OF = Parameter("as_of", moment, "The moment: a sequence, milliseconds since 1970, or a time such as 2026-03-01T14:02Z.", _TEXT)
WAITS = Parameter("waits", quantities.yes_or_no, "Also the whole wait as intervals, each with its cause; reads the ledger again.", _YES)
WHY = (AS_OF, WAITS)

MIN_SEQ = Parameter("min_seq", _whole(0, SEQ_MAX), "Answer only once the ledger is read up to this sequence.", _NUMBER)
WAIT = Parameter(
    "wait",
    quantities.duration_s,
    f"How long to wait for `min_seq`, such as 2s; at most {WAIT_S_MAX} s, {WAIT_S_DEFAULT} s when not said.",
    _TEXT,
)
EVERYWHERE = (MIN_SEQ, WAIT)
"""Names that every path knows."""

LIMIT = Parameter(
    "limit",
    _whole(1, LIMIT_MAX),
    "How many rows at most.",
    {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
)
CURSOR = Parameter("cursor", str, "`next_cursor` of the page before.", _TEXT)
PAGE = (LIMIT, CURSOR)

STATE = Parameter("state", _some_of(state.value for state in JobState), "Any of these states; repeated, or with commas.", _TEXT, many=True)
NODE_STATE = Parameter(
    "state", _some_of(state.value for state in NodeState), "Any of these states; by default all but withdrawn.", _TEXT, many=True
)
BUYER = Parameter("buyer", lambda text: _WALLET(text).lower(), "The wallet that submitted it.", _TEXT)
NODE = Parameter("node", _matching(r"n[a-z2-7]{15}", "a node's id"), "The node of its last attempt.", _TEXT)
LABEL = Parameter("label", _label, "`key=value`; repeated, all must be there.", _TEXT, many=True)
GROUP = Parameter("group", _matching(r"g[a-z2-7]{19}", "a group's id"), "The group it was submitted in.", _TEXT)
ORG = Parameter("org", _matching(r"o[a-z2-7]{15}", "an organisation's id"), "The organisation it was submitted for.", _TEXT)
SINCE = Parameter("since_ms", _whole(0, TIME_MS_MAX), "Submitted then or later; milliseconds since 1970.", _NUMBER)
UNTIL = Parameter("until_ms", _whole(0, TIME_MS_MAX), "Submitted before then.", _NUMBER)
JOBS = (STATE, BUYER, NODE, LABEL, GROUP, ORG, SINCE, UNTIL, *PAGE)

GPUS = Parameter("gpus", _whole(0, 8), "At least so many cards in one node.", {"type": "integer", "minimum": 0, "maximum": 8})
VRAM = Parameter("vram", quantities.size_mib, "Memory of each card, such as 24GB.", _TEXT)
TOTAL_VRAM = Parameter("total_vram", quantities.size_mib, "Memory of the cards together.", _TEXT)
MODEL = Parameter(
    "model", _matching(r"[A-Za-z0-9][A-Za-z0-9 ._()/+-]{0,63}", "a model"), "Any of these models; repeated.", _TEXT, many=True
)
MIN_CUDA = Parameter("min_cuda", quantities.cuda, "Oldest CUDA version of the driver, such as 12.4.", _TEXT)
CORES = Parameter("cores", _whole(0, 4096), "CPU cores.", _NUMBER)
MEMORY = Parameter("memory", quantities.size_mib, "Main memory, such as 64GB.", _TEXT)
MAX_PRICE = Parameter("max_price", lambda text: quantities.uusd(text, PRICE_UUSD_MAX), "USD per GPU-hour at most, such as 0.40.", _TEXT)
ISOLATION = Parameter("isolation", _one_of(*(kind.value for kind in ISOLATION_RANK)), "At least this isolation.", _TEXT)
MIN_TIER = Parameter("min_tier", _one_of(*(tier.value for tier in TIER_RANK)), "Cards checked at least so well.", _TEXT)
NETWORK = Parameter("network", _one_of("none", "egress"), "What of the network the job needs.", _TEXT)
NODE_LABEL = Parameter("node_label", _label, "`key=value` that the owner gave the node; repeated, all must be there.", _TEXT, many=True)
MACHINE = (GPUS, VRAM, TOTAL_VRAM, MODEL, MIN_CUDA, CORES, MEMORY, MAX_PRICE, ISOLATION, MIN_TIER, NETWORK, NODE_LABEL)
"""What a machine can be asked for: the matcher's own conditions."""
OFFERS = (*MACHINE, *PAGE)

QUOTES = (
    *MACHINE,
    Parameter("timeout", quantities.duration_s, "Run time, such as 4h; the market's usual one when not said.", _TEXT),
    Parameter("allow_simulated", quantities.yes_or_no, "Whether simulated cards would do.", _YES),
    NODE,
    BUYER,
    ORG,
    Parameter("job", _matching(r"j[a-z2-7]{19}", "a job's id"), "A queued job whose place is asked for as well.", _TEXT),
)

ONE_MODEL = Parameter("model", MODEL.read, "Only this model, as its node tells it.", _TEXT)
PRICES = (
    ONE_MODEL,
    Parameter("since_ms", SINCE.read, "From then on; milliseconds since 1970. A day ago when not said.", _NUMBER),
    Parameter("until_ms", UNTIL.read, "Before then. Now when not said.", _NUMBER),
)

DCGM = Parameter("dcgm", quantities.yes_or_no, "Readings of cards under the names of NVIDIA's exporter.", _YES)
DIGEST = Parameter("digest", quantities.yes_or_no, "Also the digest of the whole folded market.", _YES)
FROM_SEQ = Parameter("from_seq", _whole(0, SEQ_MAX), "The first event to tell.", _NUMBER)
TELEMETRY = Parameter("telemetry", quantities.yes_or_no, "In a stream: also the readings of cards, as events named `telemetry`.", _YES)
EVENTS = (FROM_SEQ, TELEMETRY, *PAGE)
STREAM = (FROM_SEQ, TELEMETRY)
ATTEMPT = Parameter("attempt", _whole(1, 1000), "Which attempt; the last one when not said.", _NUMBER)
AFTER = Parameter("cursor", _whole(0, SEQ_MAX), "`cursor` of the answer before.", _NUMBER)
LOGS = (ATTEMPT, AFTER)


def read(pairs: Iterable[tuple[str, str]], known: Iterable[Parameter]) -> dict[str, Any]:
    """The values of a query, by name; a name that was not given is not there. Raises ProblemFound."""
    rows = {parameter.name: parameter for parameter in (*EVERYWHERE, *known)}
    values: dict[str, Any] = {}
    for name, text in pairs:
        parameter = rows.get(name)
        if parameter is None:
            raise bad_query(_quotable(name), f"there is no such name here; there are {', '.join(sorted(rows))}")
        if len(text) > VALUE_CHARACTERS_MAX:
            raise bad_query(name, "it is too long")
        try:
            value = parameter.read(text)
        except BadValue as error:
            raise bad_query(name, f"{error.why}{f'; {error.hint}' if error.hint else ''}") from None
        if parameter.many:
            value = values.get(name, ()) + (value if isinstance(value, tuple) else (value,))
            if len(value) > VALUES_MAX:
                raise bad_query(name, f"at most {VALUES_MAX} values")
        elif name in values:
            raise bad_query(name, "it stands there twice")
        values[name] = value
    return values


def _quotable(name: str) -> str:
    """A name that somebody made up, harmless wherever it is shown."""
    return re.sub(r"[^A-Za-z0-9_.-]", "?", name[:40]) or "(empty)"
