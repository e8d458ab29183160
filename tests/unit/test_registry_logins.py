"""Logins for registries: the owner's file, and what Docker is sent."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from events.errors import BazaarError, IdentityError
from seller_agent.runners.docker_engine.images.logins import Login, LoginsRefused, read_logins, registry_of


def written(folder: Path, content: Any, mode: int = 0o600) -> Path:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def test_every_way_that_docker_writes_a_login_is_read(tmp_path: Path) -> None:
    auths = {
        "ghcr.io": {"auth": encoded("robot:pass:word")},
        "https://index.docker.io/v1/": {"auth": encoded("hub:secret")},
        "127.0.0.1:5000": {"username": "me", "password": "mine"},
        "token.example": {"auth": encoded("x:"), "identitytoken": "abc"},
    }
    found = read_logins(written(tmp_path, {"auths": auths, "credHelpers": {}}))
    assert {
        "ghcr.io": Login(user="robot", password="pass:word"),
        "docker.io": Login(user="hub", password="secret"),
        "127.0.0.1:5000": Login(user="me", password="mine"),
        "token.example": Login(token="abc"),
    } == found


@pytest.mark.parametrize(
    ("image", "registry"),
    [("python:3.12", "docker.io"), ("team/tool", "docker.io"), ("ghcr.io/team/tool:1", "ghcr.io"), ("localhost:5000/x", "localhost:5000")],
)
def test_an_image_names_its_registry(image: str, registry: str) -> None:
    assert registry == registry_of(image)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError) as refused:
        read_logins(written(tmp_path, {"auths": {}}, 0o640))
    assert "chmod 600" in refused.value.hint


NO_LOGINS: list[Any] = ["no json", "[]", {"credsStore": "desktop"}, {"auths": {"ghcr.io": {}}}]
NO_LOGINS += [{"auths": {"ghcr.io": {"auth": text}}} for text in ("%%", encoded("x"))]


@pytest.mark.parametrize("content", NO_LOGINS)
def test_a_file_without_readable_logins_is_refused_with_what_it_should_be(tmp_path: Path, content: Any) -> None:
    with pytest.raises(LoginsRefused) as refused:
        read_logins(written(tmp_path, content))
    assert "auths" in refused.value.why and "auths" in refused.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BazaarError, match="cannot be read"):
        read_logins(tmp_path / "absent.json")


def test_a_login_is_sent_in_dockers_header_and_shown_nowhere() -> None:
    login = Login(user="robot", password="hush")
    [(name, value)] = login.header("ghcr.io/team/tool:1").items()
    sent = json.loads(base64.urlsafe_b64decode(value))
    assert ("X-Registry-Auth", {"username": "robot", "password": "hush", "serveraddress": "ghcr.io"}) == (name, sent)
    assert "hush" not in repr(login) and "hush" not in f"{login}"
    assert login.fingerprint() == Login(user="robot", password="hush").fingerprint() != Login(user="robot", password="hus").fingerprint()
