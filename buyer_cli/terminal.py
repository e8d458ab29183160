"""What reaches the person or the script: data on stdout, everything else on stderr, rich on a terminal only.

The only module that writes. Texts from the market have been through `printable` before they come here.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from getpass import getpass
from typing import Any

from buyer_cli.render import columns

Advance = Callable[[int], None]
_STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "failed": "red",
    "timed_out": "red",
    "expired": "yellow",
    "queued": "yellow",
    "cancelled": "dim",
    "offered": "green",
    "lost": "red",
    "draining": "yellow",
}


class Terminal:
    """Where a command speaks. With `as_json`, people's words go to stderr and only JSON to stdout."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    @property
    def is_interactive(self) -> bool:
        """Whether somebody is there to answer a question."""
        return sys.stdin.isatty() and sys.stderr.isatty() and not self.as_json

    def data(self, text: str) -> None:
        """A line of data."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def output(self, text: str, stderr: bool = False) -> None:
        """A piece of a job's output, as it comes; the job's stderr goes to ours."""
        stream = sys.stderr if stderr else sys.stdout
        stream.write(text)
        stream.flush()

    def raw_output(self, data: bytes, stderr: bool = False) -> None:
        """The same, byte for byte."""
        stream = sys.stderr if stderr else sys.stdout
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()

    def emit(self, value: object) -> None:
        """An object or array as one line of JSON; every character that is not ASCII is escaped."""
        self.data(json.dumps(value))

    def note(self, text: str) -> None:
        """A word to the person: progress, a warning, what comes next."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def lines(self, lines: Sequence[tuple[str, str]]) -> None:
        """Labels and values under each other."""
        width = max((len(label) for label, _ in lines), default=0)
        for label, value in lines:
            self.data(f"{label.ljust(width)}  {value}".rstrip())

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]], empty: str = "") -> None:
        """A table on stdout; without rows only a word on stderr."""
        if not rows:
            self.note(empty or "nothing to show")
        elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            _rich_table(headers, rows)
        else:
            self.data("\n".join(columns(headers, rows)))

    def confirm(self, question: str, default: bool = True) -> bool:
        """A yes or no from the person; without one to ask, yes is implied."""
        if not self.is_interactive:
            return True
        sys.stderr.write(f"{question} [{'Y/n' if default else 'y/N'}] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if not answer:
            return False
        return default if not answer.strip() else answer.strip().lower() in {"y", "yes"}

    def ask(self, question: str, default: str = "") -> str:
        """A line from the person; empty input means the default."""
        sys.stderr.write(f"{question}{f' [{default}]' if default else ''}: ")
        sys.stderr.flush()
        return sys.stdin.readline().strip() or default

    def ask_secret(self, question: str) -> str:
        """A line from the person that is not shown as it is typed."""
        return getpass(f"{question}: ", sys.stderr)

    @contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Advance]:
        """A bar while bytes move, on a terminal only; yields what is called with the bytes that moved."""
        if not sys.stderr.isatty() or self.as_json or os.environ.get("TERM") == "dumb" or total_bytes < 1 << 20:
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        bars = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*bars, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(label, total=total_bytes)
            yield lambda moved: shown.update(task, advance=moved)


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for header in headers:
        table.add_column(header, no_wrap=header in {"ID", "STATE", "UPDATED"}, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    Console().print(table)


def to_json(text: bytes) -> Any:
    """What JSON bytes hold."""
    return json.loads(text)
