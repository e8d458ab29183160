"""The machine under a node: its cards, cores, memory and boot, and how its cards are from moment to moment."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from events.home import write_private
from events.values import Card, Isolation
from events.wire import BeatCard
from seller_agent.cards.card import MIB, CardTelemetry, DetectedCard, Inventory, Vendor
from seller_agent.cards.health import CardJudge, Judgement, Ours
from seller_agent.cards.reader import CardReader, CardsHung
from seller_agent.cards.simulated import simulate
from seller_agent.owner.offers import OfferError
from seller_agent.runners.runner import RunCard

log = structlog.get_logger("seller.machine")

LOOK_S = 5.0
HUNG_MS = 30_000
"""A driver that has not answered for so long has no cards to let."""


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
    reader = CardReader()
    try:
        return await reader.inventory()
    finally:
        reader.close()


def usable_by(isolation: Isolation, found: Inventory) -> tuple[Inventory, str]:
    """The cards that jobs can be given under this isolation, and a word about those that are left out."""
    usable = tuple(card for card in found.cards if isolation is Isolation.PROCESS or card.vendor is Vendor.NVIDIA)
    left_out = len(found.cards) - len(usable)
    words = f"{left_out} cards that are not NVIDIA's are not offered: only --runner process can give them to jobs." if left_out else ""
    return msgspec.structs.replace(found, cards=usable), words


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
        pci=card.pci,
        compute_capability=card.compute_capability,
        mig=card.mig,
    )


def run_card(card: Card) -> RunCard:
    """A card as a runner is told of it."""
    return RunCard(index=card.index, uuid=card.uuid, model=card.model, vram_mib=card.vram_mib, simulated=card.simulated)


class CardWatch:
    """Reads the offered cards every few seconds; the offer follows when one falls ill, is used by somebody else, or recovers."""

    def __init__(self, cards: tuple[DetectedCard, ...]) -> None:
        self._cards = {card.uuid: card for card in cards}
        self._judge = CardJudge()
        self._judged = {card.uuid: Judgement(card.healthy, False, card.fault) for card in cards}
        self._readings = tuple(_beat_card(_unread(card), self._judged[card.uuid]) for card in cards)
        self.ours: Callable[[], Awaitable[Ours]] | None = None
        """Tells which cards our runs have, and with which processes; without it nobody else's use is looked for."""

    def readings(self) -> tuple[BeatCard, ...]:
        """As last read."""
        return self._readings

    def for_beat(self) -> tuple[BeatCard, ...]:
        """What a heartbeat tells. Raises MarketUnreachable where none may be sent, because the machine under the node is silent."""
        return self.readings()

    def show_simulated(self, doing: Mapping[str, tuple[int, int]]) -> None:
        """What cards that do not exist are to be shown doing (percent, MiB); those not named: nothing."""
        self._readings = tuple(
            BeatCard(reading.uuid, reading.healthy, *doing.get(reading.uuid, (-1, 0))) if self._cards[reading.uuid].simulated else reading
            for reading in self._readings
        )

    def sick(self) -> frozenset[str]:
        """Cards that did not answer the last time: what ran on them is lost."""
        return frozenset(uuid for uuid, judged in self._judged.items() if judged.broken)

    def is_healthy(self, uuid: str) -> bool:
        """Whether the card may be given out, as last read."""
        judged = self._judged.get(uuid)
        return judged is None or judged.well

    async def run(self) -> None:
        """Read for ever; simulated cards are always well."""
        if all(card.simulated for card in self._cards.values()):
            return
        reader, silent_since_ms = CardReader(), None
        try:
            while True:
                try:
                    readings = await reader.telemetry(self._cards.values())
                    silent_since_ms = None
                    self._take(readings, await self.ours() if self.ours is not None else None)
                except CardsHung as error:
                    silent_since_ms = silent_since_ms or _now_ms()
                    self._note_silence(str(error), _now_ms() - silent_since_ms)
                await asyncio.sleep(LOOK_S)
        finally:
            reader.close()

    def _take(self, readings: tuple[CardTelemetry, ...], ours: Ours | None = None) -> None:
        now_ms = _now_ms()
        for reading in readings:
            before, card = self._judged[reading.uuid], self._cards[reading.uuid]
            # Where nothing is known of who uses a card, everything on it may be ours.
            now = self._judge.judge(card, reading, {card.uuid: None} if ours is None else ours, now_ms)
            if before.well and not now.well:
                log.error("a card is not let any more", uuid=reading.uuid, why=now.why)
            elif now.well and not before.well:
                log.info("a card is let again", uuid=reading.uuid)
            self._judged[reading.uuid] = now
        self._readings = tuple(_beat_card(reading, self._judged[reading.uuid]) for reading in readings)

    def _note_silence(self, why: str, silent_ms: int) -> None:
        """A driver that hangs for long has nothing to let; what runs on its cards is left alone, for it may come back."""
        log.warning("the cards cannot be read", why=why)
        if silent_ms < HUNG_MS:
            return
        hung = Judgement(False, False, "the driver does not answer")
        self._judged = {uuid: judged if judged.broken else hung for uuid, judged in self._judged.items()}
        self._readings = tuple(_beat_card(_unread(card), self._judged[card.uuid]) for card in self._cards.values())


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _unread(card: DetectedCard) -> CardTelemetry:
    return CardTelemetry(index=card.index, uuid=card.uuid, healthy=card.healthy, fault=card.fault)


def _beat_card(reading: CardTelemetry, judged: Judgement) -> BeatCard:
    return BeatCard(
        uuid=reading.uuid,
        healthy=judged.well,
        gpu_percent=_or_unknown(reading.utilisation_percent),
        memory_used_mib=reading.memory_used_mib or 0,
        temperature_c=_or_unknown(reading.temperature_c),
        power_w=-1 if reading.power_mw is None else reading.power_mw // 1000,
        ecc_errors=_or_unknown(reading.ecc_errors),
        processes=-1 if reading.pids is None else len(reading.pids),
        unhealthy=judged.why[:120],
    )


def _or_unknown(value: int | None) -> int:
    return -1 if value is None else value
