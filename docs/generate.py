"""Writes events.md, job-states.md, reasons.md, jobs.md and api.md from the code that decides them: `make docs`. A test compares."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from buyer_cli import spec_keys
from events import codec, reasons, subjects
from events.fact import Event
from projections import job_states
from services.api import app, live, pulse
from services.api.asking import Endpoint
from services.api.paging import LIMIT_DEFAULT, LIMIT_MAX

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTICE = "<!-- Written by docs/generate.py from the code. Change the code, then run `make docs`. -->"


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def page(*parts: str) -> str:
    return "\n\n".join([NOTICE, *parts]) + "\n"


def documented(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str]]:
    """Each statement with the string that stands right after it, which is what it means."""
    for statement, following in zip_longest(body, body[1:]):
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield statement, " ".join(text.split())
            case _:
                yield statement, ""


def sources() -> dict[str, ast.ClassDef]:
    """The source of every class in events/, by name."""
    trees = [ast.parse(file.read_text()) for file in sorted((ROOT / "events").glob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def written(annotation: ast.expr) -> str:
    """A type as code; of `Annotated` only what it is and its bounds."""
    match annotation:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[of, *bounds])):
            calls = [bound for bound in bounds if isinstance(bound, ast.Call)]
            return ", ".join([ast.unparse(of), *(ast.unparse(keyword) for call in calls for keyword in call.keywords)])
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{written(left)} | {written(right)}"
    return ast.unparse(annotation)


def field_row(statement: ast.AnnAssign, meaning: str) -> tuple[str, ...]:
    default = f"`{ast.unparse(statement.value)}`" if statement.value else ""
    return f"`{ast.unparse(statement.target)}`", f"`{written(statement.annotation)}`", default, meaning


def field_rows(cls: type[Event], classes: dict[str, ast.ClassDef]) -> list[tuple[str, ...]]:
    """Field, type, default and meaning of every field, those of parents first."""
    rows: list[tuple[str, ...]] = []
    for parent in reversed(cls.__mro__):
        source = classes.get(parent.__name__)
        statements = documented(source.body if source else [])
        rows += [field_row(statement, meaning) for statement, meaning in statements if isinstance(statement, ast.AnnAssign)]
    return rows


def event_section(cls: type[Event], classes: dict[str, ast.ClassDef]) -> str:
    who = ", ".join(subjects.PUBLISHERS[cls])
    parts = [f"### {cls.__name__}", f"{' '.join((cls.__doc__ or '').split())} Said by: {who}."]
    rows = field_rows(cls, classes)
    if rows:
        parts.append(table(("field", "type", "default", "meaning"), *rows))
    return "\n\n".join(parts)


def value_rows() -> list[tuple[str, ...]]:
    """Name, definition and meaning of every bounded value."""
    tree = ast.parse((ROOT / "events" / "values.py").read_text())
    rows: list[tuple[str, ...]] = []
    for statement, meaning in documented(tree.body):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript(value=ast.Name(id="Annotated")) as bounded):
                rows.append((f"`{name}`", f"`{written(bounded)}`", meaning))
    return rows


def struct_sections(classes: dict[str, ast.ClassDef]) -> Iterator[str]:
    """The structures that events carry."""
    tree = ast.parse((ROOT / "events" / "values.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("Struct" in ast.unparse(base) for base in node.bases):
            rows = [field_row(statement, meaning) for statement, meaning in documented(node.body) if isinstance(statement, ast.AnnAssign)]
            head = f"### {node.name}\n\n{' '.join((ast.get_docstring(node) or '').split())}"
            yield f"{head}\n\n{table(('field', 'type', 'default', 'meaning'), *rows)}"


def events_page() -> str:
    classes = sources()
    parts = [
        "# Events",
        f"All {len(codec.EVENT_CLASSES)} kinds of fact, in the order of their groups. "
        "On the wire an event is a msgpack map with its name under `type`; fields that have their default are left out.",
    ]
    group = ""
    for cls in codec.EVENT_CLASSES:
        if cls.__module__ != group:
            group = cls.__module__
            parts.append(f"## {group.removeprefix('events.').capitalize()}")
        parts.append(event_section(cls, classes))
    parts += ["## Structures inside events", *struct_sections(classes)]
    parts += ["## Bounded values", table(("name", "bounds", "meaning"), *value_rows())]
    return page(*parts)


TARGETS: dict[job_states.Target, tuple[job_states.JobState, ...]] = {
    job_states.After.START: (job_states.RUNNING, job_states.STARTING),
    job_states.After.FAILURE: (job_states.QUEUED, job_states.FAILED),
    job_states.After.GANG: (job_states.QUEUED, job_states.FAILED, job_states.TIMED_OUT, job_states.CANCELLED, job_states.EXPIRED),
    job_states.After.STOP: (job_states.CANCELLED, job_states.QUEUED, job_states.FAILED, job_states.TIMED_OUT),
}


def arrows() -> Iterator[tuple[str, str, str]]:
    """(from, to, event) of every transition that changes the state."""
    for state, row in job_states.TRANSITIONS.items():
        for event, target in row.items():
            for after in (target,) if isinstance(target, job_states.JobState) else TARGETS[target]:
                if after != state:
                    yield state.value, after.value, event.__name__


def states_page() -> str:
    grouped: dict[tuple[str, str], list[str]] = {}
    for before, after, event in arrows():
        grouped.setdefault((before, after), []).append(event)
    lines = ["    [*] --> queued: JobSubmitted"]
    lines += [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in grouped.items()]
    lines += [f"    {state.value} --> [*]" for state in job_states.JobState if state in job_states.TERMINAL]
    live = [state for state in job_states.JobState if state not in job_states.TERMINAL]
    kinds = list(dict.fromkeys(event for row in job_states.TRANSITIONS.values() for event in row))
    cells = [(f"`{kind.__name__}`", *(job_states.TRANSITIONS[state].get(kind, "").replace("_", " ") for state in live)) for kind in kinds]
    return page(
        "# States of a job",
        "```mermaid\nstateDiagram-v2\n" + "\n".join(lines) + "\n```",
        "A row is an event, a column the state it meets, the cell the state that follows. "
        "An empty cell is void: without effect, counted. Nothing applies to a job that has ended.",
        table(("event", *(state.value for state in live)), *cells),
        "- *after start*: `running` for a batch job, `starting` for a session.\n"
        "- *after failure*: `queued` again with the next attempt when the reason is retried and retries are left, else `failed`. "
        "The reasons: [reasons.md](reasons.md).",
    )


def reasons_page() -> str:
    ends = [
        (f"`{reason.value}`", row.state, "yes" if row.retried else "no", row.payer.value, row.sentence)
        for reason, row in reasons.REASONS.items()
    ]
    refusals = [
        (f"`{refusal.value}`", row.what, row.why, row.hint, str(row.status), str(row.exit_code), "yes" if row.transient else "no")
        for refusal, row in reasons.REFUSALS.items()
    ]
    return page(
        "# Reasons and refusals",
        "## Why an attempt ended\n\n*Retried*: the job goes back to the queue while retries are left, "
        "and only then takes the state named here. A `seller` who pays does so by not being paid.",
        table(("reason", "state", "retried", "who pays", "meaning"), *ends),
        "## Why something was refused\n\n*Again*: whether the same may be accepted later.",
        table(("code", "what", "why", "what to try", "HTTP", "exit code", "again"), *refusals),
    )


SHAPES = {
    spec_keys.Shape.ONE: "once",
    spec_keys.Shape.MANY: "several times; a list in files",
    spec_keys.Shape.TABLE: "several times; a table in files",
    spec_keys.Shape.SWITCH: "alone; `true` in files",
}

JOB_FILE = """```toml
[[job]]
name = "small"
script = "train.py"
args = ["--epochs", "3"]
vram = "16GB"
timeout = "10m"
max-price = "0.50"
label = { team = "vision" }

[[job]]
name = "large"
command = ["python", "-c", "print('hello')"]
gpus = 2
```"""


def flag_of(key: spec_keys.Key) -> str:
    names = f"{key.short}, --{key.name}" if key.short else f"--{key.name}"
    return f"`{names} {key.metavar}`".replace(" `", "`") if key.flag else ""


def jobs_page() -> str:
    rows = [(f"`{key.name}`", flag_of(key), SHAPES[key.shape], key.help) for key in spec_keys.KEYS]
    return page(
        "# Describing a job",
        "The same keys everywhere: as flags of `bazaar run`, `submit` and `quote`, in a `[tool.bazaar]` table "
        "in the script's PEP 723 block, and in a job file (`--file job.toml`, or YAML), which may hold several jobs. "
        "A later source wins: script, file, flags; "
        "a list is replaced, a table is merged. An unknown key is refused, with the nearest right name.",
        table(("key", "flag", "given", "meaning"), *rows),
        "Sizes: `24GB` is 24 times 10^9 bytes, `24GiB` 24 times 2^30, a number alone is GB. "
        "Times: `90s`, `10m`, `4h`. Prices are decimal texts in USD.",
        JOB_FILE,
    )


EXAMPLES = {
    "/v1/jobs": "?state=queued,running&label=team%3Dvision&limit=100",
    "/v1/jobs/ID/events": "?limit=100",
    "/v1/jobs/ID/why": "?waits=true",
    "/v1/jobs/ID/logs": "?cursor=0",
    "/v1/nodes": "?state=offered,draining",
    "/v1/offers": "?gpus=2&vram=24GB&max_price=0.40",
    "/v1/quotes": "?gpus=1&vram=24GB&timeout=4h",
    "/v1/market": "?digest=true",
    "/v1/stats": "?as_of=2026-03-01T14:02Z",
    "/v1/state": "?as_of=41250",
    "/v1/prices": "?model=NVIDIA+H200",
    "/v1/events": "?from_seq=1&telemetry=true",
    "/v1/queue": "?min_seq=41250&wait=2s",
}
PLAIN = (
    ("`/`", "The dashboard: [dashboard.md](dashboard.md).", ""),
    ("`/docs`", "The document as a page.", ""),
    ("`/openapi.json`", "The document: OpenAPI 3.1, with the schema of every answer.", ""),
    ("`/healthz`", "Whether the process is alive.", ""),
    ("`/readyz`", "Whether answers are as new as the ledger; 503 and why when they are not.", ""),
    ("`/metrics`", "Figures for Prometheus; `?dcgm=1` gives readings of cards NVIDIA's names.", "`/metrics?dcgm=1`"),
)


def api_row(endpoint: Endpoint) -> tuple[str, ...]:
    path = endpoint.path.replace("{name}", "ID")
    names = ", ".join(f"`{parameter.name}`" for parameter in endpoint.parameters)
    who = "everybody" if endpoint.public else "a token's holder"
    when = "`as_of`" if endpoint.past or any(parameter.name == "as_of" for parameter in endpoint.parameters) else ""
    return f"`{path}`", endpoint.summary, names, when, who, f"`{path}{EXAMPLES.get(path, '')}`"


API_HEAD = """
Read-only HTTP, at the address that `bazaar-market up` prints: every method but GET and HEAD is a 405, for what changes the market is a
signed event ([events.md](events.md)). On the market's own machine nothing is asked of readers; elsewhere what is not for everybody needs a
read token (`bazaar token create NAME`), sent as `Authorization: Bearer TOKEN` or `X-Auth-Token: TOKEN`. The shape of every answer stands in
`/openapi.json`.
"""
API_SHARED = f"""
## What all of `/v1` shares

