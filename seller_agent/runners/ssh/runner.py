"""Runs jobs as plain processes of another machine, reached by SSH through any number of jump hosts.

The process runner, with its supervisor there: it guards deadline, lease and process tree whatever becomes of the connection, of the gate
and of this agent. Here are the way to it, kept open and taken up again, and the copies: inputs there, output and results back. A run counts
as exited once its output and results lie in its folder here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from events.stepping import end_all
from seller_agent.runners.process.link import Answer, Link, LinkLost
from seller_agent.runners.process.runner import TRIES, ProcessRunner, check_words, environment_of, make_folders, status_of
from seller_agent.runners.runner import Progress, RunKey, RunnerError, RunSpec, RunState, RunStatus, RunUse, Stream, Terminal
from seller_agent.runners.ssh.errors import ForwardingRefused, HostAway, SshFailed
from seller_agent.runners.ssh.files import fetch_tree, in_words, upload_tree
from seller_agent.runners.ssh.host import Host
from seller_agent.runners.ssh.link import open_link, reach
from seller_agent.runners.ssh.output import Output
from seller_agent.runners.ssh.work import Works

log = structlog.get_logger("seller.ssh")

PATIENCE_S = 20.0
"""So long a request waits for a host that is away."""
PAUSE_S, PAUSE_MAX_S = 0.25, 10.0
RESULTS_BYTES_MAX = 2 << 30
SECRETS_ROOT = "/dev/shm"
SOCKET_PATH_MAX = 107
COLLECTED = "collected"
"""In the folder of a run here: all of it has been fetched."""


class SilentHost(RunnerError):
    """The host does not answer now; this passes."""

    def __init__(self, message: str) -> None:
        super().__init__("container_error", message)


class SshRunner(ProcessRunner):
    """The runner of one host. `root` is the folder of runs here; `node` names the one on the host."""

    def __init__(self, root: Path, host: Host, node: str, *, results_bytes_max: int = RESULTS_BYTES_MAX, idle_s: float = 5.0) -> None:
        super().__init__(root, name="ssh", idle_s=idle_s)
        assert host.work, "the host has been greeted"
        self._host = host
        self._base = f"{host.work}/{node}"
        self._there = f"{self._base}/runs"
        self._results_bytes_max = results_bytes_max
        self._output = Output(host, self._root, self._there)
        self._works = Works(host, self._root, self._there, bytes_max=results_bytes_max)
        self._leases: dict[str, int] = {}
        self._linked = asyncio.Event()
        self._lost = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._collecting: dict[str, asyncio.Task[None]] = {}
        self._trouble = ""
        self._forwards_sockets: bool | None = None
        self._without_secrets: set[str] = set()
        """Runs that this agent itself brought there without any."""

    def job_path(self, spec: RunSpec) -> str:
        return f"{self._folder(spec.key)}/job"

    def out_path(self, spec: RunSpec) -> str:
        return f"{self._folder(spec.key)}/out"

    async def prepare(self, spec: RunSpec, progress: Progress) -> None:
        """Make the folders here and there, and bring inputs and secrets. Raises RunnerError."""
        self._check(spec)
        make_folders(spec)
        if (await self._ask({"do": "status", "name": spec.key.name})).run is not None:
            return
        progress("uploading")
        done: set[str] = set()
        for tries_left in reversed(range(TRIES)):
            try:
                return await self._bring(spec, done)
            except HostAway as error:
                if not tries_left:
                    raise SilentHost(error.why) from None
            except SshFailed as error:
                raise RunnerError("container_error", f"{error.what} {error.why}") from None
            await self._connected()

    async def _bring(self, spec: RunSpec, done: set[str]) -> None:
        folder, access = self._folder(spec.key), self._host.access
        secrets = [self._secrets(spec.key)] if spec.has_secrets else []
        if not secrets:
            self._without_secrets.add(spec.key.name)
        parents = [str(parent) for place in secrets for parent in reversed(Path(place).parents[:2])]
        await self._host.act("make", *(f"{folder}/{part}" for part in ("job", "out", "log", "tmp")), *parents, *secrets)
        with in_words("bring the inputs to the host"):
            if os.listdir(f"{spec.folder}/job"):
                await upload_tree(access, Path(spec.folder, "job"), f"{folder}/job", done)
            for place in secrets:
                await self._host.act("point", f"{folder}/secrets", place)  # the guard there takes them away at the end
                await upload_tree(access, Path(spec.folder, "secrets").resolve(), place, done)

    async def start(self, spec: RunSpec) -> RunStatus:
        """Start the program there; a run that was started before is left alone. Raises RunnerError."""
        self._check(spec)
        self._leases[spec.key.name] = spec.lease_until_boot_ms
        answer = await self._ask(
            {
                "do": "start",
                "name": spec.key.name,
                "argv": spec.argv,
                "env": self._environment(spec),
                "timeout_s": spec.timeout_s,
                "grace_s": spec.grace_s,
                "output_limit_bytes": spec.output_limit_bytes,
                "leases": {spec.key.name: spec.lease_until_boot_ms},
                "memory_bytes": spec.memory_mib << 20 if spec.memory_mib is not None and not spec.cards else None,
            }
        )
        assert answer.run is not None
        status = status_of(answer.run)
        if self._is_collected(spec.key.name):
            return status
        self._follow(spec.key.name)
        return await self.wait(spec.key) if status.state is RunState.EXITED else status

    async def adopt(self) -> list[RunStatus]:
        """Every run there. One that has exited counts as running until its output and results are here: `wait` for it."""
        statuses = [status_of(report) for report in (await self._ask({"do": "list"})).runs]
        try:
            await self._sweep({status.key.name for status in statuses})
        except SshFailed as error:
            log.warning("what earlier runs left on the host was not looked at", host=self._host.name, why=error.why)
        found = []
        for status in statuses:
            if not self._is_collected(status.key.name):
                self._follow(status.key.name)
                if status.state is RunState.EXITED:
                    status = RunStatus(key=status.key, state=RunState.RUNNING, started_unix_ms=status.started_unix_ms, ran_ms=status.ran_ms)
            found.append(status)
        return found

    async def wait(self, key: RunKey) -> RunStatus:
        """Return once nothing of the run is left and everything of it is here, however long the host is away."""
        while True:
            try:
                status = await super().wait(key)
                await self._collected(key)
                return status
            except SilentHost as error:
                log.debug("waiting for the host", host=self._host.name, why=str(error))

    async def renew_many(self, leases: Mapping[RunKey, int]) -> None:
        """Move leases; while the host is away they are kept, and told first when it is back. Raises RunnerError at once then."""
        named = {key.name: until for key, until in leases.items()}
        self._leases.update(named)
        if not self._is_linked():
            self._begin()
            raise SilentHost(f"{self._host.name} is away: {self._trouble}")
        await self._ask({"do": "renew", "leases": named})

    async def use(self, key: RunKey) -> RunUse | None:
        return await super().use(key) if self._is_linked() else None

    async def dial(self, key: RunKey, place: str) -> Stream:
        """By forwarding, or by a program there where the SSH server forwards nothing. Raises ConnectionError, RunnerError."""
        kind, _, name = place.partition(":")
        folder = f"{self._folder(key)}/job"
        if kind == "unix" and (name.startswith("/") or ".." in name.split("/") or not name):
            raise ConnectionRefusedError("only sockets in the job's folder can be reached")
        if (kind == "tcp" and not (name.isascii() and name.isdigit() and 0 < int(name) < 65536)) or kind not in ("tcp", "unix"):
            raise ConnectionRefusedError(f"{place[:80]!a} is no place such as tcp:8888 or unix:NAME")
        try:
            if kind == "tcp":
                with contextlib.suppress(ForwardingRefused):
                    return await self._host.access.dial_tcp(int(name))
                return await reach(self._host, kind, name, name)
            return await self._dial_socket(folder, name)
        except SshFailed as error:
            raise RunnerError("container_error", f"{error.what} {error.why}") from None

    async def _dial_socket(self, folder: str, name: str) -> Stream:
        """A server that may not forward sockets says the same as one where nobody listens: what has worked is remembered."""
        path = f"{folder}/{name}"
        if self._forwards_sockets is not False and len(os.fsencode(path)) <= SOCKET_PATH_MAX:
            try:
                stream = await self._host.access.dial_unix(path)
                self._forwards_sockets = True
                return stream
            except (ConnectionRefusedError, ForwardingRefused):
                if self._forwards_sockets:
                    raise
        channel = await reach(self._host, "unix", folder, name)
        self._forwards_sockets = False
        return channel

    async def shell(self, key: RunKey, argv: tuple[str, ...], columns: int, rows: int) -> Terminal:
        """On a terminal of the host's; it ends with the run, and with the connection. Raises RunnerError."""
        report = (await self._ask({"do": "status", "name": key.name})).run
        if report is None or report.state is RunState.EXITED:
            raise RunnerError("container_error", "the job does not run any more")
        try:
            return await self._host.access.terminal(self._host.command("shell", self._folder(key), *argv), columns, rows)
        except SshFailed as error:
            raise RunnerError("container_error", f"{error.what} {error.why}") from None

    async def remove(self, key: RunKey) -> None:
        """Forget an exited run, and leave nothing of it on the host. Raises RunnerError."""
        await super().remove(key)
        self._output.drop(key.name)
        self._works.drop(key.name)
        collecting = self._collecting.pop(key.name, None)
        if collecting is not None:
            collecting.cancel()
        self._leases.pop(key.name, None)
        self._without_secrets.discard(key.name)
        try:
            await self._host.act("delete", self._folder(key), self._secrets(key))
        except SshFailed as error:
            raise SilentHost(f"{error.what} {error.why}") from None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._root / key.name / COLLECTED)

    async def close(self) -> None:
        """Let go of the host; runs go on there."""
        self._closed = True
        tasks = [*self._collecting.values(), *([self._keeping] if self._keeping is not None else [])]
        await end_all(tasks)
        await self._output.close()
        await self._works.close()
        await super().close()
        await self._host.access.close()

    # What a run is there.

    def _folder(self, key: RunKey) -> str:
        return f"{self._there}/{key.name}"

    def _secrets(self, key: RunKey) -> str:
        """In memory where the host has such a place, never on its disk then."""
        facts = self._host.facts
        if facts is not None and facts.shm:
            return f"{SECRETS_ROOT}/gpubazaar-{facts.uid}/{Path(self._base).name}/{key.name}"
        return f"{self._base}/secrets/{key.name}"

    def _environment(self, spec: RunSpec) -> dict[str, str]:
        """As for a process here, with the places that are there."""
        environment = environment_of(msgspec.structs.replace(spec, folder=self._folder(spec.key)))
        facts = self._host.facts
        if "PATH" not in spec.env and facts is not None:
            environment["PATH"] = facts.path
        if spec.has_secrets:
            environment["BAZAAR_SECRETS"] = self._secrets(spec.key)
        return environment

    def _check(self, spec: RunSpec) -> None:
        assert spec.folder == str(self._root / spec.key.name), "a run's folder is root / key.name"
        check_words(spec)

    async def _sweep(self, known: set[str]) -> None:
        """Take away what was brought for runs that never began, before this agent was killed."""
        secrets = Path(self._secrets(RunKey(job_id="j", attempt=1, epoch=1))).parent
        left = {name for name in await self._host.names(self._there, str(secrets)) if name not in known and name.count("-") >= 2}
        gone = sorted(name for name in left if not (self._root / name).exists())
        if gone:
            log.info("deleting what earlier runs left on the host", host=self._host.name, runs=len(gone))
            await self._host.act("delete", *(f"{self._there}/{name}" for name in gone), *(str(secrets / name) for name in gone))

    # Everything of it here.

    def _is_collected(self, name: str) -> bool:
        return (self._root / name / COLLECTED).exists()

    async def _collected(self, key: RunKey) -> None:
        """Return once all is here; several may wait."""
        if self._is_collected(key.name):
            return
        task = self._collecting.get(key.name)
        if task is None or task.done():
            task = self._collecting[key.name] = asyncio.get_running_loop().create_task(self._collect(key))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise RunnerError("container_error", f"the run {key.name} was removed") from None
            raise

    async def _collect(self, key: RunKey) -> None:
        """The secrets go first, then the rest of the output comes, then the results."""
        done: set[str] = set()
        pause_s = PAUSE_S
        while True:
            try:
                if key.name not in self._without_secrets:
                    await self._host.act("delete", self._secrets(key))
                has_results = await self._output.finish(key.name)
                if self._works.is_session(key.name):
                    await self._works.fetch(key.name)
                    self._works.drop(key.name)
                elif has_results:
                    await self._fetch(key, done)
                (self._root / key.name / COLLECTED).touch(mode=0o600)
                return
            except SshFailed as error:
                log.debug("what a run left waits on the host", host=self._host.name, why=error.why)
            except RunnerError as error:
                log.warning("what a run left cannot be fetched", host=self._host.name, run=key.name, why=str(error))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    def _follow(self, name: str) -> None:
        self._output.follow(name)
        if self._works.is_session(name):
            self._works.follow(name)

    async def _fetch(self, key: RunKey, done: set[str]) -> None:
        with in_words("fetch the results from the host"):
            await fetch_tree(self._host.access, f"{self._folder(key)}/out", self._root / key.name / "out", self._results_bytes_max, done)

    # The way there.

    def note_loss(self) -> None:
        self._linked.clear()
        self._lost.set()
        super().note_loss()

    def _is_linked(self) -> bool:
        return self._link is not None and self._link.is_open

    def _begin(self) -> None:
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.get_running_loop().create_task(self._keep_linked())

    async def _keep_linked(self) -> None:
        """Keep the way open: after a loss at once, then more and more slowly."""
        pause_s = PAUSE_S
        while not self._closed:
            try:
                self._lost.clear()
                await self._host.greet()
                link = self._link = await open_link(self._host, self._there, self._idle_s, self)
                if self._leases:
                    await link.ask(self._for_there({"do": "renew", "leases": self._leases}))
                self._linked.set()
                pause_s, self._trouble = PAUSE_S, ""
                await self._lost.wait()
                log.info("the connection was lost", host=self._host.name)
            except (SshFailed, LinkLost, RunnerError) as error:
                trouble = f"{error.what} {error.why}" if isinstance(error, SshFailed) else str(error) or "the connection was lost"
                if trouble != self._trouble:
                    log.warning("the host is away", host=self._host.name, why=trouble)
                self._trouble = trouble
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _connected(self) -> Link:
        if self._closed:
            raise RunnerError("container_error", "the SSH runner has been closed")
        self._begin()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await self._linked.wait()
                    if self._link is not None and self._link.is_open:
                        return self._link
                    self._linked.clear()
        except TimeoutError:
            raise SilentHost(f"{self._host.name} is away: {self._trouble or 'no answer'}") from None

    def _for_there(self, request: dict[str, Any]) -> dict[str, Any]:
        """Leases by the host's own clock, as it is known on this connection."""
        leases = {name: self._host.there_ms(until) for name, until in request.get("leases", {}).items()}
        if request["do"] != "start":
            return {**request, "leases": leases} if leases else request
        return {**request, "lease_until_boot_ms": leases[request["name"]]}

    async def _ask(self, request: dict[str, Any]) -> Answer:
        for _ in range(TRIES):
            link = await self._connected()
            with contextlib.suppress(LinkLost):
                answer = await link.ask(self._for_there(request))
                if answer.refused is not None:
                    raise RunnerError(answer.refused, answer.message)
                return answer
        raise SilentHost(f"the connection to {self._host.name} keeps ending: {self._trouble}")
