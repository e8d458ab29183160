"""What is particular about runs on a node behind a gate: connections that are lost, keys that are wrong, files that come and go."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from pathlib import Path

import msgspec
import pytest
from integration.ssh_bench import SshBench, bench, opened, opened_bench
from integration.ssh_env import SshWorld, new_key, opened_world
from integration.test_gpus import library
from integration.test_process_runner import IGNORE_TERM, eventually, is_running, output, printed_pid

from seller_agent.node.ssh_nodes import HostSilent, HostWatch, cards_of
from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.runner import RunCard, RunSpec, RunState, StopReason
from seller_agent.runners.ssh import files as ssh_files
from seller_agent.runners.ssh.connection import Access
from seller_agent.runners.ssh.errors import HostAway, HostKeyWrong, LoginRefused, SshFailed
from seller_agent.runners.ssh.files import TOO_LARGE_BYTES, Wanted, fetch_file
from seller_agent.runners.ssh.hosts import HostsError

__all__ = ["bench", "library", "opened"]  # the fixtures

SEVEN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deep = int(sys.argv[1])
if deep:
    subprocess.Popen([sys.executable, __file__, str(deep - 1)], start_new_session=deep % 2 == 0)
print(os.getpid(), flush=True)
while True: time.sleep(60)
"""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def world(opened: SshBench) -> SshWorld:
    return opened.world


def write(spec: RunSpec, name: str, text: str, mode: int = 0o600) -> None:
    path = Path(spec.folder) / "job" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


async def close(gates: dict[str, Access]) -> None:
    for gate in gates.values():
        await gate.close()


# --- The way there ---


