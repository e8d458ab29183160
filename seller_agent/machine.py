"""The machine under a node: its cards, cores, memory and boot, and how its cards are from moment to moment."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import structlog

from events.home import write_private
from events.values import Card
from events.wire import BeatCard
from seller_agent.gpus import CardTelemetry, DetectedCard, Inventory, NvmlHung, NvmlReader, simulate
from seller_agent.offers import OfferError
from seller_agent.runners.runner import RunCard

log = structlog.get_logger("seller.machine")

LOOK_S = 5.0
MIB = 1 << 20


def boot_id() -> str:
    """What tells this start of the machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def agent_boot(folder: Path) -> str:
    """What tells this folder on this machine from every other agent with the same node id."""
    path = folder / "agent.id"
    if not path.exists():
        write_private(path, secrets.token_hex(8).encode())
    return f"{boot_id()[:13]}.{path.read_text().strip()[:16]}"


def size() -> dict[str, int]:
    """Cores that this process may use, and the machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": max(1, len(os.sched_getaffinity(0))), "memory_mib": memory // MIB}


def simulated_cards(texts: tuple[str, ...], node_id: str) -> Inventory:
    """The cards that these texts name, numbered through. Raises OfferError."""
    cards: tuple[DetectedCard, ...] = ()
    try:
        for text in texts:
            cards += simulate(text, node_id, len(cards))
    except ValueError as error:
        raise OfferError("These cards cannot be simulated.", why=str(error), hint='--simulate-gpus "2xRTX 4090"') from None
    return Inventory(cards=cards)


async def real_cards() -> Inventory:
    """The cards of this machine; none when the driver hangs."""
    reader = NvmlReader()
    try:
        return await reader.inventory()
    except NvmlHung as error:
        return Inventory(detail=str(error))
    finally:
        reader.close()


def offered_card(card: DetectedCard) -> Card:
    """A card as an offer names it."""
    return Card(
        index=card.index,
        uuid=card.uuid,
        model=card.model,
        vram_mib=card.vram_mib,
        driver=card.driver,
        cuda=card.cuda,
        simulated=card.simulated,
        healthy=card.healthy,
    )


def run_card(card: Card) -> RunCard:
    """A card as a runner is told of it."""
    return RunCard(index=card.index, uuid=card.uuid, model=card.model, vram_mib=card.vram_mib, simulated=card.simulated)


class CardWatch:
    """Reads the offered cards every few seconds; the offer follows when one falls ill or recovers."""

    def __init__(self, cards: tuple[DetectedCard, ...]) -> None:
        self._cards = cards
        self._healthy = {card.uuid: card.healthy for card in cards}
        self._readings: tuple[BeatCard, ...] = tuple(BeatCard(card.uuid, card.healthy) for card in cards)

    def readings(self) -> tuple[BeatCard, ...]:
        """As last read."""
        return self._readings

    def for_beat(self) -> tuple[BeatCard, ...]:
        """What a heartbeat tells. Raises MarketUnreachable where none may be sent, because the machine under the node is silent."""
        return self.readings()

    def show_simulated(self, doing: Mapping[str, tuple[int, int]]) -> None:
        """What cards that do not exist are to be shown doing (percent, MiB); those not named: nothing."""
        simulated = {card.uuid for card in self._cards if card.simulated}
        self._readings = tuple(
            BeatCard(reading.uuid, reading.healthy, *doing.get(reading.uuid, (-1, 0))) if reading.uuid in simulated else reading
            for reading in self._readings
        )

    def sick(self) -> frozenset[str]:
        """Cards that did not answer the last time."""
        return frozenset(uuid for uuid, healthy in self._healthy.items() if not healthy)

    def is_healthy(self, uuid: str) -> bool:
        """As last read."""
        return self._healthy.get(uuid, True)

    async def run(self) -> None:
        """Read for ever; simulated cards are always well."""
        if all(card.simulated for card in self._cards):
            return
        reader = NvmlReader()
        try:
            while True:
                try:
                    self._take(await reader.telemetry(self._cards))
                except NvmlHung as error:
                    log.warning("the cards cannot be read", why=str(error))
                await asyncio.sleep(LOOK_S)
        finally:
            reader.close()

    def _take(self, readings: tuple[CardTelemetry, ...]) -> None:
        self._readings = tuple(_beat_card(reading) for reading in readings)
        healthy = {reading.uuid: reading.healthy for reading in readings}
        for reading in readings:
            if not reading.healthy and self._healthy.get(reading.uuid, True):
                log.error("a card is not healthy", uuid=reading.uuid, why=reading.fault)
        self._healthy = healthy


def _beat_card(reading: CardTelemetry) -> BeatCard:
    return BeatCard(
        reading.uuid,
        reading.healthy,
        _or_unknown(reading.utilisation_percent),
        reading.memory_used_mib or 0,
        _or_unknown(reading.temperature_c),
        -1 if reading.power_mw is None else reading.power_mw // 1000,
    )


def _or_unknown(value: int | None) -> int:
    return -1 if value is None else value
