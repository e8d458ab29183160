"""`bazaar-seller install-service`: writes the node's systemd units and says what to run next. Starts nothing itself."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import sys
from pathlib import Path

import click

from events.errors import BazaarError
from events.home import VARIABLES, private_folder, resolve
from seller_agent.commands.options import say
from seller_agent.owner.offers import node_name
from seller_agent.owner.systemd_units import Service, is_changed, unit_name, units

KEPT = ("market", "api", "wallet", "passphrase_file")
"""Settings whose variables, set now, the service gets as well."""


class UnitChanged(BazaarError):
    """A unit was edited by hand."""

    what = "A unit there was changed by hand."


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--name", metavar="N", help="The node's name; by default this machine's.")
@click.option("--system/--user", "system", default=None, help="For the whole machine, or for this user; by default as you are.")
@click.option("--run-as", metavar="USER", help="With --system: whose agent it is; by default root.")
@click.option("--to", "folder", type=click.Path(file_okay=False), help="Write there instead of systemd's own folder.")
@click.option("--print", "only_print", is_flag=True, help="Show the units, write nothing.")
@click.option("--force", is_flag=True, help="Overwrite units that were changed by hand.")
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout: the paths written.")
@click.argument("run_options", nargs=-1, type=click.UNPROCESSED)
def install_service(
    name: str | None,
    system: bool | None,
    run_as: str | None,
    folder: str | None,
    only_print: bool,
    *,
    force: bool,
    json_out: bool,
    run_options: tuple[str, ...],
) -> None:
    """Run this node's agent as a systemd service. RUN_OPTIONS are those of `run`, such as `-- --price 0.35`."""
    system = os.geteuid() == 0 if system is None else system
    node = node_name(name, socket.gethostname())
    home = _home(run_as)
    service = Service(
        node=node,
        program=_program(),
        run=(*_checked(run_options), "--name", node),
        home=str(home),
        environment={VARIABLES[one]: os.environ[VARIABLES[one]] for one in KEPT if os.environ.get(VARIABLES[one])},
        system=system,
        user=run_as,
    )
    made = units(service)
    if only_print:
        for file, text in made.items():
            click.echo(f"# {file}\n{text}")
        return
    target = Path(folder) if folder is not None else _folder(system)
    written = _write(target, made, force=force)
    if folder is None:
        _make_home(home, run_as)
    if json_out:
        click.echo(json.dumps({"node": node, "units": [str(path) for path in written]}))
    for line in _next_steps(service):
        say(line)


def _home(run_as: str | None) -> Path:
    """Of whoever runs the agent: this one's, or the other user's own. Raises click.UsageError."""
    if run_as is None or os.environ.get(VARIABLES["home"]):
        return resolve({}, os.environ).home
    try:
        return Path(pwd.getpwnam(run_as).pw_dir) / ".local" / "share" / "gpubazaar"
    except KeyError:
        raise click.UsageError(f"there is no user {run_as!r} here") from None


def _make_home(home: Path, run_as: str | None) -> None:
    """systemd opens the folder for writing before the agent could make it."""
    if not home.exists():
        private_folder(home)
        if run_as is not None:
            shutil.chown(home, run_as)


def _program() -> tuple[str, ...]:
    """The command as it is installed beside this Python, else the module."""
    beside = Path(sys.executable).with_name("bazaar-seller")
    if beside.exists():
        return (str(beside),)
    found = shutil.which("bazaar-seller")
    return (os.path.abspath(found),) if found is not None else (sys.executable, "-m", "seller_agent")


def _checked(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options of `run`, read as `run` would: a service that cannot start should not be written. Raises click.UsageError."""
    from seller_agent.cli import cli

    run = cli.get_command(click.Context(cli), "run")
    assert run is not None
    given = list(options)
    if "--name" in given:
        raise click.UsageError("Give --name before the `--`.")
    try:
        run.make_context("run", list(given))
    except click.UsageError as error:
        said = error.format_message()
        raise click.UsageError(
            f"{said} The service runs `bazaar-seller run`: give its options after `--`, such as `-- --price 0.35`."
        ) from None
    return tuple(given)


def _folder(system: bool) -> Path:
    if system:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def _write(folder: Path, made: dict[str, str], *, force: bool) -> list[Path]:
    """All of them or none. Raises UnitChanged, BazaarError."""
    paths = {folder / file: text for file, text in made.items()}
    try:
        changed = [path for path in paths if path.exists() and is_changed(path.read_text())]
        if changed and not force:
            raise UnitChanged(why=", ".join(map(str, changed)), hint="Move it away, or use --force; --print shows the new one.")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in paths.items():
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(text)
            temporary.replace(path)
    except OSError as error:
        raise BazaarError("The units cannot be written.", why=f"{folder}: {error.strerror}", hint="Use sudo, --user, or --print.") from None
    return list(paths)


def _next_steps(service: Service) -> list[str]:
    name, control = unit_name(service.node), "systemctl" if service.system else "systemctl --user"
    lines = [f"Written: {name}.service, {name}-reap.service, {name}-reap.timer. Now run:"]
    lines += [f"  {control} daemon-reload", f"  {control} enable --now {name}.service {name}-reap.timer"]
    if not service.system:
        lines.append("  loginctl enable-linger    # so that it also runs while you are logged out")
    lines.append(f"Look with `{control} status {name}` and `journalctl {'' if service.system else '--user '}-u {name}`.")
    lines.append("Stopping the service gives running jobs back to the market; after a crash or a kill -9 they are found again.")
    return lines
