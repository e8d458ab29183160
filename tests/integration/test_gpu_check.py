"""The example job that checks its cards, with a driver's library whose cards are scripted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from integration.test_gpus import library

__all__ = ["library"]  # the fixture

CHECK = Path(__file__).resolve().parents[2] / "examples" / "gpu_check.py"
CARDS = ["GPU-00000000-aaaa-bbbb-cccc-000000000000", "GPU-00000001-aaaa-bbbb-cccc-000000000000"]


def check(uuids: list[str], *arguments: str, library: Path | None = None, state: Path | None = None) -> subprocess.CompletedProcess[str]:
    cards = {} if library is None else {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(state)}
    environment = {**os.environ, "BAZAAR_GPU_UUIDS": ",".join(uuids), **cards}
    command = [sys.executable, "-W", "error", str(CHECK), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "cards").write_text("count 2\n")
    return tmp_path / "cards"


def test_cards_as_asked_are_fine(library: Path, state: Path) -> None:
    done = check(CARDS, "--gpus", "2", "--vram", "24GB", "--model", "rtx 4090", library=library, state=state)
    assert (0, "") == (done.returncode, done.stderr)
    assert f"card 1: NVIDIA GeForce RTX 4090, 24564 MiB, {CARDS[1]}" in done.stdout
    assert "OK: the cards are what was asked for" in done.stdout


@pytest.mark.parametrize(
    ("uuids", "arguments", "sentence"),
    [
        (CARDS, ("--gpus", "1"), "1 card(s) were asked for, and there are 2"),
        (CARDS, ("--vram", "24GiB"), "card 0 has 24564 MiB, and 24576 MiB were asked for"),
        (CARDS, ("--model", "A100"), "card 0 is NVIDIA GeForce RTX 4090, and A100 was asked for"),
        (["GPU-gone"], (), "card 0 (GPU-gone) is this job's, and it is not there"),
    ],
)
def test_cards_that_are_not_as_asked_fail_with_a_sentence(
    library: Path, state: Path, uuids: list[str], arguments: tuple[str, ...], sentence: str
) -> None:
    done = check(uuids, *arguments, library=library, state=state)
    assert 1 == done.returncode
    assert done.stderr.startswith("FAILED: ") and sentence in done.stderr


def test_a_card_that_no_driver_knows_fails() -> None:
    done = check(["GPU-1"])
    assert (1, True) == (done.returncode, done.stderr.startswith("FAILED: ")), done


@pytest.mark.parametrize("uuids", [[], ["SIM-1", "SIM-2"]], ids=["no card", "simulated cards"])
def test_where_there_is_nothing_to_look_at_it_is_fine(uuids: list[str]) -> None:
    done = check(uuids, "--gpus", str(len(uuids)))
    assert (0, True) == (done.returncode, "OK" in done.stdout), done
