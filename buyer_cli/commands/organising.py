"""`bazaar org` and `bazaar token`: who acts together, and who may read over HTTP. A token's text is shown once and kept nowhere."""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

import click

from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import NOT_FOUND, USAGE, Complaint
from buyer_cli.organisations import own_orgs, own_tokens, pick_org
from buyer_cli.printable import printable
from buyer_cli.render import duration, text
from buyer_cli.session import opened, run_async
from events import ids
from events.delegation import parse_address
from events.errors import Refused
from events.fact import Event
from events.identity import MemberAdded, MemberRemoved, MemberRoleChanged, OrganisationCreated, ReadTokenIssued, ReadTokenRevoked
from events.market_client import MarketClient
from events.quantities import BadValue, duration_s
from events.values import OrgRole
from events.wallet import Keystore

Json = dict[str, Any]
ANSWER_S = 15.0
TOKEN_BYTES = 32
TOKEN_DAYS_MAX = 365
ROLES = [role.value for role in OrgRole]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _tell(client: MarketClient, event: Event) -> int:
    """Send an event and wait for its answer; its place in the ledger. Raises Refused, MarketUnreachable."""
    outcome = await client.submit(event, ANSWER_S)
    if outcome.reason is not None:
        raise Refused(outcome.reason, outcome.detail)
    return outcome.seq


@click.group()
def org() -> None:
    """Organisations: wallets that share jobs, private nodes and read tokens."""


def _address(caller: Caller, given: str) -> str:
    """A wallet by its address, or by a name of the keystore."""
    return parse_address(given) or Keystore(caller.settings.home).find(given).address


@org.command()
@click.argument("name")
@command_flags
def create(caller: Caller, name: str) -> None:
    """Found an organisation; this wallet owns it."""

    async def work() -> Json:
        async with opened(caller) as client:
            org_id = ids.org_id(client.wallet, name)
            await _tell(client, OrganisationCreated(org_id=org_id, name=name))
            return {"id": org_id, "name": name, "owner": client.wallet}

    made = run_async(work())
    if caller.as_json:
        caller.terminal.emit(made)
    else:
        caller.terminal.data(made["id"])
        caller.terminal.note(f"{printable(name)}: take others in with `bazaar org add 0x... --role member`")


ORG_FLAG = click.option("--org", "org_", metavar="NAME|ID", help="Which organisation, when this wallet is in several.")


def _change(caller: Caller, org_: str | None, make: Any) -> None:
    """Tell the market of a change of one organisation's members."""

    async def work() -> Json:
        async with opened(caller) as client:
            found = pick_org(await own_orgs(client), org_, client.wallet)
            await _tell(client, make(found["id"]))
            return found

    found = run_async(work())
    if caller.as_json:
        caller.terminal.emit({"id": found["id"], "name": found["name"]})
    else:
        caller.terminal.note(f"recorded for {text(found['name'])}; `bazaar org show` lists the members")


@org.command()
@click.argument("who", metavar="0x|NAME")
@click.option("--role", type=click.Choice(ROLES), default=OrgRole.MEMBER.value, show_default=True)
@click.option("--alias", metavar="NAME", help="A name for the wallet that all members see.")
@ORG_FLAG
@command_flags
def add(caller: Caller, who: str, role: str, alias: str | None, org_: str | None) -> None:
    """Take a wallet into an organisation. Owners may."""
    address = _address(caller, who)
    _change(caller, org_, lambda org_id: MemberAdded(org_id=org_id, wallet=address, role=OrgRole(role), alias=alias))


@org.command("role")
@click.argument("who", metavar="0x|NAME")
@click.argument("role", type=click.Choice(ROLES))
@ORG_FLAG
@command_flags
def role_(caller: Caller, who: str, role: str, org_: str | None) -> None:
    """Change what a member may do: owners decide who belongs, members submit jobs, viewers look."""
    address = _address(caller, who)
    _change(caller, org_, lambda org_id: MemberRoleChanged(org_id=org_id, wallet=address, role=OrgRole(role)))


@org.command()
@click.argument("who", metavar="0x|NAME")
@ORG_FLAG
@command_flags
def remove(caller: Caller, who: str, org_: str | None) -> None:
    """Take a member out; a member may leave by itself. The last owner stays."""
    address = _address(caller, who)
    _change(caller, org_, lambda org_id: MemberRemoved(org_id=org_id, wallet=address))


def _orgs(caller: Caller) -> tuple[list[Json], str]:
    async def work() -> tuple[list[Json], str]:
        async with opened(caller) as client:
            return await own_orgs(client), client.wallet

    return run_async(work())


@org.command("list")
@command_flags
def list_orgs(caller: Caller) -> None:
    """The organisations that this wallet is in."""
    found, wallet = _orgs(caller)
    if caller.as_json:
        caller.terminal.emit(found)
        return
    rows = [(text(one["name"]), _role_in(one, wallet), str(len(one["members"])), text(one["id"])) for one in found]
    caller.terminal.table(("NAME", "MY ROLE", "MEMBERS", "ID"), rows, empty="this wallet is in no organisation; `bazaar org create NAME`")


