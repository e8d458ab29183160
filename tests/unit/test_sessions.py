"""What makes a run a session, and which of its files are its work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from e2e.jupyter_image import REQUIREMENTS

from events.files import MANIFEST_BYTES_MAX, FilesDiffer, LocalFile, ManifestEntry, encode_manifest, put_files
from events.jobs import JobSubmitted
from events.values import JobKind, Program, Requirements
from events.wire import FilesAnswer, FilesRequest
from seller_agent.runners.workspace import SESSION_FILE
from seller_agent.sessions import session
from seller_agent.sessions import work as session_work
from seller_agent.sessions.work import Found

MB = 10**6


def order(kind: JobKind, *argv: str) -> JobSubmitted:
    program = Program(argv=argv, image="some/image")
    return JobSubmitted(job_id="j" + "a" * 19, kind=kind, name="x", program=program, requirements=Requirements(), timeout_s=60)


def found(path: str, size: int = 1, *, root: str = "job", mtime_ns: int = 0) -> Found:
    return Found(root, path, size, mtime_ns, 7, False)


def kept(*files: Found, bytes_max: int = MB, inputs: dict[str, tuple[int, int]] | None = None) -> list[str]:
    return [f"{file.root}/{file.path}" for file in session_work.choose(files, inputs or {}, bytes_max, 0).files]


# --- access ---


def test_the_access_to_a_session_is_decided_once_and_for_its_owner_only(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    first = session.access_to(folder, order(JobKind.NOTEBOOK))
    assert first == session.access_to(folder, order(JobKind.NOTEBOOK)) == session.read_access(folder)
    assert 0o600 == os.stat(f"{folder}/{SESSION_FILE}").st_mode & 0o777
    assert session.new_access(order(JobKind.NOTEBOOK)).token != first.token


def test_an_image_without_python_is_told_to_be_none_for_notebooks() -> None:
    assert "no Jupyter" in session.no_notebook_there(order(JobKind.NOTEBOOK), "program_not_found")
    for kind, argv, error in (
        (JobKind.NOTEBOOK, ("mine",), "program_not_found"),
        (JobKind.NOTEBOOK, (), "container_error"),
        (JobKind.NOTEBOOK, (), None),
        (JobKind.CONTAINER, (), "program_not_found"),
    ):
        assert "" == session.no_notebook_there(order(kind, *argv), error)


def test_a_token_stands_in_the_environment_and_never_in_the_command() -> None:
    access = session.new_access(order(JobKind.NOTEBOOK))
    command = session.command(order(JobKind.NOTEBOOK), access)
    assert "python3" == command[0]
    assert not [word for word in command if access.token in word]
    assert access.token == session.environment(access)["JUPYTER_TOKEN"]
    assert access.token not in access.path


def test_a_container_has_no_pages_and_no_token() -> None:
    access = session.new_access(order(JobKind.CONTAINER))
    assert (False, "", {}) == (access.has_pages, access.token, session.environment(access))
    assert session.FOR_EVER == session.command(order(JobKind.CONTAINER), access)


@pytest.mark.parametrize("kind", [JobKind.NOTEBOOK, JobKind.CONTAINER])
def test_a_command_of_the_buyers_own_is_run_as_it_is(kind: JobKind) -> None:
    asked = order(kind, "code-server", "--auth")
    assert ("code-server", "--auth") == session.command(asked, session.new_access(asked))


def test_there_is_no_access_to_what_is_no_session(tmp_path: Path) -> None:
    assert session.read_access(str(tmp_path)) is None
    (tmp_path / SESSION_FILE).write_text("{torn")
    assert session.read_access(str(tmp_path)) is None


def test_the_recipe_for_people_and_that_of_the_tests_name_the_same_packages() -> None:
    recipe = Path(__file__).parents[2] / "examples" / "images" / "jupyter" / "requirements.txt"
    assert list(REQUIREMENTS) == recipe.read_text().split()


# --- work ---


def test_of_too_much_work_the_newest_is_kept() -> None:
    old, new, large = found("old", 60, mtime_ns=1), found("new", 60, mtime_ns=3), found("large", 500, mtime_ns=4)
    work = session_work.choose([old, large, new], {}, 100, 0)
    assert [new] == list(work.files)
    assert (2, 60) == (work.left_out, work.total_bytes)
    assert "the newest 1 files were saved, 2 left out" in work.words


def test_an_input_is_work_only_once_it_was_changed() -> None:
    inputs = {"data.csv": (10, 5), "notes.txt": (10, 5)}
    assert ["job/notes.txt"] == kept(found("data.csv", 10, mtime_ns=5), found("notes.txt", 10, mtime_ns=6), inputs=inputs)


def test_what_was_written_as_a_result_goes_before_what_lies_in_the_folder_under_the_same_name() -> None:
    files = [found("model", root="out"), found("model"), found("deep/file", root="out"), found("deep"), found("model/part")]
    assert ["out/deep/file", "out/model"] == kept(*files)


def test_the_list_of_the_work_never_outgrows_what_a_manifest_may_be() -> None:
    files = [found(f"{'long' * 200}/{number}", mtime_ns=number) for number in range(9_000)]
    work = session_work.choose(files, {}, MB, 0)
    assert 0 < work.left_out
    assert len(encode_manifest(ManifestEntry(file.path, "0" * 64, file.size) for file in work.files)) <= MANIFEST_BYTES_MAX


def run_folder(tmp_path: Path) -> Path:
    for part in ("job", "out"):
        (tmp_path / part).mkdir()
    return tmp_path


def contents(files: list[LocalFile]) -> dict[str, bytes]:
    return {file.path: file.source.read_bytes() for file in files}


def test_caches_sockets_and_links_are_no_work(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for path in ("job/a.ipynb", "job/.ipynb_checkpoints/a.ipynb", "job/deep/__pycache__/m.pyc", "job/.cache/x", "job/.git/HEAD"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")
    (folder / "job" / "passwords").symlink_to("/etc/shadow")
    os.mkfifo(folder / "job" / "pipe")
    work = session_work.look(str(folder), MB)
    assert ["job/.git/HEAD", "job/a.ipynb"] == [f"{file.root}/{file.path}" for file in work.files]
    assert 2 == work.passed_over


@pytest.mark.parametrize("age_s", [0, 3600])
def test_what_is_staged_is_the_work_itself_whatever_its_name_means_later(tmp_path: Path, age_s: int) -> None:
    folder = run_folder(tmp_path)
    (folder / "job" / "mine").write_text("mine")
    os.utime(folder / "job" / "mine", ns=(0, (folder / "job" / "mine").stat().st_mtime_ns - age_s * 10**9))
    files = session_work.stage(str(folder), session_work.look(str(folder), MB), f"{folder}/snapshot")
    (folder / "job" / "mine").unlink()
    (folder / "job" / "mine").symlink_to("/etc/passwd")
    assert {"mine": b"mine"} == contents(files)
    session_work.unstage(f"{folder}/snapshot")
    assert not (folder / "snapshot").exists()


def test_a_file_that_became_a_link_before_it_is_staged_is_left_out(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for name in ("kept", "swapped"):
        (folder / "job" / name).write_text(name)
    (folder / "job" / "deep").mkdir()
    (folder / "job" / "deep" / "passwd").write_text("mine")
    work = session_work.look(str(folder), MB)
    (folder / "job" / "swapped").unlink()
    (folder / "job" / "swapped").symlink_to("/etc/passwd")
    (folder / "job" / "deep").rename(folder / "elsewhere")
    (folder / "job" / "deep").symlink_to("/etc")
    assert {"kept": b"kept"} == contents(session_work.stage(str(folder), work, f"{folder}/snapshot"))


def test_a_large_file_that_is_still_being_written_waits_for_the_next_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_work, "FRESH_BYTES_MAX", 10)
    folder = run_folder(tmp_path)
    (folder / "job" / "growing.log").write_text("x" * 11)
    (folder / "job" / "finished.bin").write_text("y" * 11)
    os.utime(folder / "job" / "finished.bin", ns=(0, 0))
    files = session_work.stage(str(folder), session_work.look(str(folder), MB), f"{folder}/snapshot")
    assert {"finished.bin": b"y" * 11} == contents(files)


@pytest.mark.parametrize("age_s", [0, 3600])
async def test_a_file_that_grows_after_the_look_is_never_read_beyond_what_was_seen(
    tmp_path: Path, age_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path)
    bomb = folder / "job" / "bomb"
    bomb.write_text("small")
    os.utime(bomb, ns=(0, bomb.stat().st_mtime_ns - age_s * 10**9))
    looked_at = session_work._Stage.file

    def grown(stage: session_work._Stage, path: str, kind: os.stat_result, descriptor: int) -> None:
        os.truncate(bomb, 1 << 30)  # costs its writer nothing, and its reader a gigabyte
        looked_at(stage, path, kind, descriptor)

    monkeypatch.setattr(session_work._Stage, "file", grown)
    files = session_work.stage(str(folder), session_work.look(str(folder), MB), f"{folder}/snapshot")
    asked: list[FilesRequest] = []

    async def ask(request: FilesRequest) -> FilesAnswer:
        asked.append(request)
        return FilesAnswer(missing=request.hashes, next_offset=request.offset + len(request.data), stored=True)

    if age_s:  # another name of the file itself
        with pytest.raises(FilesDiffer):
            await put_files(ask, files)
        assert [] == asked
    else:  # a copy
        assert [5] == [file.source.stat().st_size for file in files]
        assert (await put_files(ask, files))[1] == 5


def test_inputs_are_remembered_as_they_were_brought(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "job" / "data").mkdir()
    (folder / "job" / "data" / "a.csv").write_text("1")
    (folder / "job" / "b.txt").write_text("2")
    session_work.note_inputs(str(folder), ["data/a.csv", "b.txt"])
    (folder / "job" / "b.txt").write_text("changed")
    assert ["b.txt"] == [file.path for file in session_work.look(str(folder), MB).files]
