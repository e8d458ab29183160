"""Logs of every program: structlog to stderr for people and to `log/<program>.log` as JSON lines, rotated.

No secret reaches a log: fields with a secret's name and texts that look like one are masked here, whoever logs them. No hostile
byte reaches a terminal: everything unprintable is escaped. Lines of libraries that use the standard `logging` go the same way.
"""

from __future__ import annotations

import fcntl
import io
import logging
import logging.handlers
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import structlog

from events.home import private_folder

LEVELS = ("debug", "info", "warning", "error")
FILE_BYTES_MAX = 10_000_000
FILES_KEPT = 3
MASK = "***"
VALUE_MAX = 4000
"""Characters of one value; the rest says nothing more."""

_SECRET_NAME = re.compile(r"(?i)(pass(phrase|word|wd)?|secret|seed|token|private_?key|authorization|cookie|credential|jwt|mnemonic)")
_SECRET_TEXT = re.compile(
    r"\bS[UAONC][A-Z2-7]{56}\b"  # an nkey's seed
    r"|\b0x[0-9a-fA-F]{64}\b"  # a private key as wallets write it
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_.-]+"  # a JSON web token
    r"|(?<=[Bb]earer )\S+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # a password in an address
)
_NOISY = ("asyncio", "nats", "urllib3", "docker", "uvicorn.access", "aiosqlite", "web3")


def configure(
    home: Path | None, program: str, *, level: str = "info", as_json: bool = False, stderr: bool = True, stderr_level: str | None = None
) -> None:
    """Set up the logs of this process. `level` is one of LEVELS; with `home` there is a file, whatever `stderr` says; a file that
    cannot be written is said once and done without. May be called again."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    if stderr:
        root.addHandler(_to_stderr(as_json, stderr_level or level))
    if home is not None:
        try:
            root.addHandler(_to_file(private_folder(home / "log") / f"{program}.log"))
        except OSError as error:
            logging.getLogger("bazaar").warning("no log file: %s", error)
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_shared(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _shared() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _to_stderr(as_json: bool, level: str) -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level.upper())
    handler.setFormatter(_formatter(structlog.processors.JSONRenderer() if as_json else _for_people))
    return handler


def _to_file(path: Path) -> logging.Handler:
    handler = SharedRotatingFile(path)
    handler.setFormatter(_formatter(structlog.processors.JSONRenderer()))
    return handler


def _formatter(render: structlog.typing.Processor) -> structlog.stdlib.ProcessorFormatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            harmless,
            render,
        ],
    )


def harmless(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A line whose values hold neither secrets nor anything that a terminal could take for a command."""
    for name, value in line.items():
        line[name] = MASK if _SECRET_NAME.search(name) and value else _harmless_value(value)
    return line


def _harmless_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): MASK if _SECRET_NAME.search(str(name)) else _harmless_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_harmless_value(inner) for inner in value]
    text = value if isinstance(value, str) else repr(value)
    return escaped(_SECRET_TEXT.sub(MASK, text[:VALUE_MAX]))


def escaped(text: str) -> str:
    """The text with everything unprintable as an escape; new lines stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode() for letter in text)


def _for_people(_logger: Any, _method: str, line: MutableMapping[str, Any]) -> str:
    """`12:34:56 warning seller  the lease ran out  job=j... seq=7`, a traceback below."""
    shown = dict(line)
    at, level, name = str(shown.pop("timestamp", ""))[11:19], shown.pop("level", ""), shown.pop("logger", "")
    trace = shown.pop("exception", None)
    event = str(shown.pop("event", "")).replace("\n", "\\n")
    fields = " ".join(f"{field}={_field(value)}" for field, value in shown.items())
    text = f"{at} {level:<7} {name}: {event}" + (f"  {fields}" if fields else "")
    return f"{text}\n{trace}" if trace else text


def _field(value: Any) -> str:
    text = str(value).replace("\n", "\\n")
    return repr(text) if " " in text or not text else text


class SharedRotatingFile(logging.handlers.BaseRotatingHandler):
    """A log file that several processes append to; whoever finds it full moves it aside, once."""

    def __init__(self, path: Path, *, bytes_max: int = FILE_BYTES_MAX, kept: int = FILES_KEPT) -> None:
        self._bytes_max = bytes_max
        self._kept = kept
        super().__init__(str(path), "a", encoding="utf-8", errors="backslashreplace")

    def _open(self) -> io.TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return io.TextIOWrapper(open(handle, "ab", buffering=0), encoding="utf-8", errors="backslashreplace", write_through=True)

    def shouldRollover(self, _record: logging.LogRecord) -> bool:
        """Whether this file is full, or was moved aside by another process."""
        if self.stream is None:
            self.stream = self._open()
        here = os.fstat(self.stream.fileno())
        if here.st_size >= self._bytes_max:
            return True
        try:
            there = os.stat(self.baseFilename)
        except FileNotFoundError:
            return True
        return (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)

    def doRollover(self) -> None:
        """Move the full file aside, unless another process has done so, and open the new one."""
        with open(f"{self.baseFilename}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.stream is not None:
                self.stream.close()
            path = Path(self.baseFilename)
            if path.exists() and path.stat().st_size >= self._bytes_max:
                for number in range(self._kept - 1, 0, -1):
                    older = Path(f"{path}.{number}")
                    if older.exists():
                        os.replace(older, f"{path}.{number + 1}")
                os.replace(path, f"{path}.1")
            self.stream = self._open()
