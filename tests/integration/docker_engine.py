"""A Docker engine of the tests' own: private socket, private data, no network; and a registry on loopback that misbehaves on demand.

Run as a program it is an agent that does one job and stands still at a chosen point, so that a test can kill it there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seller_agent.runners.docker_engine.daemon.asking import ask
from seller_agent.runners.docker_engine.guard.files import stop_path
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.runner import RunSpec, RunState, StopReason

IMAGE = "bazaar-test:1"
APPLETS = (
    "cat chmod chroot dd df echo env false grep head id kill ls mkdir mknod mount nc printf readlink seq sh sleep stat "
    "test touch tr true usleep wc yes"
)


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Poll until a condition holds and return its value; says what was waited for when it never does."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s:.0f} s for {what}")


def root_file_system(**files: bytes) -> bytes:
    """A tar archive of a root file system that consists of a static busybox and the given files."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in ("bin", "tmp", "job", "out", "etc", "proc", "sys", "dev", "data"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox")
        for applet in APPLETS.split():
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Engine:
    """One dockerd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = str(folder / "docker.sock")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str, programs: Path | None = None, network: str | None = None) -> None:
        """Start the daemon and wait until it answers. `programs` is a folder that it finds programs in first; `network` a network
        namespace of its own, the only place where it may set rules of a firewall."""
        assert self._process is None
        (self.folder / "daemon.json").write_text("{}")
        inside = ["nsenter", f"--net={network}"] if network is not None else []
        firewall = [] if network is not None else ["--iptables=false", "--ip6tables=false"]
        command = [*inside, "dockerd", "--bridge=none", *firewall, f"--config-file={self.folder}/daemon.json"]
        command += [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid"]
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        if programs is not None:
            environment["PATH"] = f"{programs}:{environment['PATH']}"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, f"--host=unix://{self.socket}", *flags], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        until(self._answers, f"dockerd; its log is:\n{(self.folder / 'log').read_text()[-3000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"dockerd ended: {(self.folder / 'log').read_text()[-3000:]}")
        with contextlib.suppress(OSError):
            return self.ask("GET", "/_ping")[0] == 200
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)
        self._process = None
        if how is signal.SIGKILL:  # its containerd died with it; where nobody reaps zombies, the next daemon would take it for alive
            (self.folder / "pid").unlink(missing_ok=True)
            (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)

    def ask(self, method: str, target: str) -> tuple[int, Any]:
        """One request to the daemon."""
        return ask(self.socket, method, target)

    def names(self) -> list[str]:
        """Every container's name, ended ones too."""
        return sorted(container["Names"][0].lstrip("/") for container in self.ask("GET", "/containers/json?all=1")[1])

    def state(self, name: str) -> dict[str, Any]:
        """A container's state, `{}` when it is absent."""
        status, body = self.ask("GET", f"/containers/{name}/json")
        return dict(body["State"]) if status == 200 else {}

    def load(self, image: str, archive: bytes) -> None:
        """Make an image of a root file system."""
        repository, _, tag = image.partition(":")
        target = f"/images/create?fromSrc=-&repo={repository}&tag={tag}"
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.connect(self.socket)
            head = f"POST {target} HTTP/1.0\r\nContent-Type: application/x-tar\r\nContent-Length: {len(archive)}\r\n\r\n"
            connection.sendall(head.encode() + archive)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b" 200 OK" in answer and b'"error"' not in answer, answer

    def close(self) -> None:
        """End the daemon and its containerd, and remove what they wrote."""
        if self._process is not None:
            for name in self.names():
                self.ask("DELETE", f"/containers/{name}?force=1&v=1")
            self.stop()
        with contextlib.suppress(OSError, ValueError):  # its containerd outlives a dockerd that was killed
            os.kill(int((self.folder / "exec" / "containerd" / "containerd.pid").read_text()), signal.SIGTERM)
        for mount in sorted(_mounts_below(self.folder), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]


