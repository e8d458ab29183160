"""How the program speaks: help, errors for people and for programs, exit codes, settings, wallets. No market is needed here."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from buyer_cli.cli import COMMANDS, bazaar, call
from buyer_cli.spec_keys import KEYS, LATER

HEAVY = ("nats", "web3", "eth_account", "fastapi", "docker", "rich", "aiosqlite", "yaml")


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def problem(self) -> dict[str, Any]:
        (line,) = self.err.splitlines()
        found = json.loads(line)
        assert {"type", "title", "status", "detail", "code", "hint"} == set(found)
        return dict(found)


class Program:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Said:
        self._capsys.readouterr()
        code = call(list(arguments))
        return Said(code, *self._capsys.readouterr())


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    monkeypatch.setenv("BAZAAR_HOME", str(tmp_path / "home"))
    for name in ("MARKET", "API", "WALLET", "PASSPHRASE_FILE", "TOKEN", "ALLOW_SIMULATED"):
        monkeypatch.delenv(f"BAZAAR_{name}", raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr("events.wallet.Keystore.__init__.__kwdefaults__", {"scrypt_n": 2})  # unlocking is not what is tested here
    monkeypatch.chdir(tmp_path)
    return Program(capsys)


def test_asking_for_help_loads_nothing_heavy() -> None:
    program = f"""
import sys
from buyer_cli import cli
code = cli.call(["--help"])
print(sorted(name for name in {HEAVY!r} if name in sys.modules), code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "[] 0" == done.stdout.splitlines()[-1], done.stderr


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    context = click.Context(bazaar)
    for name in COMMANDS:
        command = bazaar.get_command(context, name)
        assert command is not None
        found += [(name, child) for child in command.commands] if isinstance(command, click.Group) else [(name,)]
    return found


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_has_help_and_answers_in_json(path: tuple[str, ...], program: Program) -> None:
    said = program(*path, "--help")
    assert 0 == said.code
    assert "--json" in said.out


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_refuses_an_unknown_flag_alike(path: tuple[str, ...], program: Program) -> None:
    said = program(*path, "--frobnicate", "--json")
    assert (2, "", "usage") == (said.code, said.out, said.problem["code"])
    assert program(*path, "--frobnicate").err.startswith("error: there is no option --frobnicate\n")


def test_no_flag_is_promised_that_this_version_does_not_have(program: Program) -> None:
    for command in ("run", "submit", "quote"):
        text = program(command, "--help").out
        assert [] == [name for name in LATER if f"--{name}" in text]
        assert [] == [key.name for key in KEYS if key.flag and f"--{key.name}" not in text]
        for name in LATER:
            assert "this version cannot do that yet" == program(command, f"--{name}", "x", "--json").problem["detail"]


@pytest.mark.parametrize(
    "path", ["ps", "nodes", "queue", "offers", "show last", "logs last", "run -c print()", "quote", "events", "login", "cancel last"]
)
def test_without_a_market_every_command_says_so_with_exit_code_6(path: str, program: Program) -> None:
    program("wallet", "new")
    said = program(*path.split(), "--json")
    assert (6, "", "market_unreachable") == (said.code, said.out, said.problem["code"])


def test_a_broker_that_does_not_answer_is_named(program: Program, unused_tcp_port: int) -> None:
    program("wallet", "new")
    said = program(
        "run", "-c", "print()", "--market", f"nats://127.0.0.1:{unused_tcp_port}", "--api", f"http://127.0.0.1:{unused_tcp_port}"
    )
    assert 6 == said.code
    assert str(unused_tcp_port) in said.err


def test_without_a_wallet_a_job_cannot_be_meant(program: Program, unused_tcp_port: int) -> None:
    said = program("ps", "--json", "--api", f"http://127.0.0.1:{unused_tcp_port}")
    assert (4, "identity") == (said.code, said.problem["code"])
    assert "bazaar wallet new" in said.problem["hint"]


def test_several_wallets_and_none_chosen_is_exit_4_with_the_list(program: Program, unused_tcp_port: int) -> None:
    for name in ("one", "two"):
        program("wallet", "new", name)
    said = program("ps", "--json", "--api", f"http://127.0.0.1:{unused_tcp_port}")
    assert 4 == said.code
    assert "one" in said.problem["detail"] and "two" in said.problem["detail"]
    assert 0 == program("wallet", "show", "--wallet", "two").code


def test_a_wallet_is_made_shown_listed_and_taken_elsewhere(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    address = program("wallet", "new").out.strip()
    assert address == program("wallet", "show").out.strip()
    assert address == json.loads(program("wallet", "show", "--json").out)["address"]
    assert [{"name": "default", "address": address, "kind": "wallet"}] == json.loads(program("wallet", "list", "--json").out)
    key = program("wallet", "export", "default", "--private-key", "-y").out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(key.encode())))
    assert address == program("wallet", "import", "copy").out.strip()
    assert 4 == program("wallet", "new").code


