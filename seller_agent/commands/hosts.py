"""`bazaar-seller hosts`: whether each host of a file can be reached as it stands there, and what it would offer. Needs no market."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from events.errors import BazaarError
from seller_agent.commands.options import plain
from seller_agent.node.ssh_nodes import cards_of
from seller_agent.runners.ssh.connection import Access, open_access
from seller_agent.runners.ssh.host import Host
from seller_agent.runners.ssh.hosts import HostEntry, Hosts, read_hosts


@click.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout.")
def hosts(file: str, json_out: bool) -> None:
    """Go to every host of FILE, with its keys and through its jump hosts, and list its cards."""
    found = asyncio.run(_visit_all(read_hosts(Path(file))))
    if json_out:
        click.echo(json.dumps(found))
    else:
        for host in found:
            for line in _lines(host):
                click.echo(plain(line))
    if any(host["trouble"] for host in found):
        raise click.exceptions.Exit(1)


async def _visit_all(listed: Hosts) -> list[dict[str, Any]]:
    gates: dict[str, Access] = {}
    try:
        return list(await asyncio.gather(*(_visit(listed, entry, gates) for entry in listed.nodes())))
    finally:
        for gate in gates.values():
            await gate.close()


async def _visit(listed: Hosts, entry: HostEntry, gates: dict[str, Access]) -> dict[str, Any]:
    """What is known of one host; `trouble` says why it cannot be offered."""
    told: dict[str, Any] = {"name": entry.name, "jump": entry.jump, "trouble": "", "hint": ""}
    told |= {"cores": None, "memory_mib": None, "cards": []}
    access = open_access(listed, entry, gates)
    try:
        host = Host(access)
        await host.greet()
        facts = await host.look()
        cards = [
            {"index": card.index, "uuid": card.uuid, "model": card.model, "vram_mib": card.vram_mib, "fault": card.fault}
            for card in cards_of(facts)
        ]
        return {**told, "cores": facts.cores, "memory_mib": facts.memory_mib, "cards": cards}
    except BazaarError as error:
        return {**told, "trouble": f"{error.what} {error.why}".strip(), "hint": error.hint}
    finally:
        await access.close()


def _lines(host: dict[str, Any]) -> list[str]:
    if host["trouble"]:
        return [f"{host['name']}: {host['trouble']}", *([f"  try: {host['hint']}"] if host["hint"] else [])]
    cards = [
        f"  {card['index']:>2}  {card['model']}  {card['vram_mib']} MiB  {card['uuid']}{'  ' + card['fault'] if card['fault'] else ''}"
        for card in host["cards"]
    ]
    return [f"{host['name']}: {len(cards)} cards, {host['cores']} cores, {host['memory_mib']} MiB memory", *cards]
