"""The owner's `hosts.toml`: every machine that is reached by SSH, how, and by which keys. Reading and checking only; nothing is connected.

Keys only: there is no place for a password. Host keys are pinned: a host without one is refused, and so is a key file that others of this
machine may read.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from events.values import Labels
from seller_agent.owner.offers import OfferError, parse_price

NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}$"
ADDRESS = r"^[A-Za-z0-9]([A-Za-z0-9.:_-]{0,252}[A-Za-z0-9])?$|^::1$"
USER = r"^[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}$"
WORK = r"^(~|)/[^\x00-\x1f\x7f]{1,200}$"
DEFAULT_WORK = "~/.gpubazaar"
CHAIN_MAX = 8
KEY_TYPE = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9-]+@openssh\.com)\Z")
PASSWORD_LIKE = frozenset({"password", "passphrase", "pass", "passwd", "secret", "key_passphrase", "key_password"})


class HostsError(OfferError):
    """What stands in `hosts.toml` cannot be used."""

    what = "hosts.toml cannot be used."


class HostEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[host]]`."""

    name: Annotated[str, msgspec.Meta(pattern=NAME)]
    """Of the node, and what other entries call it as their `jump`."""
    address: Annotated[str, msgspec.Meta(pattern=ADDRESS)]
    """Name or IP address, as its jump host (or this machine, without one) reaches it."""
    user: Annotated[str, msgspec.Meta(pattern=USER)]
    key_file: Annotated[str, msgspec.Meta(min_length=1)]
    """A private key without passphrase, 0600; `~` and paths from the folder of hosts.toml are fine."""
    host_keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=16)]
    """The host's public keys, as `ssh-keyscan` prints them: `ssh-ed25519 AAAA...`. No other key is believed."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 22
    jump: str | None = None
    """The entry through which this host is reached; that one may have a jump host too."""
    offer: bool | None = None
    """Whether it is a node. By default it is, unless another entry names it as its jump."""
    work: Annotated[str, msgspec.Meta(pattern=WORK)] = DEFAULT_WORK
    """Folder on the host for the files of runs."""
    labels: Labels = {}
    """Besides, and over, those of `--labels`."""
    price: str | None = None
    """USD per GPU-hour, instead of `--price`."""
    gpus: tuple[Annotated[int, msgspec.Meta(ge=0, le=63)], ...] | None = None
    """Offer these cards only, instead of `--gpus`."""
    python: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9/._-]{1,200}$")] = "python3"
    """The host's Python, 3.10 or newer."""

    @property
    def price_uusd(self) -> int | None:
        """The price of its own, if it has one."""
        return None if self.price is None else parse_price(self.price)


class Hosts(msgspec.Struct, frozen=True):
    """All entries of a file, checked."""

    entries: dict[str, HostEntry]

    def nodes(self) -> list[HostEntry]:
        """Those to offer, in the order of the file."""
        jumps = {entry.jump for entry in self.entries.values()}
        return [entry for entry in self.entries.values() if (entry.name not in jumps if entry.offer is None else entry.offer)]

    def jump_of(self, entry: HostEntry) -> HostEntry | None:
        """The host before it on the way."""
        return None if entry.jump is None else self.entries[entry.jump]


def read_hosts(path: Path) -> Hosts:
    """The hosts of a file. Raises HostsError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise HostsError(f"{path} cannot be read.", why=str(why), hint="Give the file with --hosts.") from None
    hosts = parse_hosts(text, path.parent)
    for entry in hosts.entries.values():
        check_key_file(entry)
    return hosts


def parse_hosts(text: str, folder: Path) -> Hosts:
    """The hosts that a text names; `folder` is where relative key files lie. Raises HostsError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HostsError(why=f"It is no TOML: {error}.") from None
    unknown = sorted(set(tables) - {"host"})
    listed = tables.get("host", [])
    if unknown or not isinstance(listed, list) or not listed:
        why = f"It has {', '.join(map(ascii, unknown))}." if unknown else "It names no host."
        raise HostsError(why=why, hint="Each host is a [[host]] table; see docs/ssh-nodes.md.")
    entries: dict[str, HostEntry] = {}
    for number, table in enumerate(listed, 1):
        entry = _entry(table, number, folder)
        if entry.name in entries:
            raise HostsError(why=f"Two hosts are called {entry.name!r}.", hint="Give each a name of its own.")
        entries[entry.name] = entry
    hosts = Hosts(entries)
    for entry in entries.values():
        _check_chain(hosts, entry)
    if not hosts.nodes():
        raise HostsError(why="None of its hosts is offered.", hint="Take `offer = false` away from one.")
    return hosts


