"""Which files a job ships, and under which names. Shell: it walks folders and reads sizes; storing them is `events/files.py`'s work.

A link is followed to a plain file inside the folder it lies in, and left out with a notice when it leads elsewhere: nobody
ships a file from outside because a folder that he got from somebody has a link in it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from buyer_cli.ignore_rules import BUILT_IN, IGNORE_FILE, Rule, is_left_out, rules
from buyer_cli.spec import SpecError
from buyer_cli.spec_files import Script

INPUTS_BYTES_MAX = 2 << 30
FILES_MAX = 20_000
Notice = Callable[[str], None]


class InputFile(NamedTuple):
    """A file to ship. `content` is set for what does not lie on disk under that name (a script read already)."""

    path: str
    """Inside the job, with `/`."""
    source: Path | None
    content: bytes | None
    size: int
    executable: bool


def input_files(script: Script | None, executable: bool, paths: tuple[str, ...], notice: Notice) -> list[InputFile]:
    """Everything to ship, by path. Raises SpecError when two files want one name, or all are too large together."""
    found: dict[str, InputFile] = {}
    total = 0
    for path in paths:
        for file in _files_of(path, notice):
            known = found.setdefault(file.path, file)
            if known is not file and known.source != file.source:
                raise SpecError(
                    f"--in {path}", f"{file.path} is shipped twice, from {known.source} and {file.source}", "rename one of them"
                )
            total += file.size if known is file else 0
            _check_limits(len(found), total)
    if script is not None:
        same = found.get(script.name)
        if same is not None and same.source is not None and same.source.read_bytes() != script.content:
            raise SpecError(f"--in {same.source}", f"the script is called {script.name} in the job as well", "rename one of them")
        found[script.name] = InputFile(script.name, None, script.content, len(script.content), executable)
    return [found[path] for path in sorted(found)]


def _check_limits(files: int, total: int) -> None:
    if files > FILES_MAX:
        raise SpecError("--in", f"more than {FILES_MAX:,} files", f"leave some out in {IGNORE_FILE}, or pack them into one file")
    if total > INPUTS_BYTES_MAX:
        raise SpecError(
            "--in", "the inputs are larger than 2 GiB together", f"leave some out in {IGNORE_FILE}, or fetch data inside the job"
        )


def _files_of(text: str, notice: Notice) -> Iterator[InputFile]:
    path = Path(text)
    try:
        info = path.stat()
    except FileNotFoundError:
        raise SpecError(f"--in {text}", "there is no such file or folder", "check the path") from None
    except OSError as error:
        raise SpecError(f"--in {text}", f"it cannot be read: {error.strerror}", "check the path") from None
    base = _name_in_job(text, path)
    if stat.S_ISDIR(info.st_mode):
        yield from _folder(path, base, notice)
    elif stat.S_ISREG(info.st_mode):
        yield _file(path, base)
    else:
        raise SpecError(f"--in {text}", "it is neither a file nor a folder", "ship plain files")


def _name_in_job(text: str, path: Path) -> str:
    """The name under which a path lies in /job; empty when a folder's content is meant."""
    if os.path.normpath(text) == "." or text.endswith("/."):
        return ""
    name = path.name if path.name not in ("", "..") else path.resolve().name
    if not name:
        raise SpecError(f"--in {text}", "it has no name of its own", "ship a folder with less in it")
    return name


def _file(path: Path, name: str) -> InputFile:
    info = path.stat()
    if "\n" in name or "\r" in name:
        raise SpecError(f"--in {path}", "its name holds a line break", "rename it")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SpecError(f"--in {path}", "its name is no UTF-8 text", "rename it") from None
    if not os.access(path, os.R_OK):
        raise SpecError(f"--in {path}", "it cannot be read", "change its mode, or leave it out")
    return InputFile(name, path, None, info.st_size, bool(info.st_mode & 0o100))


def _folder(root: Path, base: str, notice: Notice) -> Iterator[InputFile]:
    own = root / IGNORE_FILE
    lines = own.read_text(encoding="utf-8", errors="replace").splitlines() if own.is_file() else []
    table = rules((*BUILT_IN, *lines))
    inside = root.resolve()
    for folder, folders, files in os.walk(root):
        relative = Path(folder).relative_to(root)
        folders[:] = sorted(name for name in folders if _keeps_folder(Path(folder) / name, (relative / name).as_posix(), table, notice))
        for name in sorted(files):
            path = (relative / name).as_posix()
            if is_left_out(path, False, table):
                _mention(path, notice)
            elif _is_shippable(Path(folder) / name, inside, path, notice):
                yield _file(Path(folder) / name, f"{base}/{path}" if base else path)


def _keeps_folder(path: Path, relative: str, table: tuple[Rule, ...], notice: Notice) -> bool:
    if is_left_out(relative, True, table):
        if relative == "results":
            notice(f"left out results/: fetched results lie there; a line !results/ in {IGNORE_FILE} ships it all the same")
        return False
    if path.is_symlink():
        notice(f"left out {relative}: it is a link to a folder")
        return False
    return True


def _mention(path: str, notice: Notice) -> None:
    name = path.rpartition("/")[2]
    if name == ".env" or name.startswith(".env."):
        notice(f"left out {path}: such files hold secrets; a line !{name} in {IGNORE_FILE} ships it all the same")


def _is_shippable(path: Path, inside: Path, relative: str, notice: Notice) -> bool:
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(inside):
            notice(f"left out {relative}: it is a link that leads out of the folder")
            return False
        if stat.S_ISREG(path.stat().st_mode):
            return True
    except (OSError, RuntimeError):
        notice(f"left out {relative}: it is a link that leads nowhere")
        return False
    notice(f"left out {relative}: it is not a plain file")
    return False
