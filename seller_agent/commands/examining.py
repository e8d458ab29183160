"""`bazaar-seller gpus` and `doctor`: what this machine has, and what is wrong with it. They need no market and change nothing."""

from __future__ import annotations

import json
import os
from typing import Any

import click
import msgspec

from events.home import resolve
from events.naming import cards_in_words
from seller_agent.cards.card import CardTelemetry, DetectedCard, Inventory
from seller_agent.cards.health import CardJudge
from seller_agent.cards.machine import offered_card, simulated_cards, size
from seller_agent.cards.reader import CardReader, CardsHung
from seller_agent.commands.options import plain, run_async, say
from seller_agent.doctor.examination import examine

EXIT_FAILURE = 1
HEADERS = ("INDEX", "MODEL", "VRAM", "STATE", "USE", "MEMORY", "TEMP", "POWER", "PROGRAMS", "PCI", "UUID")


@click.command()
@click.option("--simulate-gpus", "simulate", multiple=True, metavar="SPEC", help='Cards that do not exist: "2xRTX 4090".')
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout.")
def gpus(simulate: tuple[str, ...], json_out: bool) -> None:
    """What would be offered: every card, what it is doing, and whether it is well."""
    found, readings = run_async(_look(simulate))
    shown = [_shown(card, readings.get(card.uuid)) for card in found.cards]
    name, total_mib = cards_in_words((card.model, card.vram_mib) for card in found.cards), sum(card.vram_mib for card in found.cards)
    if json_out:
        why = {"reason": found.reason, "detail": found.detail or None}
        click.echo(json.dumps({"name": name, "total_vram_mib": total_mib, "cards": shown, **why, **size()}))
        return
    for line in _table([HEADERS, *(_row(card) for card in shown)]) if shown else ():
        click.echo(plain(line))
    for card in shown:
        if not card["healthy"]:
            click.echo(plain(f"card {card['index']} is not let: {card['unhealthy'] or 'it is not well'}"))
    if found.detail or not shown:
        say(f"{found.reason or 'note'}: {found.detail or 'this machine has no card; its cores alone could be offered'}")
    versions = sorted({f"driver {card.driver}{_cuda(card)}" for card in found.cards if card.driver and not card.simulated})
    machine = size()
    click.echo(plain(f"{', '.join([name, *versions])}, {machine['cores']} cores, {machine['memory_mib']} MiB memory"))


async def _look(simulate: tuple[str, ...]) -> tuple[Inventory, dict[str, CardTelemetry]]:
    """The cards and what they are doing."""
    if simulate:
        return simulated_cards(simulate, ""), {}
    reader = CardReader()
    try:
        found = await reader.inventory()
        return found, {reading.uuid: reading for reading in await reader.telemetry(found.cards)}
    except CardsHung as error:
        return msgspec.structs.replace(found, detail=str(error)), {}
    finally:
        reader.close()


def _shown(card: DetectedCard, reading: CardTelemetry | None) -> dict[str, Any]:
    """Everything about a card: as it would be offered, and as it is now."""
    told: dict[str, Any] = {**msgspec.to_builtins(card), **msgspec.to_builtins(offered_card(card))}
    told |= {"compute_capability": card.compute_capability, "pci": card.pci, "driver": card.driver, "cuda": card.cuda, "mig": card.mig}
    told["simulated"], told["healthy"], told["unhealthy"] = card.simulated, card.healthy, card.fault or None
    if reading is None:
        return told
    judged = CardJudge().judge(card, reading, {card.uuid: None}, 0)
    told["healthy"], told["unhealthy"] = card.healthy and judged.well, card.fault or judged.why or None
    return told | {
        "gpu_percent": reading.utilisation_percent,
        "memory_used_mib": reading.memory_used_mib,
        "temperature_c": reading.temperature_c,
        "power_w": None if reading.power_mw is None else reading.power_mw // 1000,
        "ecc_errors": reading.ecc_errors,
        "processes": None if reading.pids is None else len(reading.pids),
    }


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(card["index"]),
        card["model"] + (" (simulated)" if card["simulated"] else ""),
        f"{card['vram_mib']} MiB",
        "well" if card["healthy"] else "not let",
        _value(card.get("gpu_percent"), " %"),
        _value(card.get("memory_used_mib"), " MiB"),
        _value(card.get("temperature_c"), " C"),
        _value(card.get("power_w"), " W"),
        _value(card.get("processes"), ""),
        card["pci"] or "-",
        card["uuid"],
    )


def _value(value: int | None, unit: str) -> str:
    return "-" if value is None else f"{value}{unit}"


def _cuda(card: DetectedCard) -> str:
    return f", CUDA {card.cuda // 1000}.{card.cuda % 1000 // 10}" if card.cuda else ""


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@click.command()
@click.option("--docker-host", envvar="DOCKER_HOST", metavar="HOST", help="Docker's socket, as unix:///path (DOCKER_HOST).")
@click.option("--market", metavar="URL", help="The broker; by default the market running here, or the one joined.")
@click.option("--wallet", metavar="W", help="Whose node it is: a wallet's name or address.")
@click.option("--json", "json_out", is_flag=True, help="JSON on stdout.")
def doctor(docker_host: str | None, market: str | None, wallet: str | None, json_out: bool) -> None:
    """Check everything that a seller needs: findings with severity and remedy. Exits 1 when something would not work."""
    findings = run_async(examine(resolve({"market": market, "wallet": wallet}, os.environ), docker_host))
    if json_out:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        for found in findings:
            remedy = f"\n         try: {plain(found.remedy)}" if found.remedy else ""
            click.echo(f"{found.severity:<8} {plain(found.finding)}{remedy}")
    if any(found.severity == "error" for found in findings):
        raise click.exceptions.Exit(EXIT_FAILURE)
