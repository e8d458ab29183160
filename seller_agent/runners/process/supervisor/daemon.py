"""The guard of plain processes: a small daemon, one per folder of runs, that starts jobs and outlives the agent. Linux only.

It serves on the socket `FOLDER/.supervisor/socket`; each run is the folder `FOLDER/NAME`. The modules of `FILES` need the standard
library only, and are copied to other machines as they are.
Two processes: the worker serves and guards; its parent, the keeper, only waits, and when the worker dies it inherits every descendant
(both are child subreapers) and kills it: more than PR_SET_PDEATHSIG, which spares grandchildren. Should both be killed at once, the next
supervisor of the folder ends what they left before it answers anybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
import time

from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.process.supervisor.worker import Supervisor

FILES = (
    "__init__.py",
    "runners/__init__.py",
    "runners/process/__init__.py",
    "runners/process/supervisor/__init__.py",
    "runners/process/supervisor/proc.py",
    "runners/process/supervisor/run.py",
    "runners/process/supervisor/use.py",
    "runners/process/supervisor/client.py",
    "runners/process/supervisor/worker.py",
    "runners/process/supervisor/daemon.py",
)
"""What must lie under `seller_agent/` for the daemon to start."""
NOFILE_MAX = 65536
STARTING_MAX_S = 30.0
PR_SET_CHILD_SUBREAPER = 36


def keep(worker: int) -> int:
    """The keeper: wait for the worker, then end whatever it left, which is ours now."""
    signal.signal(signal.SIGTERM, lambda *_: proc.send_signal(worker, signal.SIGTERM))
    while os.wait()[0] != worker:
        pass
    while True:
        for pid in proc.children():
            proc.send_signal(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return 0


def become_subreaper() -> None:
    """Inherit the orphans among our descendants. Raises OSError when the kernel does not let us."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def is_serving(state: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            probe.connect(f"/proc/self/fd/{folder}/socket")
        except OSError:
            return False
        finally:
            os.close(folder)
        return True


def take_lock(state: str) -> int | None:
    """The lock that makes us the folder's only supervisor; None when another serves. Raises TimeoutError when neither comes about."""
    lock = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + STARTING_MAX_S
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        if is_serving(state):
            return None
        time.sleep(0.01)
    raise TimeoutError(f"another supervisor holds {state}/lock and does not answer")


def listen(state: str) -> socket.socket:
    """Listen on the folder's socket; by a relative name, because an absolute one may be longer than a socket's name can be."""
    listener = socket.socket(socket.AF_UNIX)
    os.chdir(state)
    with contextlib.suppress(FileNotFoundError):
        os.unlink("socket")
    os.umask(0o177)
    listener.bind("socket")
    os.umask(0o077)  # also the jobs': what they write is none of the machine's other users' business
    listener.listen(128)
    os.chdir("/")
    return listener


def work(root: str, state: str, idle_s: float, ready: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files_max == resource.RLIM_INFINITY or files_max > NOFILE_MAX:
        resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE_MAX, files_max))
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    listener = listen(state)

    def announce() -> None:
        os.write(ready, b"1")
        os.close(ready)

    Supervisor(root, idle_s).serve(listener, announce)
    return 0


def main(root: str, idle_s: float) -> int:
    """Become the supervisor of `root`, in the background; return 0 once somebody answers on the socket."""
    root = os.path.realpath(root)
    state = os.path.join(root, ".supervisor")
    os.makedirs(state, mode=0o700, exist_ok=True)
    os.chmod(state, 0o700)
    if take_lock(state) is None:
        return 0
    waiting, ready = os.pipe()
    if os.fork() != 0:
        os.close(ready)
        return 0 if os.read(waiting, 1) else 1
    os.close(waiting)
    os.setsid()
    os.chdir("/")
    become_subreaper()
    worker = os.fork()
    if worker != 0:
        os.close(ready)
        return keep(worker)
    become_subreaper()  # not inherited by a fork
    return work(root, state, idle_s, ready)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
