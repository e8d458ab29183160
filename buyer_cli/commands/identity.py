"""`bazaar wallet` and `bazaar login`: who acts, and which key speaks for him. Keys themselves stay in events/wallet.py."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import USAGE, Complaint
from buyer_cli.session import passphrases
from events.home import choose_wallet, read_secret, write_private
from events.values import Role
from events.wallet import Created, Keystore


@click.group()
def wallet() -> None:
    """Make, import and list wallets. A wallet is who you are on the market; its key stays in the keystore."""


def _tell(caller: Caller, created: Created) -> None:
    if created.notice:
        caller.terminal.note(created.notice)
    if caller.as_json:
        caller.terminal.emit({"name": created.wallet.name, "address": created.wallet.address})
    else:
        caller.terminal.data(created.wallet.address)


@wallet.command()
@click.argument("name", default="default")
@command_flags
def new(caller: Caller, name: str) -> None:
    """Make a wallet and print its address."""
    _tell(caller, Keystore(caller.settings.home).create(name, passphrases(caller)))


@wallet.command("import")
@click.argument("name", default="default")
@click.option("--from", "source", metavar="FILE", help="A keystore file (v3), or the private key in hex. Default: standard input.")
@command_flags
def import_(caller: Caller, name: str, source: str | None) -> None:
    """Take in a wallet made elsewhere. The key is never an argument: those are visible to everybody on the machine."""
    keystore = Keystore(caller.settings.home)
    if source is not None:
        text = read_secret(Path(source), "The key file").decode(errors="replace")
    elif caller.terminal.is_interactive:
        text = str(click.prompt("Private key (64 hex digits, not shown)", hide_input=True, err=True))
    else:
        text = sys.stdin.read(1 << 16)
    if not text.strip():
        raise Complaint("no_key", "No key was given.", "Standard input is empty.", "bazaar wallet import NAME < FILE", exit_code=USAGE)
    if text.lstrip().startswith("{"):
        opener = passphrases(caller).open(f"{name} (as it was elsewhere)", Path("/nonexistent"))
        _tell(caller, keystore.import_file(name, text, opener, passphrases(caller)))
    else:
        _tell(caller, keystore.import_key(name, text, passphrases(caller)))


@wallet.command("list")
@command_flags
def list_(caller: Caller) -> None:
    """The wallets of this home, and the names given to other parties."""
    keystore = Keystore(caller.settings.home)
    known, aliases = keystore.wallets(), keystore.aliases()
    if caller.as_json:
        own = [{"name": entry.name, "address": entry.address, "kind": "wallet"} for entry in known]
        caller.terminal.emit([*own, *({"name": name, "address": address, "kind": "alias"} for name, address in sorted(aliases.items()))])
        return
    rows = [(entry.name, entry.address, "") for entry in known] + [(name, address, "alias") for name, address in sorted(aliases.items())]
    caller.terminal.table(("NAME", "ADDRESS", ""), rows, empty="no wallet yet; `bazaar wallet new` makes one")


@wallet.command()
@click.argument("name", required=False)
@command_flags
def show(caller: Caller, name: str | None) -> None:
    """Print the address of a wallet; without NAME, of the one that would act now."""
    settings = caller.settings
    found = Keystore(settings.home).find(name) if name else choose_wallet(settings, Role.BUYER)
    if caller.as_json:
        caller.terminal.emit({"name": found.name, "address": found.address})
    else:
        caller.terminal.data(found.address)


@wallet.command()
@click.argument("name")
@click.option("--private-key", is_flag=True, help="The bare private key instead of the encrypted file: whoever has it is the wallet.")
@click.option("-o", "--output", metavar="FILE", help="Write to a file (0600) instead of standard output.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@command_flags
def export(caller: Caller, name: str, private_key: bool, output: str | None, yes: bool) -> None:
    """Print a wallet's encrypted keystore file, for other programs or as a copy."""
    keystore = Keystore(caller.settings.home)
    if private_key and not yes and not caller.terminal.confirm(f"Show the private key of {name} in the open?", default=False):
        raise click.Abort
    text = keystore.export_key(name, passphrases(caller)) if private_key else keystore.export_file(name)
    if output is not None:
        write_private(Path(output), text.encode() + b"\n")
        caller.terminal.note(f"written to {output}, readable by you only")
    elif caller.as_json:
        caller.terminal.emit({"name": name, "private_key" if private_key else "keystore": text})
    else:
        caller.terminal.data(text.rstrip("\n"))


@wallet.command()
@click.argument("name")
@click.argument("address", required=False)
@click.option("--remove", is_flag=True, help="Take the name away.")
@command_flags
def alias(caller: Caller, name: str, address: str | None, remove: bool) -> None:
    """Give another party's address a name of your own; `list` shows them."""
    if remove == (address is not None):
        raise Complaint("usage", "An alias needs an address, or --remove.", "", "bazaar wallet alias NAME 0x...", exit_code=USAGE)
    Keystore(caller.settings.home).alias(name, address)
    if caller.as_json:
        caller.terminal.emit({"name": name, "address": address})
