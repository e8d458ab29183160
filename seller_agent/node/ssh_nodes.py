"""One node per host of `hosts.toml`, all in one process: each host has an agent of its own, its runner goes there by SSH.

A host that is away when we start is tried until it answers; one that shows a wrong key, or lets nobody in, is said and left alone. While a
host is away its node does not beat, so that the market sees a lost node as it is.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from pathlib import Path

import msgspec
import structlog

from events.errors import BazaarError, MarketUnreachable
from events.home import Settings, private_folder
from events.ids import node_id
from events.session import Session, read_session
from events.values import Accept, Isolation
from events.wire import BeatCard
from seller_agent.cards.card import CardTelemetry, DetectedCard
from seller_agent.cards.machine import CardWatch, agent_boot, boot_id, offered_card, simulated_cards
from seller_agent.node.agent import Agent
from seller_agent.node.beats import NodeIdentity
from seller_agent.node.starting import Options, Place, Say, announce, claimed_folder, offer_maker, owner_of, version, work
from seller_agent.owner.nodes import Started, read_started
from seller_agent.owner.offers import TAKES_ANYONE, Terms, cards_offered
from seller_agent.runners.ssh.connection import Access, open_access
from seller_agent.runners.ssh.errors import HostAway, SshFailed
from seller_agent.runners.ssh.host import Facts, Host, HostCard
from seller_agent.runners.ssh.hosts import HostEntry, Hosts, HostsError, read_hosts
from seller_agent.runners.ssh.runner import SshRunner

log = structlog.get_logger("seller.ssh")

LOOK_S = 10.0
SILENT_S = 25.0
TRY_S, TRY_MAX_S = 2.0, 30.0
MIG_IS_ON = "its MIG mode is on: it cannot be let as a whole"


class HostSilent(MarketUnreachable):
    """Nothing is told to the market about a host that has not answered for a while."""

    what = "The node's host does not answer, so no heartbeat is sent for it."


class HostWatch(CardWatch):
    """The cards of a host, looked at by a program there; that the host answers at all is part of how the node is."""

    def __init__(self, host: Host, cards: tuple[DetectedCard, ...]) -> None:
        super().__init__(cards)
        self._host = host
        self._offered = cards

    def for_beat(self) -> tuple[BeatCard, ...]:
        """As last read. Raises HostSilent."""
        silent_s = time.monotonic() - self._host.seen_s
        if silent_s > SILENT_S:
            raise HostSilent(why=f"{self._host.name} has been silent for {silent_s:.0f} s.")
        return self.readings()

    async def run(self) -> None:
        """Look for ever."""
        while True:
            try:
                facts = await self._host.look()
            except SshFailed as error:
                log.warning("the host cannot be looked at", host=self._host.name, why=error.why)
            else:
                by_uuid = {card.uuid: card for card in facts.cards}
                self._take(tuple(_telemetry(card, by_uuid.get(card.uuid)) for card in self._offered))
            await asyncio.sleep(LOOK_S)


def _telemetry(card: DetectedCard, told: HostCard | None) -> CardTelemetry:
    if card.simulated:
        return CardTelemetry(index=card.index, uuid=card.uuid, utilisation_percent=0, memory_used_mib=0, pids=())
    if told is None or told.fault:
        fault = told.fault if told is not None else "it is not there any more"
        return CardTelemetry(index=card.index, uuid=card.uuid, healthy=False, fault=fault)
    return CardTelemetry(
        index=card.index,
        uuid=card.uuid,
        healthy=not told.mig,
        fault=MIG_IS_ON if told.mig else "",
        utilisation_percent=told.utilisation_percent,
        memory_used_mib=told.memory_used_mib,
        temperature_c=told.temperature_c,
        power_mw=told.power_mw,
        ecc_errors=told.ecc_errors,
        pids=told.pids,
    )


def cards_of(facts: Facts) -> tuple[DetectedCard, ...]:
    """The host's cards as an offer needs them; one that does not even tell its UUID is left out."""
    return tuple(
        DetectedCard(
            index=card.index,
            uuid=_clean(card.uuid),
            model=_clean(card.model) or "unknown",
            vram_mib=card.vram_mib or facts.memory_mib,  # where card and processor share it
            driver=_clean(card.driver, r"[^A-Za-z0-9._+-]")[:32],
            cuda=card.cuda,
            pci=_clean(card.pci, r"[^0-9A-Fa-f:.]").lower(),
            compute_capability=_clean(card.compute_capability, r"[^0-9.]")[:8],
            mig=card.mig,
            healthy=not (card.fault or card.mig),
            fault=card.fault or (MIG_IS_ON if card.mig else ""),
        )
        for card in facts.cards
        if card.uuid
    )


def _clean(text: str, forbidden: str = r"[^A-Za-z0-9 ._()/+-]") -> str:
    """Whatever a driver says, nothing in it can be taken for a command."""
    return re.sub(r"\s+", " ", re.sub(forbidden, " ", text)).strip()[:64]


def terms_of(entry: HostEntry, terms: Terms) -> Terms:
    """What is offered of this host: what its entry says over what was said for all. Raises HostsError."""
    labels = {**terms.labels, **entry.labels}
    if len(labels) > 16:
        raise HostsError(why=f"Host {entry.name!r} has more than 16 labels, with those of --labels.")
    return msgspec.structs.replace(
        terms,
        name=entry.name,
        price_uusd_per_gpu_hour=terms.price_uusd_per_gpu_hour if entry.price_uusd is None else entry.price_uusd,
        gpus=terms.gpus if entry.gpus is None else entry.gpus,
        labels=labels,
    )


