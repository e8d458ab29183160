"""Scripts, their PEP 723 blocks, job files, and what is shipped: from disk to plans."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from buyer_cli.inputs import input_files
from buyer_cli.planning import Asked, Plan, plans
from buyer_cli.spec import SpecError
from buyer_cli.spec_files import SCRIPT_BYTES_MAX, Script, block_layer, read_job_file, read_script

BLOCK = """# /// script
# dependencies = ["numpy"]
#
# [tool.bazaar]
# gpus = 2
# max-price = 0.40
# env = { EPOCHS = "3" }
# ///
print("hello")
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(asked: Asked, **flags: object) -> Plan:
    (found,) = plans(asked, flags, False, lambda notice: None)
    return found


def shipped(*paths: str, notices: list[str] | None = None) -> list[str]:
    return [file.path for file in input_files(None, False, paths, ([] if notices is None else notices).append)]


def refusal_of_script(path: str) -> str:
    with pytest.raises(SpecError) as caught:
        read_script(path)
    return caught.value.why


def test_a_script_that_is_missing_is_named() -> None:
    assert "there is no such file" == refusal_of_script("train.py")


def test_a_script_of_a_gigabyte_is_refused_without_being_read() -> None:
    with open("huge.py", "wb") as file:
        file.truncate(1 << 30)
    assert "a script may have 16 MiB" in refusal_of_script("huge.py")


def test_a_script_may_have_sixteen_mib() -> None:
    Path("large.py").write_bytes(b"#" * SCRIPT_BYTES_MAX)
    assert SCRIPT_BYTES_MAX == len(read_script("large.py").content)


def test_a_binary_is_no_script() -> None:
    Path("a.py").write_bytes(b"\x7fELF\0\0")
    assert "binary" in refusal_of_script("a.py")


def test_a_script_whose_name_holds_a_line_break_is_refused() -> None:
    Path("a\nb.py").write_text("print()")
    assert "line break" in refusal_of_script("a\nb.py")


def test_folders_pipes_and_empty_files_are_no_scripts() -> None:
    Path("folder").mkdir()
    Path("empty.py").write_text("\n")
    os.mkfifo("pipe.py")
    assert "folder" in refusal_of_script("folder")
    assert "empty" in refusal_of_script("empty.py")
    assert "not a plain file" in refusal_of_script("pipe.py")


def test_the_block_of_a_script_is_read_and_its_numbers_stay_exact() -> None:
    layer = block_layer(Script("a.py", BLOCK.encode()))
    assert {"gpus": 2, "max-price": 400_000, "env": {"EPOCHS": "3"}} == layer
    assert layer == block_layer(Script("a.py", BLOCK.replace("\n", "\r\n").encode()))


@pytest.mark.parametrize("text", ["print()", "# /// script\nprint()\n", "# /// script\n# dependencies = []\n# ///\n"])
def test_a_script_without_a_table_of_ours_says_nothing(text: str) -> None:
    assert {} == block_layer(Script("a.py", text.encode()))


def test_a_mistake_in_a_block_names_the_script() -> None:
    with pytest.raises(SpecError) as caught:
        block_layer(Script("a.py", BLOCK.replace("gpus", "gpuz").encode()))
    assert ("a.py [tool.bazaar]: gpuz", "did you mean gpus?") == (caught.value.what, caught.value.hint)
    with pytest.raises(SpecError, match="no valid TOML"):
        block_layer(Script("a.py", BLOCK.replace("gpus = 2", "gpus = = 2").encode()))
    with pytest.raises(SpecError, match="more than one"):
        block_layer(Script("a.py", (BLOCK + BLOCK).encode()))


JOBS_TOML = """
gpus = 1
env = { A = "1" }
[[job]]
script = "a.py"
args = ["--epochs", "3"]
env = { B = "2" }
[[job]]
command = ["nvidia-smi"]
gpus = 2
vram = 24
"""
JOBS_YAML = """
gpus: 1
env: {A: 1}
job:
  - script: a.py
    args: [--epochs, "3"]
    env: {B: 2}
  - command: [nvidia-smi]
    gpus: 2
    vram: 24
"""


@pytest.mark.parametrize(("name", "text"), [("jobs.toml", JOBS_TOML), ("jobs.yaml", JOBS_YAML)])
def test_a_file_holds_several_jobs_and_what_they_share(name: str, text: str) -> None:
    Path(name).write_text(text)
    first, second = read_job_file(name)
    assert {"gpus": 1, "env": {"A": "1", "B": "2"}, "script": "a.py", "args": ("--epochs", "3")} == first
    assert {"gpus": 2, "env": {"A": "1"}, "command": ("nvidia-smi",), "vram": 22889} == second


