"""Where the secrets of a job come from: a file, the environment, or the person. Shell; the values go into a sealed box and nowhere else.

A value is never an argument: what stands after `=` names a file. Messages here name secrets and never show one.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from buyer_cli.spec import SpecError
from events.sealing import SECRET_BYTES_MAX, SECRETS_MAX

Ask = Callable[[str], str]
"""Asks the person for a value that is not shown as it is typed."""


@dataclass(frozen=True)
class SecretValues:
    """The values by their names, hidden from whoever prints this."""

    values: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.values)


class SecretReader:
    """Reads each secret once, however many jobs want it."""

    def __init__(self, ask: Ask | None, notice: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> None:
        self._ask = ask
        self._notice = notice
        self._environment = environment
        self._known: dict[tuple[str, str | None], bytes] = {}

    def read(self, wanted: Mapping[str, str | None]) -> SecretValues:
        """What a job wants: names, each with a file or without. Raises SpecError."""
        if not wanted:
            return SecretValues()
        if len(wanted) > SECRETS_MAX:
            raise SpecError(f"{len(wanted)} secrets", f"a job has at most {SECRETS_MAX}", "put several into one file")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash from here on leaves no image of this memory
        return SecretValues({name: self._value(name, file) for name, file in sorted(wanted.items())})

    def _value(self, name: str, file: str | None) -> bytes:
        if (name, file) not in self._known:
            value, source = self._from_file(name, file) if file is not None else self._from_elsewhere(name)
            if not value:
                raise SpecError(f"--secret {name}", f"{source} is empty", "a secret has at least one byte")
            if len(value) > SECRET_BYTES_MAX:
                raise SpecError(f"--secret {name}", f"{source} is larger than {SECRET_BYTES_MAX >> 10} KiB", "ship large files with --in")
            self._notice(f"secret {name} from {source}: sealed for the node that runs the job")
            self._known[name, file] = value
        return self._known[name, file]

    def _from_file(self, name: str, file: str) -> tuple[bytes, str]:
        try:
            with Path(file).open("rb") as stream:
                return stream.read(SECRET_BYTES_MAX + 1), "its file"
        except OSError as error:
            # Not the name of the file: somebody may have put the secret itself there.
            hint = "after = stands the name of a file, never the secret itself"
            raise SpecError(f"--secret {name}", f"its file cannot be read: {error.strerror or 'no such file'}", hint) from None
        except ValueError:
            raise SpecError(f"--secret {name}", "that is no name of a file") from None

    def _from_elsewhere(self, name: str) -> tuple[bytes, str]:
        if name in self._environment:
            return os.fsencode(self._environment[name]), "the environment"
        if self._ask is None:
            hint = f"set {name} in the environment, or name a file: --secret {name}=FILE"
            raise SpecError(f"--secret {name}", "its value stands nowhere, and nobody is there to be asked", hint)
        return os.fsencode(self._ask(f"Secret {name}")), "what was typed"
