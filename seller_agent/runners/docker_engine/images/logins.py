"""Logins for image registries, one per pull: the owner's from a file, a buyer's from a secret. They never go to `docker login`.

The file is Docker's own `config.json` with `auths`; whatever its logins open, any job that the node takes may run. It is read again for
every pull, so that a password can be changed while the agent runs. Nothing here shows or keeps a password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec

from events.errors import BazaarError
from events.home import read_secret
from events.images import full_name

HUB = "docker.io"
HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")


class LoginsRefused(BazaarError):
    """The file with registry logins cannot be used."""

    what = "The registry logins cannot be used."


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What a registry asks for. Its text never shows the password."""

    user: str = ""
    password: str = ""
    token: str = ""
    """An identity token instead of user and password."""

    def __repr__(self) -> str:
        return f"Login(user={self.user!r})"

    def header(self, image: str) -> dict[str, str]:
        """For Docker's pull and distribution calls."""
        fields = {"identitytoken": self.token} if self.token else {"username": self.user, "password": self.password}
        text = json.dumps({**fields, "serveraddress": registry_of(image)})
        return {"X-Registry-Auth": base64.urlsafe_b64encode(text.encode()).decode()}

    def fingerprint(self) -> str:
        """The same for the same login, and useless for finding it out only while the process lives: never write it down."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()


def registry_of(image: str) -> str:
    """The registry's address in an image's name."""
    return full_name(image).partition("/")[0]


def read_logins(path: Path) -> dict[str, Login]:
    """The logins of a file, by registry. Raises IdentityError when it is not the owner's alone, LoginsRefused when it holds none."""
    text = read_secret(path, "The file with registry logins")
    try:
        auths = json.loads(text)["auths"]
        return {_registry(name): _login(entry) for name, entry in auths.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LoginsRefused(
            why=f"{path} has no readable `auths`: a login kept by a credential helper is not in it.",
            hint='{"auths": {"ghcr.io": {"auth": "<base64 of user:password>"}}}',
        ) from None


def _registry(name: str) -> str:
    host = name.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return HUB if host in HUB_NAMES else host


def _login(entry: dict[str, Any]) -> Login:
    """Raises ValueError."""
    if token := entry.get("identitytoken"):
        return Login(token=str(token))
    if "auth" in entry:
        user, colon, password = _decoded(str(entry["auth"])).rstrip("\0").partition(":")
        if not colon:
            raise ValueError("not user:password")
        return Login(user=user, password=password)
    return Login(user=str(entry["username"]), password=str(entry["password"]))


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except binascii.Error as error:
        raise ValueError("not base64") from error
