"""The Docker runner against a real Docker engine: results, limits, hardening, crashes, and the guard that outlives the agent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from integration import docker_engine
from integration.docker_engine import IMAGE, Engine, Registry, engine, registry, root_file_system, until
from integration.docker_home import FAR_MS, Home, home, kill, output, quiet, run, runner

from seller_agent.runners.docker_engine import runner as docker_runner
from seller_agent.runners.docker_engine.daemon import clocks
from seller_agent.runners.docker_engine.daemon.streams import EngineStream
from seller_agent.runners.docker_engine.guard import files as guard_files
from seller_agent.runners.docker_engine.images.store import ImageTerms
from seller_agent.runners.docker_engine.logs import logs_target
from seller_agent.runners.docker_engine.outcome import parse_time_ms
from seller_agent.runners.docker_engine.profile import container_name
from seller_agent.runners.docker_engine.runner import DockerRunner
from seller_agent.runners.docker_engine.sdk import SdkEngine
from seller_agent.runners.runner import RunCard, RunnerError, RunSpec, RunState, RunStatus, StopReason

__all__ = ["engine", "home", "registry", "runner"]  # fixtures

pytestmark = pytest.mark.timeout(180)
IGNORES_TERM = "trap '' TERM; echo deaf; while :; do usleep 50000; done"


async def test_a_job_ends_with_its_own_exit_code_and_both_outputs_whole(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf last; exit 7")
    status = await run(runner, spec)
    assert (RunState.EXITED, 7, None, None, None) == (status.state, status.exit_code, status.signal, status.stop_reason, status.error)
    assert "".join(f"out {i}\n" for i in range(500)) + "last" == output(spec)
    assert "".join(f"err {i}\n" for i in range(500)) == output(spec, "stderr")
    assert status.ran_ms is not None and status.started_unix_ms is not None


async def test_a_line_longer_than_dockers_pieces_arrives_in_one(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("head -c 100000 /dev/zero | tr '\\0' x; echo; echo end")
    await run(runner, spec)
    assert "x" * 100000 + "\nend\n" == output(spec)


async def test_output_that_is_no_text_arrives_byte_for_byte(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("cat bytes; cat bytes >&2; cat bytes")
    (Path(spec.folder) / "job").mkdir(parents=True)
    every = bytes(range(256)) * 300  # more than one of Docker's pieces, which end anywhere
    (Path(spec.folder) / "job" / "bytes").write_bytes(every)
    await run(runner, spec)
    log = Path(spec.folder) / "log"
    assert every * 2 == (log / "stdout").read_bytes()
    assert every == (log / "stderr").read_bytes()


async def test_inputs_lie_in_the_working_directory_and_results_land_on_the_host(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("pwd; cat input; mkdir $BAZAAR_OUT/deep && cat input > $BAZAAR_OUT/deep/result; touch beside")
    folder = Path(spec.folder)
    (folder / "job").mkdir(parents=True)
    (folder / "job" / "input").write_text("forty-two\n")
    assert ("/job", "/out") == (runner.job_path(spec), runner.out_path(spec))
    assert 0 == (await run(runner, spec)).exit_code
    assert "/job\nforty-two\n" == output(spec)
    assert "forty-two\n" == (folder / "out" / "deep" / "result").read_text()
    assert 0o700 == folder.stat().st_mode & 0o777


async def test_every_step_may_be_repeated(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("echo once >> /out/runs")
    for _ in range(2):
        await runner.prepare(spec, quiet)
    for _ in range(2):
        await runner.start(spec)
    assert await runner.wait(spec.key) == await runner.wait(spec.key)
    await runner.start(spec)
    await runner.stop(spec.key, StopReason.ASKED, 1)
    for _ in range(2):
        await runner.remove(spec.key)
    await runner.stop(spec.key, StopReason.ASKED, 1)
    await runner.renew(spec.key, clocks.boot_ms() + FAR_MS)
    assert "once\n" == (Path(spec.folder) / "out" / "runs").read_text()
    assert [] == home.engine.names()


async def test_a_job_over_its_memory_is_told_from_a_killed_one(home: Home, runner: DockerRunner) -> None:
    status = await run(runner, home.spec("x=$(yes | head -c 200000000); echo survived", memory_mib=32))
    assert (True, None, None) == (status.out_of_memory, status.stop_reason, status.error)
    assert status.exit_code != 0
    killed = await run(runner, home.spec("kill -9 $$"))
    assert (137, 9, False, None) == (killed.exit_code, killed.signal, killed.out_of_memory, killed.error)


@pytest.mark.parametrize("program", ["no-such-program", "/etc"])
async def test_a_program_that_is_not_there_is_said_to_be_so(home: Home, runner: DockerRunner, program: str) -> None:
    status = await run(runner, msgspec.structs.replace(home.spec(""), argv=(program,)))
    assert "program_not_found" == status.error
    assert program in status.detail


async def test_a_programs_own_127_is_its_own(home: Home, runner: DockerRunner) -> None:
    status = await run(runner, home.spec("nothing-of-the-kind"))
    assert (127, None) == (status.exit_code, status.error)


async def test_a_stopped_job_may_save_within_its_grace(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("trap 'echo saved > /out/saved; exit 3' TERM; echo up; while :; do usleep 20000; done")
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await asyncio.to_thread(until, lambda: output(spec) == "up\n", "the job's first line")
    await runner.stop(spec.key, StopReason.ASKED, 30)
    status = await runner.wait(spec.key)
    assert (3, StopReason.ASKED) == (status.exit_code, status.stop_reason)
    assert (Path(spec.folder) / "out" / "saved").exists()


async def test_a_job_deaf_to_term_is_killed_with_everything_it_started(home: Home, runner: DockerRunner) -> None:
    spec = home.spec(f"({IGNORES_TERM}) & {IGNORES_TERM}")
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await asyncio.to_thread(until, lambda: output(spec) == "deaf\ndeaf\n", "the job's first lines")
    await runner.stop(spec.key, StopReason.ASKED, 1)
    status = await runner.wait(spec.key)
    assert (137, 9, StopReason.ASKED) == (status.exit_code, status.signal, status.stop_reason)


async def test_a_job_past_its_run_time_gets_term_then_kill(home: Home, runner: DockerRunner) -> None:
    spec = home.spec(f"trap 'echo warned' TERM; {IGNORES_TERM.partition(';')[2]}", timeout_s=1, grace_s=1)
    status = await run(runner, spec)
    assert (137, StopReason.DEADLINE, None) == (status.exit_code, status.stop_reason, status.error)
    assert "deaf\nwarned\n" == output(spec)
    assert status.ran_ms is not None and status.ran_ms >= 1000


async def test_a_prepared_job_that_is_stopped_never_starts(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("echo ran")
    await runner.prepare(spec, quiet)
    await runner.stop(spec.key, StopReason.ASKED, 1)
    assert RunState.EXITED == (await runner.start(spec)).state
    status = await runner.wait(spec.key)
    assert (None, StopReason.ASKED, "") == (status.exit_code, status.stop_reason, output(spec))


async def test_a_job_whose_lease_is_over_never_starts(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("echo ran", lease_until_boot_ms=clocks.boot_ms() - 1)
    await runner.prepare(spec, quiet)
    status = await runner.start(spec)
    assert (RunState.EXITED, StopReason.LEASE) == (status.state, status.stop_reason)


async def test_too_much_output_ends_the_job_and_keeps_exactly_what_is_allowed(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("yes", output_limit_bytes=100_001)
    status = await run(runner, spec)
    assert StopReason.OUTPUT == status.stop_reason
    assert ("y\n" * 60_000)[:100_001] == output(spec)


async def test_a_flood_of_output_arrives_whole(home: Home, runner: DockerRunner) -> None:
    line = "x" * 99
    spec = home.spec(f"yes {line} | head -c 30000000")
    status = await run(runner, spec)
    assert (0, None) == (status.exit_code, status.stop_reason)
    assert f"{line}\n" * 300_000 == output(spec)


async def test_a_full_disk_keeps_the_end_of_a_run_until_there_is_room_again(home: Home) -> None:
    home.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(home.folder)], check=True)
    try:
        runner = home.runner()
        spec = home.spec("yes 0123456789 | head -c 5500000; exit 3")
        await runner.prepare(spec, quiet)
        with pytest.raises(RunnerError) as failure:
            await runner.start(spec)
            await runner.wait(spec.key)
        assert "disk_full" == failure.value.reason
        subprocess.run(["mount", "-o", "remount,size=20m", str(home.folder)], check=True)
        status = await runner.wait(spec.key)
        assert (3, None) == (status.exit_code, status.error)
        assert "0123456789\n" * 500_000 == output(spec)
        await runner.remove(spec.key)
        await runner.close()
    finally:
        subprocess.run(["umount", "-l", str(home.folder)], check=True)


async def test_a_run_that_somebody_removed_is_reported_and_not_waited_for(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("while :; do usleep 50000; done")
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    home.engine.ask("DELETE", f"/containers/{container_name(spec.key)}?force=1")
    status = await runner.wait(spec.key)
    assert (RunState.EXITED, None, "container_error") == (status.state, status.exit_code, status.error)
    assert [status] == await home.runner().adopt()
    await close_all(home)


async def close_all(home: Home) -> None:
    for opened in home.runners:
        await opened.close()


# ---- images


async def test_an_image_is_pulled_with_progress(home: Home, runner: DockerRunner, registry: Registry) -> None:
    spec = home.spec("echo pulled", image=f"{registry.address}/good/image:1")
    phases: list[str] = []
    await runner.prepare(spec, phases.append)
    assert ["pulling", "pulling 100%", "creating"] == [phases[0], *phases[-2:]]
    await runner.start(spec)
    assert 0 == (await runner.wait(spec.key)).exit_code
    assert "pulled\n" == output(spec)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("{registry}/absent/image:1", "image_not_found"),
        ("{registry}/secret/image:1", "image_auth"),
        ("127.0.0.1:9/unreachable/image", "image_pull_timeout"),
        ("Not/An//Image", "image_refused"),
        (None, "image_refused"),
    ],
)
async def test_an_image_that_cannot_be_had_has_a_reason(
    home: Home, runner: DockerRunner, registry: Registry, image: str | None, reason: str
) -> None:
    spec = home.spec("", image=image.format(registry=registry.address) if image else None)
    with pytest.raises(RunnerError) as failure:
        await runner.prepare(spec, quiet)
    assert reason == failure.value.reason, failure.value
    assert [] == home.engine.names()


async def test_a_pull_that_does_not_move_is_given_up(home: Home, registry: Registry) -> None:
    runner = home.runner(images=ImageTerms(pull_timeout_s=1.0))
    with pytest.raises(RunnerError) as failure:
        await runner.prepare(home.spec("", image=f"{registry.address}/slow/image:1"), quiet)
    assert "image_pull_timeout" == failure.value.reason
    await close_all(home)


async def test_a_pull_that_nobody_wants_any_more_holds_nobody_up(home: Home, registry: Registry) -> None:
    runner = home.runner()
    pulling = asyncio.Event()
    preparing = asyncio.create_task(runner.prepare(home.spec("", image=f"{registry.address}/slow/image:1"), lambda phase: pulling.set()))
    await pulling.wait()
    preparing.cancel()
    await asyncio.wait([preparing])
    async with asyncio.timeout(30):  # the registry would keep it for a minute
        await runner.close()


async def test_many_runs_leave_a_thread_to_stop_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_runner, "THREADS", 2)
    runner = home.runner()
    specs = [home.spec("while :; do usleep 50000; done") for _ in range(4)]
    for spec in specs:
        await runner.prepare(spec, quiet)
        await runner.start(spec)
    async with asyncio.timeout(60):
        for spec in specs:
            await runner.stop(spec.key, StopReason.ASKED, 0)
            assert StopReason.ASKED == (await runner.wait(spec.key)).stop_reason
        await runner.close()


# ---- crashes


@pytest.mark.parametrize("point", ["creating", "prepared", "started", "running", "exited"])
async def test_an_agent_killed_at_any_point_leaves_one_run_and_no_line_lost_or_doubled(home: Home, point: str) -> None:
    lines = 3000
    pause = "" if point == "exited" else "usleep 300;"
    spec = home.spec(
        f"echo run >> /out/runs; i=0; while [ $i -lt {lines} ]; do echo line $i; echo err $i >&2; {pause} i=$((i+1)); done; exit 5"
    )
    kill(home.agent(spec, point))
    runner = home.runner()
    adopted = {status.key: status.state for status in await runner.adopt()}
    if spec.key not in adopted:
        assert "creating" == point
        await runner.prepare(spec, quiet)
    if adopted.get(spec.key) in (None, RunState.PREPARED):
        await runner.start(spec)
    status = await runner.wait(spec.key)
    await runner.remove(spec.key)
    await runner.close()
    assert (5, None, None) == (status.exit_code, status.stop_reason, status.error)
    assert "".join(f"line {i}\n" for i in range(lines)) == output(spec)
    assert "".join(f"err {i}\n" for i in range(lines)) == output(spec, "stderr")
    assert "run\n" == (Path(spec.folder) / "out" / "runs").read_text()
    assert [] == home.engine.names()
    assert [] == await adopt_afresh(home)


async def adopt_afresh(home: Home) -> list[RunStatus]:
    runner = home.runner()
    found = await runner.adopt()
    await runner.close()
    return found


async def test_a_reader_killed_again_and_again_loses_nothing(home: Home) -> None:
    spec = home.spec("seq 1 400000", output_limit_bytes=10_000_000)
    for point in ("running", "running", "running", "exited"):
        kill(home.agent(spec, point))
    runner = home.runner()
    await runner.adopt()
    assert 0 == (await runner.wait(spec.key)).exit_code
    await runner.close()
    assert "".join(f"{i}\n" for i in range(1, 400001)) == output(spec)


async def test_two_homes_on_one_docker_never_see_each_others_runs(home: Home, runner: DockerRunner, tmp_path: Path) -> None:
    spec = home.spec("echo mine")
    await run(runner, spec)
    other = Home(home.engine, tmp_path / "other")
    assert [] == await adopt_afresh(other)
    stranger = other.runner()
    with pytest.raises(RunnerError) as failure:
        await stranger.prepare(msgspec.structs.replace(spec, folder=str(tmp_path / "other" / "run")), quiet)
    await stranger.close()
    assert "container_error" == failure.value.reason
    assert [spec.key] == [status.key for status in await runner.adopt()]
    pid = other.guard_pid()
    assert pid is not None
    os.kill(pid, signal.SIGTERM)


# ---- the guard


def stop_reason_of(spec: RunSpec) -> str | None:
    record = guard_files.read_stop(spec.folder)
    return record.reason if record else None


async def test_with_the_agent_dead_the_lease_still_ends_the_job_in_time(home: Home) -> None:
    spec = home.spec(IGNORES_TERM, lease_until_boot_ms=clocks.boot_ms() + 9_000, grace_s=1)
    kill(home.agent(spec, "running"))
    name = container_name(spec.key)
    state = until(lambda: (state := home.engine.state(name))["Status"] == "exited" and state, "the guard to end the job")
    ended_boot_ms = clocks.boot_ms() - (clocks.unix_ms() - (parse_time_ms(state["FinishedAt"]) or 0))
    assert ended_boot_ms <= spec.lease_until_boot_ms
    [status] = await adopt_afresh(home)
    assert (RunState.EXITED, 137, StopReason.LEASE) == (status.state, status.exit_code, status.stop_reason)


async def test_with_the_agent_dead_the_deadline_still_ends_the_job(home: Home) -> None:
    spec = home.spec("trap 'echo bye; exit 9' TERM; echo up; while :; do usleep 20000; done", timeout_s=1)
    kill(home.agent(spec, "running"))
    name = container_name(spec.key)
    until(lambda: home.engine.state(name)["Status"] == "exited", "the guard to end the job")
    runner = home.runner()
    await runner.adopt()
    status = await runner.wait(spec.key)
    await runner.close()
    assert (9, StopReason.DEADLINE, "up\nbye\n") == (status.exit_code, status.stop_reason, output(spec))


async def test_a_renewed_lease_lets_the_job_go_on(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("echo up; while [ ! -e /job/go ]; do usleep 20000; done; echo done", lease_until_boot_ms=clocks.boot_ms() + 8_000)
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await runner.renew(spec.key, clocks.boot_ms() + FAR_MS)
    await asyncio.to_thread(until, lambda: clocks.boot_ms() > spec.lease_until_boot_ms, "the first lease to be over")
    (Path(spec.folder) / "job" / "go").touch()
    status = await runner.wait(spec.key)
    assert (0, None, "up\ndone\n") == (status.exit_code, status.stop_reason, output(spec))


async def test_a_stop_that_the_agent_did_not_live_to_finish_is_finished_by_the_guard(home: Home) -> None:
    spec = home.spec(IGNORES_TERM, grace_s=4)
    kill(home.agent(spec, "stopping"))
    assert "running" == home.engine.state(container_name(spec.key))["Status"]
    until(lambda: home.engine.state(container_name(spec.key))["Status"] == "exited", "the job's end")
    [status] = await adopt_afresh(home)
    assert (137, StopReason.ASKED) == (status.exit_code, status.stop_reason)


async def test_a_dead_guard_is_replaced(home: Home, runner: DockerRunner) -> None:
    spec = home.spec(IGNORES_TERM, grace_s=1)
    await runner.prepare(spec, quiet)
    first = await asyncio.to_thread(until, home.guard_pid, "the guard")
    os.kill(first, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: clocks.process_start_ticks(first) is None, "the guard's end")
    await runner.start(spec)
    second = await asyncio.to_thread(until, lambda: home.guard_pid() != first and home.guard_pid(), "another guard")
    assert first != second
    await runner.renew(spec.key, clocks.boot_ms() + 1)
    assert StopReason.LEASE == (await runner.wait(spec.key)).stop_reason


async def test_a_guard_with_nothing_to_guard_ends_with_its_agent(home: Home) -> None:
    runner = home.runner()
    spec = home.spec("echo ran")
    await run(runner, spec)
    await runner.remove(spec.key)
    pid = home.guard_pid()
    assert pid is not None and clocks.process_start_ticks(pid) is not None
    await runner.close()
    await asyncio.to_thread(until, lambda: clocks.process_start_ticks(pid) is None, "the guard's end", 20)


async def test_reap_ends_what_is_over_when_no_guard_is_left(home: Home) -> None:
    spec = home.spec(IGNORES_TERM, grace_s=1)
    agent = home.agent(spec, "running")
    pid = until(home.guard_pid, "the guard")
    os.kill(pid, signal.SIGKILL)
    kill(agent)
    file = home.folder / "guard" / f"{spec.key.name}.json"
    watch = guard_files.read_watch(file)
    assert watch is not None
    guard_files.write_watch(file, dataclasses.replace(watch, lease_until_boot_ms=clocks.boot_ms()))
    assert "running" == home.engine.state(container_name(spec.key))["Status"]
    subprocess.run([sys.executable, "-m", "seller_agent.runners.docker_engine.guard.guard", "--reap", str(home.folder)], check=True)
    assert "exited" == home.engine.state(container_name(spec.key))["Status"]
    assert "lease" == stop_reason_of(spec)


async def test_reap_ends_a_container_that_nobody_watches_any_more(home: Home, runner: DockerRunner) -> None:
    spec = home.spec(IGNORES_TERM)
    await runner.prepare(spec, quiet)
    name, watch = container_name(spec.key), home.folder / "guard" / f"{spec.key.name}.json"
    body = home.engine.ask("GET", f"/containers/{name}/json")[1]
    home.engine.ask("DELETE", f"/containers/{name}?force=1")
    labels = {**body["Config"]["Labels"], guard_files.DEADLINE_LABEL: str(clocks.unix_ms() - 1)}
    SdkEngine(home.engine.socket, 1).create(name, {"Image": IMAGE, "Cmd": ["sleep", "1000"], "Labels": labels})
    home.engine.ask("POST", f"/containers/{name}/start")
    watch.unlink()
    subprocess.run([sys.executable, "-m", "seller_agent.runners.docker_engine.guard.guard", "--reap", str(home.folder)], check=True)
    until(lambda: home.engine.state(name)["Status"] == "exited", "the stray's end", 20)


# ---- the daemon


@pytest.fixture
def restarted(engine: Engine) -> Iterator[Engine]:
    """An engine that the test may restart."""
    yield engine
    with contextlib.suppress(AssertionError):
        engine.stop()
    engine.start()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_daemon_restarted_under_a_job_is_not_the_jobs_fault(
    home: Home, runner: DockerRunner, restarted: Engine, how: signal.Signals
) -> None:
    spec = home.spec("echo up; while :; do usleep 50000; done")
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await asyncio.to_thread(until, lambda: output(spec) == "up\n", "the job's first line")
    await asyncio.to_thread(restarted.stop, how)
    await asyncio.to_thread(restarted.start)
    status = await runner.wait(spec.key)
    assert (RunState.EXITED, None, "runtime_restarted") == (status.state, status.stop_reason, status.error)
    assert "up\n" == output(spec)


async def test_a_daemon_restarted_while_nobody_watched_is_noticed_too(home: Home, restarted: Engine) -> None:
    spec = home.spec("echo up; while :; do usleep 50000; done")
    kill(home.agent(spec, "running"))
    restarted.stop()
    restarted.start()
    runner = home.runner()
    await runner.adopt()
    status = await runner.wait(spec.key)
    await runner.close()
    assert "runtime_restarted" == status.error


PAUSES = """
i=0; while [ $i -lt 150 ]; do
    echo line $i; i=$((i+1)); usleep 5000
    if [ $i = 50 ]; then while [ ! -e /job/more ]; do usleep 20000; done; fi
