"""A market as a person has it: the real commands, started in an empty home, and nothing left of them afterwards.

`MarketEnv` is modelled on HyperQueue's `HqEnv`: every process has its own log, a part that dies without being killed by the test fails it,
waiting is polling with a deadline and says what it saw.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

COMMANDS = Path(sys.executable).parent
READY_S = 60.0
COMMAND_S = 60.0
JOB_S = 60.0
GONE_S = 20.0
ENDED = ("succeeded", "failed", "timed_out", "cancelled", "expired")
TWO_CARDS = ("--simulate-gpus", "2xRTX 4090")


class Told(NamedTuple):
    """What a command answered."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Its stdout, which must be one JSON value."""
        return json.loads(self.stdout)

    @property
    def problem(self) -> dict[str, Any]:
        """Its stderr, which must end with one problem object; stdout must be empty."""
        assert "" == self.stdout, self
        problem = json.loads(self.stderr.strip().splitlines()[-1])
        assert {"type", "title", "status", "detail", "code", "hint"} == set(problem)
        return dict(problem)


class Running:
    """A command that goes on, its words in files. Ended by process id."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.name = name
        self._stdout, self._stderr = folder / f"{name}.out", folder / f"{name}.err"
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self.process = subprocess.Popen(
                command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def out(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The whole lines that it has printed so far."""
        return [line.removesuffix("\n") for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def ended(self, timeout_s: float = JOB_S) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended within {timeout_s} s\n{self.out[-2000:]}\n{self.err[-2000:]}") from None

    def tell(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, timeout_s: float = GONE_S) -> int | None:
        """Ends it, gently first; its exit code, None when it had to be killed."""
        if self.code is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


class MarketEnv:
    """One home, one market in it, and whoever acts there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.work = folder / "work"
        """Where commands are run."""
        self.words = folder / "words"
        for made in (self.home, self.work, self.words):
            made.mkdir(parents=True)
        self.up: Running
        self.market = self.api = ""
        self._started: list[Running] = []
        self._expected_deaths: set[str] = set()
        self._options: tuple[str, ...] = ()

    # --- the market ---

    def start(self, *options: str) -> MarketEnv:
        """`bazaar-market up` on free ports; returns when it says that it is up."""
        self._options = options
        self.up = self.run_on("bazaar-market", "up", "--port", "0", "--runner", "process", "--json", *options)
        self.wait_until(lambda: self.up.lines or self.up.code is not None, "the market says that it is up", READY_S)
        assert self.up.code is None, self.up.err
        told = json.loads(self.up.lines[0])
        assert {"market", "api", "pid", "market_id"} == set(told)
        assert self.up.pid == told["pid"]
        self.market, self.api = told["market"], told["api"]
        return self

    def start_again(self) -> MarketEnv:
        """`up` as before."""
        return self.start(*self._options)

    def pids(self) -> dict[str, int]:
        """The processes of the market's parts, `broker` among them, as they are now."""
        market = self.home / "market"
        try:
            parts = {name: int(part["pid"]) for name, part in json.loads((market / "running.json").read_text()).items()}
            return {**parts, "broker": int(json.loads((market / "broker.lock").read_text())["pid"])}
        except (OSError, ValueError, KeyError):
            return {}

    def kill(self, part: str) -> None:
        """`kill -9`; returns when the part is back under another process id."""
        before = self.pids()[part]
        self._expected_deaths.add(part)
        os.kill(before, signal.SIGKILL)
        self.wait_until(lambda: self.pids().get(part, before) != before, f"{part} is back")

    def kill_up(self) -> None:
        """`kill -9` of the parent of all."""
        self.up.process.kill()
        self.up.process.wait()

    def deaths(self) -> set[str]:
        """Which parts the parent has seen die."""
        said = [line for running in self._ups() for line in running.err.splitlines() if " died" in line]
        return {line.removeprefix("the ").partition(" died")[0] for line in said}

    def _ups(self) -> list[Running]:
        return [running for running in self._started if running.name.endswith("bazaar-market-up")]

    def close(self) -> None:
        """Ends everything that was started here. Fails when a part died by itself, or something stays."""
        codes = {running.name: running.stop() for running in reversed(self._started) if running.code is None}
        gone = self._poll(lambda: not self.left_over(), GONE_S)
        left = self.left_over()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        said = self.diagnosis()
        assert gone, f"left running: {left}\n{said}"
        assert None not in codes.values(), f"had to be killed: {codes}\n{said}"
        assert {codes.get(up.name, 0) for up in self._ups()} <= {0}, f"{codes}\n{said}"
        assert self.deaths() <= self._expected_deaths, f"died by themselves: {self.deaths() - self._expected_deaths}\n{said}"
        for url in (self.market, self.api):
            assert not listens(url), f"somebody still listens at {url}"
        assert not (self.home / "market" / "endpoints.json").exists()

    def left_over(self) -> dict[int, str]:
        """Processes that belong to this home, by their environment or by the folder they work in."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid() and self._is_ours(entry):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
        return found

    def _is_ours(self, entry: Path) -> bool:
        try:
            if (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                return False
            variables = (entry / "environ").read_bytes().split(b"\0")
            folder = os.readlink(entry / "cwd")
        except OSError:
            return False
        return f"BAZAAR_HOME={self.home}".encode() in variables or Path(folder).is_relative_to(self.home)

    # --- commands ---

    def environment(self, **more: str) -> dict[str, str]:
        """What commands see of the world: this home, and no setting of whoever runs the tests."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BAZAAR_")}
        return {**kept, "BAZAAR_HOME": str(self.home), "COLUMNS": "200", **more}

    def run_on(self, program: str, *arguments: str, **more: str) -> Running:
        """Start a command that goes on."""
        name = f"{len(self._started):02}-{program}-{arguments[0]}"
        running = Running(name, [str(COMMANDS / program), *arguments], self.words, self.environment(**more), self.work)
        self._started.append(running)
        return running

    def command(
        self, program: str, *arguments: str, code: int | None = 0, stdin: str | None = None, cwd: Path | None = None, **more: str
    ) -> Told:
        """Run a command to its end; `code` is what it must leave with (None: anything)."""
        done = subprocess.run(
            [str(COMMANDS / program), *arguments],
            env=self.environment(**more),
            cwd=cwd or self.work,
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
        )
        told = Told(done.returncode, done.stdout, done.stderr)
        assert code is None or code == told.code, (
            f"{program} {' '.join(arguments)} left with {told.code}, not {code}\n{told}\n{self.diagnosis()}"
        )
        assert "Traceback" not in told.stderr, told.stderr
        return told

    def bazaar(self, *arguments: str, **how: Any) -> Told:
        """A buyer's command."""
        return self.command("bazaar", *arguments, **how)

    def script(self, name: str, text: str) -> str:
        """A file to run."""
        (self.work / name).write_text(text)
        return name

    def submit(self, *arguments: str, **how: Any) -> str:
        """`bazaar run -d`: the job's id."""
        [job_id] = self.bazaar("run", "-d", "--allow-simulated", *arguments, **how).stdout.split()
        return str(job_id)

    # --- looking ---

    def get(self, path: str) -> Any:
        """What the query API answers."""
        with urllib.request.urlopen(self.api + path, timeout=10) as answer:
            return json.loads(answer.read())

    def job(self, job_id: str) -> dict[str, Any]:
        """Job JSON, of the API; empty while it cannot be had."""
        try:
            return dict(self.get(f"/v1/jobs/{job_id}"))
        except (OSError, ValueError):
            return {}

    def wait_for_job(self, job_id: str, *states: str, timeout_s: float = JOB_S) -> dict[str, Any]:
        """The job, once it is in one of these states; fails at once when it has ended in another."""
        seen: dict[str, Any] = {}

        def reached() -> bool:
            seen.update(self.job(job_id))
            assert seen.get("state") in (None, *states) or seen["state"] not in ENDED, f"{seen}\n{self.diagnosis()}"
            return seen.get("state") in states

        self.wait_until(reached, f"{job_id} is {' or '.join(states)}", timeout_s)
        return seen

    def wait_until(self, condition: Callable[[], Any], what: str, timeout_s: float = JOB_S) -> None:
        """Poll; says what everybody said when it does not come."""
        assert self._poll(condition, timeout_s), f"waited {timeout_s} s until {what}\n{self.diagnosis()}"

    def _poll(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while True:
            looked = time.monotonic()
            if condition():
                return True
            now = time.monotonic()
            if now > deadline:
                return False
            time.sleep(max(0.02, now - looked))  # a look may be a whole command: what is waited for needs the processor too

    def diagnosis(self) -> str:
        """The jobs as they stand, and the last words of everybody."""
        parts = []
        try:
            for job in self.get("/v1/jobs")["items"]:
                parts.append(f"  {job['id']} {job['name']} {job['state']} {job['reason']} attempt {job['attempt']} node {job['node_name']}")
        except (OSError, ValueError, KeyError) as error:
            parts.append(f"  no API: {error}")
        files = [*self.words.glob("*.err"), *(self.home / "log").glob("*.err")]
        for file in sorted(files):
            tail = file.read_text(errors="replace").splitlines()[-6:]
            parts += [f"{file.name}:", *(f"    {line[:300]}" for line in tail)] if tail else []
        return "\n".join(parts)


def listens(url: str) -> bool:
    """Whether somebody takes connections there."""
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname or "", address.port or 0), timeout=1).close()
    except OSError:
        return False
    return True


def opened_market(folder: Path, *options: str) -> Iterator[MarketEnv]:
    """A market with a buyer's wallet, closed in the end whatever happens."""
    env = MarketEnv(folder)
    try:
        env.start(*(options or TWO_CARDS))
        env.bazaar("wallet", "new")
        # The node offers itself again, to the wallet that was made after it.
        env.wait_until(lambda: env.bazaar("quote", "--allow-simulated", code=None).code == 0, "the node takes the new wallet's jobs")
        yield env
    finally:
        env.close()


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MarketEnv]:
    """One market for a module: a node with two simulated 24 GB cards at 0.40 USD, and one buyer."""
    yield from opened_market(tmp_path_factory.mktemp("market"))


@pytest.fixture
def own_market(tmp_path: Path) -> Iterator[MarketEnv]:
    """A market for one test, for what would disturb others."""
    yield from opened_market(tmp_path)
