"""Every key of a job's specification, once: its name as a flag and in files, how it is read, and one line of help. Pure.

The flags of `bazaar run`, the keys of `[tool.bazaar]` and of job files, and the table in docs/jobs.md all come from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from events import quantities
from events.quantities import BadValue
from events.values import Isolation, Network, Tier

_MODEL = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9 ._()/+-]{0,63}\Z")
_IMAGE = re.compile(r"\A[a-z0-9][a-zA-Z0-9._:/@-]{0,254}\Z")
NAME = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}\Z")
_LABEL_KEY = re.compile(r"\A[a-z][a-z0-9._-]{0,31}\Z")
_LABEL_VALUE = re.compile(r"\A[A-Za-z0-9 ._@:/+-]{0,63}\Z")
_ENV_NAME = re.compile(r"\A[A-Za-z_][A-Za-z0-9_]{0,63}\Z")
_SECRET = re.compile(r"\A[A-Za-z_][A-Za-z0-9_.-]{0,63}\Z")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS)\Z", re.IGNORECASE)


class Shape(StrEnum):
    """How often a key is given, and how a later source changes it."""

    ONE = "one"
    MANY = "many"
    TABLE = "table"
    SWITCH = "switch"


class Key(NamedTuple):
    """One key. `read` turns a text into the value; for a table, a name and a text into both."""

    name: str
    read: Callable[..., Any]
    metavar: str
    help: str
    shape: Shape = Shape.ONE
    short: str = ""
    flag: bool = True
    """Whether it is a flag as well; the others stand in files only."""
    hidden: bool = False
    """What is given for it is not repeated in messages; of a table, only the names."""
    bare: bool = False
    """A table whose entries may be names alone."""


def _choice(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def read(text: str) -> StrEnum:
        try:
            return kind(text.strip().lower())
        except ValueError:
            raise BadValue("there is no such choice", " or ".join(kind)) from None

    return read


def _whole(low: int, high: int) -> Callable[[str], int]:
    return lambda text: quantities.whole(text.strip(), low, high)


def _gpus(text: str) -> int:
    number = quantities.whole(text.strip(), -(10**11), 10**11)
    if number > 8:
        raise BadValue("a job gets its cards from one node, and at most 8 of them", "a number from 0 to 8")
    return quantities.whole(text.strip(), 0, 8)


def _matching(pattern: re.Pattern[str], why: str, hint: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not pattern.match(text):
            raise BadValue(why, hint)
        return text

    return read


def _label(key: str, value: str) -> tuple[str, str]:
    if not _LABEL_KEY.match(key):
        raise BadValue("a label's name is lower-case letters, digits, . _ and -, at most 32", "team=vision")
    if not _LABEL_VALUE.match(value):
        raise BadValue("a label's value is letters, digits, spaces and ._@:/+-, at most 63", "team=vision")
    return key, value


def _env(key: str, value: str) -> tuple[str, str]:
    if not _ENV_NAME.match(key):
        raise BadValue("that is not the name of a variable", "BATCH_SIZE=32")
    if _SECRET_NAME.search(key):
        raise BadValue(
            "its name says that it is a secret, and what stands in a job's environment is in the ledger for ever, for all to read",
            f"--secret {key} instead: the job reads it from the file /run/secrets/{key}",
        )
    if len(value.encode()) > 4096 or "\0" in value:
        raise BadValue("a variable holds at most 4096 bytes and no zero byte", "ship it as a file with --in")
    return key, value


def _secret(name: str, file: str | None) -> tuple[str, str | None]:
    if not _SECRET.match(name):
        raise BadValue("a secret's name is letters, digits, . _ and -, at most 64, and begins with a letter", "--secret HF_TOKEN=token.txt")
    if file is not None and (not file or "\0" in file):
        raise BadValue("no file is named after =", f"--secret {name} alone takes it from the environment, or asks")
    return name, file


def _path(text: str) -> str:
    if not text or "\0" in text or "\n" in text:
        raise BadValue("that is not a path that can be shipped", "a file or a folder")
    return text


def _argument(text: str) -> str:
    if "\0" in text or len(text.encode()) > 8192:
        raise BadValue("an argument holds at most 8192 bytes and no zero byte", "ship it as a file with --in")
    return text


def _utilisation(text: str) -> tuple[int, int]:
    """`10%/30m`: percent, and seconds of the window."""
    example = "10%/30m: at least 10 % in the mean of any 30 minutes"
    percent, slash, window = text.strip().partition("/")
    if not slash or not percent.strip().endswith("%"):
        raise BadValue("it needs a percentage and a time", example)
    try:
        return quantities.whole(percent.strip().removesuffix("%").strip(), 1, 100), quantities.duration_s(window)
    except BadValue as error:
        raise BadValue(error.why, example) from None


class Choice(NamedTuple):
    """Cards that would do instead of those that the other keys name."""

    gpus: int
    vram_mib: int
    models: tuple[str, ...]


_CHOICE = re.compile(r"\s*(\d{1,3})\s*x\s*(?:(\d+(?:\.\d+)?\s*[kmgt]i?b)\b)?\s*(.*?)\s*", re.IGNORECASE)


def read_choice(text: str) -> Choice:
    """`2x40GB`, `2xRTX 4090`, `2x40GB A100`."""
    hint = "2x40GB, '2xRTX 4090' or '2x40GB A100'"
    match = _CHOICE.fullmatch(text)
    if match is None or not (match[2] or match[3]):
        raise BadValue("it does not say how many cards, and what they must be", hint)
    gpus = _gpus(match[1])
    if gpus == 0:
        raise BadValue("a choice has a card at least", hint)
    if match[3] and not _MODEL.match(match[3]):
        raise BadValue("that is not the name of a card", hint)
    return Choice(gpus, quantities.size_mib(match[2]) if match[2] else 0, (match[3],) if match[3] else ())


_PRICE_MAX = 10**12
_TOTAL_MAX = 10**15

KEYS: tuple[Key, ...] = (
    Key("script", _path, "FILE", "The script to run.", flag=False),
    Key("command", _argument, "ARG", "The command to run, one text an argument.", Shape.MANY, flag=False),
    Key("args", _argument, "ARG", "Arguments of the script.", Shape.MANY, flag=False),
    Key("gpus", _gpus, "N", "Cards of one node, 0 to 8. Default 1."),
    Key("nodes", _whole(1, 64), "K", "Run on K nodes at once, a rank on each (a gang). Default 1."),
    Key("vram", quantities.size_mib, "SIZE", "Memory of each card, such as 24GB."),
    Key("total-vram", quantities.size_mib, "SIZE", "Memory of the cards together."),
    Key("or", read_choice, "NxSIZE", "What would do as well, such as 2x40GB or '2xRTX 4090'; several: in order of preference.", Shape.MANY),
    Key(
        "gpu-model",
        _matching(_MODEL, "that is not the name of a card", "RTX 4090"),
        "MODEL",
        "Card model, such as 'RTX 4090'; several: any of them.",
        Shape.MANY,
    ),
    Key("min-cuda", quantities.cuda, "VERSION", "Oldest CUDA version of the node's driver, such as 12.4."),
    Key("max-price", lambda text: quantities.uusd(text, _PRICE_MAX), "USD", "The most to pay per GPU-hour."),
    Key("max-total", lambda text: quantities.uusd(text, _TOTAL_MAX), "USD", "The most that the job may cost."),
    Key("cores", _whole(0, 4096), "N", "Processor cores."),
    Key("memory", quantities.size_mib, "SIZE", "Main memory."),
    Key("shm", quantities.size_mib, "SIZE", "Size of /dev/shm."),
    Key(
        "image",
        _matching(_IMAGE, "that is not the name of an image", "pytorch/pytorch:2.5.1-cuda12.4-cudnn9-runtime"),
        "IMAGE",
        "Container image; default: the node's own.",
    ),
    Key("timeout", quantities.duration_s, "TIME", "Stop the run after this time. Default 1h; a notebook 2h, a container 3h."),
    Key("queue-timeout", quantities.duration_s, "TIME", "Give up when no node was found in this time. Default: wait."),
    Key("estimate", quantities.duration_s, "TIME", "How long the run is thought to take."),
    Key("estimate-limit", _whole(1, 100), "N", "Stop the run at N times its estimate."),
    Key(
        "idle-timeout", quantities.duration_s, "TIME", "Stop a run that does nothing for so long: no CPU, no GPU, no output; nobody there."
    ),
    Key("min-utilisation", _utilisation, "PERCENT/TIME", "Stop a run that uses its cards less, in the mean of that time: 10%/30m."),
    Key("gpu-memory-limit", quantities.size_mib, "SIZE", "Stop a run that uses more of a card's memory."),
    Key("priority", quantities.priority, "LEVEL", "low, normal, high, critical, or 0-100. Default normal."),
    Key("retries", _whole(0, 20), "N", "New attempts after a fault that is not the job's own. Default 3, for a session 0."),
    Key("target", quantities.target, "NODE[::CARDS]", "Run on this node, on these cards; several: a job for each.", Shape.MANY, "-t"),
    Key(
        "name",
        _matching(NAME, "a name is letters, digits, spaces and ._@+-, at most 64, and begins with a letter or digit", "resnet-lr3"),
        "NAME",
        "Name of the job. Default: that of the script.",
    ),
    Key("label", _label, "KEY=VALUE", "A label to find the job by.", Shape.TABLE),
    Key("node-label", _label, "KEY=VALUE", "Run only where the owner gave the node this label; several: all of them.", Shape.TABLE),
    Key("env", _env, "KEY=VALUE", "A variable in the job's environment. Everybody can read it.", Shape.TABLE, hidden=True),
    Key(
        "secret",
        _secret,
        "NAME[=FILE]",
        "A secret, for the job in /run/secrets/NAME: from FILE, else from the environment, else asked for.",
        Shape.TABLE,
        hidden=True,
        bare=True,
    ),
    Key("in", _path, "PATH", "A file or folder to ship; `.` ships this folder's content.", Shape.MANY),
    Key("out", _path, "DIR", "Where results go. Default ./results/JOB."),
    Key(
        "org",
        _matching(NAME, "that is no organisation's name or id", "vision-lab"),
        "NAME|ID",
        "Submit it for this organisation: its members see it, and its private nodes take it.",
    ),
    Key("network", _choice(Network), "none|egress", "What of the network the job sees. Default none."),
    Key("isolation", _choice(Isolation), "process|container|gvisor", "How well the node must shut the job off, at least."),
    Key("min-tier", _choice(Tier), "claimed|consistent|benchmarked", "How well the node's cards have been checked, at least."),
    Key("allow-simulated", quantities.yes_or_no, "", "Simulated cards will do.", Shape.SWITCH),
)
BY_NAME: dict[str, Key] = {key.name: key for key in KEYS}
LATER: frozenset[str] = frozenset()
"""Names that the contract keeps for what this version cannot do: refused, never swallowed. At present there are none."""