def test_a_private_key_is_never_an_argument(program: Program) -> None:
    assert 2 == program("wallet", "import", "copy", "0x" + "1" * 64).code
    said = program("wallet", "import", "copy")
    assert (2, "error: No key was given.") == (said.code, said.err.splitlines()[0])


def test_other_parties_get_names(program: Program) -> None:
    address = "0x" + "ab" * 20
    assert 0 == program("wallet", "alias", "lab", address).code
    assert "lab" in program("wallet", "list").out
    assert 0 == program("wallet", "alias", "lab", "--remove").code
    assert 2 == program("wallet", "alias", "lab").code
    assert 4 == program("wallet", "alias", "lab", "0x12").code


def test_a_setting_says_where_it_came_from(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 == program("config", "set", "wallet", "alice").code
    assert {"value": "alice", "origin": "config.toml"} == json.loads(program("config", "show", "--json").out)["wallet"]
    monkeypatch.setenv("BAZAAR_WALLET", "bob")
    assert {"value": "bob", "origin": "BAZAAR_WALLET"} == json.loads(program("config", "show", "--json").out)["wallet"]
    assert {"value": "carol", "origin": "flag"} == json.loads(program("config", "show", "--json", "--wallet", "carol").out)["wallet"]
    assert "bob" == program("config", "get", "wallet").out.strip()


@pytest.mark.parametrize("arguments", ["wallett x", "market ftp://x", "allow_simulated perhaps", "wallet", "token abc"])
def test_a_setting_that_cannot_be_kept_is_refused(arguments: str, program: Program) -> None:
    said = program("config", "set", *arguments.split(), "--json")
    assert said.code in (1, 2)
    assert said.problem["title"]


def test_a_mistyped_command_is_answered_with_the_nearest(program: Program) -> None:
    assert "did you mean nodes?" in program("nods").err


def test_what_belongs_to_the_script_is_pointed_behind_the_dashes(program: Program) -> None:
    for arguments in (("run", "train.py", "--epochs", "3"), ("run", "train.py", "3")):
        assert "bazaar run SCRIPT -- " in program(*arguments).err


@pytest.mark.parametrize("job", ["j*", ">", "j.a", "../x", "j" * 21, "jA", "", "j1"])
def test_an_id_with_wildcards_is_no_id(job: str, program: Program) -> None:
    program("wallet", "new")
    for command in ("show", "logs", "results", "cancel", "wait"):
        said = program(command, job, "--json")
        assert (3, "unknown_job") == (said.code, said.problem["code"])


def test_a_hostile_word_in_an_error_is_written_out(program: Program) -> None:
    said = program("show", "\x1b]0;owned\x07")
    assert "\x1b" not in said.err
    assert r"\x1b]0;owned\x07" in said.err


def test_bad_specifications_are_usage_errors_before_the_market_is_asked(program: Program) -> None:
    for flags in (("--gpus", "-1"), ("--gpus", "9"), ("--gpus", "two"), ("--vram", "-1"), ("--vram", "1e999"), ("--max-price", "NaN")):
        said = program("run", *flags, "--json", "--", "true")
        assert (2, "", "invalid_spec") == (said.code, said.out, said.problem["code"])
        assert " ".join(flags) == said.problem["title"]


def test_a_filter_that_cannot_be_meant_is_refused(program: Program) -> None:
    for text in ("vram>>1", "colour=red", "price>=1", "vram>=-1", "gpus>=nine"):
        assert (2, "bad_filter") == ((said := program("offers", text, "--json")).code, said.problem["code"])


def test_completion_scripts_are_printed(program: Program) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_BAZAAR_COMPLETE" in program("completion", shell).out
