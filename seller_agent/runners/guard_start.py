"""Starts the guard beside the agent, once per agent home. The guard itself is `guard`, which must not import this."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from seller_agent.runners import guard
from seller_agent.runners.guard import CONFIG_NAME, read_json, take_lock, write_json


def ensure_guard(directory: Path, socket_path: str, home: str) -> bool:
    """Start the guard unless it runs; call it after the watch file is written. True when one was started.

    The new process inherits the lock, so that no moment is without a holder.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = {"socket": socket_path, "home": home}
    if read_json(directory / CONFIG_NAME) != config:
        write_json(directory / CONFIG_NAME, config)
    descriptor = take_lock(directory)
    if descriptor is None:
        return False
    try:
        subprocess.run(
            [sys.executable, "-I", str(Path(guard.__file__).resolve()), "--watch", str(directory.resolve()), "--lock-fd", str(descriptor)],
            pass_fds=(descriptor,),
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )
    finally:
        os.close(descriptor)
    return True
