"""From what somebody wrote to the jobs to submit: layers of texts, merged and checked. Pure: files are read elsewhere.

A layer is one source (the script's block, a job file, the flags). Later layers win; lists are replaced, tables merged key by key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from buyer_cli.spec_keys import BY_NAME, LATER, Choice, Key, Shape
from events import codec
from events.jobs import JobSubmitted
from events.market import Policy
from events.quantities import BadValue, Target, pair
from events.values import DEFAULT_PRIORITY, BlobRef, JobKind, Program, Requirements

Layer = dict[str, Any]
"""Values that have been read, by the key's name."""


class SpecError(ValueError):
    """A specification that cannot be meant. `what` names the place, `why` the fault, `hint` what would do."""

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why
        self.hint = hint


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """One job as its buyer wants it, before its files are stored and its target is known to exist."""

    kind: JobKind = JobKind.BATCH
    script: str | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    requirements: Requirements = Requirements()
    """Without the target."""
    num_nodes: int = 1
    """More than 1: a gang, one job for each rank."""
    choices: tuple[Choice, ...] = ()
    """Cards that would do as well."""
    target: Target | None = None
    image: str | None = None
    env: dict[str, str] = {}
    secrets: dict[str, str | None] = {}
    """Their names, each with the file that holds it, or None: from the environment, or asked for."""
    max_price_uusd_per_gpu_hour: int | None = None
    max_total_uusd: int | None = None
    timeout_s: int | None = None
    """None: what the market gives a job of this kind."""
    queue_timeout_s: int | None = None
    estimate_s: int | None = None
    estimate_limit: int | None = None
    idle_timeout_s: int | None = None
    min_utilisation: tuple[int, int] | None = None
    """Percent, and seconds of the window."""
    gpu_memory_limit_mib: int | None = None
    priority: int = DEFAULT_PRIORITY
    retries: int = 3
    name: str
    labels: dict[str, str] = {}
    inputs: tuple[str, ...] = ()
    out: str | None = None
    org: str | None = None
    """By name or id, as it was written."""


def flag_layer(values: Mapping[str, object]) -> Layer:
    """The layer of the flags that were given; `values` holds texts, or tuples of texts, by the key's name."""
    layer: Layer = {}
    for name, value in values.items():
        key = BY_NAME[name]
        if value is None or value == () or value is False:
            continue
        layer[name] = _read(key, value, lambda text, name=name: f"--{name} {text}".rstrip())
    return layer


def file_layer(values: Mapping[str, object], origin: str, *, forbidden: Iterable[str] = ()) -> Layer:
    """The layer of a file's table. Keys are written as the flags, with `-` or `_`."""
    layer: Layer = {}
    for written, value in values.items():
        name = str(written).replace("_", "-")
        if name in forbidden:
            raise SpecError(f"{origin}: {name}", "this key has no meaning here", "name the script on the command line, or in a job file")
        key = BY_NAME.get(name)
        if key is None:
            raise SpecError(f"{origin}: {written}", *_unknown(name))
        if name in layer:
            raise SpecError(f"{origin}: {written}", "it is given twice, with - and with _", "keep one of them")
        layer[name] = _read(key, value, lambda text, name=name: f"{origin}: {name} = {text}")
    return layer


def _unknown(name: str) -> tuple[str, str]:
    if name in LATER:
        return "this version cannot do that yet", "leave it out"
    nearest = get_close_matches(name, BY_NAME, n=1, cutoff=0.5)
    return "there is no such key", f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(BY_NAME)}"


def _shown(value: object) -> str:
    value = " ".join(map(str, value)) if isinstance(value, tuple) else value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(key: Key, value: object, place: Any) -> object:
    try:
        match key.shape:
            case Shape.ONE | Shape.SWITCH:
                return key.read(_text(value))
            case Shape.MANY:
                texts = value if isinstance(value, list | tuple) else [value]
                return tuple(key.read(_text(text)) for text in texts)
            case Shape.TABLE:
                return dict(key.read(*entry) for entry in _entries(value, key.bare))
    except BadValue as error:
        raise SpecError(place(_shown(_without_values(value) if key.hidden else value)), error.why, error.hint) from None


def _without_values(value: object) -> object:
    """The names of a table: who mistakes what goes where does not find a secret on the screen."""
    entries = list(value) if isinstance(value, dict | list | tuple) else [value]
    return tuple(str(entry).partition("=")[0] for entry in entries)


