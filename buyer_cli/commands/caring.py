"""`bazaar config` and `bazaar completion`: where settings come from, and help for the shell."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import USAGE, Complaint
from buyer_cli.printable import printable
from events.home import resolve, write_config

SETTABLE = ("market", "api", "wallet", "passphrase_file", "allow_simulated")
"""A token is no such key: it would stand in the shell's history. It comes from BAZAAR_TOKEN."""


@click.group()
def config() -> None:
    """Settings, and where each comes from: flag, environment, config.toml, default."""


@config.command("show")
@command_flags
def show(caller: Caller) -> None:
    """Every setting with its origin."""
    rows = caller.settings.rows()
    if caller.as_json:
        caller.terminal.emit({name: {"value": value, "origin": origin} for name, value, origin in rows})
    else:
        caller.terminal.table(("SETTING", "VALUE", "FROM"), [(name, printable(value or "-"), origin) for name, value, origin in rows])


@config.command("get")
@click.argument("key")
@command_flags
def get(caller: Caller, key: str) -> None:
    """The value of one setting; nothing when it has none."""
    values = {name: value for name, value, _ in caller.settings.rows()}
    if key not in values:
        raise _unknown(key, tuple(values))
    if caller.as_json:
        caller.terminal.emit({key: values[key]})
    elif values[key] is not None:
        caller.terminal.data(printable(values[key] or ""))


@config.command("set")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--unset", is_flag=True, help="Take the key out of config.toml.")
@command_flags
def set_(caller: Caller, key: str, value: str | None, unset: bool) -> None:
    """Write a setting to config.toml."""
    if key not in SETTABLE:
        raise _unknown(key, SETTABLE)
    if unset == (value is not None):
        raise Complaint("usage", "A setting needs a value, or --unset.", "", f"bazaar config set {key} VALUE", exit_code=USAGE)
    home = caller.settings.home
    written: str | bool | None = value
    if key == "allow_simulated" and value is not None:
        if value.lower() not in {"true", "false", "1", "0", "yes", "no"}:
            raise Complaint("usage", f"{value} is neither yes nor no.", "", "bazaar config set allow_simulated true", exit_code=USAGE)
        written = value.lower() in {"true", "1", "yes"}
    elif value is not None:
        resolve({**caller.flags, key: value}, os.environ)  # an address that is none is refused before it is kept
    write_config(home, {key: written})
    if caller.as_json:
        caller.terminal.emit({key: written})
    else:
        caller.terminal.note(f"written to {home / 'config.toml'}")


def _unknown(key: str, keys: tuple[str, ...]) -> Complaint:
    return Complaint("usage", f"There is no setting {printable(key)}.", f"The settings are {', '.join(keys)}.", exit_code=USAGE)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@command_flags
def completion(caller: Caller, shell: str | None) -> None:
    """Print the completion script of a shell: eval "$(bazaar completion bash)"."""
    from buyer_cli.cli import bazaar

    chosen = shell or os.path.basename(os.environ.get("SHELL", "bash"))
    kind = get_completion_class(chosen)
    if kind is None:
        raise Complaint("usage", f"There is no completion for {chosen}.", "", "bazaar completion bash", exit_code=USAGE)
    script = kind(bazaar, {}, "bazaar", "_BAZAAR_COMPLETE").source()
    if caller.as_json:
        caller.terminal.emit({"shell": chosen, "script": script})
    else:
        caller.terminal.data(script)
