"""What makes a run a session: the command when its buyer gave none, the token that opens it, and how it is reached. No connection here.

A notebook listens on a UNIX socket in its own folder, so it needs no network and nothing else on the machine can get at it. Its token
is made here, kept in one private file beside the run, given to the program in its environment and to the buyer inside the tunnel;
it stands in no event, no log and no command line.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

from events.jobs import JobSubmitted
from events.reasons import Reason
from events.values import JobKind
from seller_agent.runners.workspace import SESSION_FILE

SOCKET = "bazaar.sock"
"""In the run's working directory. Its name is relative everywhere, because a socket's whole path may be 107 bytes long only."""
FOR_EVER = ("sleep", "2147483647")
"""A container without a command is there for those who connect."""

LAUNCHER = """
import os, sys
from importlib import import_module
from tempfile import mkdtemp
os.environ["JUPYTER_RUNTIME_DIR"] = mkdtemp(prefix="jupyter-")
os.environ.setdefault("IPYTHONDIR", mkdtemp(prefix="ipython-"))
for module, name in (("jupyterlab.labapp", "LabApp"), ("notebook.app", "JupyterNotebookApp"), ("nbclassic.notebookapp", "NotebookApp")):
    try:
        application = getattr(import_module(module), name)
    except ImportError:
        continue
    sys.exit(application.launch_instance(sys.argv[1:]))
sys.exit("This image has no Jupyter: use one with the package jupyterlab (see examples/images/jupyter).")
"""
SETTINGS = {
    "allow_remote_access": "True",  # whoever reached it has the token, and came through the tunnel
    "allow_root": "True",
    "open_browser": "False",
    "root_dir": ".",
    "sock": SOCKET,
    "sock_mode": "0666",  # the folder around it keeps everybody out; the agent may be another user
    "terminals_enabled": "False",
    "quit_button": "False",
}


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """How a session is reached: what a buyer's program is told inside the tunnel."""

    kind: str
    place: str = ""
    """Where its pages are served, as `Runner.dial` takes it; empty: nowhere."""
    path: str = ""
    """Of its first page."""
    token: str = ""

    @property
    def has_pages(self) -> bool:
        """Whether a browser has something to open."""
        return bool(self.place)


def is_session(order: JobSubmitted) -> bool:
    """Whether somebody will connect."""
    return order.kind is not JobKind.BATCH


def new_access(order: JobSubmitted) -> Access:
    """Access to a session that is about to begin, with a fresh token."""
    if order.kind is not JobKind.NOTEBOOK:
        return Access(kind=order.kind.value)
    path = f"/bazaar/{order.job_id}/"
    return Access(kind=order.kind.value, place=f"unix:{SOCKET}", path=path, token=secrets.token_hex(24))


def access_to(folder: str, order: JobSubmitted) -> Access:
    """How the session in this folder is reached; decided once, so that it is the same after every restart. Raises OSError."""
    known = read_access(folder)
    if known is not None:
        return known
    access = new_access(order)
    Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(f"{folder}/{SESSION_FILE}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(access))
    return access


def read_access(folder: str) -> Access | None:
    """What `access_to` decided; None when this is no session."""
    with contextlib.suppress(OSError, msgspec.MsgspecError, ValueError):
        return msgspec.json.decode(Path(folder, SESSION_FILE).read_bytes(), type=Access)
    return None


def command(order: JobSubmitted, access: Access) -> tuple[str, ...]:
    """What the run executes: the buyer's own command, else what its kind stands for."""
    if order.program.argv:
        return order.program.argv
    if order.kind is JobKind.NOTEBOOK:
        settings = {**SETTINGS, "base_url": access.path}
        return ("python3", "-c", LAUNCHER, *(f"--ServerApp.{name}={value}" for name, value in settings.items()))
    return FOR_EVER


def no_notebook_there(order: JobSubmitted, error: str | None) -> str:
    """What to say when not even the program that starts Jupyter is in the image; empty for anything else."""
    asked_for_jupyter = order.kind is JobKind.NOTEBOOK and not order.program.argv
    if error != Reason.PROGRAM_NOT_FOUND or not asked_for_jupyter:
        return ""
    return "This image has no Python, and so no Jupyter: use one with the package jupyterlab (see examples/images/jupyter)."


def environment(access: Access) -> dict[str, str]:
    """What a session's program is told. A command of the buyer's own that is to be opened in a browser has to listen on the socket
    `BAZAAR_SESSION_SOCKET`, serve below `BAZAAR_SESSION_PATH`, and ask for the token."""
    if not access.has_pages:
        return {}
    return {
        "JUPYTER_TOKEN": access.token,
        "BAZAAR_SESSION_SOCKET": access.place.removeprefix("unix:"),
        "BAZAAR_SESSION_PATH": access.path,
    }