done; exit 4
"""


async def test_with_live_restore_a_job_and_its_output_survive_the_daemon(home: Home, runner: DockerRunner, restarted: Engine) -> None:
    """What it writes while no daemon lives too. (A line that the daemon has in its hand at its very end is lost, in its own log as well: so
    the job pauses there.)"""
    restarted.stop()
    restarted.start("--live-restore")
    spec = home.spec(PAUSES)
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    await asyncio.to_thread(until, lambda: output(spec).endswith("line 49\n"), "the job's pause")
    await asyncio.to_thread(restarted.stop)
    (Path(spec.folder) / "job" / "more").touch()
    await asyncio.to_thread(restarted.start, "--live-restore")
    status = await runner.wait(spec.key)
    assert (4, None, None) == (status.exit_code, status.stop_reason, status.error)
    assert "".join(f"line {i}\n" for i in range(150)) == output(spec)


async def test_with_the_daemon_down_the_guard_still_ends_the_job(home: Home, runner: DockerRunner, restarted: Engine) -> None:
    restarted.stop()
    restarted.start("--live-restore")
    spec = home.spec(IGNORES_TERM, grace_s=1)
    await runner.prepare(spec, quiet)
    await runner.start(spec)
    pid = guard_files.read_watch(home.folder / "guard" / f"{spec.key.name}.json").pid  # type: ignore[union-attr]
    assert pid is not None
    await asyncio.to_thread(restarted.stop)
    await runner.renew(spec.key, clocks.boot_ms() + 1)
    await asyncio.to_thread(until, lambda: clocks.process_start_ticks(pid) is None, "the job's first process to end")


async def test_without_a_daemon_the_error_says_what_to_look_at(tmp_path: Path) -> None:
    runner = DockerRunner(tmp_path, "nodetest", socket_path=str(tmp_path / "nothing.sock"))
    with pytest.raises(RunnerError, match="Is it running"):
        await runner.check()
    await runner.close()


# ---- hardening

PROBE = """
id -u; grep -h -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status
echo oom $(cat /proc/self/oom_score_adj); echo net $(ls /sys/class/net); echo core $(ulimit -c); echo files $(ulimit -n)
echo init $(cat /proc/1/comm); echo pids $(cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null)
echo memory $(cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null)
echo shm $(df -k /dev/shm | grep shm | tr -s ' ' | (read a b c; echo $b)); touch /etc/mine 2>/dev/null && echo wrote root
mknod /tmp/node c 1 3 2>/dev/null && echo made device; chroot / true 2>/dev/null && echo changed root
grep -q ' /tmp tmpfs .*nosuid,nodev' /proc/mounts && echo tmp bounded; touch /tmp/a /job/a /out/a && echo may write
echo cards $NVIDIA_VISIBLE_DEVICES; echo ld $LD_PRELOAD; head -c 1 /proc/kcore 2>/dev/null | wc -c
"""


async def test_a_hardened_job_can_do_what_it_needs_and_nothing_else(home: Home, runner: DockerRunner) -> None:
    env = {"NVIDIA_VISIBLE_DEVICES": "all", "LD_PRELOAD": "/job/evil.so"}
    card = RunCard(index=0, uuid="SIM-1", model="RTX 4090", vram_mib=24564, simulated=True)
    spec = home.spec(PROBE, env=env, cards=(card,), shm_mib=16)
    assert 0 == (await run(runner, spec)).exit_code
    hard = [" ".join(line.split()) for line in output(spec).splitlines()]
    none = "0000000000000000"
    wanted = ["65534", f"CapEff: {none}", f"CapBnd: {none}", "NoNewPrivs: 1", "Seccomp: 2", "oom 500", "net lo"]
    wanted += ["core 0", "files 16384", "init docker-init", "pids 4096", "memory 67108864", "shm 16384", "tmp bounded", "may write"]
    wanted += ["cards void", "ld", "0"]
    assert sorted(wanted) == sorted(hard)


async def test_an_agent_that_is_not_root_can_delete_all_that_its_jobs_leave(home: Home) -> None:
    uid, reads_all = 12345, ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # for a Python that is root's own
    leaves = "id -u; mkdir -p deep/er $BAZAAR_OUT/kept; echo x > deep/er/x; cat input; chmod 0500 deep/er; touch /tmp/mine && echo ok"
    spec = home.spec(leaves)
    (Path(spec.folder) / "job").mkdir(parents=True)
    (Path(spec.folder) / "job" / "input").write_text("an input\n")
    for path in (home.folder, *home.folder.rglob("*")):
        os.chown(path, uid, uid)
    Path(home.engine.socket).chmod(0o666)
    agent = [sys.executable, docker_engine.__file__, str(home.folder), home.engine.socket, "", msgspec.json.encode(spec).decode()]
    subprocess.run(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *reads_all, *agent], check=True, timeout=60)
    assert f"{uid}\nan input\nok\n" == output(spec)
    assert {uid} == {path.stat().st_uid for path in Path(spec.folder).rglob("*")}
    assert [] == home.engine.names()


async def test_without_the_profile_the_same_probe_finds_an_open_door(home: Home) -> None:
    name = "plain"
    body = {"Image": IMAGE, "Cmd": ["sh", "-c", PROBE], "HostConfig": {"NetworkMode": "host"}}
    plain_engine = SdkEngine(home.engine.socket, 1)
    plain_engine.create(name, body)
    plain_engine.start(name)
    plain_engine.wait_end(name, 30)
    plain_engine.close()
    with contextlib.closing(EngineStream(home.engine.socket, "GET", logs_target(name, follow=False))) as stream:
        text = b"".join(stream).decode(errors="replace")
    for found in ("NoNewPrivs:\t0", "wrote root", "made device", "changed root", "oom 0"):
        assert found in text
    assert "tmp bounded" not in text and "CapEff:\t0000000000000000" not in text


async def test_a_fork_bomb_stops_at_the_limit(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("i=0; while [ $i -lt 4200 ]; do sleep 30 & i=$((i+1)); done 2>/dev/null; echo all", memory_mib=2048, timeout_s=50)
    status = await run(runner, spec)
    assert "all\n" != output(spec)
    assert status.exit_code != 0


@pytest.mark.parametrize(("section", "field"), [("HostConfig", "CapDrop"), ("HostConfig", "ReadonlyRootfs"), ("", "User")])
async def test_a_container_that_lacks_a_control_is_refused(
    home: Home, runner: DockerRunner, monkeypatch: pytest.MonkeyPatch, section: str, field: str
) -> None:
    create = SdkEngine.create

    def forgetful(self: SdkEngine, name: str, body: dict[str, Any]) -> bool:
        (body[section] if section else body).pop(field)
        return create(self, name, body)

    monkeypatch.setattr(SdkEngine, "create", forgetful)
    with pytest.raises(RunnerError, match=field):
        await runner.prepare(home.spec("echo ran"), quiet)
    assert [] == home.engine.names()


async def test_an_images_own_entry_point_volume_and_user_change_nothing(home: Home, runner: DockerRunner) -> None:
    change = "&changes=".join(["ENTRYPOINT%20%5B%22false%22%5D", "VOLUME%20%2Fdata", "USER%200", "ENV%20NVIDIA_VISIBLE_DEVICES%3Dall"])
    home.engine.load(f"tricky:1&changes={change}", root_file_system())
    spec = home.spec(
        "id -u; echo $NVIDIA_VISIBLE_DEVICES; grep -c ' /data tmpfs ' /proc/mounts; touch /data/x && echo scratch", image="tricky:1"
    )
    assert 0 == (await run(runner, spec)).exit_code
    assert "65534\nvoid\n1\nscratch\n" == output(spec)
    await runner.remove(spec.key)
    assert [] == (home.engine.ask("GET", "/volumes")[1]["Volumes"] or [])


async def test_without_a_command_the_images_own_entry_point_runs_in_the_same_box(home: Home, runner: DockerRunner) -> None:
    change = "&changes=".join(["ENTRYPOINT%20%5B%22sh%22%2C%22-c%22%5D", "CMD%20%5B%22id%20-u%3Bpwd%22%5D", "WORKDIR%20/etc"])
    home.engine.load(f"serves:1&changes={change}", root_file_system())
    spec = msgspec.structs.replace(home.spec("", image="serves:1"), argv=())
    assert 0 == (await run(runner, spec)).exit_code
    assert "65534\n/job\n" == output(spec)


async def test_what_was_given_up_while_it_was_being_made_leaves_no_container(home: Home, runner: DockerRunner) -> None:
    spec = home.spec("echo ran")
    creating = asyncio.Event()
    preparing = asyncio.create_task(runner.prepare(spec, lambda phase: creating.set()))
    await creating.wait()
    preparing.cancel()
    await asyncio.wait([preparing])
    await runner.remove(spec.key)
    assert [] == home.engine.names()


async def test_a_card_that_docker_cannot_hand_out_is_an_error_that_says_what_to_install(home: Home, runner: DockerRunner) -> None:
    card = RunCard(index=0, uuid="GPU-3f2a", model="NVIDIA GeForce RTX 4090", vram_mib=24564)
    spec = home.spec("echo ran", cards=(card,))
    await runner.prepare(spec, quiet)
    with pytest.raises(RunnerError, match="nvidia-container-toolkit"):
        await runner.start(spec)
    await runner.remove(spec.key)
    assert [] == home.engine.names()


async def test_a_job_gets_exactly_its_cards_by_uuid(home: Home, runner: DockerRunner, restarted: Engine, tmp_path: Path) -> None:
    hook = tmp_path / "nvidia-container-runtime-hook"  # a daemon that finds a program of this name can hand out cards
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    await asyncio.to_thread(restarted.stop)
    await asyncio.to_thread(lambda: restarted.start(programs=tmp_path))
    cards = tuple(RunCard(index=i, uuid=f"GPU-{i}", model="NVIDIA GeForce RTX 4090", vram_mib=24564) for i in (2, 5))
    spec = home.spec("echo $NVIDIA_VISIBLE_DEVICES $NVIDIA_DRIVER_CAPABILITIES $CUDA_VISIBLE_DEVICES", cards=cards)
    assert 0 == (await run(runner, spec)).exit_code
    assert "GPU-2,GPU-5 compute,utility 0,1\n" == output(spec)
    hook.write_text("#!/bin/sh\necho unknown device >&2\nexit 1\n")
    absent = home.spec("echo ran", cards=cards)
    await runner.prepare(absent, quiet)
    with pytest.raises(RunnerError, match="unknown device"):
        await runner.start(absent)
    [status] = [status for status in await runner.adopt() if status.key == absent.key]
    assert (RunState.EXITED, "container_error", "") == (status.state, status.error, output(absent))
