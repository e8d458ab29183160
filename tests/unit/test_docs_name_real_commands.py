"""A command or flag that a document names works, unless the same line says `not yet`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import buyer_cli.cli
import seller_agent.cli
import services.cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, click.Group] = {
    "bazaar": buyer_cli.cli.bazaar,
    "bazaar-seller": seller_agent.cli.cli,
    "bazaar-market": services.cli.cli,
}
CALL = re.compile(r"(?:^|`)(bazaar(?:-seller|-market)?) ([a-z][a-z-]*)([^`\n#]*)", re.MULTILINE)
FLAG = re.compile(r"(?<!\S)(--?[a-z][a-z-]*)")


def calls(text: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """(line, program, command, flags) of every call that is not announced for later. What follows `--` is the job's own."""
    for line in text.splitlines():
        if "not yet" not in line and "not planned" not in line:
            for program, command, rest in CALL.findall(line):
                yield line, program, command, FLAG.findall(rest.split(" -- ")[0])


def flags_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_command_and_flag_that_a_document_names_exists(document: Path) -> None:
    wrong = []
    for line, program, name, flags in calls(document.read_text()):
        group = PROGRAMS[program]
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            of_group = re.search(rf"{program} {name} ([a-z-]+)", line)
            command = command.get_command(click.Context(command), of_group[1]) if of_group else command
        if command is None:
            wrong.append(f"{program} {name}: {line}")
        else:
            wrong += [f"{program} {name} {flag}: {line}" for flag in flags if flag not in flags_of(command)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_nothing_that_exists_is_announced_for_later() -> None:
    stale = []
    for line in (ROOT / "docs" / "coming-from.md").read_text().splitlines():
        for program, name in re.findall(r"`(bazaar(?:-seller|-market)?) ([a-z][a-z-]*)[^`]*`[^`;]*: not yet", line):
            if PROGRAMS[program].get_command(click.Context(PROGRAMS[program]), name) is not None:
                stale.append(line)
    assert not stale, "\n" + "\n".join(stale)