def _text(value: object) -> str:
    """A scalar as it was written. Numbers come from the readers as texts already, so that nothing is rounded."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise BadValue("it must be a text or a number", "one value")


def _entries(value: object, bare: bool) -> list[tuple[str, str | None]]:
    if isinstance(value, dict):
        return [(str(name), _text(text)) for name, text in value.items()]
    texts = [_text(text) for text in (value if isinstance(value, list | tuple) else [value])]
    return [(text, None) if bare and "=" not in text else pair(text) for text in texts]


def merge(layers: Sequence[Layer]) -> Layer:
    """One layer out of several, the last one strongest. A script in a stronger layer drops a weaker one's command, and the reverse."""
    merged: Layer = {}
    for layer in layers:
        for dropped in {"command"} if "script" in layer else {"script", "args"} if "command" in layer else ():
            merged.pop(dropped, None)
        for name, value in layer.items():
            merged[name] = {**merged.get(name, {}), **value} if BY_NAME[name].shape is Shape.TABLE else value
    return merged


def wishes(layer: Layer, kind: JobKind = JobKind.BATCH) -> list[Wish]:
    """The jobs that a merged layer asks for: one, or one for each target."""
    targets: tuple[Target | None, ...] = layer.get("target", ()) or (None,)
    return [_wish(layer, target, kind) for target in targets]


def _wish(layer: Layer, target: Target | None, kind: JobKind) -> Wish:
    get = layer.get
    if get("estimate-limit") and not get("estimate"):
        raise SpecError(f"--estimate-limit {get('estimate-limit')}", "it is a multiple of an estimate, and none is given", "--estimate 10m")
    return Wish(
        kind=kind,
        script=get("script"),
        command=get("command", ()),
        args=get("args", ()),
        requirements=_requirements(layer, target, kind),
        num_nodes=_num_nodes(layer, target, kind),
        choices=_choices(layer, target),
        target=target,
        image=get("image"),
        env=get("env", {}),
        secrets=get("secret", {}),
        max_price_uusd_per_gpu_hour=get("max-price"),
        max_total_uusd=get("max-total"),
        timeout_s=get("timeout"),
        queue_timeout_s=get("queue-timeout"),
        estimate_s=get("estimate"),
        estimate_limit=get("estimate-limit"),
        idle_timeout_s=get("idle-timeout"),
        min_utilisation=get("min-utilisation"),
        gpu_memory_limit_mib=get("gpu-memory-limit"),
        priority=get("priority", DEFAULT_PRIORITY),
        retries=get("retries", 3 if kind is JobKind.BATCH else 0),
        name=get("name") or default_name(get("script"), get("command", ())),
        labels=_at_most(get("label", {}), 16, "labels"),
        inputs=get("in", ()),
        out=get("out"),
        org=get("org"),
    )


def _at_most(table: dict[str, str], most: int, what: str) -> dict[str, str]:
    if len(table) > most:
        raise SpecError(f"{len(table)} {what}", f"a job has at most {most}", "leave some out")
    return table


def _requirements(layer: Layer, target: Target | None, kind: JobKind) -> Requirements:
    get = layer.get
    gpus = get("gpus")
    if target is not None and target.cards:
        if gpus is not None and gpus != len(target.cards):
            raise SpecError(
                f"--gpus {gpus}",
                f"the target names {len(target.cards)} card{'s' if len(target.cards) > 1 else ''}",
                "leave --gpus out: the target says how many",
            )
        gpus = len(target.cards)
    gpus = 1 if gpus is None else gpus
    for name in ("vram", "total-vram", "gpu-model", "min-cuda", "min-utilisation", "gpu-memory-limit"):
        if gpus == 0 and get(name):
            raise SpecError(f"--{name}", "the job asks for no card (--gpus 0)", f"leave --{name} out, or ask for a card")
    return Requirements(
        num_gpus=gpus,
        vram_mib=get("vram", 0),
        total_vram_mib=get("total-vram", 0),
        gpu_models=get("gpu-model", ()),
        min_cuda=get("min-cuda", 0),
        cores=get("cores", 0),
        memory_mib=get("memory", 0),
        shm_mib=get("shm", 0),
        isolation=get("isolation"),
        min_tier=get("min-tier"),
        node_labels=_at_most(get("node-label", {}), 16, "labels of nodes"),
        network=get("network") or Requirements().network,
        allow_simulated=get("allow-simulated", False),
        target_cards=() if target is None else target.cards,
        sessions=kind is not JobKind.BATCH,
    )


def _num_nodes(layer: Layer, target: Target | None, kind: JobKind) -> int:
    number: int = layer.get("nodes", 1)
    if number > 1:
        if kind is not JobKind.BATCH:
            raise SpecError(f"--nodes {number}", f"a {kind.value} runs on one node", "leave --nodes out")
        if target is not None:
            raise SpecError(f"--nodes {number}", "each rank of a gang has a node of its own, and the target is one", "leave --target out")
        if layer.get("or"):
            raise SpecError(f"--nodes {number}", "all ranks of a gang ask for the same", "leave --or out")
    return number


