"""The folders of runs: what hostile jobs leave, what is used again, and output that is shipped over gaps."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from builders import BUYER, job_id, job_submitted

from events.errors import MarketUnreachable
from events.files import blob_ref, encode_manifest
from events.wire import Failure, OutputAnswer, OutputFrame
from seller_agent.attempts.attempt import Attempt
from seller_agent.runners import workspace
from seller_agent.runs.shipping import FRAME_BYTES, GatewayRefused, Spool, output_sha256

MB = 1 << 20


def run_folder(root: Path, name: str = "jaaaaaaaaaaaaaaaaaaa-1-7") -> Path:
    folder = root / name
    for part in ("job", "out", "log", "tmp"):
        (folder / part).mkdir(parents=True, mode=0o700)
    return folder


def test_results_are_the_regular_files_and_nothing_else(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    out = folder / "out"
    (tmp_path / "secret").write_text("not yours")
    (out / "a.txt").write_text("a")
    (out / "deep").mkdir()
    (out / "deep" / "b").write_bytes(b"bb")
    (out / "deep" / "b").chmod(0o755)
    (out / "link").symlink_to(tmp_path / "secret")
    (out / "linked").symlink_to(tmp_path)
    os.mkfifo(out / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(out)  # a socket's name may not be long
        listener.bind("socket")
        os.chdir(here)
        (out / "new\nline").write_text("x")
        found = workspace.collect(str(folder), MB)
    assert [("a.txt", False), ("deep/b", True)] == [(file.path, file.executable) for file in found.files]
    assert (3, False, 5) == (found.total_bytes, found.too_large, found.passed_over)
    entries = [("a.txt", blob_ref(b"a"), False), ("deep/b", blob_ref(b"bb"), True)]
    assert blob_ref(
        encode_manifest([workspace.ManifestEntry(path, ref.sha256, ref.size, executable) for path, ref, executable in entries])
    ) == workspace.manifest_of(found.files)


def test_results_beyond_the_cap_stay_behind(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for name, size in (("a", 600), ("b", 600), ("c", 300)):
        (folder / "out" / name).write_bytes(bytes(size))
    found = workspace.collect(str(folder), 1000)
    assert (["a", "c"], 900, True) == ([file.path for file in found.files], found.total_bytes, found.too_large)


def test_folders_without_end_end(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    deep = folder / "out" / "/".join("d" * 40)
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    found = workspace.collect(str(folder), MB)
    assert ([], 1) == (found.files, found.passed_over)


def test_of_a_folder_with_more_names_than_are_looked_at_no_more_are_held(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for number in range(2000):
        (folder / "out" / f"{number:0200}").touch()
    walk = workspace._Results(f"{folder}/out", MB)
    walk.entries_max = 10
    tracemalloc.start()
    walk.run()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (10, True) == (len(walk.files), walk.too_large)
    assert peak_bytes < 200_000, "two thousand names of two hundred letters are not all kept"


def test_a_results_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "out").rmdir()
    (folder / "out").symlink_to("/etc")
    with pytest.raises(OSError):
        workspace.collect(str(folder), MB)


def test_a_folder_goes_away_whatever_a_job_did_to_it(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "job" / "closed" / "inner").mkdir(parents=True)
    (folder / "job" / "closed" / "inner" / "file").write_text("x")
    (folder / "job" / "closed").chmod(0)
    (folder / "out" / "link").symlink_to(tmp_path)
    assert workspace.delete(str(folder))
    assert tmp_path.exists() and not folder.exists()
    assert workspace.delete(str(folder)), "twice is no error"


def test_an_empty_folder_is_used_again_and_no_other(tmp_path: Path) -> None:
    spares = workspace.Spares(tmp_path)
    spares.clear()
    clean, dirty, open_ = (run_folder(tmp_path, f"jaaaaaaaaaaaaaaaaaaa-1-{epoch}") for epoch in (1, 2, 3))
    (clean / "log" / "stdout").touch()
    (dirty / "job" / "left.txt").write_text("x")
    (open_ / "out").chmod(0o777)
    assert [True, False, False] == [spares.keep(str(folder)) for folder in (clean, dirty, open_)]
    spares.use(str(tmp_path / "jaaaaaaaaaaaaaaaaaaa-1-4"))
    assert ["job", "log", "out", "tmp"] == sorted(os.listdir(tmp_path / "jaaaaaaaaaaaaaaaaaaa-1-4"))
    assert [] == os.listdir(tmp_path / "jaaaaaaaaaaaaaaaaaaa-1-4" / "log")
    spares.use(str(tmp_path / "jaaaaaaaaaaaaaaaaaaa-1-5"))
    assert not (tmp_path / "jaaaaaaaaaaaaaaaaaaa-1-5").exists(), "there was one only"


def test_folders_that_nobody_knows_are_found(tmp_path: Path) -> None:
    known, unknown = run_folder(tmp_path, "jaaaaaaaaaaaaaaaaaaa-1-1"), run_folder(tmp_path, "jaaaaaaaaaaaaaaaaaaa-1-2")
    (tmp_path / ".supervisor").mkdir()
    assert [str(unknown)] == workspace.strays(tmp_path, {known.name})


class Recorder:
    """Records as the gateway does, and fails as it may."""

    def __init__(self) -> None:
        self.channels = {1: b"", 2: b""}
        self.fail: list[Exception | OutputAnswer] = []
        self.drop_frames: set[int] = set()
        self.frames = 0

    async def send(self, frame: OutputFrame) -> OutputAnswer:
        self.frames += 1
        if self.fail:
            failure = self.fail.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        for chunk in () if self.frames in self.drop_frames else frame.chunks:
            end = len(self.channels[chunk.channel])
            if chunk.offset <= end < chunk.offset + len(chunk.data):
                self.channels[chunk.channel] += chunk.data[end - chunk.offset :]
        return OutputAnswer(stdout_bytes=len(self.channels[1]), stderr_bytes=len(self.channels[2]))


def spool_of(folder: Path, recorder: Recorder, shipped: tuple[int, int] = (0, 0)) -> Spool:
    attempt = Attempt(
        job_id=job_id("job"), attempt=1, epoch=7, order=job_submitted(), buyer=BUYER, timeout_s=60, output_token="ab" * 8, shipped=shipped
    )
    return Spool(attempt, str(folder / "log"), recorder.send)


async def test_output_is_shipped_as_it_grows_in_frames(tmp_path: Path) -> None:
    folder, recorder = run_folder(tmp_path), Recorder()
    spool = spool_of(folder, recorder)
    await spool.pump()
    assert 0 == recorder.frames, "nothing to ship is nothing shipped"
    out, err = os.urandom(10 * FRAME_BYTES + 17), b"oops\n"
    (folder / "log" / "stdout").write_bytes(out)
    (folder / "log" / "stderr").write_bytes(err)
    await spool.pump()
    assert {1: out, 2: err} == recorder.channels
    assert (len(out), len(err)) == spool.recorded
    assert not spool.is_behind


async def test_shipping_goes_on_where_the_gateway_stands(tmp_path: Path) -> None:
    folder, recorder = run_folder(tmp_path), Recorder()
    out = os.urandom(6 * FRAME_BYTES)
    (folder / "log" / "stdout").write_bytes(out)
    recorder.channels[1] = out[: 3 * FRAME_BYTES + 5]
    await spool_of(folder, recorder, shipped=(FRAME_BYTES, 0)).pump()
    assert out == recorder.channels[1]


async def test_a_lost_frame_is_sent_again(tmp_path: Path) -> None:
    folder, recorder = run_folder(tmp_path), Recorder()
    out = os.urandom(6 * FRAME_BYTES)
    (folder / "log" / "stdout").write_bytes(out)
    recorder.drop_frames = {2, 5}
    await spool_of(folder, recorder).pump()
    assert out == recorder.channels[1]


async def test_output_waits_for_a_gateway_that_is_away(tmp_path: Path) -> None:
    folder, recorder = run_folder(tmp_path), Recorder()
    (folder / "log" / "stdout").write_bytes(b"hello")
    recorder.fail = [MarketUnreachable(), OutputAnswer(failure=Failure(code="not_yours"))]
    spool = spool_of(folder, recorder)
    with pytest.raises(MarketUnreachable):
        await spool.pump()
    with pytest.raises(GatewayRefused, match="not_yours"):
        await spool.pump()
    recorder.fail = [MarketUnreachable()]
    await spool.pump_until_done()
    assert b"hello" == recorder.channels[1]


async def test_a_full_quota_ends_shipping_without_an_error(tmp_path: Path) -> None:
    folder, recorder = run_folder(tmp_path), Recorder()
    (folder / "log" / "stdout").write_bytes(b"hello")
    recorder.fail = [OutputAnswer(stdout_bytes=2, full=True)]
    spool = spool_of(folder, recorder)
    await spool.pump_until_done()
    assert ((2, 0), False) == (spool.recorded, spool.is_behind)


def test_the_hash_is_over_stdout_then_stderr(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "log" / "stdout").write_bytes(b"out")
    (folder / "log" / "stderr").write_bytes(b"err")
    assert blob_ref(b"outerr").sha256 == output_sha256(str(folder / "log"))
