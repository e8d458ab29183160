"""`bazaar-market policy`, `limit`, `pause`, `resume`, `cancel`, `node`: what an operator may change, each as one dated event."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
import msgspec

from events.delegation import parse_address
from events.fact import Event
from events.home import MARKET_WALLET, Settings, known_wallets, resolve
from events.jobs import JobCancelRequested
from events.market import LimitChanged, MatchingPaused, MatchingResumed, NodeBanned, Policy, PolicyChanged
from events.nodes import NodeDrained, NodeResumed
from events.quantities import BadValue, duration_s, priority, uusd, whole
from projections.market import Limit

as_json = click.option("--json", "json_out", is_flag=True, help="One JSON object on stdout.")
MOST_UUSD = 10**15
F = TypeVar("F", bound=Callable[..., Any])


def settings() -> Settings:
    """What the environment and `config.toml` say; the operator is the market's own wallet where that lies here, whoever buys."""
    found = resolve({}, os.environ)
    is_here = any(wallet.name == MARKET_WALLET for wallet in known_wallets(found.home))
    return resolve({"wallet": MARKET_WALLET}, os.environ) if is_here else found


def _order(event: Event, said: str, json_out: bool) -> None:
    """Say it, and tell where it stands."""
    from services.commands.operating import order

    seq = order(settings(), event)
    if json_out:
        click.echo(json.dumps({"seq": seq}))
    else:
        click.echo(f"{said} (event {seq})", err=True)


NONE = object()
"""`none` was written."""


def _value(flag: str, field: str, metavar: str, read: Callable[[str], Any], text: str, *, may_be_none: bool = False) -> Callable[[F], F]:
    """An option that is read as the buyer's flags are; `none` takes a value away where that means something."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        if value is None or (may_be_none and value == "none"):
            return None if value is None else NONE
        try:
            return read(value)
        except BadValue as error:
            hint = error.hint + (", or none" if may_be_none else "")
            raise click.BadParameter(f"{value[:60]!r}: {error.why}; {hint}", ctx, param) from None

    return click.option(flag, field, metavar=metavar, callback=convert, help=text)


def _many(text: str) -> int:
    return whole(text, 1, 10**6)


def _cards(text: str) -> int:
    return whole(text, 0, 10**6)


def _money(text: str) -> int:
    return uusd(text, MOST_UUSD)


def _queue(text: str) -> int:
    return whole(text, 1, 10**7)


# -- policy --


def policy_named(name: str) -> str:
    """The policy's own name. Raises click.UsageError with the names that there are."""
    from services.matcher.policies import POLICIES

    chosen = name.replace("_", "-").lower()
    if chosen not in POLICIES:
        raise click.UsageError(f"unknown policy {name[:60]!r}; there are {', '.join(POLICIES)}")
    return chosen


@click.group()
def policy() -> None:
    """Who goes first, and how much of everything at once."""