def why_no_engine() -> str | None:
    """What this machine lacks for a Docker engine of the tests' own; None when nothing."""
    missing = [program for program in ("dockerd", "busybox") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not installed; on Debian: apt-get install docker.io busybox-static"
    return None if os.geteuid() == 0 else "a Docker engine of the tests' own needs root"


_shared: list[Engine] = []
_users = 0


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """One engine for all tests of the session, whichever modules import this fixture."""
    global _users
    if reason := why_no_engine():
        pytest.skip(reason)
    if not _shared:
        new = Engine(Path(tempfile.mkdtemp(prefix="bazaar-docker-", dir="/tmp")))
        _shared.append(new)
        new.start()
        new.load(IMAGE, root_file_system())
    _users += 1
    yield _shared[0]
    _users -= 1
    if not _users:
        _shared.pop().close()


class Registry:
    """An image registry on loopback. What it does with a name is told by the name's first part."""

    def __init__(self) -> None:
        layer = gzip.compress(root_file_system(padding=os.urandom(2_000_000)), 1)
        diff_id = "sha256:" + hashlib.sha256(gzip.decompress(layer)).hexdigest()
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}}).encode()
        self.blobs = {"sha256:" + hashlib.sha256(data).hexdigest(): data for data in (config, layer)}
        config_digest, layer_digest = self.blobs
        kind = "application/vnd.docker.{}"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": kind.format("distribution.manifest.v2+json"),
                "config": {"mediaType": kind.format("container.image.v1+json"), "size": len(config), "digest": config_digest},
                "layers": [{"mediaType": kind.format("image.rootfs.diff.tar.gzip"), "size": len(layer), "digest": layer_digest}],
            }
        ).encode()
        self.hang = threading.Event()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                registry.answer(self)

            def do_GET(self) -> None:
                registry.answer(self)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """One request of a Docker daemon."""
        part = request.path.split("/")[2] if request.path.count("/") > 2 else ""
        if part == "secret":
            self._send(request, 401, b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}', "application/json")
        elif part == "slow":
            self.hang.wait(60)
        elif part == "good" and "/blobs/" in request.path:
            self._send(request, 200, self.blobs[request.path.rsplit("/", 1)[1]], "application/octet-stream")
        elif part == "good":
            self._send(request, 200, self.manifest, "application/vnd.docker.distribution.manifest.v2+json")
        elif part:
            self._send(request, 404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}', "application/json")
        else:
            self._send(request, 200, b"{}", "application/json")

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Docker-Content-Digest", "sha256:" + hashlib.sha256(body).hexdigest())
        if status == 401:
            request.send_header("WWW-Authenticate", 'Basic realm="registry"')
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    def close(self) -> None:
        """Stop serving."""
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry for one test."""
    with contextlib.closing(Registry()) as new:
        yield new


def _stand_still(here: str, target: str) -> None:
    if here == target:
        print(here, flush=True)
        while True:
            signal.pause()


async def _agent(state_dir: Path, socket_path: str, target: str, spec: RunSpec) -> None:
    """Do one job as an agent would, up to a point. It takes up what an earlier one left."""
    runner = DockerRunner(state_dir, "nodetest", socket_path=socket_path)
    adopted = {status.key: status.state for status in await runner.adopt()}
    if adopted.get(spec.key) is None:
        await runner.prepare(spec, lambda phase: _stand_still(phase, target))
    if adopted.get(spec.key) in (None, RunState.PREPARED):
        _stand_still("prepared", target)
        await runner.start(spec)
    _stand_still("started", target)
    stdout = Path(spec.folder) / "log" / "stdout"
    while target in ("running", "stopping") and stdout.stat().st_size == 0:
        await asyncio.sleep(0.01)
    if target == "running":
        print(target, flush=True)
    elif target == "stopping":
        stopping = asyncio.create_task(runner.stop(spec.key, StopReason.ASKED, spec.grace_s))
        while not stop_path(spec.folder).exists():
            await asyncio.sleep(0.01)
        print(target, flush=True)
        await stopping
    await runner.wait(spec.key)
    _stand_still("exited", target)
    await runner.remove(spec.key)
    await runner.close()


if __name__ == "__main__":
    folder, path, point, encoded = sys.argv[1:]
    asyncio.run(_agent(Path(folder), path, point, msgspec.json.decode(encoded, type=RunSpec)))
