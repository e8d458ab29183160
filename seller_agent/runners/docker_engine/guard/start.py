"""Starts the guard beside the agent, once per agent home. The guard itself is `guard`, which must not import this."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from seller_agent.runners.docker_engine.guard.files import CONFIG_NAME, read_json, write_json
from seller_agent.runners.docker_engine.guard.guard import AGENT_LOCK, take_lock
from seller_agent.runners.runner import RunnerError

KEPT_VARIABLES = ("HOME", "PYTHONPATH", "PYTHONUSERBASE")
"""What Python needs to find the same packages again; the guard gets nothing else of the agent's environment."""


def hold_agent_lock(directory: Path) -> int:
    """The descriptor that tells a guard that an agent of this folder lives, until it is closed."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / AGENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)  # a guard that is looking has it for an instant
    return descriptor


def ensure_guard(directory: Path, socket_path: str, home: str) -> bool:
    """Start the guard unless it runs; call it after the watch file is written. True when one was started.

    The new process inherits the lock, so that no moment is without a holder. Raises RunnerError.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = {"socket": socket_path, "home": home}
    if read_json(directory / CONFIG_NAME) != config:
        write_json(directory / CONFIG_NAME, config)
    descriptor = take_lock(directory)
    if descriptor is None:
        return False
    program = [sys.executable, "-P", "-m", "seller_agent.runners.docker_engine.guard.guard"]
    try:
        subprocess.run(
            [*program, "--watch", str(directory.resolve()), "--lock-fd", str(descriptor)],
            pass_fds=(descriptor,),
            cwd="/",
            env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RunnerError("container_error", f"The guard that ends jobs when the agent is dead could not be started: {error}") from error
    finally:
        os.close(descriptor)
    return True