def _entry(table: Any, number: int, folder: Path) -> HostEntry:
    if not isinstance(table, Mapping):
        raise HostsError(why=f"Host {number} is no table.", hint="Write [[host]].")
    name = table.get("name")
    what = f"Host {name!a}" if isinstance(name, str) else f"Host number {number}"
    if PASSWORD_LIKE & {str(key).lower() for key in table}:
        raise HostsError(
            why=f"{what} has a password.", hint="Passwords are not accepted: make a key with ssh-keygen and name it in key_file."
        )
    try:
        entry = msgspec.convert(table, HostEntry)
        keys = tuple(public_key(text) for text in entry.host_keys)
        entry.price_uusd  # noqa: B018 - raises for what is no price
    except (msgspec.ValidationError, ValueError) as error:
        raise HostsError(why=f"{what}: {error}.", hint="The keys of a host are described in docs/ssh-nodes.md.") from None
    except OfferError as error:
        raise HostsError(why=f"{what}: {error.what} {error.why}", hint=error.hint) from None
    key_file = Path(entry.key_file).expanduser()
    return msgspec.structs.replace(entry, host_keys=keys, key_file=str(key_file if key_file.is_absolute() else folder / key_file))


def public_key(text: str) -> str:
    """`TYPE BASE64` of a line as ssh-keyscan or a .pub file has it. Raises ValueError."""
    words = text.split()
    if len(words) > 2 and KEY_TYPE.match(words[1]):
        words = words[1:]  # ssh-keyscan puts the host's name before it
    if len(words) < 2 or KEY_TYPE.match(words[0]) is None:
        raise ValueError(f"{text[:60]!a} is no public host key such as 'ssh-ed25519 AAAA...'")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        raise ValueError(f"the key in {text[:60]!a} is not whole") from None
    if blob[4 : 4 + int.from_bytes(blob[:4], "big")] != words[0].encode():
        raise ValueError(f"the key in {text[:60]!a} is not of the type that it names")
    return f"{words[0]} {words[1]}"


def _check_chain(hosts: Hosts, entry: HostEntry) -> None:
    seen = [entry.name]
    step = entry
    while step.jump is not None:
        if step.jump not in hosts.entries:
            raise HostsError(
                why=f"Host {step.name!r} has the jump host {step.jump!a}, which is not in the file.", hint="Add a [[host]] for it."
            )
        step = hosts.entries[step.jump]
        if step.name in seen or len(seen) > CHAIN_MAX:
            raise HostsError(why=f"The jump hosts of {entry.name!r} go in a circle: {' -> '.join([*seen, step.name])}.")
        seen.append(step.name)


def check_key_file(entry: HostEntry) -> None:
    """Whether the key can be used and nobody else can read it. Raises HostsError."""
    path = entry.key_file
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise HostsError(why=f"The key file of {entry.name!r}, {path}, cannot be read: {error.strerror}.", hint="Check key_file.") from None
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise HostsError(why=f"The key file of {entry.name!r}, {path}, is no file.", hint="Name the private key in key_file.")
    if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
        raise HostsError(
            why=f"Others may read the key file of {entry.name!r}, {path} (mode {stat.S_IMODE(found.st_mode):04o}).",
            hint=f"chmod 600 {path}",
        )
