"""Logs: for people on stderr, as JSON in a file, and never a secret or a command to the terminal in them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from events import log_setup
from events.delegation import seed_text
from events.log_setup import SharedRotatingFile, configure

SEED = seed_text(b"\x07" * 32)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in before:
            handler.close()
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


def lines(home: Path, program: str = "test") -> list[dict[str, object]]:
    return [json.loads(line) for line in (home / "log" / f"{program}.log").read_text().splitlines()]


def test_a_line_goes_to_stderr_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(tmp_path, "test")
    structlog.get_logger("matcher").info("page stored", seq=7, job="j1")
    logging.getLogger("bazaar.client").warning("%s is late", "a frame")
    printed = capsys.readouterr()
    assert "" == printed.out
    assert "info    matcher: page stored  seq=7 job=j1\n" == printed.err.splitlines(keepends=True)[0][9:]
    assert [("page stored", "info", "matcher"), ("a frame is late", "warning", "bazaar.client")] == [
        (line["event"], line["level"], line["logger"]) for line in lines(tmp_path)
    ]
    assert 0o600 == stat.S_IMODE((tmp_path / "log" / "test.log").stat().st_mode)


def test_levels_are_kept_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(tmp_path, "test", level="info", stderr_level="error")
    structlog.get_logger("a").debug("not said")
    structlog.get_logger("a").info("in the file")
    structlog.get_logger("a").error("everywhere")
    assert ["in the file", "everywhere"] == [line["event"] for line in lines(tmp_path)]
    assert 1 == len(capsys.readouterr().err.splitlines())


def test_json_on_stderr_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(None, "test", as_json=True)
    structlog.get_logger("a").info("two\nlines", value={"b": [1, None, True]})
    assert {"event": "two\nlines", "value": {"b": [1, None, True]}}.items() <= json.loads(capsys.readouterr().err).items()


@pytest.mark.parametrize(
    "field", ["token", "auth_token", "passphrase", "seed", "nkey_seed", "private_key", "Authorization", "session_secret"]
)
def test_a_field_with_a_secrets_name_is_masked(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(tmp_path, "test")
    structlog.get_logger("a").info("x", **{field: "hush", "deep": {field: "hush"}})
    assert "hush" not in capsys.readouterr().err + json.dumps(lines(tmp_path))


@pytest.mark.parametrize(
    "secret", [SEED, "0x" + "ab" * 32, "eyJ0eXAiOiJKV1QifQ.eyJqdGkiOiJYIn0.c2ln", "Bearer abc.def", "nats://user:hunter2@host:4222"]
)
def test_a_text_that_looks_like_a_secret_is_masked(secret: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(tmp_path, "test")
    structlog.get_logger("a").info(f"got {secret} there", value=[secret])
    try:
        raise ValueError(secret)
    except ValueError:
        logging.getLogger("b").exception("failed")
    said = capsys.readouterr().err + json.dumps(lines(tmp_path))
    assert "Traceback" in said
    assert secret.removeprefix("Bearer ").removeprefix("nats://").removesuffix("@host:4222") not in said


def test_hashes_and_addresses_are_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure(None, "test")
    structlog.get_logger("a").info("x", hash="ab" * 32, wallet="0x" + "1" * 40)
    said = capsys.readouterr().err
    assert "ab" * 32 in said and "0x" + "1" * 40 in said


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\r\nfake line", "\u202egnp.exe", "\x9b31m", "\x00", "\ud800"])
def test_nothing_hostile_reaches_the_terminal(hostile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(tmp_path, "test")
    structlog.get_logger("a").info(f"job {hostile}", name=hostile)
    said = capsys.readouterr().err
    assert 1 == len(said.splitlines())
    assert said[:-1].isprintable()
    assert 1 == len(lines(tmp_path))


def test_a_file_that_cannot_be_written_is_said_and_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").write_text("in the way")
    configure(tmp_path, "test")
    structlog.get_logger("a").info("goes on")
    said = capsys.readouterr().err
    assert "no log file" in said and "goes on" in said


def write_many(path: Path, name: str) -> None:
    handler = SharedRotatingFile(path, bytes_max=5000, kept=1000)
    for place in range(300):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"{name} {place} " + "." * 40, None, None))
    handler.close()


def test_processes_that_share_a_file_rotate_it_without_losing_a_line(tmp_path: Path) -> None:
    path = tmp_path / "shared.log"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write_many, args=(path, f"p{number}")) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert 0 == process.exitcode
    files = [file for file in tmp_path.iterdir() if not file.name.endswith(".lock")]
    found = sorted(line.rpartition(" ")[0] for file in files for line in file.read_text().splitlines())
    assert sorted(f"p{number} {place}" for number in range(3) for place in range(300)) == found
    assert len(files) > 5
    assert all(file.stat().st_size < 5000 + 3 * 60 for file in files)


def test_only_so_many_old_files_are_kept(tmp_path: Path) -> None:
    handler = SharedRotatingFile(tmp_path / "x.log", bytes_max=100, kept=2)
    for _ in range(50):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "." * 60, None, None))
    handler.close()
    assert ["x.log", "x.log.1", "x.log.2", "x.log.lock"] == sorted(file.name for file in tmp_path.iterdir())
    assert log_setup.FILES_KEPT >= 1
