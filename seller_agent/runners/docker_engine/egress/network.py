"""The network of jobs that may reach the internet, and nothing else: made, proved from inside, and proved again as long as it is offered.

A bridge of a fixed name where containers do not see each other, rules in two chains of the firewall (`firewall`), and a probe
(`probe`) that tries every door from a container's place. Rules vanish when a firewall is loaded anew: whatever is not proved is not
offered. It knows nothing of jobs.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from typing import Any, Protocol

import structlog

from events.errors import BazaarError
from seller_agent.runners.docker_engine.daemon.host import container_pid
from seller_agent.runners.docker_engine.egress import firewall, probe
from seller_agent.runners.runner import RunnerError

log = structlog.get_logger("seller.egress")

NETWORK = "gpubazaar-egress"
PROBE_IMAGE = "gpubazaar-probe:1"
METADATA = ("169.254.169.254", 80)
INTERNET = (("1.1.1.1", 443), ("8.8.8.8", 53), ("9.9.9.9", 443))
"""One of them must answer, or there is no way out."""
PROBE_S = 30.0
PAUSES = {
    "x86_64": (0x3E, bytes.fromhex("b8220000000f05ebf7")),  # pause() again and again
    "aarch64": (0xB7, bytes.fromhex("000080d2010080d2020080d2030080d2280980d2010000d4faffff17")),  # ppoll() without an end
}
"""A program that does nothing, per machine: the probe needs a container of no image at all."""


class EgressRefused(BazaarError):
    """This machine cannot keep jobs with a network apart from itself."""

    what = "Egress cannot be offered here."


class Engine(Protocol):
    """What of Docker egress needs. Every method raises RunnerError."""

    def inspect(self, name: str) -> dict[str, Any] | None:
        """A container, or None."""

    def create(self, name: str, body: dict[str, Any]) -> bool:
        """Create a container; False when the name is taken."""

    def start(self, name: str) -> None:
        """Start it."""

    def remove(self, name: str) -> None:
        """Kill and remove it; an absent one is no error."""

    def import_image(self, name: str, archive: bytes) -> None:
        """Make an image of a root file system."""

    def inspect_image(self, image: str) -> dict[str, Any] | None:
        """A local image, or None."""

    def inspect_network(self, name: str) -> dict[str, Any] | None:
        """A network, or None."""

    def create_network(self, name: str, options: dict[str, str]) -> None:
        """Make a bridge without IPv6."""

    def remove_network(self, name: str) -> bool:
        """Remove it; False while containers are in it."""


class Egress:
    """One node's egress. `prove` and `close` block and talk to Docker; `internet` are places of which one must answer."""

    def __init__(self, engine: Engine, home: str, *, machine: str = "x86_64", internet: tuple[tuple[str, int], ...] = INTERNET) -> None:
        self._engine = engine
        self._machine = machine
        self._internet = internet
        self._names = tuple(f"gpubazaar-probe-{home}-{which}" for which in ("job", "neighbour"))
        self._fault = "not proved yet"

    def network(self) -> str | None:
        """The network's name, while it is proved."""
        return None if self._fault else NETWORK

    @property
    def fault(self) -> str:
        """Why it is not proved; empty while it is."""
        return self._fault

    def check(self) -> None:
        """Whether this process may do it at all. Raises EgressRefused."""
        if os.geteuid() != 0:
            raise EgressRefused(why="Only root may set the firewall's rules.", hint="Run the agent as root, or leave --egress away.")
        if self._machine not in PAUSES:
            raise EgressRefused(why=f"The probe does not know machines of the kind {self._machine[:40]}.", hint="Leave --egress away.")
        try:
            firewall.addresses()
            self._settle()
        except firewall.FirewallError as error:
            self.close()
            raise EgressRefused(
                why=f"The firewall cannot be set: {error}.",
                hint="It needs iptables, ip, the right NET_ADMIN, and a Docker that sets its own rules; or leave --egress away.",
            ) from None

    def prove(self) -> str:
        """Put right what is not, then try every door; the fault, empty when there is none."""
        try:
            if self._settle() and not self._fault:
                log.warning("rules of the egress network had vanished from the firewall: put back")
            self._fault = self._probe()
        except (firewall.FirewallError, RunnerError, OSError) as error:
            self._fault = str(error)
        return self._fault

    def _settle(self) -> bool:
        """Network and rules in place; whether anything had to be changed. Raises FirewallError, RunnerError."""
        options = {"com.docker.network.bridge.name": firewall.BRIDGE, "com.docker.network.bridge.enable_icc": "false"}
        found = self._engine.inspect_network(NETWORK)
        if found is None:
            self._engine.create_network(NETWORK, options)
        elif found.get("Driver") != "bridge" or found.get("EnableIPv6") or not options.items() <= (found.get("Options") or {}).items():
            raise RunnerError("container_error", f"Somebody made another network {NETWORK}: remove it with `docker network rm {NETWORK}`")
        return firewall.ensure(firewall.closed_networks(firewall.addresses()))

    def _probe(self) -> str:
        """Two containers that do nothing, and a look from the place of one. Raises RunnerError, FirewallError, OSError."""
        try:
            job, neighbour = (self._start(name) for name in self._names)
            own = firewall.addresses()
            shut = [METADATA, *((ip, 80) for ip in firewall.samples(firewall.closed_networks(own)))]
            asked = {"own": [str(address.ip) for address in own], "shut": shut, "open": self._internet}
            return _judge(_look(job, neighbour, asked))
        finally:
            for name in self._names:
                self._engine.remove(name)

    def _start(self, name: str) -> int:
        """A container that does nothing in the network; its process id."""
        self._engine.remove(name)
        if self._engine.inspect_image(PROBE_IMAGE) is None:
            self._engine.import_image(PROBE_IMAGE, pause_image(self._machine))
        limits = {"CapDrop": ["ALL"], "ReadonlyRootfs": True, "NetworkMode": NETWORK, "PidsLimit": 8, "Memory": 16 << 20}
        self._engine.create(name, {"Image": PROBE_IMAGE, "Entrypoint": ["/pause"], "User": "65534:65534", "HostConfig": limits})
        self._engine.start(name)
        found = self._engine.inspect(name)
        pid = container_pid(found) if found is not None else None
        if pid is None:
            raise RunnerError("container_error", "The probe's container cannot be seen from here: Docker has processes of its own.")
        return pid

    def close(self) -> None:
        """Leave nothing behind, unless containers still use it: another agent's, or those that the next one takes up."""
        self._fault = "closed"
        try:
            if self._engine.remove_network(NETWORK):
                firewall.remove()
        except RunnerError as error:
            log.warning("the egress network stays", why=str(error))


def _look(job: int, neighbour: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What the probe found. Raises OSError."""
    command = [sys.executable, "-I", str(probe.__file__), str(job), str(neighbour)]
    try:
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=PROBE_S, check=True)
        return dict(json.loads(done.stdout))
    except (subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", None) or ""
        raise OSError(f"the probe failed: {said.strip().splitlines()[-1:] or error}") from error


def _judge(found: dict[str, Any]) -> str:
    """What is wrong with it, in words; empty when nothing is."""
    if not found["works"]:
        return "the probe could not even reach itself: it proves nothing"
    if found["neighbour"]:
        return "jobs reach each other"
    if found["leaks"]:
        return f"jobs reach this machine itself at {', '.join(found['leaks'])}"
    if not found["open"]:
        return "jobs do not reach the internet"
    return f"the way from jobs to {', '.join(found['unclosed'])} is not closed" if found["unclosed"] else ""


def pause_image(machine: str) -> bytes:
    """A root file system that holds one program which does nothing."""
    number, code = PAUSES[machine]
    size, base = 64 + 56 + len(code), 0x400000
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, number, 1, base + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    program = head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    return buffer.getvalue()
