"""`bazaar wallet` and `bazaar login`: who acts, and which key speaks for him. Keys themselves stay in events/wallet.py."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import click

from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import USAGE, Complaint
from buyer_cli.render import duration
from buyer_cli.session import passphrases
from events.home import choose_wallet, read_secret, write_private
from events.login import ensure_session, find_market_id
from events.quantities import BadValue, duration_s
from events.session import Session, SessionStore, make_session, read_session, write_session
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


@wallet.command("list", short_help="The wallets of this home.")
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


@wallet.command(short_help="Print the address of a wallet.")
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


@wallet.command(short_help="Print a wallet's encrypted keystore file.")
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


@wallet.command(short_help="Give another party's address a name.")
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


@click.command()
@click.option("--for", "validity", metavar="TIME", help="How long the session key may speak for the wallet. Default 24h; 30d for a seller.")
@click.option("--role", type=click.Choice(["buyer", "seller"]), default="buyer", show_default=True)
@click.option("-o", "--output", metavar="FILE", help="Write it to a file for another machine, which then needs no keystore.")
@click.option("--use", "source", metavar="FILE", help="Take in such a file here.")
@command_flags
def login(caller: Caller, validity: str | None, role: str, output: str | None, source: str | None) -> None:
    """Let a fresh session key speak for the wallet. Done by itself when none is here; the wallet's key is not needed after that."""
    if source is not None:
        session = read_session(Path(source))
        SessionStore(caller.settings.home, session.market_id).save(session)
        where = "kept here"
    else:
        session = asyncio.run(_log_in(caller, Role(role), _validity_ms(validity), stays_here=output is None))
        where = "kept here"
        if output is not None:
            write_session(session, Path(output))
            where = f"written to {output}, readable by you only: whoever has that file is {session.wallet} until then"
    if caller.as_json:
        told = {"wallet": session.wallet, "role": session.role.value, "key": session.key.hex(), "market_id": session.market_id}
        caller.terminal.emit({**told, "expires_ms": session.expires_ms, "file": output})
        return
    left = duration((session.expires_ms - time.time_ns() // 1_000_000) // 1000)
    caller.terminal.note(f"{session.wallet} is logged in as {session.role.value} for {left}; {where}")


def _validity_ms(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return duration_s(text) * 1000
    except BadValue as error:
        raise Complaint("usage", f"--for {text}", error.why, error.hint, exit_code=USAGE) from None


async def _log_in(caller: Caller, role: Role, validity_ms: int | None, *, stays_here: bool) -> Session:
    settings, keys = caller.settings, passphrases(caller)
    market_id = await find_market_id(settings)
    if stays_here:
        return await ensure_session(settings, role, keys, market_id=market_id, validity_ms=validity_ms, fresh=True)
    signer = Keystore(settings.home).unlock(choose_wallet(settings, role).name, keys)
    return make_session(signer, market_id, role, now_ms=time.time_ns() // 1_000_000, validity_ms=validity_ms)