def test_paths_in_a_file_mean_places_beside_it() -> None:
    Path("jobs").mkdir()
    Path("jobs/job.toml").write_text('script = "a.py"\nin = [".", "data"]\n')
    (layer,) = read_job_file("jobs/job.toml")
    assert ("jobs/a.py", ("jobs/.", "jobs/data")) == (layer["script"], layer["in"])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.toml", "gpuz = 1", "no such key"),
        ("a.toml", "max-price = nan", "not a number"),
        ("a.toml", "max-price = -0.4", "negative"),
        ("a.toml", "vram = 1e999", "exponent"),
        ("a.toml", "gpus = " + "9" * 5000, "TOML|whole"),
        ("a.toml", "job = 3", "must be tables"),
        ("a.toml", "job = []", "must be tables"),
        ("a.toml", "x" * (2 << 20), "at most 1 MiB"),
        ("a.toml", "[" * 100_000, "TOML"),
        ("a.yaml", "- a", "keys and values"),
        ("a.yaml", "gpus: [", "no valid YAML"),
        ("a.yaml", "gpus: !!python/object/apply:os.system ['true']", "must be a text"),
        ("a.yaml", "[" * 100_000, "no valid YAML"),
        ("a.yaml", "max-price: .nan", "not an amount"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(name: str, text: str, why: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(SpecError, match=why):
        read_job_file(name)


def test_a_missing_or_unreadable_file_is_refused() -> None:
    Path("a.toml").write_bytes(b"\xff\xfe")
    for name in ("no.toml", "a.toml", "."):
        with pytest.raises(SpecError):
            read_job_file(name)


def test_a_script_is_run_by_python_with_what_stands_after_the_dashes() -> None:
    Path("train.py").write_text(BLOCK)
    made = plan(Asked(script="train.py", rest=("--epochs", "3")))
    assert ("python", "train.py", "--epochs", "3") == made.argv
    assert ["train.py"] == [file.path for file in made.files]
    assert ("train.py", 2, {"EPOCHS": "3"}) == (made.wish.name, made.wish.requirements.num_gpus, made.wish.env)


def test_flags_win_over_the_file_and_the_file_over_the_script() -> None:
    Path("train.py").write_text(BLOCK)
    Path("job.toml").write_text('script = "train.py"\ngpus = 3\nvram = "24GB"\n')
    made = plan(Asked(job_file="job.toml"), gpus="4")
    assert (4, 22889, 400_000) == (made.wish.requirements.num_gpus, made.wish.requirements.vram_mib, made.wish.max_price_uusd_per_gpu_hour)


def test_a_shebang_makes_a_script_executable() -> None:
    Path("go.sh").write_text("#!/bin/sh\necho hi\n")
    made = plan(Asked(script="go.sh"))
    assert (("./go.sh",), True) == (made.argv, made.files[0].executable)


def test_code_and_standard_input_become_main_py(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(Asked(code="print(1)", rest=("x",)))
    assert (("python", "main.py", "x"), b"print(1)", "main.py") == (made.argv, made.files[0].content, made.wish.name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"print(2)")))
    made = plan(Asked(script="-"))
    assert (("python", "main.py"), b"print(2)") == (made.argv, made.files[0].content)


def test_a_command_is_taken_as_it_is() -> None:
    made = plan(Asked(rest=("nvidia-smi", "-L")))
    assert (("nvidia-smi", "-L"), ()) == (made.argv, made.files)


def test_nothing_to_run_is_said() -> None:
    for asked in (Asked(), Asked(rest=()), Asked(script="a.py", code="print()")):
        with pytest.raises(SpecError):
            plan(asked)


def test_allowing_simulated_cards_by_default_yields_to_a_file_that_does_not() -> None:
    Path("job.toml").write_text("command = ['ls']\nallow-simulated = false\n")
    (by_default,) = plans(Asked(rest=("ls",)), {}, True, print)
    (by_file,) = plans(Asked(job_file="job.toml"), {}, True, print)
    assert (True, False) == (by_default.wish.requirements.allow_simulated, by_file.wish.requirements.allow_simulated)


def test_a_folder_is_shipped_under_its_name_and_the_dot_without_one() -> None:
    Path("data/deep").mkdir(parents=True)
    Path("data/deep/a.txt").write_text("a")
    Path("b.txt").write_text("b")
    assert ["data/deep/a.txt"] == shipped("data")
    assert ["b.txt", "data/deep/a.txt"] == shipped(".")
    assert ["deep/a.txt"] == shipped("data/.")


def test_what_nobody_wants_elsewhere_is_left_out() -> None:
    for name in (
        ".git/config",
        "__pycache__/a.pyc",
        ".venv/x",
        ".env",
        "results/j/out",
        "a.py",
        "models/keep.bin",
        "models/skip.bin",
        "x.log",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    Path(".bazaarignore").write_text("# mine\n*.log\n/models/*\n!models/keep.bin\n")
    notices: list[str] = []
    assert ["a.py", "models/keep.bin"] == shipped(".", notices=notices)
    assert [True, True] == [any(name in notice for notice in notices) for name in (".env", "results/")]


def test_a_link_that_leads_out_of_its_folder_is_not_followed() -> None:
    Path("secret").write_text("key")
    Path("folder").mkdir()
    Path("folder/out").symlink_to("../secret")
    Path("folder/loop").symlink_to("loop")
    Path("folder/up").symlink_to("..")
    Path("folder/real").write_text("x")
    Path("folder/in").symlink_to("real")
    notices: list[str] = []
    assert ["folder/in", "folder/real"] == shipped("folder", notices=notices)
    assert 3 == len(notices)


def test_two_files_must_not_want_one_name() -> None:
    for name in ("a/x", "b/x"):
        Path(name).parent.mkdir()
        Path(name).write_text(name)
    with pytest.raises(SpecError, match="shipped twice"):
        shipped("a/x", "b/x")
    assert ["x"] == shipped("a/x", "a/x")


def test_inputs_over_two_gib_are_refused_before_anything_is_sent() -> None:
    for name in ("a", "b"):
        with open(name, "wb") as file:
            file.truncate((1 << 30) + 1)
    with pytest.raises(SpecError, match="larger than 2 GiB"):
        shipped("a", "b")


def test_missing_and_special_inputs_are_refused() -> None:
    os.mkfifo("pipe")
    for path in ("none", "pipe", "/"):
        with pytest.raises(SpecError):
            shipped(path)
