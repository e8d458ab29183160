"""Which files of a folder are not shipped: the built-in rules, then those of its `.bazaarignore`, in git's syntax. Pure.

The last rule that matches a path decides; `!` takes a path back in. A folder that is left out is not looked into.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

IGNORE_FILE = ".bazaarignore"
BUILT_IN = (
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".ipynb_checkpoints/",
    ".DS_Store",
    "/results/",
    ".env",
    ".env.*",
    ".bazaarignore",
)
"""Never wanted on another machine: history, caches, fetched results, and the files in which people keep secrets."""


class Rule(NamedTuple):
    """One line. `keeps`: the line began with `!`."""

    pattern: re.Pattern[str]
    folders_only: bool
    keeps: bool


def rules(lines: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of these lines, in order."""
    return tuple(rule for rule in (_rule(line) for line in lines) if rule is not None)


def _rule(line: str) -> Rule | None:
    text = line.rstrip("\n").rstrip()
    if not text or text.startswith("#"):
        return None
    keeps = text.startswith("!")
    text = text.removeprefix("!").removeprefix("\\")
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    if not text:
        return None
    anchored = "/" in text
    prefix, text = "" if anchored else "(?:.*/)?", text.removeprefix("/")
    try:
        pattern = re.compile(prefix + _translated(text) + r"\Z", re.DOTALL)
    except re.error:  # such as [z-a]: then it means itself
        pattern = re.compile(prefix + re.escape(text) + r"\Z", re.DOTALL)
    return Rule(pattern, folders_only, keeps)


def _translated(glob: str) -> str:
    """git's wildcards as a regular expression: `**` crosses folders, `*` and `?` do not."""
    parts = []
    for token in re.findall(r"\*\*/|/\*\*|\*+|\?|\[[^\]/]+\]|.", glob):
        match token:
            case "**/":
                parts.append("(?:.*/)?")
            case "/**":
                parts.append("/.*")
            case "?":
                parts.append("[^/]")
            case _ if token.startswith("*"):
                parts.append("[^/]*")
            case _ if len(token) > 1:
                inner = token[1:-1].replace("\\", "\\\\")
                parts.append(f"[{'^' + inner[1:] if inner.startswith('!') else inner}]")
            case _:
                parts.append(re.escape(token))
    return "".join(parts)


def is_left_out(path: str, is_folder: bool, rules: Iterable[Rule]) -> bool:
    """Whether a path (relative, with `/`) is not shipped. The folders above it are asked about before it."""
    left_out = False
    for rule in rules:
        if (is_folder or not rule.folders_only) and rule.pattern.match(path):
            left_out = not rule.keeps
    return left_out
