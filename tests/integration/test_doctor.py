"""`bazaar-seller doctor` and `gpus` as a seller runs them: on a real Docker engine, with the cards of the fake library."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from integration.docker_engine import Engine, engine
from integration.test_gpus import library

__all__ = ["engine", "library"]  # the fixtures

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "bazaar-seller")


class Told(NamedTuple):
    code: int
    stdout: str
    stderr: str


class Seller:
    """A seller's machine: cards as a file says, programs as a folder has them, no market."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        self._library = library

    def has(self, program: str, says: str) -> None:
        (self.programs / program).write_text(f"#!/bin/sh\necho '{says}'\n")
        (self.programs / program).chmod(0o755)

    def run(self, *arguments: str, cards: str = "") -> Told:
        (self.folder / "state").write_text(cards)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("BAZAAR_", "DOCKER_"))}
        environment |= {"BAZAAR_HOME": str(self.folder / "home"), "PATH": f"{self.programs}:{os.environ['PATH']}"}
        environment |= {"LD_LIBRARY_PATH": str(self._library), "FAKE_NVML_STATE": str(self.folder / "state")}
        done = subprocess.run([PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return Told(done.returncode, done.stdout, done.stderr)

    def findings(self, *arguments: str, cards: str = "") -> tuple[int, dict[str, dict[str, Any]]]:
        """The doctor's exit code, and its findings by their first word and, for cards, number."""
        told = self.run("doctor", "--json", *arguments, cards=cards)
        return told.code, {found["finding"].split(":")[0] + " " + found["severity"]: found for found in json.loads(told.stdout)}


@pytest.fixture
def seller(tmp_path: Path, library: Path) -> Seller:
    return Seller(tmp_path, library)


def test_the_doctor_looks_at_docker_the_toolkit_and_the_cards(seller: Seller, engine: Engine) -> None:
    seller.has("nvidia-ctk", "NVIDIA Container Toolkit CLI version 1.17.3")
    code, found = seller.findings("--docker-host", f"unix://{engine.socket}", cards="ecc 2 1\npid 3 4711\n")
    assert 1 == code
    assert engine.ask("GET", "/version")[1]["Version"] in found["docker ok"]["finding"]
    assert "live-restore" in found["docker warning"]["finding"] and "live-restore" in found["docker warning"]["remedy"]
    assert "CVE-2025-23266" in found["nvidia toolkit warning"]["finding"]
    assert any(name.startswith("runc") for name in found)
    assert "driver ok" in found and "550.54.15, CUDA 12.4" in found["driver ok"]["finding"]
    assert "1 uncorrected memory error" in found["card 2 error"]["finding"]
    assert "in use by 1 program" in found["card 3 note"]["finding"]
    assert {"severity", "finding", "remedy"} == set(found["market error"])
    assert {"disk ok", "/dev/shm ok", "python ok"} <= set(found) or "disk warning" in found


def test_a_docker_that_does_not_answer_is_a_warning_with_a_way_on(seller: Seller) -> None:
    _, found = seller.findings("--docker-host", f"unix://{seller.folder}/none.sock", cards="count 0\n")
    assert "Docker does not answer" in found["docker warning"]["finding"]


def test_a_driver_that_was_replaced_is_severe(seller: Seller) -> None:
    code, found = seller.findings("--docker-host", f"unix://{seller.folder}/none.sock", cards="init 18\n")
    assert (1, True) == (code, "drain the node" in found["cards error"]["remedy"])


def test_the_cards_are_shown_with_what_they_are_doing(seller: Seller) -> None:
    told = seller.run("gpus", cards="load 1 97\necc 2 3\nmig 3 1\n")
    lines = told.stdout.splitlines()
    assert 0 == told.code
    assert ["0", "1", "2", "3"] == [line.split()[0] for line in lines[1:5]]
    assert "97 %" in lines[2] and "not let" in lines[3] and "MIG 1g.3gb" in lines[4]
    assert lines[5].startswith("card 2 is not let: 3 uncorrected memory errors")
    assert lines[-1].startswith("3x NVIDIA RTX 4090 + 1x NVIDIA RTX 4090 MIG 1g.3gb (75.0 GiB), driver 550.54.15, CUDA 12.4")


def test_four_cards_are_told_to_programs(seller: Seller) -> None:
    told = json.loads(seller.run("gpus", "--json").stdout)
    assert ("4x NVIDIA RTX 4090 (96.0 GiB)", 4 * 24564, 4) == (told["name"], told["total_vram_mib"], len(told["cards"]))
    card = told["cards"][3]
    assert (3, "GPU-00000003-aaaa-bbbb-cccc-000000000000", 24564, "8.9", "00000000:03:00.0", 12040, True) == tuple(
        card[name] for name in ("index", "uuid", "vram_mib", "compute_capability", "pci", "cuda", "healthy")
    )
    assert (0, 1024, 41, 61, 0, 0) == tuple(
        card[name] for name in ("gpu_percent", "memory_used_mib", "temperature_c", "power_w", "ecc_errors", "processes")
    )


def test_a_machine_without_cards_says_so(seller: Seller) -> None:
    told = seller.run("gpus", cards="count 0\n")
    assert (0, True) == (told.code, told.stdout.startswith("no GPU, "))
    assert "cores alone could be offered" in told.stderr


def test_cards_that_do_not_exist_are_shown_as_such(seller: Seller) -> None:
    told = json.loads(seller.run("gpus", "--json", "--simulate-gpus", "2xRTX 4090").stdout)
    assert [True, True] == [card["simulated"] for card in told["cards"]]
