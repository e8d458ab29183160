"""A real image registry on loopback, with a login or without, and a place that takes connections and never answers."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.docker_engine import Engine, until

from seller_agent.runners.docker_engine.daemon.asking import quoted
from seller_agent.runners.docker_engine.daemon.streams import EngineStream
from seller_agent.runners.docker_engine.images.logins import Login
from seller_agent.runners.docker_engine.images.pulling import split_image

LOGIN = Login(user="buyer", password="open sesame")
HTPASSWD = "buyer:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
MANIFESTS = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")


class ImageRegistry:
    """One registry. `asked` is what was asked of it so far, a line each."""

    def __init__(self, folder: Path, *, with_login: bool) -> None:
        self._folder = folder
        self._log = folder / "log"
        folder.mkdir(parents=True)
        htpasswd = folder / "htpasswd"
        htpasswd.write_text(HTPASSWD)
        lines = [
            "version: 0.1",
            "log: {level: info, formatter: json}",
            f"storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}",
        ]
        lines += ["http: {addr: '127.0.0.1:0', secret: x}"]
        lines += [f"auth: {{htpasswd: {{realm: tests, path: {htpasswd}}}}}"] if with_login else []
        (folder / "config.yml").write_text("\n".join(lines))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log)
        self.address = until(self._listens, "the registry to listen", 20)

    def _listens(self) -> str:
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        for line in self._log.read_text().splitlines():
            if "listening on " in line:
                return str(json.loads(line)["msg"]).rpartition(" ")[2].rstrip(",")
        return ""

    def asked(self, method: str, what: str) -> int:
        """How often it was asked for such a thing."""
        found = 0
        for line in self._log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                is_request = entry.get("msg", "").startswith("response completed")
                found += is_request and entry.get("http.request.method") == method and what in entry.get("http.request.uri", "")
        return found

    def push(self, engine: Engine, image: str, name: str, login: Login | None = None) -> str:
        """Give an image of the engine's to the registry under a name; its full name there."""
        full = f"{self.address}/{name}"
        repository, tag = split_image(full)
        assert 201 == engine.ask("POST", f"/images/{quoted(image)}/tag?repo={quoted(repository)}&tag={quoted(tag)}")[0]
        headers = (login or Login(user="-", password="-")).header(full)
        with contextlib.closing(
            EngineStream(engine.socket, "POST", f"/images/{quoted(repository)}/push?tag={quoted(tag)}", headers=headers)
        ) as stream:
            errors = [event for event in stream.lines() if "error" in event]
        assert [] == errors
        engine.ask("DELETE", f"/images/{quoted(full)}")
        return full

    def digest(self, full: str) -> str:
        """What a name means there (of a registry without a login)."""
        name, tag = split_image(full.partition("/")[2])
        request = urllib.request.Request(
            f"http://{self.address}/v2/{name}/manifests/{tag}", method="HEAD", headers={"Accept": ", ".join(MANIFESTS)}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers["Docker-Content-Digest"])

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)


class Silence:
    """Takes connections and says nothing: a registry that hangs. `calls` counts them."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._taken.append(self._server.accept()[0])

    @property
    def calls(self) -> int:
        return len(self._taken)

    def close(self) -> None:
        """Hang up."""
        self._server.close()
        for connection in self._taken:
            connection.close()


def _registry(folder: Path, *, with_login: bool) -> Iterator[ImageRegistry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry not installed; on Debian: apt-get install docker-registry")
    new = ImageRegistry(folder, with_login=with_login)
    try:
        yield new
    finally:
        new.stop()


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageRegistry]:
    """A registry for everybody."""
    yield from _registry(tmp_path_factory.mktemp("open") / "registry", with_login=False)


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageRegistry]:
    """A registry that knows one user."""
    yield from _registry(tmp_path_factory.mktemp("closed") / "registry", with_login=True)
