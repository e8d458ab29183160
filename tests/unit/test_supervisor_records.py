"""What the guard of plain processes reads and decides without starting anything: records, limits, programs, messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seller_agent.runners.process.runner import environment_of, key_of
from seller_agent.runners.process.supervisor import proc
from seller_agent.runners.process.supervisor.daemon import FILES
from seller_agent.runners.process.supervisor.run import LEASE_GRACE_MAX_S, LEASE_MARGIN_MS, Refused, Run, find_program, read_record
from seller_agent.runners.process.supervisor.worker import NAME, Supervisor
from seller_agent.runners.runner import RunCard, RunKey, RunSpec

ROOT = Path(__file__).resolve().parents[2]


def run_with_output(folder: Path, stdout: int, stderr: int, limit: int) -> Run:
    (folder / "log").mkdir()
    (folder / "log" / "stdout").write_bytes(b"o" * stdout)
    (folder / "log" / "stderr").write_bytes(b"e" * stderr)
    run = Run("run", str(folder))
    run.output_limit_bytes = limit
    return run


@pytest.mark.parametrize(
    ("stdout", "stderr", "kept"),
    [
        (60, 40, (60, 40)),
        (100, 1, (99, 1)),
        (1, 100, (1, 99)),
        (500, 30, (70, 30)),
        (500, 400, (50, 50)),
        (80, 80, (50, 50)),
        (0, 101, (0, 100)),
    ],
)
def test_output_beyond_the_limit_is_cut_from_the_longer_file(tmp_path: Path, stdout: int, stderr: int, kept: tuple[int, int]) -> None:
    run = run_with_output(tmp_path, stdout, stderr, 100)
    assert ((stdout, stderr) != kept) == run.trim_output()
    assert kept == tuple((tmp_path / "log" / name).stat().st_size for name in ("stdout", "stderr"))


def test_a_record_is_all_of_its_lines_and_a_torn_one_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text('{"state":"running","pid":5}\n{"stop_reason":"asked"}\n{"state":"exi')
    run = read_record(str(tmp_path))
    assert run is not None
    assert {"name": tmp_path.name, "state": "running", "pid": 5, "stop_reason": "asked"} == run.record


@pytest.mark.parametrize(
    "line", ["", "[]", "null", '{"pid": "5"}', '{"exit_code": true}', '{"state": []}', '{"name": "other"}', '{"x": 1}', "\x00"]
)
def test_what_a_job_scribbles_into_its_record_is_left_out(tmp_path: Path, line: str) -> None:
    (tmp_path / "run.jsonl").write_text(line + "\n")
    run = read_record(str(tmp_path))
    assert run is not None
    assert {"name": tmp_path.name, "state": "running"} == run.record


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    assert None is read_record(str(tmp_path))


@pytest.mark.parametrize(("grace_s", "earlier_s"), [(10, 10), (600, LEASE_GRACE_MAX_S), (0, 0)])
def test_a_run_is_told_to_end_a_grace_before_its_lease_does(grace_s: int, earlier_s: int) -> None:
    run = Run("run", "/nowhere")
    run.set_limits({"timeout_s": 9_999, "grace_s": grace_s, "output_limit_bytes": 1, "lease_until_boot_ms": proc.boot_ms() + 120_000})
    assert 120 - earlier_s - LEASE_MARGIN_MS / 1000 == pytest.approx(run.due() - time.monotonic(), abs=1)


@given(st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True), st.integers(0, 10**6), st.integers(0, 2**60))
def test_a_key_is_found_again_in_its_name(job_id: str, attempt: int, epoch: int) -> None:
    key = RunKey(job_id=job_id, attempt=attempt, epoch=epoch)
    assert key == key_of(key.name)


@pytest.mark.parametrize("name", ["", ".", "..", ".supervisor", "a/b", "../x", "a\n", "a\0", "-x", "x" * 201])
def test_names_that_could_leave_the_folder_are_refused(name: str) -> None:
    assert not NAME.match(name)


def test_a_job_may_set_its_environment_but_not_its_cards() -> None:
    cards = (RunCard(index=0, uuid="GPU-a", model="m", vram_mib=1), RunCard(index=1, uuid="SIM-b", model="m", vram_mib=1, simulated=True))
    spec = spec_with({"PATH": "/x", "HOME": "/h", "CUDA_VISIBLE_DEVICES": "0,1,2", "NVIDIA_VISIBLE_DEVICES": "all"}, cards)
    environment = environment_of(spec)
    assert ("/x", "/h") == (environment["PATH"], environment["HOME"])
    assert ("GPU-a", "GPU-a") == (environment["CUDA_VISIBLE_DEVICES"], environment["NVIDIA_VISIBLE_DEVICES"])


@pytest.mark.parametrize("cards", [(), (RunCard(index=0, uuid="SIM-b", model="m", vram_mib=1, simulated=True),)])
def test_without_real_cards_a_job_sees_none(cards: tuple[RunCard, ...]) -> None:
    environment = environment_of(spec_with({}, cards))
    assert ("", "void") == (environment["CUDA_VISIBLE_DEVICES"], environment["NVIDIA_VISIBLE_DEVICES"])


def spec_with(env: dict[str, str], cards: tuple[RunCard, ...]) -> RunSpec:
    key = RunKey(job_id="j", attempt=1, epoch=1)
    return RunSpec(key=key, folder="/r/j-1-1", argv=("true",), env=env, cards=cards, timeout_s=1, lease_until_boot_ms=0)


def test_python_is_python3_where_there_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "python3").touch(mode=0o700)
    assert f"{tmp_path}/python3" == find_program("python", str(tmp_path))
    (tmp_path / "python").touch(mode=0o700)
    assert f"{tmp_path}/python" == find_program("python", str(tmp_path))


def test_a_program_is_searched_on_the_jobs_path_only(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch(mode=0o600)
    for name in ("sh", "folder", "plain"):
        with pytest.raises(Refused) as refused:
            find_program(name, str(tmp_path))
        assert ("program_not_found", 127) == (refused.value.reason, refused.value.exit_code)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"id":1}',
        b'{"id":1,"do":"fly"}',
        b'{"id":1,"do":"start"}',
        b'{"id":1,"do":"start","name":"a/b"}',
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_does_no_harm(tmp_path: Path, line: bytes) -> None:
    answer = Supervisor(str(tmp_path), 1.0).answer(line)
    assert "container_error" == answer["refused"]
    json.dumps(answer)


def test_this_process_is_seen_as_it_is() -> None:
    found = proc.process(os.getpid())
    assert found is not None
    assert (os.getpid(), os.getppid(), os.getsid(0)) == (found.pid, found.ppid, found.session)
    assert None is proc.process(2**22 + 1)


@pytest.mark.parametrize(
    ("path", "name"), [("/r/a/job", "a"), ("/r/a", "a"), ("/r/", None), ("/r", None), ("/rx/a", None), ("/", None), ("", None)]
)
def test_a_path_belongs_to_the_run_in_whose_folder_it_lies(path: str, name: str | None) -> None:
    assert name == proc.run_below(path, "/r")


def test_descendants_are_found_through_the_dead() -> None:
    everything = [proc.Process(pid, "S", ppid, 1, 1, 1) for pid, ppid in [(2, 1), (3, 2), (4, 3), (5, 1), (6, 99)]]
    assert {2, 3, 4} == proc.with_descendants([2], everything)
    assert {99, 6} == proc.with_descendants([99], everything)


def test_the_daemon_needs_the_files_it_names_and_the_standard_library(tmp_path: Path) -> None:
    """What is copied to another machine must start there."""
    folder = ROOT / "seller_agent" / "runners" / "process" / "supervisor"
    assert {file.name for file in folder.glob("*.py")} == {Path(name).name for name in FILES if "/supervisor/" in name}
    for name in FILES:
        target = tmp_path / "seller_agent" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / "seller_agent" / name).read_bytes())
    imported = "from seller_agent.runners.process.supervisor import daemon; print(daemon.__file__)"
    program = f"import sys; sys.path.append({str(tmp_path)!r}); {imported}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, cwd="/", timeout=60)
    assert f"{tmp_path}/seller_agent/runners/process/supervisor/daemon.py\n" == done.stdout, done.stderr
