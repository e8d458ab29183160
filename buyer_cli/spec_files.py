"""Shell around `spec.py`: reads scripts, their PEP 723 blocks, and job files in TOML or YAML. Decides nothing about their content.

Numbers are read as the texts that were written, so that neither a price nor a size is rounded on the way.
"""

from __future__ import annotations

import re
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from buyer_cli.spec import Layer, SpecError, file_layer

SCRIPT_BYTES_MAX = 16 << 20
SPEC_BYTES_MAX = 1 << 20
_BLOCK = re.compile(r"(?m)^# /// script$\n((?:^#(?:| .*)$\n)+?)^# ///$")


class Script(NamedTuple):
    """A script to ship: its name inside the job, and its bytes."""

    name: str
    content: bytes


def read_script(path: str) -> Script:
    """A script from disk. Raises SpecError when it is missing, no plain file, too large, or no text."""
    place = f"script {path}"
    name = path.rstrip("/").rpartition("/")[2]
    if "\n" in path or "\r" in path:
        raise SpecError(place, "its name holds a line break", "rename it")
    try:
        info = Path(path).stat()
        if stat.S_ISDIR(info.st_mode):
            raise SpecError(place, "it is a folder", f"bazaar run --in {path} -- COMMAND")
        if not stat.S_ISREG(info.st_mode):
            raise SpecError(place, "it is not a plain file", "pipe it in: bazaar run - < FILE")
        if info.st_size > SCRIPT_BYTES_MAX:
            raise SpecError(place, f"it has {info.st_size:,} bytes; a script may have 16 MiB", "ship large files with --in")
        return Script(name, checked_script(place, Path(path).read_bytes()))
    except FileNotFoundError:
        raise SpecError(place, "there is no such file", _missing_hint(path)) from None
    except (OSError, ValueError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(place, f"it cannot be read: {getattr(error, 'strerror', None) or error}", "check its path and mode") from None


def _missing_hint(path: str) -> str:
    return f"for a command instead of a script: bazaar run -- {path} ..." if "/" not in path and "." not in path else "check the path"


def checked_script(place: str, content: bytes) -> bytes:
    """A script's bytes, refused when they are no text. Raises SpecError."""
    if len(content) > SCRIPT_BYTES_MAX:
        raise SpecError(place, "it has more than 16 MiB", "ship large files with --in")
    if b"\0" in content:
        raise SpecError(place, "it is a binary file, not a script", "ship it with --in FILE and run it: -- ./FILE")
    if not content.strip():
        raise SpecError(place, "it is empty", "a script with something to run")
    return content


def read_standard_input() -> bytes:
    """A script from standard input. Raises SpecError."""
    return checked_script("the script on standard input", sys.stdin.buffer.read(SCRIPT_BYTES_MAX + 1))


def block_layer(script: Script) -> Layer:
    """What `[tool.bazaar]` of a script's PEP 723 block says; nothing when there is none. Raises SpecError."""
    text = script.content.decode(errors="replace").replace("\r\n", "\n")
    place = f"{script.name} [tool.bazaar]"
    if "# /// script" not in text:
        return {}
    blocks = _BLOCK.findall(text + "\n")
    if len(blocks) > 1:
        raise SpecError(script.name, "it has more than one `# /// script` block", "keep one")
    if not blocks:
        return {}
    lines = [line[2:] if line.startswith("# ") else line[1:] for line in blocks[0].splitlines()]
    table = _toml("\n".join(lines), script.name).get("tool", {})
    own = table.get("bazaar", {}) if isinstance(table, dict) else {}
    if not isinstance(own, dict):
        raise SpecError(place, "it must be a table", "[tool.bazaar]")
    return file_layer(own, place, forbidden=("script", "command", "args"))


def _toml(text: str, place: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text, parse_float=str)
    except (ValueError, RecursionError) as error:
        raise SpecError(place, f"it is no valid TOML: {error}", "text values stand in quotes") from None


def read_job_file(path: str) -> list[Layer]:
    """The jobs of a TOML or YAML file: what stands at its top holds for every `[[job]]`. Raises SpecError."""
    place = Path(path).name
    try:
        if Path(path).stat().st_size > SPEC_BYTES_MAX:
            raise SpecError(place, "a job file has at most 1 MiB", "ship data with `in`")
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(path, "there is no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(path, f"it cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}", "check the path") from None
    content = _yaml(text, place) if path.endswith((".yaml", ".yml")) else _toml(text, place)
    return [_relative_to(Path(path).parent, layer) for layer in _jobs(content, place)]


def _yaml(text: str, place: str) -> dict[str, Any]:
    import yaml  # only who has a YAML file waits for it

    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)  # every scalar stays a text; no tag makes an object
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError(place, f"it is no valid YAML: {' '.join(str(error).split())[:200]}", "check the indentation") from None
    if not isinstance(content, dict):
        raise SpecError(place, "it must hold keys and values", "gpus: 1")
    return content


def _jobs(content: dict[str, Any], place: str) -> list[Layer]:
    jobs = content.pop("job", None)
    shared = file_layer(content, place)
    if jobs is None:
        return [shared]
    tables = jobs if isinstance(jobs, list) else [jobs]
    if not tables or not all(isinstance(table, dict) for table in tables):
        raise SpecError(f"{place}: job", "it must be tables", "[[job]]")
    layers = []
    for number, table in enumerate(tables, 1):
        layer = {**shared, **file_layer(table, f"{place}: job {number}" if len(tables) > 1 else place)}
        for name in ("label", "env", "secret"):
            if name in shared and name in layer:
                layer[name] = {**shared[name], **layer[name]}
        layers.append(layer)
    return layers


def _relative_to(folder: Path, layer: Layer) -> Layer:
    """Paths in a file mean places beside that file."""
    moved = dict(layer)
    if "script" in layer:
        moved["script"] = str(folder / layer["script"])
    if "secret" in layer:
        moved["secret"] = {name: file if file is None else str(folder / file) for name, file in layer["secret"].items()}
    if "in" in layer:
        # Joining drops the `.` that means "this folder's content".
        moved["in"] = tuple(f"{folder}/." if path in (".", "./") else str(folder / path) for path in layer["in"])
    return moved