- `as_of_seq` in the body, and `X-Stream-Seq` in the headers: the last event of the ledger that the answer takes into account. An answer
  that was dear to make serves for up to a tenth of a second; it says of which moment it is.
- `?min_seq=N&wait=2s`: answer only once event N is taken into account, so that who writes can read what it wrote; 503 when that is over.
- `?as_of=`, where the table says so: the same as it was at a sequence, at milliseconds since 1970, or at a time such as
  `2026-03-01T14:02Z`; 400 for what has not come yet.
- Lists: `limit` (default {LIMIT_DEFAULT}, at most {LIMIT_MAX:,}) and `cursor` (`next_cursor` of the page before, or the `Link` header);
  rows that come or go meanwhile neither hide another nor show it twice.
- `ETag`: sent back as `If-None-Match`, an answer that has not changed is a 304 without a body. `Accept-Encoding: gzip` is honoured.
- Problems are `application/problem+json` with `code`, `title`, `detail` and `hint` ([reasons.md](reasons.md)); an unknown name in a query
  is a 400 that lists the known ones. 429 carries `Retry-After`.
"""
API_STREAM = f"""
## The stream

`/v1/events` is a stream of server-sent events unless JSON is asked for. The `id` of an event is its sequence, so a reader that comes back
with `Last-Event-ID` goes on behind the last event it saw. It may get, besides events:

