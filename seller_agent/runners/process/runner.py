"""Runs jobs as plain processes, for a machine without containers: nothing isolates them from the seller's account.

A client of the supervisor of `root` (see `supervisor`), which starts and guards the processes and outlives the agent; starts one where
none answers. One connection, requests in flight together, exits pushed: a start is one round trip and one spawn.
Limits: `memory_mib` becomes RLIMIT_AS for a run without cards only, because CUDA reserves address space by the hundred gigabytes;
`cores`, `shm_mib` and `network` are not enforced here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from seller_agent.runners.process.link import Answer, Link, LinkLost, Report, dial, launch, lose
from seller_agent.runners.process.shell import ProcessTerminal, environment_of_run
from seller_agent.runners.process.shell import start as start_shell
from seller_agent.runners.process.supervisor.run import read_record
from seller_agent.runners.reach import dial_port, dial_socket
from seller_agent.runners.runner import Progress, RunKey, RunnerError, RunSpec, RunStatus, RunUse, StopReason, Stream, Terminal

IDLE_S = 1.0
TRIES = 5


def key_of(name: str) -> RunKey:
    job_id, attempt, epoch = name.rsplit("-", 2)
    return RunKey(job_id=job_id, attempt=int(attempt), epoch=int(epoch))


def status_of(report: Report) -> RunStatus:
    return RunStatus(
        key=key_of(report.name),
        state=report.state,
        started_unix_ms=report.started_unix_ms,
        ran_ms=report.ran_ms,
        exit_code=report.exit_code,
        signal=report.signal,
        out_of_memory=report.out_of_memory,
        stop_reason=report.stop_reason,
        error=report.error,
        detail=report.detail,
    )


def environment_of(spec: RunSpec) -> dict[str, str]:
    """What the job sees: its own environment, what is missing for a usable one, and the cards that are its own."""
    real = [card.uuid for card in spec.cards if not card.simulated]
    amd = [f"GPU-{uuid.removeprefix('AMD-')}" for uuid in real if uuid.startswith("AMD-")]
    uuids = ",".join(uuid for uuid in real if not uuid.startswith(("AMD-", "MPS-")))
    # AMD's runtime obeys CUDA_VISIBLE_DEVICES too, and would see nothing.
    visible = {"ROCR_VISIBLE_DEVICES": ",".join(amd)} if amd else {"CUDA_VISIBLE_DEVICES": uuids}
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": f"{spec.folder}/job",
        "LANG": "C.UTF-8",
        "TMPDIR": f"{spec.folder}/tmp",
        "BAZAAR_JOB_ID": spec.key.job_id,
        "BAZAAR_ATTEMPT": str(spec.key.attempt),
        "BAZAAR_EPOCH": str(spec.key.epoch),
        **spec.env,
        **({"BAZAAR_SECRETS": f"{spec.folder}/secrets"} if spec.has_secrets else {}),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **visible,
        "NVIDIA_VISIBLE_DEVICES": uuids or "void",
    }


def check_words(spec: RunSpec) -> None:
    """Refuse what no kernel can pass to a program. Raises RunnerError."""
    words = [*spec.argv, *spec.env, *spec.env.values()]
    if not spec.argv or not spec.argv[0]:
        raise RunnerError("program_not_found", "the command is empty: name a program")
    if any("\0" in word for word in words):
        raise RunnerError(
            "program_not_found", "the command or its environment contains a NUL byte, which no program can receive: remove it"
        )
    if any(not name or "=" in name for name in spec.env):
        raise RunnerError("program_not_found", "the name of an environment variable is empty or contains `=`: rename it")
    if any(not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word) for word in words):
        raise RunnerError("program_not_found", "the command or its environment is not valid Unicode: write it in UTF-8")


def make_folders(spec: RunSpec) -> None:
    """The run's own folders on this machine. Raises RunnerError."""
    try:
        for part in ("job", "out", "log", "tmp"):
            os.makedirs(f"{spec.folder}/{part}", mode=0o700, exist_ok=True)
    except OSError as failure:
        reason = "disk_full" if failure.errno in (errno.ENOSPC, errno.EDQUOT) else "container_error"
        why = f"cannot make the folders of the run: {failure.strerror}: free the disk or move the agent's home"
        raise RunnerError(reason, why) from failure


