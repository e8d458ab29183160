"""The nodes of this home: which folders there are, whose they are, whether an agent runs, and how it was last started.

Files only. One node is one folder `seller/NAME`; a command that names none means the only one.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from events.delegation import parse_address
from events.errors import BazaarError
from events.home import Settings, choose_wallet, write_private
from events.ids import node_id
from events.values import Role
from seller_agent.owner.offers import node_name

STARTED = "started.json"


class NoSuchNode(BazaarError):
    """It is not clear which node is meant."""

    what = "It is not clear which node is meant."


class Started(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the agent was last started, once its offer stood."""

    price_uusd_per_gpu_hour: int
    """What `--price` said then: the price of the ledger stands until this one is another."""
    runner: str = ""
    delegation: str | None = None
    docker_socket: str | None = None
    version: str = ""


class OwnedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node of this home."""

    name: str
    node_id: str
    owner: str
    folder: Path
    agent_pid: int | None
    started: Started | None = None


def choose_node(settings: Settings, name: str | None) -> OwnedNode:
    """The node of this name, else the only one of this home. Raises NoSuchNode, OfferError, IdentityError."""
    names = node_names(settings.home)
    if name is None:
        if not names:
            raise NoSuchNode("There is no node here.", why=f"Looked in {settings.home / 'seller'}.", hint="`bazaar-seller run` makes one.")
        if len(names) > 1:
            raise NoSuchNode(why=f"Nodes here: {', '.join(_with_state(settings.home, one) for one in names)}.", hint="Name it with --name.")
        name = names[0]
    name = node_name(name, name)
    folder = settings.home / "seller" / name
    owner = _owner_of(folder) or choose_wallet(settings, Role.SELLER).address
    return OwnedNode(
        name=name,
        node_id=node_id(owner, name),
        owner=owner,
        folder=folder,
        agent_pid=agent_pid(folder),
        started=read_started(folder),
    )


def node_names(home: Path) -> list[str]:
    """Nodes that an agent of this home has had."""
    return sorted(path.parent.name for path in (home / "seller").glob("*/owner"))


def _with_state(home: Path, name: str) -> str:
    pid = agent_pid(home / "seller" / name)
    return f"{name} (process {pid})" if pid is not None else f"{name} (no agent)"


def _owner_of(folder: Path) -> str | None:
    try:
        return parse_address((folder / "owner").read_text().strip())
    except (OSError, ValueError):
        return None


def read_started(folder: Path) -> Started | None:
    """How its agent was last started; `None` when none has offered it yet."""
    try:
        return msgspec.json.decode((folder / STARTED).read_bytes(), type=Started)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def write_started(folder: Path, started: Started) -> None:
    """Remember it."""
    write_private(folder / STARTED, msgspec.json.encode(started))


def agent_pid(folder: Path) -> int | None:
    """The process that has the node's folder, if one has."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