@policy.command("show")
@as_json
def policy_show(json_out: bool) -> None:
    """The rules in force, and since when."""
    from services.commands.operating import rules

    found = rules(settings())
    if json_out:
        told = {"policy": msgspec.to_builtins(found.policy) | msgspec.structs.asdict(found.policy), "sentence": found.sentence}
        click.echo(json.dumps(told | {"since_seq": found.policy_seq, "since_ms": found.policy_ms, "paused": found.paused}))
        return
    since = datetime.fromtimestamp(found.policy_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(f"{found.policy.name}: {found.sentence}")
    click.echo(f"  since                {since} (event {found.policy_seq})" + ("; matching is paused" if found.paused else ""))
    for name, value in msgspec.structs.asdict(found.policy).items():
        if name != "name":
            shown = {None: "no limit", True: "on", False: "off"}.get(value, value) if value is None or isinstance(value, bool) else value
            click.echo(f"  {name:<20} {shown}")


@policy.command("set")
@click.argument("name", required=False, metavar="[priority|fcfs|sjf|fair-share|least-backlog]")
@_value("--max-concurrent", "max_concurrent", "N", _many, "Jobs that run at once in the whole market, or none.", may_be_none=True)
@_value("--max-queue", "max_queue", "N", _queue, "Queued jobs of one wallet.")
@click.option("--auto-retry", type=click.Choice(["on", "off"]), help="Whether failures that are not a job's own are tried again.")
@click.option("--keep-place", type=click.Choice(["on", "off"]), help="Whether a place is kept for the first job that must wait.")
@_value("--timeout-batch", "timeout_batch_s", "TIME", duration_s, "Timeout of a batch job that names none.")
@_value("--timeout-notebook", "timeout_notebook_s", "TIME", duration_s, "The same of a notebook.")
@_value("--timeout-container", "timeout_container_s", "TIME", duration_s, "The same of a container.")
@_value("--ageing", "ageing_s_per_point", "SECONDS", _cards, "Under priority: the head start of one point; 0: no ageing.")
@_value("--half-life", "half_life_s", "TIME", duration_s, "Under fair-share: use so long ago counts half.")
@as_json
def policy_set(name: str | None, json_out: bool, **changes: Any) -> None:
    """Change the policy, or any of its numbers; what is not named stays."""
    from services.commands.operating import rules

    given = {field: None if value is NONE else value for field, value in changes.items() if value is not None}
    for switch in {"auto_retry", "keep_place"} & given.keys():
        given[switch] = given[switch] == "on"
    if name is not None:
        given["name"] = policy_named(name)
    if not given:
        raise click.UsageError("name a policy, or at least one thing to change")
    changed = msgspec.structs.replace(rules(settings()).policy, **given)
    _order(PolicyChanged(policy=changed), f"The policy is {changed.name}", json_out)


def first_policy(name: str | None, environment: Mapping[str, str]) -> Policy:
    """The rules of a new market, from the flag and the environment. Raises click.UsageError."""
    chosen = policy_named(name or environment.get("BAZAAR_POLICY") or Policy().name)
    max_queue = environment.get("BAZAAR_MAX_QUEUE") or str(Policy().max_queue)
    if not max_queue.isascii() or not max_queue.isdigit() or not 1 <= int(max_queue) <= 10**7:
        raise click.UsageError(f"BAZAAR_MAX_QUEUE must be a number from 1 to {10**7}, not {max_queue[:60]!r}")
    return Policy(name=chosen, max_queue=int(max_queue))


# -- limits --


@click.group()
def limit() -> None:
    """What a wallet or an organisation may use."""


def party_named(text: str) -> str:
    """The address or organisation that is meant: 0x address, wallet of this home, id or name of an organisation."""
    from services.commands.operating import find

    address = parse_address(text)
    if address is not None:
        return address
    for wallet in known_wallets(settings().home):
        if wallet.name == text:
            return wallet.address
    return find(settings(), "party", text).id


@limit.command("set")
@click.argument("who", metavar="WALLET|ORG")
@_value("--gpus", "gpus", "N", _cards, "Cards at once, or none.", may_be_none=True)
@_value("--spend-day", "spend_day_uusd", "USD", _money, "USD a day (UTC), or none.", may_be_none=True)
@_value("--spend-month", "spend_month_uusd", "USD", _money, "USD a month (UTC), or none.", may_be_none=True)
@_value("--priority-max", "priority_max", "LEVEL", priority, "The highest priority, or none.", may_be_none=True)
@as_json
def limit_set(who: str, json_out: bool, **changes: Any) -> None:
    """Limit a wallet or an organisation; what is not named stays, `none` lifts a limit. Stops new matches only."""
    from services.commands.operating import rules
    from services.matcher.limit_words import beyond

    given = {field: None if value is NONE else value for field, value in changes.items() if value is not None}
    if not given:
        raise click.UsageError("name at least one limit: --gpus, --spend-day, --spend-month or --priority-max")
    party = party_named(who)
    before = next((use.limit for use in rules(settings()).limits if use.party == party), Limit())
    changed = msgspec.structs.asdict(before) | given
    _order(LimitChanged(party=party, **changed), f"{party} is limited to {_limit_text(Limit(**changed))}", json_out)
    use = next((use for use in rules(settings()).limits if use.party == party), None)
    if use is not None and not json_out:
        for line in beyond(use):
            click.echo(line, err=True)


@limit.command("show")
@as_json
def limit_show(json_out: bool) -> None:
    """Every limit, and how far it is used."""
    from services.commands.operating import rules

    found = rules(settings()).limits
    if json_out:
        click.echo(json.dumps([msgspec.structs.asdict(use) | {"limit": msgspec.structs.asdict(use.limit)} for use in found]))
        return
    if not found:
        click.echo("nobody is limited", err=True)
    for use in found:
        used = f"has {_gpus(use.gpus)}, spent {_usd(use.day_uusd)} today and {_usd(use.month_uusd)} this month"
        click.echo(f"{use.party}  {_limit_text(use.limit)}; {used}, {_usd(use.committed_uusd)} more at most by what runs")


def _usd(amount_uusd: int) -> str:
    return f"{amount_uusd // 10**6}.{amount_uusd % 10**6:06d}".rstrip("0").ljust(len(str(amount_uusd // 10**6)) + 3, "0") + " USD"


def _gpus(number: int) -> str:
    return "1 GPU" if number == 1 else f"{number} GPUs"


def _limit_text(limit: Limit) -> str:
    parts = [
        f"{_gpus(limit.gpus)} at once" if limit.gpus is not None else "",
        f"{_usd(limit.spend_day_uusd)} a day" if limit.spend_day_uusd is not None else "",
        f"{_usd(limit.spend_month_uusd)} a month" if limit.spend_month_uusd is not None else "",
        f"priority {limit.priority_max} at most" if limit.priority_max is not None else "",
    ]
    return ", ".join(part for part in parts if part) or "nothing: all limits are lifted"


# -- the market as a whole --


@click.command()
@as_json
def pause(json_out: bool) -> None:
    """Match nothing new until `resume`; what runs goes on, and jobs may be submitted."""
    _order(MatchingPaused(), "Matching is paused", json_out)


@click.command()
@as_json
def resume(json_out: bool) -> None:
    """Match again."""
    _order(MatchingResumed(), "Matching goes on", json_out)


@click.command()
@click.argument("job")
@as_json
def cancel(job: str, json_out: bool) -> None:
    """Cancel anybody's job; its buyer is told that the operator did."""
    from services.commands.operating import find

    whole_id = job if len(job) == 20 else find(settings(), "job", job).id
    _order(JobCancelRequested(job_id=whole_id), f"{whole_id} is being cancelled", json_out)


# -- nodes --


@click.group()
def node() -> None:
    """Take a node off the market, for a while or for good."""


reason_option = click.option("--reason", default="", metavar="TEXT", help="Why; everybody can read it.")


@node.command("drain")
@click.argument("node", metavar="NODE")
@reason_option
@_value("--deadline", "deadline", "TIME", duration_s, "What still runs then is evicted.")
@as_json
def node_drain(node: str, reason: str, deadline: int | None, json_out: bool) -> None:
    """No new jobs there; what runs may end."""
    from services.commands.operating import find

    found = find(settings(), "node", node)
    deadline_ms = None if deadline is None else time.time_ns() // 1_000_000 + deadline * 1000
    event = _with_reason(NodeDrained, node_id=found.id, reason=reason, deadline_ms=deadline_ms)
    _order(event, f"{found.name} takes no new jobs", json_out)


@node.command("resume")
@click.argument("node", metavar="NODE")
@as_json
def node_resume(node: str, json_out: bool) -> None:
    """New jobs again; lifts a ban, too."""
    from services.commands.operating import find

    found = find(settings(), "node", node)
    event = NodeBanned(node_id=found.id, lifted=True) if found.state == "banned" else NodeResumed(node_id=found.id)
    _order(event, f"{found.name} takes jobs again", json_out)


@node.command("ban")
@click.argument("node", metavar="NODE")
@reason_option
@as_json
def node_ban(node: str, reason: str, json_out: bool) -> None:
    """No new jobs there, and only the operator can undo it."""
    from services.commands.operating import find

    found = find(settings(), "node", node)
    _order(_with_reason(NodeBanned, node_id=found.id, reason=reason), f"{found.name} is banned", json_out)


def _with_reason(kind: type[NodeDrained] | type[NodeBanned], **values: Any) -> Event:
    """The event, if its reason holds only what may stand in the ledger. Raises click.UsageError."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError:
        raise click.UsageError("a reason is letters, digits, spaces and . _ @ + , : -, at most 100") from None