async def test_a_job_sees_the_nodes_places_and_its_own_environment(bench: SshBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTS_SECRET", "x")
    cards = (RunCard(index=0, uuid="GPU-a", model="m", vram_mib=1), RunCard(index=3, uuid="GPU-b", model="m", vram_mib=1))
    spec = bench.spec("sh", "-c", "cd .. && pwd; env -0", env={"A": "1\n2", "CUDA_VISIBLE_DEVICES": "7"}, cards=cards)
    assert 0 == (await bench.run(spec)).exit_code
    folder = f"{bench.there}/{spec.key.name}"
    place, _, rest = output(spec).partition("\n")
    assert folder == place
    assert (f"{folder}/job", f"{folder}/out") == (bench.runner.job_path(spec), bench.runner.out_path(spec))
    seen = dict(entry.split("=", 1) for entry in rest.split("\0")[:-1])
    assert {
        "A": "1\n2",
        "BAZAAR_JOB_ID": spec.key.job_id,
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "HOME": f"{folder}/job",
        "NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "TMPDIR": f"{folder}/tmp",
    }.items() <= seen.items()
    assert "AGENTS_SECRET" not in seen and "SSH_CONNECTION" not in seen


@pytest.mark.parametrize("which", ["gate", "node"])
async def test_with_a_wrong_host_key_nothing_is_run_and_both_fingerprints_are_named(world: SshWorld, tmp_path: Path, which: str) -> None:
    other = new_key(tmp_path / "other")
    gates: dict[str, Access] = {}
    host = world.host(gates, gate_key=other) if which == "gate" else world.host(gates, node_key=other)
    before = world.node.logins()
    with pytest.raises(HostKeyWrong) as refused:
        await host.greet()
    assert 2 == refused.value.why.count("SHA256:")
    assert f"{which if which == 'gate' else 'node-1'} (" in refused.value.why
    assert before == world.node.logins()
    await host.access.close()
    await close(gates)


async def test_a_host_with_a_key_of_another_kind_only_is_not_believed(world: SshWorld, tmp_path: Path) -> None:
    gates: dict[str, Access] = {}
    host = world.host(gates, node_key=new_key(tmp_path / "other", "ecdsa"))
    with pytest.raises(HostKeyWrong) as refused:
        await host.greet()
    assert 2 == refused.value.why.count("SHA256:")
    await close(gates)


async def test_a_key_that_the_node_does_not_know_is_refused_with_what_to_do(world: SshWorld, tmp_path: Path) -> None:
    new_key(tmp_path / "stranger")
    gates: dict[str, Access] = {}
    host = world.host(gates, key_file=tmp_path / "stranger")
    with pytest.raises(LoginRefused) as refused:
        await host.greet()
    assert "authorized_keys" in refused.value.hint
    await close(gates)


async def test_a_key_with_a_passphrase_is_refused_at_once(world: SshWorld, tmp_path: Path) -> None:
    new_key(tmp_path / "locked", passphrase="secret")
    with pytest.raises(HostsError, match=r"hosts\.toml") as refused:
        world.host({}, key_file=tmp_path / "locked")
    assert "without passphrase" in refused.value.hint


async def test_a_gate_that_is_down_is_said_to_be(world: SshWorld) -> None:
    gates: dict[str, Access] = {}
    world.gate.stop()
    try:
        with pytest.raises(HostAway, match=r"cannot be reached") as away:
            await world.host(gates).greet()
        assert "gate (" in away.value.why
    finally:
        world.gate.start()
    await close(gates)


async def test_a_node_without_python_says_what_to_install(world: SshWorld) -> None:
    gates: dict[str, Access] = {}
    host = world.host(gates, more='python = "/no/such/python3"')
    with pytest.raises(SshFailed) as refused:
        await host.greet()
    assert "Python cannot be started on node-1." == refused.value.what
    await host.access.close()
    await close(gates)


async def test_a_node_without_sftp_says_what_is_missing(tmp_path: Path) -> None:
    for world in opened_world(tmp_path / "ssh", "no sftp"):
        gates: dict[str, Access] = {}
        host = world.host(gates)
        with pytest.raises(SshFailed) as refused:
            await host.greet()
        assert "sftp" in f"{refused.value.what} {refused.value.why} {refused.value.hint}".lower()
        await host.access.close()
        await close(gates)


async def test_sixteen_agents_that_come_at_once_are_all_let_in(world: SshWorld) -> None:
    """Each with connections of its own to the same gate and node, where OpenSSH turns some of ten newcomers away."""
    gates: list[dict[str, Access]] = [{} for _ in range(16)]
    hosts = [world.host(one) for one in gates]
    await asyncio.gather(*(host.greet() for host in hosts))
    assert [1] * 16 == [host.access.lines for host in hosts]
    for host, one in zip(hosts, gates, strict=True):
        await host.access.close()
        await close(one)


async def test_sixteen_jobs_start_at_once_over_one_connection(bench: SshBench) -> None:
    specs = [bench.spec("sh", "-c", f"echo {n}; exit {n}") for n in range(16)]
    assert list(range(16)) == [status.exit_code for status in await asyncio.gather(*map(bench.run, specs))]
    assert [f"{n}\n" for n in range(16)] == [output(spec) for spec in specs]


async def test_more_sessions_than_a_connection_holds_go_over_another(bench: SshBench) -> None:
    spec = bench.spec("sleep", "3600")
    await bench.start(spec)
    shells = [await bench.runner.shell(spec.key, ("sh", "-c", f"read line; exit {n}"), 80, 24) for n in range(20)]
    access = bench.runner._host.access
    assert 3 <= access.lines <= 5
    for shell in shells:
        await shell.write(b"\n")
    assert list(range(20)) == [await shell.exit_code() for shell in shells]
    for shell in shells:
        await shell.close()
    assert 1 == access.lines


async def test_a_server_that_allows_two_sessions_a_connection_is_enough(tmp_path: Path) -> None:
    for world in opened_world(tmp_path / "ssh", "MaxSessions 2", "AllowTcpForwarding no", "AllowStreamLocalForwarding no"):
        async for few in opened_bench(tmp_path / "runs", world):
            spec = few.spec("python", "-c", LISTEN)
            await few.start(spec)
            await eventually(lambda spec=spec: "ready" in output(spec), "the job listens")
            streams = [await few.runner.dial(spec.key, place) for place in ("unix:sock", f"tcp:{output(spec).split()[1]}") * 2]
            for stream in streams:  # nothing is forwarded there: a program of ours connects
                await stream.write(b"hello")
                assert b"HELLO" == await stream.read(100)
                await stream.close()
            with pytest.raises(ConnectionError):
                await few.runner.dial(spec.key, "unix:none")


# --- The way is lost ---


async def test_when_the_gate_dies_in_mid_run_no_byte_of_output_is_lost_and_the_exit_code_is_kept(bench: SshBench) -> None:
    lines = "import sys, time\nfor n in range(60): print(n, 'x' * 1000, flush=True); time.sleep(0.02)\nsys.exit(3)"
    spec = bench.spec("python", "-c", lines)
    await bench.start(spec)
    waiting = asyncio.create_task(bench.runner.wait(spec.key))
    await eventually(lambda: output(spec).count("\n") >= 5, "the first lines are here")
    bench.world.gate.kill()
    record = bench.there / spec.key.name / "run.jsonl"
    await eventually(lambda: b'"exited"' in record.read_bytes(), "the job ends while nobody can reach it")
    assert not waiting.done()
    bench.world.gate.start()
    assert 3 == (await waiting).exit_code
    assert [f"{n} {'x' * 1000}" for n in range(60)] == output(spec).splitlines()


@pytest.mark.parametrize("reason", [StopReason.DEADLINE, StopReason.LEASE])
async def test_deadline_and_lease_hold_while_nobody_can_reach_the_node(bench: SshBench, reason: StopReason) -> None:
    limits = {"timeout_s": 2} if reason is StopReason.DEADLINE else {"lease_ms": 3500}
    spec = bench.spec("python", "-c", IGNORE_TERM, grace_s=1, **limits)
    await bench.start(spec)
    pid = await printed_pid(spec)
    bench.world.gate.kill()
    await eventually(lambda: not is_running(pid), "the node ends the job by itself")
    bench.world.gate.start()
    status = await bench.runner.wait(spec.key)
    assert (reason, 9) == (status.stop_reason, status.signal)


async def test_a_renewal_that_could_not_be_told_is_told_when_the_gate_is_back(bench: SshBench) -> None:
    spec = bench.spec("sleep", "3600", grace_s=1, lease_ms=7000)
    await bench.start(spec)
    bench.world.gate.kill()
    await eventually(lambda: not bench.runner._is_linked(), "the loss is noticed")
    until = time.monotonic()
    with pytest.raises(Exception, match="is away"):
        await bench.runner.renew(spec.key, proc.boot_ms() + 3_600_000)
    assert time.monotonic() - until < 5  # a heartbeat does not wait for a host
    bench.world.gate.start()
    await eventually(lambda: bench.runner._is_linked(), "the way is open again")
    await eventually(lambda: proc.boot_ms() > spec.lease_until_boot_ms, "the first lease is over")
    assert [RunState.RUNNING] == [status.state for status in await bench.runner.adopt()]


async def test_after_the_agent_was_killed_running_and_ended_runs_are_taken_up_again(bench: SshBench) -> None:
    await bench.let_go()
    running = bench.spec("sh", "-c", "echo 1; while ! test -e go; do sleep 0.02; done; echo last; echo result > ../out/result; exit 4")
    ended = bench.spec("sh", "-c", "echo done; echo kept > ../out/kept; exit 7")
    async with bench.killed_agent(running, ended):
        await bench.open()
        found = {status.key: status.state for status in await bench.runner.adopt()}
    assert {running.key: RunState.RUNNING, ended.key: RunState.RUNNING} == found  # an ended one, until all of it is here
    (bench.there / running.key.name / "job" / "go").touch()
    assert 4 == (await bench.runner.wait(running.key)).exit_code
    assert ("1\nlast\n", "result\n") == (output(running), Path(running.folder, "out/result").read_text())
    assert 7 == (await bench.runner.wait(ended.key)).exit_code
    assert ("done\n", "kept\n") == (output(ended), Path(ended.folder, "out/kept").read_text())
    assert {RunState.EXITED} == {status.state for status in await bench.runner.adopt()}


async def test_what_was_brought_for_a_run_that_never_began_is_taken_away(bench: SshBench) -> None:
    spec = bench.spec("true")
    write(spec, "data", "x")
    await bench.let_go()
    async with bench.killed_agent(spec, verbs="prepare"):
        assert (bench.there / spec.key.name / "job" / "data").exists()
    for name in ("data", ""):  # as the agent deletes the folder of a run that nobody knows
        path = Path(spec.folder, "job", name)
        path.unlink() if path.is_file() else None
    Path(spec.folder).rename(bench.root.parent / f"{bench.root.name}.gone")
    await bench.open()
    assert [] == await bench.runner.adopt()
    assert [".supervisor"] == os.listdir(bench.there)


async def test_cancelling_a_tree_of_seven_leaves_nothing(bench: SshBench) -> None:
    spec = bench.spec("python", "seven.py", "6")
    write(spec, "seven.py", SEVEN)
    await bench.start(spec)
    await eventually(lambda: output(spec).count("\n") == 7, "seven processes run")
    pids = [int(line) for line in output(spec).split()]
    assert all(map(is_running, pids))
    await bench.runner.stop(spec.key, StopReason.ASKED, 1)
    assert (StopReason.ASKED, 9) == ((status := await bench.runner.wait(spec.key)).stop_reason, status.signal)
    assert not any(map(is_running, pids))


# --- Files ---


async def test_inputs_and_results_arrive_whole_although_the_gate_dies_on_the_way(bench: SshBench) -> None:
    spec = bench.spec("sh", "-c", "sha256sum < data && cp data ../out/")
    data = os.urandom(40_000_000)
    job, out = bench.there / spec.key.name / "job", Path(spec.folder, "out")
    Path(spec.folder, "job").mkdir(parents=True)
    Path(spec.folder, "job", "data").write_bytes(data)
    preparing = asyncio.create_task(bench.runner.prepare(spec, lambda phase: None))
    await eventually(lambda: (job / "data").exists() and (job / "data").stat().st_size > 100_000, "the upload has begun")
    bench.world.gate.kill()
    assert not preparing.done()
    bench.world.gate.start()
    await preparing
    await bench.runner.start(spec)
    waiting = asyncio.create_task(bench.runner.wait(spec.key))
    await eventually(lambda: (out / "data").exists() and (out / "data").stat().st_size > 100_000, "the results begin to come")
    bench.world.gate.kill()
    assert not waiting.done()
    bench.world.gate.start()
    assert 0 == (await waiting).exit_code
    assert hashlib.sha256(data).hexdigest() == output(spec).split()[0]
    assert data == (out / "data").read_bytes()


async def test_inputs_arrive_as_they_are_and_results_come_back_without_what_is_hostile(bench: SshBench) -> None:
    spec = bench.spec("./sub/run.sh")
    write(
        spec,
        "sub/run.sh",
        "#!/bin/sh\ncat 'sub/data é'; cp -r sub ../out/; ln -s /etc/passwd ../out/link; mkfifo ../out/pipe; touch ../out/$(printf '\\377')",
        0o700,
    )
    write(spec, "sub/data é", "bytes\n")
    Path(spec.folder, "job", "outside").symlink_to("/etc/passwd")
    assert 0 == (await bench.run(spec)).exit_code, output(spec, "stderr")
    assert "bytes\n" == output(spec)
    out = Path(spec.folder, "out")
    assert ["sub", "sub/data é", "sub/run.sh"] == sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert [0o600, 0o700] == [stat.S_IMODE((out / "sub" / name).stat().st_mode) for name in ("data é", "run.sh")]
    assert not (bench.there / spec.key.name / "job" / "outside").exists()


async def test_results_beyond_the_limit_stay_there_and_are_seen_to_be_too_large(bench: SshBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.runner, "_results_bytes_max", 1000)
    spec = bench.spec("sh", "-c", "head -c 600 /dev/zero > ../out/a; head -c 600 /dev/zero > ../out/b; head -c 300 /dev/zero > ../out/c")
    assert 0 == (await bench.run(spec)).exit_code
    sizes = {path.name: path.stat().st_size for path in Path(spec.folder, "out").iterdir()}
    assert {"a": 600, "b": TOO_LARGE_BYTES, "c": 300} == sizes


WORKS = """
import os, pathlib, time
pathlib.Path("a.txt").write_text("one")
pathlib.Path("changed").write_text("and more")
pathlib.Path(".cache").mkdir()
pathlib.Path(".cache", "x").write_text("x")
print("ready", flush=True)
while not pathlib.Path("go").exists(): time.sleep(0.02)
pathlib.Path("a.txt").write_text("two")
pathlib.Path("gone").unlink()
pathlib.Path("b").mkdir()
pathlib.Path("b", "c.txt").write_text("three")
"""


async def test_the_work_of_a_session_comes_while_it_runs_and_once_more_at_the_end(bench: SshBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.runner._works, "_every_s", 0.1)
    spec = bench.spec("python", "-c", WORKS)
    for name in ("same", "changed", "gone"):
        write(spec, name, "input")
    job = Path(spec.folder, "job")
    os.utime(job / "same", (1_000_000_000, 1_000_000_000))
    before = (job / "same").stat().st_mtime_ns
    Path(spec.folder, "session.json").write_text("{}")
    await bench.start(spec)
    await eventually(lambda: (job / "a.txt").exists() and (job / "changed").read_text() == "and more", "the work comes")
    assert ["a.txt", "changed", "gone", "same"] == sorted(path.name for path in job.iterdir())
    (bench.there / spec.key.name / "job" / "go").touch()
    assert 0 == (await bench.runner.wait(spec.key)).exit_code, output(spec, "stderr")
    assert ["a.txt", "b", "c.txt", "changed", "go", "same"] == sorted(path.name for path in job.rglob("*"))
    assert ("two", "three") == ((job / "a.txt").read_text(), (job / "b/c.txt").read_text())
    assert before == (job / "same").stat().st_mtime_ns


@pytest.mark.parametrize("swapped_for", ["a file of holes", "a pipe", "a link"])
async def test_what_a_job_puts_in_a_files_place_costs_the_gate_neither_room_nor_time(
    bench: SshBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped_for: str
) -> None:
    monkeypatch.setattr(ssh_files, "STALL_S", 1.0)
    remote, target = tmp_path / "work", tmp_path / "fetched"
    listed = Wanted("work", 5, executable=False, mtime_s=0)
    if swapped_for == "a file of holes":
        remote.touch()
        os.truncate(remote, 1 << 30)
    elif swapped_for == "a pipe":
        os.mkfifo(remote)
    else:
        remote.symlink_to("fetched")
    async with bench.runner._host.access.files() as client:
        if swapped_for == "a pipe":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(20.0) as patience:
                    await fetch_file(client, str(remote), target, listed, fits=True)
            assert not patience.expired(), "it gave up by itself"
            os.close(os.open(remote, os.O_WRONLY))  # the far side still waits for whoever writes into it
        else:
            assert not await fetch_file(client, str(remote), target, listed, fits=True)
    assert not os.path.lexists(target)


async def test_secrets_lie_in_memory_for_as_long_as_the_run_and_go_with_it_although_nobody_can_reach_it(bench: SshBench) -> None:
    tell = 'stat -c %a "$BAZAAR_SECRETS" "$BAZAAR_SECRETS/TOKEN"; echo "$BAZAAR_SECRETS"; cat "$BAZAAR_SECRETS/TOKEN"'
    spec = msgspec.structs.replace(bench.spec("sh", "-c", f"{tell}; while ! test -e go; do sleep 0.02; done"), has_secrets=True)
    folder = Path(spec.folder, "secrets")
    folder.mkdir(parents=True)
    (folder / "TOKEN").write_text("hush\n")
    await bench.start(spec)
    await eventually(lambda: output(spec).count("\n") == 4, "the job has its secret")
    of_folder, of_file, place, value, _ = output(spec).split("\n")
    assert ("700", "600", "hush") == (of_folder, of_file, value)
    assert place.startswith("/dev/shm/")
    bench.world.gate.kill()
    (bench.there / spec.key.name / "job" / "go").touch()
    await eventually(lambda: not Path(place).exists(), "its guard takes the secret away")
    bench.world.gate.start()
    assert 0 == (await bench.runner.wait(spec.key)).exit_code


# --- Reaching into a run ---

LISTEN = """
import os, socketserver, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1000): self.request.sendall(data.upper())
port = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
sock = socketserver.ThreadingUnixStreamServer("sock", Echo)
threading.Thread(target=port.serve_forever, daemon=True).start()
print("ready", port.server_address[1], flush=True)
sock.serve_forever()
"""


async def test_ports_and_sockets_of_a_run_can_be_dialled(bench: SshBench) -> None:
    spec = bench.spec("python", "-c", LISTEN)
    await bench.start(spec)
    await eventually(lambda: "ready" in output(spec), "the job listens")
    for place in (f"tcp:{output(spec).split()[1]}", "unix:sock"):
        stream = await bench.runner.dial(spec.key, place)
        await stream.write(b"hello")
        assert b"HELLO" == await stream.read(100)
        await stream.write_eof()
        assert b"" == await stream.read(100)
        await stream.close()
    for place in ("unix:none", "unix:../../x", "unix:/etc", "tcp:1", "tcp:x", "udp:5"):
        with pytest.raises(ConnectionError):
            await bench.runner.dial(spec.key, place)


async def test_a_shell_is_in_the_runs_folder_with_its_environment_and_its_size(bench: SshBench) -> None:
    spec = bench.spec("sleep", "3600", env={"MINE": "yes"})
    await bench.start(spec)
    shell = await bench.runner.shell(spec.key, ("sh", "-c", "stty -echo; pwd; echo $MINE; read line; stty size; exit 5"), 80, 24)
    seen = b""
    while seen.count(b"\n") < 2:
        seen += await shell.read(1000)
    assert [f"{bench.there}/{spec.key.name}/job", "yes"] == seen.decode().split()
    await shell.resize(132, 43)
    await shell.write(b"\n")
    seen = b""
    while data := await shell.read(1000):
        seen += data
    assert b"43 132" == seen.strip()
    assert 5 == await shell.exit_code()
    await shell.close()


async def test_a_shell_and_all_it_started_end_with_the_run(bench: SshBench) -> None:
    spec = bench.spec("sleep", "3600")
    await bench.start(spec)
    shell = await bench.runner.shell(spec.key, ("sh", "-c", "setsid nohup sleep 3601 & echo $!; sleep 3602"), 80, 24)
    pid = int((await shell.read(100)).split()[0])
    assert is_running(pid)
    await bench.runner.stop(spec.key, StopReason.ASKED, 0)
    await bench.runner.wait(spec.key)
    await shell.exit_code()
    assert not is_running(pid)
    await shell.close()
    with pytest.raises(Exception, match="does not run"):
        await bench.runner.shell(spec.key, ("sh",), 80, 24)


# --- The node ---


async def test_the_nodes_cards_are_told_by_a_program_that_was_brought_there(tmp_path: Path, library: Path) -> None:
    state = tmp_path / "state"
    state.write_text("count 2\nname 1 NVIDIA A100-SXM4-80GB\nload 0 97\necc 1 3\n")
    for world in opened_world(tmp_path / "ssh", f"SetEnv LD_LIBRARY_PATH={library} FAKE_NVML_STATE={state}"):
        gates: dict[str, Access] = {}
        host = world.host(gates)
        await host.greet()
        cards = cards_of(await host.look())
        assert [(0, "550.54.15", True), (1, "550.54.15", True)] == [(card.index, card.driver, card.healthy) for card in cards]
        assert "NVIDIA A100-SXM4-80GB" == cards[1].model
        assert all(card.uuid.startswith("GPU-") and card.vram_mib > 1000 and card.pci for card in cards)
        watch = HostWatch(host, cards)
        looking = asyncio.create_task(watch.run())
        await eventually(lambda watch=watch: [97] == [reading.gpu_percent for reading in watch.readings()][:1], "the load is read")
        looking.cancel()
        state.write_text("count 2\nfails 1 15\n")
        told = (await host.look()).cards
        assert ("", True) == (told[0].fault, "bus" in told[1].fault)
        host.seen_s -= 100
        with pytest.raises(HostSilent):
            watch.for_beat()
        await host.access.close()
        await close(gates)