class NodeOfHost:
    """One host and its agent, from the first try to reach it to the end."""

    def __init__(self, settings: Settings, options: Options, access: Access, *, owner: str, session: Session | None, say: Say) -> None:
        entry = access.entry
        self.name = entry.name
        self._entry = entry
        self._settings = settings
        self._options = msgspec.structs.replace(options, terms=terms_of(entry, options.terms))
        self._host = Host(access)
        self._session = session
        self._say = say
        self._place = Place(owner=owner, node_id=node_id(owner, entry.name), folder=settings.home / "seller" / entry.name)
        self._agent: Agent | None = None
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """As `Agent.leave`; before there is an agent, stop trying."""
        self._leaving.set()
        if self._agent is not None:
            self._agent.leave()

    async def live(self) -> None:
        """Raises BazaarError for what does not pass."""
        with claimed_folder(self._place.folder, self._place.owner):
            facts = await self._reach()
            if facts is not None:
                await self._serve(facts)

    def _address(self) -> str | None:
        """As we reach the host ourselves; one behind another host is reached by nobody else unless the owner says how."""
        entry = self._entry
        return self._options.terms.address or (entry.address if entry.jump is None else None)

    async def _reach(self) -> Facts | None:
        """What the host is, once it answers; None when we are to leave before."""
        pause_s, said = TRY_S, False
        while not self._leaving.is_set():
            try:
                await self._host.greet()
                return await self._host.look()
            except HostAway as error:
                if not said:
                    self._say(f"{self.name} cannot be reached; it is tried again and again. {error.why}")
                said = True
            waiting = asyncio.create_task(self._leaving.wait())
            await asyncio.wait([waiting], timeout=pause_s)
            waiting.cancel()
            pause_s = min(TRY_MAX_S, pause_s * 2)
        return None

    async def _serve(self, facts: Facts) -> None:
        place, options, say = self._place, self._options, self._say
        found = simulated_cards(options.simulate, place.node_id).cards if options.simulate else cards_of(facts)
        if not found:
            say(f"{self.name}: no GPU was found there ({facts.reason or 'none'}: {facts.detail}): it is offered with its cores only.")
        cards = cards_offered([offered_card(card) for card in found], options.terms)
        watch = HostWatch(self._host, tuple(card for card in found if card.uuid in {offered.uuid for offered in cards}))
        machine = {"cores": facts.cores, "memory_mib": facts.memory_mib}
        offer = offer_maker(self._settings, options, place, cards, Isolation.PROCESS, watch=watch, machine=machine, address=self._address())
        price = options.terms.price_uusd_per_gpu_hour
        before = read_started(place.folder)
        agent = self._agent = Agent(
            NodeIdentity(place.node_id, agent_boot(place.folder), boot_id(), version()),
            place.folder,
            SshRunner(private_folder(place.folder / "runs"), self._host, place.node_id),
            offer=offer,
            watch=watch,
            say=lambda text: say(f"{self.name}: {text}"),
            delegated=self._session is not None,
            keep_price=before is not None and before.price_uusd_per_gpu_hour == price,
            resume=options.resume,
        )
        if self._leaving.is_set():
            agent.leave()
        started = Started(price_uusd_per_gpu_hour=price, runner="ssh", delegation=options.delegation, version=version())
        await work(
            self._settings,
            agent,
            place,
            self._session,
            announced=lambda: announce(place, started, offer(), agent, say),
            heeds_signals=False,
        )


async def run_hosts(settings: Settings, options: Options, hosts_file: str, say: Say) -> None:
    """Offer every host and work until told to leave. Raises BazaarError when no host can be used."""
    hosts = read_hosts(Path(hosts_file))
    session = read_session(Path(options.delegation)) if options.delegation is not None else None
    if session is not None and len(hosts.nodes()) > 1:
        raise HostsError(
            why="A delegation is one session key, and every node needs its own.", hint="Keep the wallet here, or run one host an agent."
        )
    owner = (await asyncio.to_thread(owner_of, settings, session, say)).address
    if options.terms.accept is Accept.ANYONE:
        say(TAKES_ANYONE)
    gates: dict[str, Access] = {}
    nodes = [NodeOfHost(settings, options, access, owner=owner, session=session, say=say) for access in _accesses(hosts, gates)]
    loop = asyncio.get_running_loop()

    def leave() -> None:
        for node in nodes:
            node.leave()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    try:
        await _all(nodes, say)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for gate in gates.values():
            await gate.close()


def _accesses(hosts: Hosts, gates: dict[str, Access]) -> list[Access]:
    return [open_access(hosts, entry, gates) for entry in hosts.nodes()]


async def _all(nodes: list[NodeOfHost], say: Say) -> None:
    """Every node to its end; one that fails is said and does not end the others. Raises what the last of all failed with."""

    async def live(node: NodeOfHost) -> BaseException | None:
        try:
            await node.live()
        except BazaarError as error:
            if len(nodes) > 1:
                say(f"{node.name}: {error.what} {error.why} {error.hint}")
            return error
        return None

    failures = await asyncio.gather(*(live(node) for node in nodes))
    for failure in failures:
        if failure is not None and all(failures):
            raise failure
