"""From a command line to what will be submitted: which script, which command, which files, one plan for each job.

Shell: it reads files. Nothing here talks to the market.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from buyer_cli.inputs import InputFile, Notice, input_files
from buyer_cli.secret_values import Ask, SecretReader, SecretValues
from buyer_cli.spec import Layer, SpecError, Wish, default_name, flag_layer, merge, script_argv, wishes
from buyer_cli.spec_files import Script, block_layer, checked_script, read_job_file, read_script, read_standard_input
from events.values import JobKind

INLINE_NAME = "main.py"


class Plan(NamedTuple):
    """One job, with the files on this machine that it ships."""

    wish: Wish
    argv: tuple[str, ...]
    files: tuple[InputFile, ...]
    secrets: SecretValues = SecretValues()

    @property
    def inputs_bytes(self) -> int:
        """All files together."""
        return sum(file.size for file in self.files)


class Asked(NamedTuple):
    """What stood on the command line beside the flags."""

    script: str | None = None
    """A path, or `-` for standard input."""
    code: str | None = None
    rest: tuple[str, ...] | None = None
    """What stood after `--`."""
    job_file: str | None = None
    kind: JobKind = JobKind.BATCH


def requirement_layers(asked: Asked, flags: Mapping[str, object], allow_simulated: bool) -> list[Layer]:
    """The merged specification of each job. Raises SpecError."""
    return [layer for _, layer in _jobs(asked, flags, allow_simulated)]


def plans(asked: Asked, flags: Mapping[str, object], allow_simulated: bool, notice: Notice, ask: Ask | None = None) -> list[Plan]:
    """Every job that was asked for; `ask` asks the person for a secret. Raises SpecError."""
    found = []
    secrets = SecretReader(ask, notice)
    for script, layer in _jobs(asked, flags, allow_simulated):
        argv = _argv(script, layer, asked.kind)
        executable = argv[0] == f"./{script.name}" if script else False
        files = tuple(input_files(script, executable, layer.get("in", ()), notice))
        found += [Plan(wish, argv, files, secrets.read(wish.secrets)) for wish in wishes(layer, asked.kind)]
    return found


def _jobs(asked: Asked, flags: Mapping[str, object], allow_simulated: bool) -> list[tuple[Script | None, Layer]]:
    line = _line_layer(asked)
    given = {**flag_layer(flags), **line}
    inline = _inline(asked)
    files = read_job_file(asked.job_file) if asked.job_file is not None else [{}]
    default: Layer = {"allow-simulated": True} if allow_simulated else {}
    jobs = []
    for file in files:
        named = merge([file, given])
        script = inline or (read_script(named["script"]) if "script" in named else None)
        layer = merge([default, block_layer(script) if script else {}, file, given])
        if inline is not None:
            layer = {**{name: value for name, value in layer.items() if name not in ("script", "command")}, "args": layer.get("args", ())}
        if "name" not in layer:
            other = "" if asked.kind is JobKind.BATCH else asked.kind.value
            layer["name"] = default_name(script.name if script else None, layer.get("command", ()) or (other,))
        jobs.append((script, layer))
    return jobs


def _inline(asked: Asked) -> Script | None:
    if asked.code is not None:
        return Script(INLINE_NAME, checked_script("-c", asked.code.encode()))
    return Script(INLINE_NAME, read_standard_input()) if asked.script == "-" else None


def _line_layer(asked: Asked) -> Layer:
    """The command line's own part: script and arguments, or a command."""
    if asked.code is not None and asked.script is not None:
        raise SpecError(f"-c and {asked.script}", "a job runs one of them", "leave one out; arguments of the code stand after --")
    if asked.script is not None and asked.script != "-":
        return {"script": asked.script} | ({"args": asked.rest} if asked.rest is not None else {})
    if asked.script == "-" or asked.code is not None:
        return {"args": asked.rest or ()}
    if asked.rest:
        return {"command": asked.rest}
    if asked.rest is not None:
        raise SpecError("--", "no command stands after it", "bazaar run -- nvidia-smi")
    return {}


def _argv(script: Script | None, layer: Layer, kind: JobKind) -> tuple[str, ...]:
    if script is not None:
        return script_argv(script.name, script.content[:2], layer.get("args", ()))
    command: tuple[str, ...] = layer.get("command", ())
    if kind is JobKind.CONTAINER and not command and not layer.get("image"):
        raise SpecError("a container", "neither an image nor a command was given", "bazaar container --image IMAGE [-- COMMAND]")
    if kind is JobKind.BATCH and not command:
        raise SpecError(
            "there is nothing to run",
            "neither a script nor a command was given",
            "bazaar run SCRIPT, bazaar run -c CODE, or bazaar run -- COMMAND",
        )
    return command
