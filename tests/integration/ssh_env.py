"""Two real OpenSSH servers on loopback: a gate, and a node that is entered through it. Own keys, own ports, nothing of this machine's."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.ssh.connection import Access, open_access
from seller_agent.runners.ssh.host import Host
from seller_agent.runners.ssh.hosts import Hosts, parse_hosts

READY_S = 20.0
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def new_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> str:
    """Make a key pair; its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "", "-f", str(path)], check=True, stdin=subprocess.DEVNULL)
    return path.with_name(path.name + ".pub").read_text().strip()


def user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def free_port(address: str) -> int:
    """Below those that the system gives to whoever connects somewhere: it must still be free when the server is started again."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port


class SshServer:
    """One sshd; it can be killed with everything that it serves, and started again."""

    def __init__(self, folder: Path, address: str, authorized: str, *options: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.address = address
        self.port = free_port(address)
        self.host_key = new_key(folder / "host_key")
        (folder / "authorized_keys").write_text(authorized + "\n")
        lines = (
            f"ListenAddress {address}:{self.port}",
            f"HostKey {folder}/host_key",
            f"AuthorizedKeysFile {folder}/authorized_keys",
            f"PidFile {folder}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PrintMotd no",
            "PrintLastLog no",
            *([] if "no sftp" in options else ["Subsystem sftp internal-sftp"]),
            *(option for option in options if option != "no sftp"),
        )
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the real one of Debian drops its rights
        assert SSHD is not None
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until = time.monotonic() + READY_S
        while True:
            try:
                return socket.create_connection((self.address, self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < until and self._process.poll() is None, self.log()
                time.sleep(0.02)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def logins(self) -> int:
        """How many have been let in so far."""
        return self.log().count("Accepted publickey")

    def kill(self) -> None:
        """The server and every connection, as when the machine goes away."""
        assert self._process is not None
        held: set[int] = set()
        while fresh := set(proc.with_descendants([self._process.pid], proc.processes())) - held:
            for pid in fresh:  # held still first, so that none begins another one unseen
                proc.send_signal(pid, signal.SIGSTOP)
            held |= fresh
        for pid in held:
            proc.send_signal(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self.kill()


class SshWorld:
    """A gate and a node behind it; `options` are the node's."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.key_file = folder / "id"
        public = new_key(self.key_file)
        self.node = SshServer(folder / "node", "127.0.0.1", public, *options)
        # The gate gives no shell and leads nowhere else.
        self.gate = SshServer(
            folder / "gate",
            "127.0.0.1",
            public,
            f"PermitOpen 127.0.0.1:{self.node.port} 127.0.0.1:1",
            "ForceCommand /bin/false",
            "PermitTTY no",
        )
        self.work = folder / "work"

    def hosts_toml(
        self,
        *,
        gate_key: str | None = None,
        node_key: str | None = None,
        key_file: Path | None = None,
        more: str = "",
        ports: tuple[int, ...] = (),
    ) -> str:
        """The file that describes both; `key_file` and `more` are the node's. `ports`: of further nodes, called node-2 and so on."""
        nodes = "".join(
            self._node_toml(f"node-{number}", port, node_key or self.node.host_key, key_file or self.key_file, more)
            for number, port in enumerate((self.node.port, *ports), 1)
        )
        return f"""
[[host]]
name = "gate"
address = "{self.gate.address}"
port = {self.gate.port}
user = "{user()}"
key_file = "{self.key_file}"
host_keys = ["{gate_key or self.gate.host_key}"]
{nodes}"""

    def _node_toml(self, name: str, port: int, host_key: str, key_file: Path, more: str) -> str:
        return f"""
[[host]]
name = "{name}"
address = "{self.node.address}"
port = {port}
user = "{user()}"
key_file = "{key_file}"
host_keys = ["{host_key}"]
jump = "gate"
work = "{self.work}"
{more}
"""

    def hosts(self, **how: Any) -> Hosts:
        """As the agent reads them."""
        return parse_hosts(self.hosts_toml(**how), self.folder)

    def host(self, gates: dict[str, Access], **how: Any) -> Host:
        """The node, by an access of its own; `gates` are the caller's to close."""
        hosts = self.hosts(**how)
        return Host(open_access(hosts, hosts.entries["node-1"], gates))

    def stop(self) -> None:
        self.gate.stop()
        self.node.stop()


def opened_world(folder: Path, *options: str) -> Iterator[SshWorld]:
    if SSHD is None:
        pytest.skip("no SSH server; on Debian: apt-get install openssh-server")
    world = SshWorld(folder, *options)
    try:
        yield world
    finally:
        world.stop()


@pytest.fixture
def ssh_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshWorld]:
    """A gate and a node for one test."""
    yield from opened_world(tmp_path_factory.mktemp("ssh"))
