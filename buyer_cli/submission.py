"""Submits plans: names become node ids, files are stored, facts are published and their answers awaited. Shell."""

from __future__ import annotations

import asyncio
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from buyer_cli import render
from buyer_cli.api_reads import Api
from buyer_cli.complaint import NO_PLACE, Complaint
from buyer_cli.finding import find_node
from buyer_cli.gangs import ranks_of, submit_together
from buyer_cli.inputs import InputFile
from buyer_cli.organisations import own_orgs, pick_org
from buyer_cli.placing import Manner, agreed
from buyer_cli.planning import Plan
from buyer_cli.secret_values import SecretValues
from buyer_cli.session import asks_files
from buyer_cli.spec import submission
from buyer_cli.terminal import Terminal
from events import files, ids
from events.errors import MarketUnreachable, Refused
from events.jobs import JobSubmitted
from events.market_client import MarketClient
from events.sealing import Secrets, seal
from events.values import BlobRef

ANSWER_S = 30.0
_NODE_ID = re.compile(r"n[a-z2-7]{15}")


class Submitted(NamedTuple):
    """A job that the market has taken, at this place in the ledger."""

    order: JobSubmitted
    plan: Plan
    seq: int


async def orders_for(client: MarketClient, api: Api, plans: list[Plan]) -> list[JobSubmitted]:
    """The facts of these plans, without their files. Raises SpecError, Complaint for a target that does not exist."""
    group_id = ids.group_id(secrets.token_bytes(12)) if len(plans) > 1 else None
    policy = (client.last_sync or await client.sync()).policy
    orders = []
    for plan in plans:
        node_id, job_id = await _node_id(api, plan), ids.job_id(secrets.token_bytes(12))
        org_id = None if plan.wish.org is None else pick_org(await own_orgs(client), plan.wish.org, client.wallet)["id"]
        order = submission(plan.wish, plan.argv, job_id, node_id=node_id, group_id=group_id, org_id=org_id, policy=policy)
        orders.append(order)
    return orders


async def _node_id(api: Api, plan: Plan) -> str | None:
    """The node that is meant. What is no card of it is refused here, before anything of several jobs is submitted."""
    target = plan.wish.target
    if target is None:
        return None
    named = _NODE_ID.fullmatch(target.node) is not None
    try:
        nodes = await asyncio.to_thread(api.items, "/v1/nodes")
    except MarketUnreachable:
        if not named:
            raise
        return target.node  # the market itself knows it
    node = await _on_the_market(api, nodes, target.node)
    _has_cards(node, target.cards)
    return str(node["id"])


async def _on_the_market(api: Api, nodes: list[dict[str, Any]], asked: str) -> dict[str, Any]:
    """The node that is meant. Raises Complaint, which tells of one that was there once."""
    try:
        return find_node(nodes, asked)
    except Complaint as unknown:
        gone = await asyncio.to_thread(api.items, "/v1/nodes", {"state": "withdrawn"}) if unknown.code == "unknown_node" else []
        if not any(asked in (node.get("id"), node.get("name")) for node in gone):
            raise
        why = "Its owner took it off; a job can be sent to it when it is offered again."
        raise Complaint("unknown_target", f"Node {asked} is off the market.", why, "bazaar nodes", exit_code=NO_PLACE) from None


def _has_cards(node: dict[str, Any], asked: tuple[int, ...]) -> None:
    have = [int(card["index"]) for card in node.get("cards", ())]
    missing = [index for index in asked if index not in have]
    if not missing:
        return
    why = f"It has {_numbers(have)}." if have else "It offers no card."
    what = f"Node {node.get('name')} has no {_numbers(missing)}."
    raise Complaint("unknown_target", what, why, f"bazaar node {node.get('id')}", exit_code=NO_PLACE)


def _numbers(indices: list[int]) -> str:
    return f"card{'' if len(indices) == 1 else 's'} {', '.join(map(str, indices))}"