class ProcessRunner:
    """The runner of plain processes; every folder of a run lies directly under `root` and is named `key.name`."""

    def __init__(self, root: Path, *, name: str = "process", idle_s: float = IDLE_S) -> None:
        self.name = name
        self._root = Path(os.path.realpath(root))
        self._state = self._root / ".supervisor"
        self._idle_s = idle_s
        self._link: Link | None = None
        self._linking = asyncio.Lock()
        self._closed = False
        self._exited: dict[str, RunStatus] = {}
        self._waiting: dict[str, set[asyncio.Future[RunStatus]]] = {}
        self._interpreters: dict[tuple[str, str], str] = {}
        self._shells: dict[str, set[ProcessTerminal]] = {}
        self._closing_shells: set[asyncio.Task[None]] = set()

    def job_path(self, spec: RunSpec) -> str:
        return f"{spec.folder}/job"

    def out_path(self, spec: RunSpec) -> str:
        return f"{spec.folder}/out"

    async def prepare(self, spec: RunSpec, progress: Progress) -> None:
        """Make the run's folders and bring up the supervisor. Raises RunnerError."""
        self._check(spec)
        make_folders(spec)
        await self._program(spec)
        await self._connected()

    async def start(self, spec: RunSpec) -> RunStatus:
        """Start the program; a run that was started before is left alone. Raises RunnerError."""
        self._check(spec)
        answer = await self._ask(
            {
                "do": "start",
                "name": spec.key.name,
                "argv": [await self._program(spec), *spec.argv[1:]],
                "env": environment_of(spec),
                "timeout_s": spec.timeout_s,
                "grace_s": spec.grace_s,
                "output_limit_bytes": spec.output_limit_bytes,
                "lease_until_boot_ms": spec.lease_until_boot_ms,
                "memory_bytes": spec.memory_mib << 20 if spec.memory_mib is not None and not spec.cards else None,
            }
        )
        assert answer.run is not None
        return status_of(answer.run)

    async def adopt(self) -> list[RunStatus]:
        """Every run under `root` that was started and not removed; those of a killed supervisor have been ended by then."""
        return [status_of(report) for report in (await self._ask({"do": "list"})).runs]

    async def wait(self, key: RunKey) -> RunStatus:
        """Return once nothing of the run is left; raises RunnerError for a run that was never started here, or is removed."""
        while key.name not in self._exited:
            link = await self._connected()
            if key.name not in link.followed:
                if (await self._ask({"do": "status", "name": key.name})).run is None:
                    raise RunnerError("container_error", f"no run {key.name} was started here: start it, or report it as lost")
                continue
            future: asyncio.Future[RunStatus] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(key.name, set())
            waiting.add(future)
            with contextlib.suppress(LinkLost):
                return await future
        return self._exited[key.name]

    async def renew(self, key: RunKey, lease_until_boot_ms: int) -> None:
        await self.renew_many({key: lease_until_boot_ms})

    async def renew_many(self, leases: Mapping[RunKey, int]) -> None:
        """Move the leases of many runs with one message; unknown ones are passed over."""
        await self._ask({"do": "renew", "leases": {key.name: until for key, until in leases.items()}})

    async def stop(self, key: RunKey, reason: StopReason, grace_s: int) -> None:
        await self._ask({"do": "stop", "name": key.name, "reason": reason, "grace_s": grace_s})

    async def extend(self, key: RunKey, timeout_s: int) -> None:
        """Move the deadline that the supervisor goes by."""
        await self._ask({"do": "extend", "name": key.name, "timeout_s": timeout_s})

    async def use(self, key: RunKey) -> RunUse | None:
        """What the processes of its session and their descendants use; None once its own process is gone."""
        use = (await self._ask({"do": "use", "name": key.name})).use
        return RunUse(**msgspec.structs.asdict(use)) if use is not None else None

    async def dial(self, key: RunKey, place: str) -> Stream:
        """A port of this machine's loopback, which the job shares with everybody, or a socket in its folder. Raises ConnectionError."""
        kind, _, name = place.partition(":")
        return await dial_port(int(name)) if kind == "tcp" else await dial_socket(f"{self._root}/{key.name}/job", name)

    async def shell(self, key: RunKey, argv: tuple[str, ...], columns: int, rows: int) -> Terminal:
        """A program beside the job's own. Raises RunnerError."""
        folder = f"{self._root}/{key.name}"
        run = read_record(folder)
        if run is None or run.exited or key.name in self._exited:
            raise RunnerError("container_error", "the job does not run any more")
        terminal = start_shell(folder, environment_of_run(run.record["pid"]), argv, columns, rows)
        self._shells.setdefault(key.name, set()).add(terminal)
        terminal.on_closed = lambda closed: self._shells.get(key.name, set()).discard(closed)
        return terminal

    async def remove(self, key: RunKey) -> None:
        """Forget an exited run. Raises RunnerError while it runs."""
        await self._ask({"do": "remove", "name": key.name})
        self._exited.pop(key.name, None)

    async def close(self) -> None:
        self._closed = True
        for name in list(self._shells):
            self._close_shells(name)
        await asyncio.gather(*self._closing_shells)
        if self._link is not None:
            await self._link.close()

    # What the link tells.

    def note_exit(self, report: Report) -> None:
        status = self._exited[report.name] = status_of(report)
        self._close_shells(report.name)
        for future in self._waiting.pop(report.name, ()):
            if not future.done():
                future.set_result(status)

    def note_loss(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for future in (future for futures in waiting.values() for future in futures):
            lose(future)

    def _close_shells(self, name: str) -> None:
        """End what was started beside a run."""
        for terminal in self._shells.pop(name, set()):
            task = asyncio.get_running_loop().create_task(terminal.close())
            self._closing_shells.add(task)
            task.add_done_callback(self._closing_shells.discard)

    # The link.

    def _check(self, spec: RunSpec) -> None:
        assert spec.folder == str(self._root / spec.key.name), "a run's folder is root / key.name"
        check_words(spec)

    async def _program(self, spec: RunSpec) -> str:
        """The program to start: `python` may be a shell script that picks an interpreter, at many times the cost; it is asked once."""
        name = spec.argv[0]
        if name not in ("python", "python3"):
            return name
        path = environment_of(spec)["PATH"]
        if (name, path) not in self._interpreters:
            found = shutil.which(name, path=path)
            self._interpreters[name, path] = await real_interpreter(found, path) if found is not None else name
        return self._interpreters[name, path]

    async def _ask(self, request: dict[str, Any]) -> Answer:
        """Ask, again when the supervisor goes away meanwhile: every request may be repeated. Raises RunnerError."""
        for _ in range(TRIES):
            link = await self._connected()
            with contextlib.suppress(LinkLost):
                answer = await link.ask(request)
                if answer.refused is not None:
                    raise RunnerError(answer.refused, answer.message)
                return answer
        raise RunnerError("runtime_restarted", f"the supervisor of processes keeps ending: see {self._state / 'log'}")

    async def _connected(self) -> Link:
        if self._link is not None and self._link.is_open:
            return self._link
        async with self._linking:
            for _ in range(TRIES):
                if self._closed:
                    raise RunnerError("container_error", "the process runner has been closed")
                if self._link is not None and self._link.is_open:
                    return self._link
                self._link = await dial(self._state, self)
                if self._link is None:
                    await launch(self._root, self._idle_s)
        raise RunnerError("container_error", f"no supervisor of processes answers: see {self._state / 'log'}")


async def real_interpreter(found: str, path: str) -> str:
    """The interpreter that a wrapper script would run; `found` itself when it is none, or does not tell."""
    with open(found, "rb") as file:
        if file.read(2) != b"#!":
            return found
    asked = await asyncio.create_subprocess_exec(
        found,
        "-c",
        "import sys; print(sys.executable)",
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        env={**os.environ, "PATH": path},
        cwd="/",
    )
    told, _ = await asked.communicate()
    named = told.decode(errors="replace").strip()
    return named if asked.returncode == 0 and os.access(named, os.X_OK) else found