- `event: reset` when it was away for more than {live.RESUMED_EVENTS_MAX:,} events: read `snapshot`, go on with the events behind
  `as_of_seq`, which follow. Who names a place with `from_seq` is told everything from there on instead.
- `event: telemetry`, only with `?telemetry=true`: the last readings of cards, of each node the latest, at most four times a second and
  {pulse.TELEMETRY_NODES_MAX} nodes at a time; without an `id`.
- comments, every {live.PING_S} seconds, which say that the line is open.

At most ten frames a second, and at most {live.STREAMS_MAX} streams. A reader that does not read is let go after {live.SEND_TIMEOUT_S:.0f}
seconds.
"""


def api_page() -> str:
    parameters = {(parameter.name, parameter.about): None for endpoint in app.ENDPOINTS for parameter in endpoint.parameters}
    plain = [(path, what, "", "", "a token's holder" if "metrics" in path else "everybody", example) for path, what, example in PLAIN]
    head = ("path", "what", "may be asked with", "the past", "for", "example")
    return page(
        "# The query API",
        API_HEAD.strip(),
        table(head, *(api_row(endpoint) for endpoint in app.ENDPOINTS), *plain),
        API_SHARED.strip(),
        API_STREAM.strip(),
        "## Names in queries",
        table(("name", "meaning"), *((f"`{name}`", about) for name, about in sorted(parameters))),
    )


def pages() -> dict[str, str]:
    """File name -> what it must hold."""
    return {
        "events.md": events_page(),
        "job-states.md": states_page(),
        "reasons.md": reasons_page(),
        "jobs.md": jobs_page(),
        "api.md": api_page(),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (DOCS / name).write_text(text)
