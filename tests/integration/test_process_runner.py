"""The process runner and its supervisor with real processes: whatever dies, jobs are guarded, and nothing is left running."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from seller_agent.runners.process.runner import ProcessRunner
from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.runner import RunCard, RunKey, RunnerError, RunSpec, RunState, RunStatus, StopReason

REPOSITORY = Path(__file__).resolve().parents[2]
FOREVER_MS = 3_600_000
PATIENCE_S = 30.0


IGNORE_TERM = """
import signal, time, os
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True: time.sleep(60)
"""

WRITE_30_MB_A_SECOND = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    sys.stdout.write("x" * 3_000_000)
    sys.stdout.flush()
    time.sleep(0.1)
"""

ESCAPE = """
import os, sys, time
# A grandchild in a session of its own, with an empty environment and no trace of the run's folder.
said, say = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        nul = os.open("/dev/null", os.O_RDWR)
        print(os.getpid(), flush=True)
        os.write(say, b".")
        for fd in (0, 1, 2): os.dup2(nul, fd)
        os.execve("/bin/sleep", ["sleep", "3600"], {})
    os._exit(0)
os.read(said, 1)
os.wait()
if len(sys.argv) > 1: sys.exit(int(sys.argv[1]))
while True: time.sleep(60)
"""

AGENT = """
import asyncio, sys
from pathlib import Path
import msgspec
from seller_agent.runners.process.runner import ProcessRunner
from seller_agent.runners.runner import RunSpec

async def main():
    runner = ProcessRunner(Path(sys.argv[1]), idle_s=0.3)
    for spec in msgspec.json.decode(sys.argv[2], type=list[RunSpec]):
        await runner.prepare(spec, lambda phase: None)
        await runner.start(spec)
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def eventually(holds: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until, f"never came true: {what}"
        await asyncio.sleep(0.01)


def supervisors(root: Path) -> list[int]:
    """The keeper, then the worker."""
    found = []
    for one in proc.processes():
        words = proc.read_bytes(f"/proc/{one.pid}/cmdline").split(b"\0")
        if os.fsencode(root) in words and b"-I" in words:
            found.append(one)
    return [one.pid for one in sorted(found, key=lambda one: (one.ppid in {other.pid for other in found}, one.pid))]


def is_running(pid: int) -> bool:
    found = proc.process(pid)
    return found is not None and found.state != "Z"


def output(spec: RunSpec, name: str = "stdout") -> str:
    path = Path(spec.folder) / "log" / name
    return path.read_text() if path.exists() else ""


async def printed_pid(spec: RunSpec) -> int:
    await eventually(lambda: output(spec).endswith("\n"), "the job prints a process number")
    return int(output(spec).split()[-1])


class Bench:
    """A folder of runs and the runners on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runner = self.another()
        self._runs = 0

    def another(self) -> ProcessRunner:
        return ProcessRunner(self.root, idle_s=0.3)

    def spec(
        self,
        *argv: str,
        timeout_s: int = 3600,
        grace_s: int = 10,
        lease_ms: int = FOREVER_MS,
        output_limit_bytes: int = 50_000_000,
        env: dict[str, str] | None = None,
        cards: tuple[RunCard, ...] = (),
        memory_mib: int | None = None,
    ) -> RunSpec:
        self._runs += 1
        key = RunKey(job_id=f"job-{self._runs}", attempt=1, epoch=100 + self._runs)
        return RunSpec(
            key=key,
            folder=str(self.root / key.name),
            argv=argv,
            env=env or {},
            cards=cards,
            memory_mib=memory_mib,
            timeout_s=timeout_s,
            grace_s=grace_s,
            output_limit_bytes=output_limit_bytes,
            lease_until_boot_ms=proc.boot_ms() + lease_ms,
        )

    async def start(self, spec: RunSpec) -> RunStatus:
        await self.runner.prepare(spec, lambda phase: None)
        return await self.runner.start(spec)

    async def run(self, spec: RunSpec) -> RunStatus:
        await self.start(spec)
        return await self.runner.wait(spec.key)

    @contextlib.asynccontextmanager
    async def killed_agent(self, *specs: RunSpec) -> AsyncIterator[None]:
        """An agent in another process that started these runs and was killed."""
        agent = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            AGENT,
            str(self.root),
            msgspec.json.encode(specs).decode(),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert agent.stdout is not None
        assert b"started\n" == await agent.stdout.readline()
        agent.kill()
        await agent.communicate()
        yield


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for status in await bench.runner.adopt():
        await bench.runner.stop(status.key, StopReason.ASKED, 0)
        await bench.runner.wait(status.key)
        await bench.runner.remove(status.key)
    assert [] == await bench.runner.adopt()
    await bench.runner.close()
    await eventually(lambda: not supervisors(tmp_path), "the idle supervisor ends")
    assert set() == proc.leftovers(str(tmp_path), {})