def _choices(layer: Layer, target: Target | None) -> tuple[Choice, ...]:
    choices: tuple[Choice, ...] = layer.get("or", ())
    if choices and target is not None:
        raise SpecError("--or", "the job has a target, and takes what is there", "leave --or or --target out")
    if len(choices) > 4:
        raise SpecError(f"{len(choices)} times --or", "a job has at most 4 of them", "leave some out")
    return choices


def _variants(choices: Sequence[Choice], requirements: Requirements) -> tuple[Requirements, ...]:
    """The whole of what would do as well: other cards, and all else as it is."""
    made: list[Requirements] = []
    for choice in choices:
        variant = msgspec.structs.replace(
            requirements, num_gpus=choice.gpus, vram_mib=choice.vram_mib, total_vram_mib=0, gpu_models=choice.models
        )
        if variant in (requirements, *made):
            raise SpecError("--or", "it asks for the same as is asked for already", "leave it out")
        made.append(variant)
    return tuple(made)


def default_name(script: str | None, command: Sequence[str]) -> str:
    """A name for a job whose buyer gave none: the script's or the command's, in the alphabet of names."""
    source = script or (command[0] if command else "") or "job"
    plain = re.sub(r"[^A-Za-z0-9._@+-]+", "-", source.rstrip("/").rpartition("/")[2])[:64]
    return plain.lstrip("._@+-") or "job"


def script_argv(name: str, head: bytes, args: Sequence[str]) -> tuple[str, ...]:
    """How a script of this name that begins with `head` is run in /job. A shebang is respected, except that `.py` means python."""
    if name.endswith(".py"):
        return ("python", name, *args)
    if head.startswith(b"#!"):
        return (f"./{name}", *args)
    if name.endswith((".sh", ".bash")):
        return ("bash", name, *args)
    raise SpecError(
        f"script {name}",
        "nothing says how to run it: it ends neither in .py nor in .sh and has no #! line",
        "say it yourself: bazaar run --in FILE -- PROGRAM FILE",
    )


def default_timeout_s(kind: JobKind, policy: Policy) -> int:
    """How long a run of this kind may take when nobody said so."""
    return {
        JobKind.BATCH: policy.timeout_batch_s,
        JobKind.NOTEBOOK: policy.timeout_notebook_s,
        JobKind.CONTAINER: policy.timeout_container_s,
    }[kind]


def submission(
    wish: Wish,
    argv: Sequence[str],
    job_id: str,
    *,
    inputs: BlobRef | None = None,
    inputs_bytes: int = 0,
    node_id: str | None = None,
    group_id: str | None = None,
    org_id: str | None = None,
    rank: int = 0,
    policy: Policy | None = None,
) -> JobSubmitted:
    """The fact to publish for a wish whose files are stored; times that nobody named are the market's (`policy`).
    Raises SpecError when it is over a bound of facts."""
    percent, window_s = wish.min_utilisation or (None, None)
    requirements = msgspec.structs.replace(wish.requirements, target_node=node_id, image=wish.image)
    event = JobSubmitted(
        job_id=job_id,
        kind=wish.kind,
        name=wish.name,
        requirements=requirements,
        variants=_variants(wish.choices, requirements),
        program=Program(argv=tuple(argv), env=wish.env, image=wish.image, inputs=inputs, inputs_bytes=inputs_bytes),
        timeout_s=wish.timeout_s or default_timeout_s(wish.kind, policy or Policy()),
        queue_timeout_s=wish.queue_timeout_s,
        max_price_uusd_per_gpu_hour=wish.max_price_uusd_per_gpu_hour,
        max_total_uusd=wish.max_total_uusd,
        estimate_s=wish.estimate_s,
        estimate_limit=wish.estimate_limit,
        idle_timeout_s=wish.idle_timeout_s,
        min_utilisation_percent=percent,
        min_utilisation_window_s=window_s,
        gpu_memory_limit_mib=wish.gpu_memory_limit_mib,
        priority=wish.priority,
        retries=wish.retries,
        labels=wish.labels,
        group_id=group_id,
        num_nodes=wish.num_nodes,
        rank=rank,
        org_id=org_id,
    )
    _check_bounds(event)
    return event


def _check_bounds(event: JobSubmitted) -> None:
    body = codec.encode_event(event)
    if len(body) > codec.EVENT_BYTES_MAX - 1024:
        raise SpecError(
            "the job", "its arguments and variables are larger than an event may be (16 KiB)", "put them into a file and ship it with --in"
        )
    try:
        codec.decode_event(body)
    except codec.Malformed as error:
        raise SpecError("the job", str(error), "see docs/jobs.md for the bounds") from None
