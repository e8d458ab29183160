"""The units of a seller's service: what systemd would read, and that nobody's changes are lost."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from seller_agent.cli import cli
from seller_agent.node.notifying import notify, watchdog_s
from seller_agent.owner.systemd_units import Service, argument, is_changed, unit_name, units, word

SERVICE = Service(
    node="my box",
    program=("/opt/bazaar/bin/bazaar-seller",),
    run=("--price", "0.35", "--labels", "a=$x%y", "--name", "my box"),
    home="/var/lib/bazaar",
    environment={"BAZAAR_MARKET": "nats://10.0.0.1:4222"},
    system=True,
)


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def as_systemd_reads(line: str) -> list[str]:
    """Quotes as a shell's, then `%%` and `$$`."""
    return [part.replace("%%", "%").replace("$$", "$") for part in shlex.split(line)]


def test_the_agents_unit_says_how_it_is_started_watched_and_ended() -> None:
    read = settings(units(SERVICE)["bazaar-seller-my-box.service"])
    assert ["/opt/bazaar/bin/bazaar-seller", "run", *SERVICE.run] == as_systemd_reads(read["ExecStart"][0])
    assert (["notify"], ["60"], ["always"], ["process"], ["continue"]) == (
        read["Type"],
        read["WatchdogSec"],
        read["Restart"],
        read["KillMode"],
        read["OOMPolicy"],
    )
    assert ["BAZAAR_HOME=/var/lib/bazaar", "BAZAAR_MARKET=nats://10.0.0.1:4222"] == read["Environment"]
    assert "docker.service" in read["After"][0] and "Requires" not in read


def test_the_shelter_leaves_the_cards_and_the_home_open() -> None:
    for text in units(SERVICE).values():
        read = settings(text)
        assert not {"ProtectClock", "PrivateDevices", "DevicePolicy", "DeviceAllow"} & read.keys()
    system = settings(units(SERVICE)["bazaar-seller-my-box.service"])
    assert (["strict"], ["/var/lib/bazaar -/run -/var/run"]) == (system["ProtectSystem"], system["ReadWritePaths"])
    mine = settings(units(Service(node="n", program=("/b",), run=(), home="/home/me/x"))["bazaar-seller-n.service"])
    assert "ProtectSystem" not in mine and ["yes"] == mine["NoNewPrivileges"]


@pytest.mark.parametrize("text", ["plain", "two words", "", 'a "quote"', "back\\slash", "50%", "$HOME", "it's", "semi;colon"])
def test_every_word_reaches_the_program_as_it_was_given(text: str) -> None:
    assert [text] == as_systemd_reads(argument(text))
    if "$" not in text:
        assert [text] == as_systemd_reads(word(text))


def test_a_nodes_name_becomes_a_units_name() -> None:
    assert "bazaar-seller-my-box-a" == unit_name("my box@a")


def test_a_unit_that_was_edited_is_noticed() -> None:
    [text, *_] = units(SERVICE).values()
    assert [False, True, True] == [is_changed(text), is_changed(text + "\n"), is_changed("[Unit]\n")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("system", [True, False])
def test_systemd_itself_finds_nothing_wrong(tmp_path: Path, system: bool) -> None:
    made = units(Service(node="n", program=("/bin/true",), run=("--price", "1"), home=str(tmp_path), system=system))
    for name, text in made.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(["--user"] if not system else []), *(str(tmp_path / name) for name in made)],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (0, "") == (done.returncode, done.stderr.strip())


def install(*arguments: str, home: Path) -> Result:
    return CliRunner().invoke(cli, ["install-service", *arguments], env={"BAZAAR_HOME": str(home)})


def test_the_command_writes_the_units_and_says_what_to_run_next(tmp_path: Path) -> None:
    done = install("--name", "box", "--user", "--to", str(tmp_path / "units"), "--", "--price", "0.35", home=tmp_path)
    assert 0 == done.exit_code, done.output
    assert {"bazaar-seller-box.service", "bazaar-seller-box-reap.service", "bazaar-seller-box-reap.timer"} == {
        path.name for path in (tmp_path / "units").iterdir()
    }
    assert "systemctl --user enable --now bazaar-seller-box.service bazaar-seller-box-reap.timer" in done.output
    assert f"BAZAAR_HOME={tmp_path}" in (tmp_path / "units" / "bazaar-seller-box.service").read_text()


def test_print_writes_nothing(tmp_path: Path) -> None:
    done = install("--name", "box", "--print", "--to", str(tmp_path / "units"), "--", "--price", "0.35", home=tmp_path)
    assert (0, True, False) == (done.exit_code, "Type=notify" in done.output, (tmp_path / "units").exists())


def test_a_unit_that_somebody_changed_is_kept_unless_forced(tmp_path: Path) -> None:
    arguments = ("--name", "box", "--to", str(tmp_path / "units"), "--user")
    unit = tmp_path / "units" / "bazaar-seller-box.service"
    assert 0 == install(*arguments, "--", "--price", "0.35", home=tmp_path).exit_code
    assert 0 == install(*arguments, "--", "--price", "0.40", home=tmp_path).exit_code, "our own may be replaced"
    unit.write_text(unit.read_text() + "Nice=5\n")
    refused = install(*arguments, "--", "--price", "0.50", home=tmp_path)
    assert (True, "changed by hand") == (refused.exception is not None, str(refused.exception)[-16:-1])
    assert "Nice=5" in unit.read_text()
    assert 0 == install(*arguments, "--force", "--", "--price", "0.50", home=tmp_path).exit_code
    assert "0.50" in unit.read_text() and "Nice=5" not in unit.read_text()


@pytest.mark.parametrize("options", [(), ("--price", "0.35", "--no-such-option"), ("--price", "0.35", "--name", "other")])
def test_a_service_that_could_not_start_is_not_written(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = install("--name", "box", "--to", str(tmp_path / "units"), "--", *options, home=tmp_path)
    assert (2, False) == (done.exit_code, (tmp_path / "units").exists())
    assert "give its options after `--`" in done.output or "Give --name before" in done.output


def test_systemd_is_told_only_where_it_listens(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        assert notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert b"READY=1" == systemd.recv(100)
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
    ],
)
def test_the_watchdogs_period_is_ours_alone(environment: dict[str, str], expected: float | None) -> None:
    assert expected == watchdog_s(environment)