def _role_in(one: Json, wallet: str) -> str:
    return next((text(member["role"]) for member in one["members"] if member["wallet"] == wallet), "-")


@org.command("show")
@click.argument("org_", required=False, metavar="[NAME|ID]")
@command_flags
def show_org(caller: Caller, org_: str | None) -> None:
    """The members of an organisation."""
    found, wallet = _orgs(caller)
    one = pick_org(found, org_, wallet)
    if caller.as_json:
        caller.terminal.emit(one)
        return
    caller.terminal.note(f"{text(one['name'])} ({text(one['id'])})")
    rows = [(text(member["alias"]), text(member["role"]), text(member["wallet"])) for member in one["members"]]
    caller.terminal.table(("ALIAS", "ROLE", "WALLET"), rows)


@click.group()
def token() -> None:
    """Read tokens for the market's HTTP API, for dashboards and programs that have no wallet."""


@token.command("create")
@click.argument("name")
@click.option(
    "--for", "validity", metavar="TIME", default="30d", show_default=True, help=f"How long it is valid, at most {TOKEN_DAYS_MAX}d."
)
@click.option("--org", "org_", metavar="NAME|ID", help="It shows the organisation's jobs, too.")
@command_flags
def create_token(caller: Caller, name: str, validity: str, org_: str | None) -> None:
    """Make a read token and print it, this once: the market keeps its hash only."""
    validity_ms = _validity_ms(validity)
    secret = secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    expires_ms = now_ms() + validity_ms

    async def work() -> None:
        async with opened(caller) as client:
            org_id = None if org_ is None else pick_org(await own_orgs(client), org_, client.wallet)["id"]
            await _tell(client, ReadTokenIssued(token_sha256=digest, name=name, expires_ms=expires_ms, org_id=org_id))

    run_async(work())
    if caller.as_json:
        caller.terminal.emit({"token": secret, "name": name, "id": digest[:12], "expires_ms": expires_ms})
        return
    caller.terminal.data(secret)
    caller.terminal.note(
        f"valid for {duration(validity_ms / 1000)}, shown this once; set BAZAAR_TOKEN, or send it as `Authorization: Bearer`"
    )


def _validity_ms(given: str) -> int:
    try:
        seconds = duration_s(given)
    except BadValue as error:
        raise Complaint("usage", f"--for {printable(given)}", error.why, error.hint, exit_code=USAGE) from None
    if seconds > TOKEN_DAYS_MAX * 86_400:
        raise Complaint(
            "usage", f"--for {printable(given)}", f"a token is valid for at most {TOKEN_DAYS_MAX} days", "--for 365d", exit_code=USAGE
        )
    return seconds * 1000


@token.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="Expired and revoked ones too.")
@command_flags
def list_tokens(caller: Caller, everything: bool) -> None:
    """This wallet's read tokens."""
    found = [one for one in _tokens(caller) if everything or one["state"] == "valid"]
    if caller.as_json:
        caller.terminal.emit(found)
        return
    rows = [(text(one["name"]), text(one["state"]), _left(one), text(one["org"]), text(one["id"])) for one in found]
    caller.terminal.table(("NAME", "STATE", "LEFT", "ORGANISATION", "ID"), rows, empty="no read token; `bazaar token create NAME`")


def _left(one: Json) -> str:
    return duration(max(0, one["expires_ms"] - now_ms()) / 1000) if one["state"] == "valid" else "-"


def _tokens(caller: Caller) -> list[Json]:
    async def work() -> list[Json]:
        async with opened(caller) as client:
            return await own_tokens(client)

    return run_async(work())


@token.command()
@click.argument("name_or_id", metavar="NAME|ID")
@command_flags
def revoke(caller: Caller, name_or_id: str) -> None:
    """Make a read token void at once."""

    async def work() -> Json:
        async with opened(caller) as client:
            valid = [one for one in await own_tokens(client) if one["state"] == "valid" and one["wallet"] == client.wallet]
            found = [one for one in valid if one["id"] == name_or_id] or [one for one in valid if one["name"] == name_or_id]
            if len(found) > 1:
                listed = ", ".join(one["id"] for one in found)
                raise Complaint("ambiguous", f"{len(found)} tokens are called so.", listed, "name it by its id", exit_code=USAGE)
            if not found:
                what = f"This wallet has no valid token {printable(name_or_id)}."
                raise Complaint("unknown_token", what, "", "bazaar token list", exit_code=NOT_FOUND)
            await _tell(client, ReadTokenRevoked(token_sha256=found[0]["sha256"]))
            return found[0]

    gone = run_async(work())
    if caller.as_json:
        caller.terminal.emit({"id": gone["id"], "name": gone["name"], "state": "revoked"})
    else:
        caller.terminal.note(f"{text(gone['name'])} is void")