async def submit(
    client: MarketClient,
    api: Api,
    terminal: Terminal,
    plans: list[Plan],
    manner: Manner,
    *,
    sending: Callable[[str], None] = lambda _: None,
) -> list[Submitted]:
    """Quote, ask, ship, publish; the jobs that were taken. `sending` hears of each id before it may be known to anybody.
    Raises Refused, Complaint, MarketUnreachable."""
    orders = await orders_for(client, api, plans)
    wanted = [await agreed(client, terminal, order, manner) for order in orders]
    stored: dict[int, tuple[BlobRef, int]] = {}
    done = []
    for plan, order in zip(plans, wanted, strict=True):
        key = id(plan.files)
        if plan.files and key not in stored:
            stored[key] = await _ship(client, terminal, plan)
        if plan.files:
            inputs, size = stored[key]
            order = msgspec.structs.replace(order, program=msgspec.structs.replace(order.program, inputs=inputs, inputs_bytes=size))
        ranks = ranks_of(order)
        if plan.secrets:
            ranks = [await _with_secrets(client, rank, plan.secrets) for rank in ranks]
        for rank in ranks:
            sending(rank.job_id)
        try:
            done += [Submitted(rank, plan, seq) for rank, seq in zip(ranks, await _publish(client, ranks), strict=True)]
        except (Refused, MarketUnreachable):
            _say_taken(terminal, done)
            raise
    return done


def _say_taken(terminal: Terminal, done: list[Submitted]) -> None:
    """Of several jobs one was refused: those before it are the market's already."""
    if done:
        taken = " ".join(entry.order.job_id for entry in done)
        terminal.note(f"submitted before it: {taken}")
        terminal.note(f"         they go on; bazaar cancel {taken}")


async def _with_secrets(client: MarketClient, order: JobSubmitted, secrets: SecretValues) -> JobSubmitted:
    """The job with its secrets, sealed to the market's key and stored. Raises Refused, Complaint, MarketUnreachable."""
    key = (client.last_sync or await client.sync()).secret_key
    if not key:
        raise Complaint("no_secrets", "This market takes no secrets.", "It has no key to seal them to.", "leave --secret out")
    box = seal(Secrets(job_id=order.job_id, buyer=client.wallet, values=dict(secrets.values)), key)
    stored = await files.put_bytes(asks_files(client), box)
    program = msgspec.structs.replace(order.program, secrets=stored, secret_names=tuple(sorted(secrets.values)))
    return msgspec.structs.replace(order, program=program)


async def _publish(client: MarketClient, ranks: list[JobSubmitted]) -> list[int]:
    """Where the job, or each rank of it, stands in the ledger now."""
    try:
        outcomes = await submit_together(client, ranks, ANSWER_S)
    except MarketUnreachable as error:
        hint = f"look later: bazaar show {ranks[0].job_id}"
        raise MarketUnreachable("The market did not answer the submission.", why=error.why, hint=hint) from None
    for outcome in outcomes:
        if outcome.reason is not None:
            raise Refused(outcome.reason, outcome.detail)
    return [outcome.seq for outcome in outcomes]


async def _ship(client: MarketClient, terminal: Terminal, plan: Plan) -> tuple[BlobRef, int]:
    """Store a plan's files; what the store has already is not sent again."""
    with tempfile.TemporaryDirectory(prefix="bazaar-") as folder, terminal.progress("uploading", plan.inputs_bytes) as advance:
        shown = 0

        def progress(done: int, _: int) -> None:
            nonlocal shown
            advance(done - shown)
            shown = done

        local = [_local(file, Path(folder)) for file in plan.files]
        try:
            stored = await files.put_files(asks_files(client), local, progress=progress)
        except MarketUnreachable as error:
            hint = "run it again: what is stored already is not sent twice"
            raise MarketUnreachable("The files could not be stored; nothing was submitted.", why=error.why, hint=hint) from None
    if plan.inputs_bytes >= 1 << 20:
        terminal.note(f"shipped {render.count(len(plan.files), 'file')}, {render.data_size(plan.inputs_bytes)}")
    return stored


def _local(file: InputFile, folder: Path) -> files.LocalFile:
    if file.source is not None:
        return files.LocalFile(file.path, file.source, file.executable)
    path = folder / secrets.token_hex(8)
    path.write_bytes(file.content or b"")
    return files.LocalFile(file.path, path, file.executable)
