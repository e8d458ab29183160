"""A secret from the buyer's file to the job that needs it: in between nobody finds it, in no file, no argument list, no event."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import subprocess
import termios
from pathlib import Path

import pytest
from e2e.market_env import COMMANDS, MarketEnv, market

__all__ = ["market"]  # the fixture

pytestmark = pytest.mark.timeout(120)

SECRET = "hunter2-" + hashlib.sha256(b"a secret").hexdigest()
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
READS = 'sha256sum < "$BAZAAR_SECRETS/HF_TOKEN"; sha256sum < "$BAZAAR_SECRETS/other"; touch there; while [ ! -e go ]; do sleep 0.05; done'


def traces(env: MarketEnv, words: str = SECRET) -> list[str]:
    """Where these words can be read in the clear: every file of the home, and what every process was started with."""
    files = [path for path in env.home.rglob("*") if path.is_file() and not path.is_symlink()]
    files += [path for part in ("cmdline", "environ") for path in Path("/proc").glob(f"[0-9]*/{part}")]
    found = []
    for path in files:
        try:
            if words.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            continue  # it has just gone
    return found


def run_with_secrets(env: MarketEnv, *flags: str) -> str:
    """A job with the secret from a file and another; looked for everywhere while it runs and afterwards."""
    (env.work / "token.txt").write_text(SECRET)
    (env.work / "other.txt").write_bytes(b"\x00\xff")
    job_id = env.submit("--secret", "HF_TOKEN=token.txt", "--secret", "other=other.txt", *flags, "--", "sh", "-c", READS)
    env.wait_for_job(job_id, "running")
    folder = env.home / "seller"
    env.wait_until(lambda: list(folder.glob(f"*/runs/{job_id}*/job/there")), "the job has read its secrets")
    assert [] == traces(env)
    seen = " ".join(traces(env, job_id))
    assert all(place in seen for place in ("/market/store/", "/seller/", "/environ")), seen
    [started] = folder.glob(f"*/runs/{job_id}*/job/there")
    (started.parent / "go").touch()
    env.wait_for_job(job_id, "succeeded")
    assert [] == traces(env)
    assert [] == list(Path("/dev/shm").rglob(f"{job_id}*"))
    return job_id


def test_a_job_reads_its_secrets_and_nobody_else_finds_them(market: MarketEnv) -> None:
    job_id = run_with_secrets(market)
    assert [DIGEST, hashlib.sha256(b"\x00\xff").hexdigest()] == [
        line.split()[0] for line in market.bazaar("logs", job_id).stdout.splitlines()
    ]
    told = str(market.get(f"/v1/jobs/{job_id}/events"))
    assert "HF_TOKEN" in told and SECRET not in told


def test_a_secret_that_stands_nowhere_is_a_usage_error_before_anything_is_sent(market: MarketEnv) -> None:
    told = market.bazaar("run", "--secret", "NOWHERE_TO_BE_FOUND", "--", "true", code=2)
    assert "--secret NOWHERE_TO_BE_FOUND" in told.stderr and "NOWHERE_TO_BE_FOUND=FILE" in told.stderr
    told = market.bazaar("run", "--secret", f"K={SECRET}", "--", "true", code=2)
    assert SECRET not in told.stderr


def test_a_secret_is_taken_from_the_environment(market: MarketEnv) -> None:
    job_id = market.submit("--secret", "FROM_OUTSIDE", "--", "sh", "-c", 'sha256sum < "$BAZAAR_SECRETS/FROM_OUTSIDE"', FROM_OUTSIDE=SECRET)
    market.wait_for_job(job_id, "succeeded")
    assert DIGEST == market.bazaar("logs", job_id).stdout.split()[0]


def test_a_secret_is_asked_for_on_a_terminal_and_not_shown(market: MarketEnv) -> None:
    person, terminal = pty.openpty()
    command = [
        str(COMMANDS / "bazaar"),
        "run",
        "-y",
        "--allow-simulated",
        "--secret",
        "TYPED",
        "--",
        "sh",
        "-c",
        'sha256sum < "$BAZAAR_SECRETS/TYPED"',
    ]
    running = subprocess.Popen(
        command,
        env=market.environment(),
        cwd=market.work,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    seen = read_until(person, b"Secret TYPED: ")
    os.write(person, SECRET.encode() + b"\n")
    seen += read_until(person, None)
    os.close(person)
    assert 0 == running.wait(30), seen
    assert DIGEST.encode() in seen and SECRET.encode() not in seen


def read_until(descriptor: int, words: bytes | None) -> bytes:
    """What appears on a terminal, until these words, or until nobody writes there any more."""
    seen = b""
    while words is None or words not in seen:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # its other end is closed
            data = b""
        if not data:
            assert words is None, seen
            break
        seen += data
    return seen


def test_a_variable_that_names_a_secret_is_pointed_to_the_flag(market: MarketEnv) -> None:
    told = market.bazaar("run", "--env", f"HF_TOKEN={SECRET}", "--", "true", code=2)
    assert "--secret HF_TOKEN" in told.stderr and SECRET not in told.stderr
