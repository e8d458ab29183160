"""One host as this agent uses it: our programs uploaded to it, once per version, its facts, its clock, and commands run there.

The programs are those of the supervisor and what `remote` and `probe` hold, standard library only. Nothing else is installed there.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from typing import Any

import msgspec

from seller_agent.runners.process.link import PACKAGE_ROOT
from seller_agent.runners.process.supervisor.daemon import FILES
from seller_agent.runners.process.supervisor.proc import boot_ms
from seller_agent.runners.ssh.connection import Access, Channel, Finished
from seller_agent.runners.ssh.errors import HostAway, SshFailed
from seller_agent.runners.ssh.files import upload_files
from seller_agent.runners.ssh.hosts import HostEntry

UPLOADED = (*FILES, "runners/ssh/__init__.py", "runners/ssh/remote.py", "runners/ssh/probe.py")
OLDEST_PYTHON = (3, 10)
ACT_MAX_S = 30.0
PROBE_MAX_S = 20.0
GREETING = (
    "import sys, os, json; w = os.path.expanduser(sys.argv[1]); "
    "os.umask(0o077); os.makedirs(w, exist_ok=True); "
    'print(json.dumps([os.path.realpath(w), list(sys.version_info[:2]), os.path.isdir(w + "/code/" + sys.argv[2])]))'
)
PROGRAM = "import sys; sys.path.append(sys.argv[1]); from seller_agent.runners.ssh.remote import main; sys.exit(main(*sys.argv[1:]))"
PROBE = "import sys; sys.path.append(sys.argv[1]); from seller_agent.runners.ssh.probe import main; sys.exit(main(*sys.argv[1:]))"


class HostCard(msgspec.Struct, frozen=True, kw_only=True):
    """A card as the host tells of it; None is not known."""

    index: int
    uuid: str = ""
    model: str = ""
    vram_mib: int | None = None
    driver: str = ""
    cuda: int = 0
    pci: str = ""
    compute_capability: str = ""
    mig: bool = False
    fault: str = ""
    utilisation_percent: int | None = None
    memory_used_mib: int | None = None
    temperature_c: int | None = None
    power_mw: int | None = None
    ecc_errors: int | None = None
    pids: tuple[int, ...] | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is, and how it is now."""

    boot_ms: int
    boot_id: str
    path: str
    cores: int
    memory_mib: int
    shm: bool
    uid: int
    cards: tuple[HostCard, ...] = ()
    reason: str | None = None
    detail: str = ""


class Host:
    """A host and what is known of it since `greet`."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.entry: HostEntry = access.entry
        self.name = self.entry.name
        self.work = ""
        """The folder on the host for our files, absolute; empty until greeted."""
        self.facts: Facts | None = None
        self.seen_s = 0.0
        """When the host last answered, on the monotonic clock."""
        self._clock_ahead_ms: int | None = None
        self._files = {name: (PACKAGE_ROOT / "seller_agent" / name).read_bytes() for name in UPLOADED}
        self._version = hashlib.sha256(repr(sorted(self._files.items())).encode()).hexdigest()[:16]

    @property
    def code(self) -> str:
        """Where our programs lie there."""
        return f"{self.work}/code/{self._version}"

    async def greet(self) -> None:
        """Bring our programs there unless they are; again after every loss of the connection. Raises SshFailed."""
        told = await self._python(GREETING, self.entry.work, self._version)
        if told.code != 0:
            why = told.stderr.decode(errors="replace").strip()[-300:] or f"it ended with {told.code}"
            raise SshFailed(
                f"Python cannot be started on {self.name}.", why=why, hint="Install python3 there, or name it with `python` in hosts.toml."
            )
        try:
            work, version, is_there = json.loads(told.stdout)
        except ValueError:
            raise SshFailed(
                f"{self.name} does not answer as it should.", why="Its login prints words of its own.", hint="Keep ~/.bashrc there silent."
            ) from None
        if tuple(version) < OLDEST_PYTHON:
            raise SshFailed(f"The Python of {self.name} is too old.", why=f"It is {version[0]}.{version[1]}, and 3.10 is needed.")
        self.work = work
        if not is_there:
            await upload_files(
                self.access, f"{work}/code", self._version, {f"seller_agent/{name}": data for name, data in self._files.items()}
            )
        self.seen_s = time.monotonic()

    async def look(self) -> Facts:
        """What it is and how it is. Raises SshFailed."""
        told = await self._python(PROBE, self.code, timeout_s=PROBE_MAX_S)
        try:
            facts = msgspec.json.decode(told.stdout, type=Facts)
        except msgspec.DecodeError:
            why = told.stderr.decode(errors="replace").strip()[-300:] or "it printed no facts"
            raise SshFailed(f"{self.name} cannot be looked at.", why=why) from None
        self.set_clock(facts.boot_ms)
        self.facts = facts
        return facts

    def set_clock(self, there_boot_ms: int) -> None:
        """It was so late there before now. Whatever the way here took makes its clock seem slower, so leases end early, never late."""
        self._clock_ahead_ms = there_boot_ms - boot_ms()
        self.seen_s = time.monotonic()

    def there_ms(self, here_boot_ms: int) -> int:
        """A time on this machine's CLOCK_BOOTTIME on that one's."""
        assert self._clock_ahead_ms is not None, "its clock is read when it is first reached"
        return here_boot_ms + self._clock_ahead_ms

    def command(self, act: str, *words: str) -> str:
        """The command line for one of `remote.ACTS`."""
        return self._line(PROGRAM, self.code, act, *words)

    async def act(self, act: str, *words: str) -> bytes:
        """Run one of them to its end; what it printed. Raises SshFailed."""
        told = await self._run(self.command(act, *words), ACT_MAX_S)
        if told.code != 0:
            raise SshFailed(f"{self.name} could not do `{act}`.", why=told.stderr.decode(errors="replace").strip()[-300:])
        return told.stdout

    async def names(self, *folders: str) -> set[str]:
        """What lies in folders there."""
        answer: dict[str, Any] = json.loads(await self.act("names", *folders))
        return set(answer["names"])

    async def unix_s(self) -> int:
        """The wall clock there. Raises SshFailed."""
        answer: dict[str, Any] = json.loads(await self.act("names"))
        return int(answer["unix_s"])

    async def open(self, act: str, *words: str) -> Channel:
        """Start one that goes on. Raises SshFailed."""
        return await self.access.command(self.command(act, *words))

    async def _python(self, program: str, *words: str, timeout_s: float = ACT_MAX_S) -> Finished:
        return await self._run(self._line(program, *words), timeout_s)

    async def _run(self, command: str, timeout_s: float) -> Finished:
        try:
            told = await self.access.run(command, timeout_s=timeout_s)
        except TimeoutError:
            raise HostAway(why=f"{self.name} did not finish in {timeout_s:g} s.") from None
        self.seen_s = time.monotonic()
        return told

    def _line(self, program: str, *words: str) -> str:
        """-I -S: nothing of the host's own Python set-up is loaded."""
        return "exec " + shlex.join([self.entry.python, "-I", "-S", "-X", "utf8", "-c", program, *words])