async def test_a_job_ends_with_its_own_exit_code_and_all_of_its_output(bench: Bench) -> None:
    program = "import sys; [print(n) or print(-n, file=sys.stderr) for n in range(50_000)]; sys.exit(7)"
    spec = bench.spec("python", "-c", program)
    status = await bench.run(spec)
    assert (RunState.EXITED, 7, None, None) == (status.state, status.exit_code, status.signal, status.error)
    assert "".join(f"{n}\n" for n in range(50_000)) == output(spec)
    assert "".join(f"{-n}\n" for n in range(50_000)) == output(spec, "stderr")


async def test_a_started_job_is_running_and_says_since_when(bench: Bench) -> None:
    spec = bench.spec("sleep", "3600")
    before_ms = time.time_ns() // 1_000_000
    started = await bench.start(spec)
    assert (RunState.RUNNING, None) == (started.state, started.exit_code)
    assert started.started_unix_ms is not None
    assert before_ms <= started.started_unix_ms <= time.time_ns() // 1_000_000
    assert [spec.key] == [status.key for status in await bench.runner.adopt()]


async def test_starting_a_run_again_leaves_it_alone(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "echo once; exec sleep 3600")
    await bench.start(spec)
    await eventually(lambda: output(spec), "the job says that it runs")
    assert RunState.RUNNING == (await bench.runner.start(spec)).state
    await bench.runner.stop(spec.key, StopReason.ASKED, 0)
    await bench.runner.wait(spec.key)
    assert RunState.EXITED == (await bench.runner.start(spec)).state
    assert "once\n" == output(spec)


async def test_a_missing_program_exits_127_and_tells_the_buyer(bench: Bench) -> None:
    spec = bench.spec("no-such-program\n\x1b[2J")
    await bench.runner.prepare(spec, lambda phase: None)
    for status in (await bench.runner.start(spec), await bench.runner.wait(spec.key)):
        assert (RunState.EXITED, 127, "program_not_found") == (status.state, status.exit_code, status.error)
    assert r"bazaar: no program 'no-such-program\n\x1b[2J' on the job's PATH" + "\n" == output(spec, "stderr")


async def test_a_missing_script_and_a_missing_interpreter_exit_127(bench: Bench) -> None:
    missing = await bench.run(bench.spec("./train.sh"))
    assert (127, "program_not_found") == (missing.exit_code, missing.error)
    spec = bench.spec("./train.sh")
    write_script(spec, "#!/no/such/interpreter\n")
    without = await bench.run(spec)
    assert (127, "program_not_found") == (without.exit_code, without.error)
    assert "interpreter" in without.detail


async def test_a_script_that_is_not_executable_exits_126(bench: Bench) -> None:
    spec = bench.spec("./train.sh")
    write_script(spec, "echo never\n", mode=0o600)
    status = await bench.run(spec)
    assert (126, "program_not_found", "") == (status.exit_code, status.error, output(spec))


async def test_a_script_without_a_first_line_runs_in_the_shell(bench: Bench) -> None:
    spec = bench.spec("./train.sh", "two words")
    write_script(spec, 'echo "$1" in "$PWD"\n')
    assert 0 == (await bench.run(spec)).exit_code
    assert f"two words in {spec.folder}/job\n" == output(spec)


def write_script(spec: RunSpec, text: str, mode: int = 0o700) -> None:
    path = Path(spec.folder) / "job" / "train.sh"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("PIPE", 13), ("TERM", 15)])
async def test_a_job_killed_by_a_signal_says_which(bench: Bench, name: str, number: int) -> None:
    status = await bench.run(bench.spec("sh", "-c", f"kill -{name} $$"))
    assert (128 + number, number, None, False) == (status.exit_code, status.signal, status.stop_reason, status.out_of_memory)


async def test_words_reach_the_program_as_they_are(bench: Bench) -> None:
    words = ["two words", "new\nline", "$HOME `id` ;", "", "\x1b]0;é\u202e"]
    spec = bench.spec("python", "-c", "import sys, json; print(json.dumps(sys.argv[1:]))", *words)
    assert 0 == (await bench.run(spec)).exit_code
    assert words == json.loads(output(spec))


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ((), {}),
        (("",), {}),
        (("a\0b",), {}),
        (("true", "a\0b"), {}),
        (("true", "\udc80"), {}),
        (("true",), {"A": "\0"}),
        (("true",), {"A=B": "x"}),
    ],
)
async def test_words_that_no_program_can_receive_are_refused(bench: Bench, argv: tuple[str, ...], env: dict[str, str]) -> None:
    spec = bench.spec(*argv, env=env)
    for attempt in (bench.runner.prepare(spec, lambda phase: None), bench.runner.start(spec)):
        with pytest.raises(RunnerError) as refused:
            await attempt
        assert "program_not_found" == refused.value.reason
    assert [] == await bench.runner.adopt()


async def test_a_job_sees_its_own_environment_and_nothing_of_the_agents(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTS_SECRET", "x")
    cards = (RunCard(index=0, uuid="GPU-a", model="m", vram_mib=1), RunCard(index=3, uuid="GPU-b", model="m", vram_mib=1))
    spec = bench.spec("env", "-0", env={"A": "1\n2", "CUDA_VISIBLE_DEVICES": "7"}, cards=cards)
    assert 0 == (await bench.run(spec)).exit_code
    assert {
        "A": "1\n2",
        "BAZAAR_ATTEMPT": "1",
        "BAZAAR_EPOCH": str(spec.key.epoch),
        "BAZAAR_JOB_ID": spec.key.job_id,
        "BAZAAR_RUN_FOLDER": spec.folder,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "HOME": f"{spec.folder}/job",
        "LANG": "C.UTF-8",
        "NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "PATH": os.environ["PATH"],
        "TMPDIR": f"{spec.folder}/tmp",
    } == dict(entry.split("=", 1) for entry in output(spec).split("\0")[:-1])


async def test_a_job_starts_clean(bench: Bench) -> None:
    """No input to wait for, no open files of the guard, no core dumps, all signals at their defaults, a session of its own."""
    program = (
        "import os, resource, signal, sys; print([sys.stdin.read(), sorted(os.listdir('/proc/self/fd'))[:-1], "
        "resource.getrlimit(resource.RLIMIT_CORE), signal.pthread_sigmask(signal.SIG_BLOCK, ()), os.getsid(0) == os.getpid()])"
    )
    spec = bench.spec("python", "-c", program)
    assert 0 == (await bench.run(spec)).exit_code, output(spec, "stderr")
    assert "['', ['0', '1', '2'], (0, 0), set(), True]\n" == output(spec)
    ignored = bench.spec("grep", "SigIgn", "/proc/self/status")
    await bench.run(ignored)
    libc_internal = 1 << 31 | 1 << 32  # glibc ignores its own two in every child of posix_spawn
    assert 0 == int(output(ignored).split()[1], 16) & ~libc_internal


async def test_memory_is_limited_for_a_job_without_cards(bench: Bench) -> None:
    program = "bytearray(1 << 30)"
    assert 1 == (await bench.run(bench.spec("python", "-c", program, memory_mib=512))).exit_code
    card = RunCard(index=0, uuid="GPU-a", model="m", vram_mib=1)
    assert 0 == (await bench.run(bench.spec("python", "-c", program, memory_mib=512, cards=(card,)))).exit_code


async def test_a_job_that_ignores_term_is_killed_after_the_grace(bench: Bench) -> None:
    spec = bench.spec("python", "-c", IGNORE_TERM)
    await bench.start(spec)
    await printed_pid(spec)
    await bench.runner.stop(spec.key, StopReason.ASKED, 1)
    status = await bench.runner.wait(spec.key)
    assert (StopReason.ASKED, 9, 137) == (status.stop_reason, status.signal, status.exit_code)
    assert status.ran_ms is not None and status.ran_ms >= 1000


async def test_a_job_may_save_its_work_when_it_is_stopped(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", 'trap "echo saved; exit 3" TERM; echo ready; while :; do sleep 0.01; done')
    await bench.start(spec)
    await eventually(lambda: output(spec), "the job is ready")
    await bench.runner.stop(spec.key, StopReason.ASKED, 20)
    status = await bench.runner.wait(spec.key)
    assert (StopReason.ASKED, 3, "ready\nsaved\n") == (status.stop_reason, status.exit_code, output(spec))


async def test_every_process_of_the_tree_hears_term(bench: Bench) -> None:
    worker = 'trap "echo saved; exit" TERM; echo ready; while :; do sleep 0.01; done'
    spec = bench.spec("sh", "-c", f"setsid sh -c '{worker}' & trap '' TERM; wait; wait; exit 0")
    await bench.start(spec)
    await eventually(lambda: output(spec), "the job is ready")
    await bench.runner.stop(spec.key, StopReason.ASKED, 20)
    assert 0 == (await bench.runner.wait(spec.key)).exit_code
    assert "ready\nsaved\n" == output(spec)


async def test_the_deadline_stops_a_job(bench: Bench) -> None:
    status = await bench.run(bench.spec("sleep", "3600", timeout_s=1))
    assert (StopReason.DEADLINE, 15) == (status.stop_reason, status.signal)


async def test_the_deadline_holds_with_the_agent_dead(bench: Bench) -> None:
    spec = bench.spec("python", "-c", IGNORE_TERM, timeout_s=1, grace_s=1)
    async with bench.killed_agent(spec):
        pid = await printed_pid(spec)
        await eventually(lambda: not is_running(pid), "the guard ends the job")
    (status,) = await bench.runner.adopt()
    assert (spec.key, StopReason.DEADLINE, 9) == (status.key, status.stop_reason, status.signal)


async def test_the_lease_holds_with_the_agent_dead(bench: Bench) -> None:
    spec = bench.spec("python", "-c", IGNORE_TERM, grace_s=1, lease_ms=4000)
    async with bench.killed_agent(spec):
        pid = await printed_pid(spec)
        await eventually(lambda: not is_running(pid), "the guard ends the job")
    (status,) = await bench.runner.adopt()
    assert (StopReason.LEASE, 9) == (status.stop_reason, status.signal)


async def test_a_renewed_lease_keeps_jobs_running_and_the_last_one_ends_them(bench: Bench) -> None:
    specs = [bench.spec("sleep", "3600", grace_s=1, lease_ms=3000) for _ in range(2)]
    for spec in specs:
        await bench.start(spec)
    await bench.runner.renew_many({spec.key: proc.boot_ms() + FOREVER_MS for spec in specs})
    await eventually(lambda: proc.boot_ms() > specs[0].lease_until_boot_ms, "the first lease is over")
    assert [RunState.RUNNING] * 2 == [status.state for status in await bench.runner.adopt()]
    for spec in specs:
        await bench.runner.renew(spec.key, proc.boot_ms())
    assert [StopReason.LEASE] * 2 == [(await bench.runner.wait(spec.key)).stop_reason for spec in specs]


async def test_nothing_starts_under_a_lease_that_is_over(bench: Bench) -> None:
    spec = bench.spec("sleep", "3600", lease_ms=500)
    with pytest.raises(RunnerError) as refused:
        await bench.start(spec)
    assert "lease_expired" == refused.value.reason


async def test_after_the_agent_was_killed_running_and_ended_runs_are_found(bench: Bench) -> None:
    running = bench.spec("sh", "-c", "for n in 1 2 3; do echo $n; done; read line < go; echo last; exit 4")
    ended = bench.spec("sh", "-c", "echo done; exit 7")
    Path(running.folder, "job").mkdir(parents=True)
    os.mkfifo(Path(running.folder, "job", "go"))
    async with bench.killed_agent(running, ended):
        found = {status.key: status for status in await bench.runner.adopt()}
    assert {running.key, ended.key} == set(found)
    assert RunState.RUNNING == found[running.key].state
    Path(running.folder, "job", "go").write_text("go\n")
    assert 4 == (await bench.runner.wait(running.key)).exit_code
    assert "1\n2\n3\nlast\n" == output(running)
    assert 7 == (await bench.runner.wait(ended.key)).exit_code
    assert "done\n" == output(ended)


async def test_runs_outlive_a_runner_that_lets_go(bench: Bench) -> None:
    spec = bench.spec("sleep", "3600")
    await bench.start(spec)
    await bench.runner.close()
    bench.runner = bench.another()
    assert [RunState.RUNNING] == [status.state for status in await bench.runner.adopt()]


@pytest.mark.parametrize("code", ["5", ""], ids=["by itself", "stopped"])
async def test_a_grandchild_that_hides_ends_with_its_run(bench: Bench, code: str) -> None:
    spec = bench.spec("python", "-c", ESCAPE, *([code] if code else []))
    await bench.start(spec)
    pid = await printed_pid(spec)
    if not code:
        assert is_running(pid)
        await bench.runner.stop(spec.key, StopReason.ASKED, 1)
    await bench.runner.wait(spec.key)
    assert not is_running(pid)


@pytest.mark.parametrize(
    "argv", [("sh", "-c", "(setsid sleep 3600 & echo $!); exec sleep 3600"), ("python", "-c", ESCAPE)], ids=["in the open", "hiding"]
)
async def test_one_runs_background_process_outlives_anothers_end(bench: Bench, argv: tuple[str, ...]) -> None:
    spec = bench.spec(*argv)
    await bench.start(spec)
    pid = await printed_pid(spec)
    for _ in range(3):
        assert 0 == (await bench.run(bench.spec("true"))).exit_code
    assert is_running(pid)
    await bench.runner.stop(spec.key, StopReason.ASKED, 5)
    await bench.runner.wait(spec.key)
    assert not is_running(pid)


async def test_when_the_worker_is_killed_nothing_of_its_runs_goes_on(bench: Bench) -> None:
    hiding, shell = bench.spec("python", "-c", ESCAPE), bench.spec("sh", "-c", "sleep 3600 & echo $!; wait")
    for spec in (hiding, shell):
        await bench.start(spec)
    pids = [await printed_pid(hiding), await printed_pid(shell)]
    waiting = asyncio.ensure_future(bench.runner.wait(shell.key))
    await asyncio.sleep(0)
    os.kill(supervisors(bench.root)[1], signal.SIGKILL)
    assert (RunState.EXITED, "runtime_restarted") == ((await waiting).state, (await waiting).error)
    assert "runtime_restarted" == (await bench.runner.wait(hiding.key)).error
    assert [False, False] == [is_running(pid) for pid in pids]


async def test_the_keeper_ends_the_runs_of_a_killed_worker_without_any_agent(bench: Bench) -> None:
    spec = bench.spec("python", "-c", ESCAPE)
    async with bench.killed_agent(spec):
        pid = await printed_pid(spec)
        os.kill(supervisors(bench.root)[1], signal.SIGKILL)
        await eventually(lambda: not is_running(pid) and not supervisors(bench.root), "the keeper ends everything, and itself")
    (status,) = await bench.runner.adopt()
    assert (RunState.EXITED, None, "runtime_restarted") == (status.state, status.exit_code, status.error)


async def test_after_keeper_and_worker_were_killed_adopting_ends_what_they_left(bench: Bench) -> None:
    stubborn = bench.spec("python", "-c", IGNORE_TERM)
    by_session = bench.spec("sh", "-c", "(env -i sleep 3600 & echo $!); exec env -i sleep 3600")
    by_mark = bench.spec("sh", "-c", "(setsid sleep 3600 & echo $!); exec sleep 3600")
    specs = (stubborn, by_session, by_mark)
    async with bench.killed_agent(*specs):
        pids = [await printed_pid(spec) for spec in specs]
        for pid in supervisors(bench.root):
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not supervisors(bench.root), "both are gone")
    statuses = await bench.runner.adopt()
    assert ["runtime_restarted"] * 3 == [status.error for status in statuses]
    assert [False] * 3 == [is_running(pid) for pid in pids]
    assert set() == proc.leftovers(str(bench.root), {})


async def test_after_the_machine_restarted_runs_are_reported_so(bench: Bench) -> None:
    spec = bench.spec("true")
    Path(spec.folder).mkdir()
    record = {"state": "running", "boot_id": "another", "pid": os.getpid(), "start_ticks": 1, "started_unix_ms": 5}
    Path(spec.folder, "run.jsonl").write_text(json.dumps(record) + "\n")
    (status,) = await bench.runner.adopt()
    assert (spec.key, RunState.EXITED, "host_restarted", 5) == (status.key, status.state, status.error, status.started_unix_ms)


async def test_term_to_the_supervisor_ends_its_runs_and_itself(bench: Bench) -> None:
    spec = bench.spec("sleep", "3600")
    await bench.start(spec)
    keeper, worker = supervisors(bench.root)
    os.kill(keeper, signal.SIGTERM)
    assert "runtime_restarted" == (await bench.runner.wait(spec.key)).error
    await eventually(lambda: not is_running(worker) and not is_running(keeper), "the supervisor ends")


async def test_too_much_output_is_cut_and_ends_the_job(bench: Bench) -> None:
    program = "import sys, time\nwhile True: sys.stdout.write('x' * 3_000_000); sys.stdout.flush(); time.sleep(0.1)"
    spec = bench.spec(
        "python", "-c", f"import signal; signal.signal(15, signal.SIG_IGN)\n{program}", output_limit_bytes=2_000_000, grace_s=1
    )
    status = await bench.run(spec)
    assert (StopReason.OUTPUT, 9) == (status.stop_reason, status.signal)
    assert "x" * 2_000_000 == output(spec)


async def test_too_much_output_of_a_short_job_is_cut_as_well(bench: Bench) -> None:
    program = "import sys; sys.stdout.write('o' * 300_000); sys.stderr.write('e' * 1000)"
    spec = bench.spec("python", "-c", program, output_limit_bytes=10_000)
    status = await bench.run(spec)
    assert StopReason.OUTPUT is status.stop_reason
    assert status.exit_code in (0, 143), "it had ended, or was ended at that moment"
    assert ("o" * 9000, "e" * 1000) == (output(spec), output(spec, "stderr"))


async def test_two_runners_on_one_folder_share_one_supervisor(bench: Bench) -> None:
    other = bench.another()
    spec = bench.spec("sh", "-c", "read line < go; exit 5")
    Path(spec.folder, "job").mkdir(parents=True)
    os.mkfifo(Path(spec.folder, "job", "go"))
    await asyncio.gather(bench.start(spec), other.adopt())
    assert 2 == len(supervisors(bench.root))  # one worker, one keeper
    both = asyncio.gather(bench.runner.wait(spec.key), other.wait(spec.key))
    await asyncio.sleep(0)
    Path(spec.folder, "job", "go").write_text("go\n")
    assert [5, 5] == [status.exit_code for status in await both]
    await other.close()


async def test_the_socket_is_closed_to_others_and_the_lock_is_held(bench: Bench) -> None:
    await bench.runner.adopt()
    state = bench.root / ".supervisor"
    assert [0o700, 0o600, 0o600] == [stat.S_IMODE(os.stat(path).st_mode) for path in (state, state / "socket", state / "lock")]
    with open(state / "lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_removed_run_is_forgotten_and_its_folder_is_left(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "echo kept")
    await bench.run(spec)
    for _ in range(2):
        await bench.runner.remove(spec.key)
    assert [] == await bench.runner.adopt()
    assert "kept\n" == output(spec)
    with pytest.raises(RunnerError):
        await bench.runner.wait(spec.key)


async def test_stopping_what_is_gone_or_unknown_is_no_error(bench: Bench) -> None:
    spec = bench.spec("true")
    await bench.run(spec)
    await bench.runner.stop(spec.key, StopReason.ASKED, 1)
    assert None is (await bench.runner.wait(spec.key)).stop_reason
    await bench.runner.stop(bench.spec("true").key, StopReason.ASKED, 1)


async def test_a_folder_whose_path_is_longer_than_a_socket_name_works(tmp_path: Path) -> None:
    root = tmp_path / ("deep" * 20) / ("deeper" * 20)
    root.mkdir(parents=True)
    runner = ProcessRunner(root, idle_s=0.1)
    assert [] == await runner.adopt()
    await runner.close()
    await eventually(lambda: not supervisors(root), "the idle supervisor ends")


async def test_many_jobs_at_once_all_end_and_are_forgotten(bench: Bench) -> None:
    specs = [bench.spec("sh", "-c", f"exit {n % 200}") for n in range(300)]
    slots = asyncio.Semaphore(64)

    async def one(spec: RunSpec) -> int | None:
        async with slots:
            status = await bench.run(spec)
            await bench.runner.remove(spec.key)
            return status.exit_code

    assert [n % 200 for n in range(300)] == list(await asyncio.gather(*map(one, specs)))
    assert [] == await bench.runner.adopt()
