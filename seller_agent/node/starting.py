"""Puts an agent together from what its owner said: wallet, name, runner, cards, offer, connection. Then it runs until told to leave."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import msgspec
import structlog

from events.errors import BazaarError, IdentityError
from events.home import SELLER_WALLET, KnownWallet, Settings, choose_wallet, known_wallets, private_folder
from events.ids import node_id
from events.login import open_client
from events.nodes import NodeOffered
from events.session import Session, read_session
from events.values import Accept, Card, Isolation, Role
from events.wallet import Keystore, Passphrases
from seller_agent.cards.card import Inventory
from seller_agent.cards.machine import CardWatch, agent_boot, boot_id, offered_card, real_cards, simulated_cards, size, usable_by
from seller_agent.node.addresses import address_of
from seller_agent.node.agent import Agent
from seller_agent.node.beats import NodeIdentity
from seller_agent.node.containers import ContainerTerms, docker_runner, has_egress, warm_images
from seller_agent.node.notifying import feed_watchdog, notify
from seller_agent.owner.nodes import Started, read_started, write_started
from seller_agent.owner.offers import (
    NO_ISOLATION,
    SIMULATED,
    TAKES_ANYONE,
    OfferError,
    Terms,
    accepted,
    cards_offered,
    in_words,
    make_offer,
)
from seller_agent.runners.docker_engine.daemon.host import socket_of
from seller_agent.runners.process.runner import ProcessRunner
from seller_agent.runners.runner import Runner, RunnerError
from seller_agent.runs.hands import boot_ms

log = structlog.get_logger("seller")

DOCKER_ANSWER_S = 5.0
SUPERVISOR_IDLE_S = 0.25
"""So long after the agent, and the last run, the guard of plain processes stays: nothing is left where nothing runs."""
MARKET_WAIT_S = 20.0
HUNG_MS = 30_000
"""An agent that has looked at nothing for so long is not reported as alive."""

Say = Callable[[str], None]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `bazaar-seller run` was asked."""

    terms: Terms
    runner: str | None = None
    simulate: tuple[str, ...] = ()
    delegation: str | None = None
    containers: ContainerTerms = ContainerTerms()
    resume: bool = False
    """A drain ends with this start."""


class NodeInUse(BazaarError):
    """Another agent of this machine has the node's folder."""

    what = "An agent for this node runs here already."


@cache
def version() -> str:
    """Of the installed distribution."""
    return metadata.version("gpubazaar")


def host_name() -> str:
    """This machine's own name."""
    return socket.gethostname()


def owner_of(settings: Settings, session: Session | None, say: Say) -> KnownWallet:
    """Whose node it is: the delegation's wallet, the one that was asked for, else this home's seller, made if need be."""
    if session is not None:
        return KnownWallet("", session.wallet)
    keystore = Keystore(settings.home)
    known = {wallet.name for wallet in known_wallets(settings.home)}
    if settings.wallet == SELLER_WALLET and SELLER_WALLET not in known:
        return _make_seller(keystore, say)
    try:
        return choose_wallet(settings, Role.SELLER)
    except IdentityError:
        if settings.wallet is not None or known - {"market"}:
            raise
        return _make_seller(keystore, say)


def _make_seller(keystore: Keystore, say: Say) -> KnownWallet:
    try:
        created = keystore.create(SELLER_WALLET, Passphrases())
    except IdentityError:
        return keystore.find(SELLER_WALLET)  # another process of this home made it at the same time
    say(f"A wallet for this seller was made: {created.wallet.address}. {created.notice}")
    return created.wallet


async def choose_runner(asked: str | None, terms: ContainerTerms, folder: Path, node: str, say: Say) -> tuple[Runner, Isolation]:
    """Docker when it answers, else plain processes, with a warning. Raises BazaarError when Docker was asked for and does not answer."""
    if asked != "process":
        try:
            answer_s = DOCKER_ANSWER_S if asked is None else None
            return await docker_runner(terms, folder, node, answer_s=answer_s, say=say), Isolation.CONTAINER
        except (RunnerError, TimeoutError) as error:
            if asked == "docker":
                raise BazaarError("Docker does not answer.", why=str(error), hint="Start it, or use --runner process.") from None
            say(NO_ISOLATION)
    if terms.egress:
        raise OfferError("--egress needs the Docker runner.", why="A plain process has this machine's own network.", hint="Leave it away.")
    return ProcessRunner(private_folder(folder / "runs"), idle_s=SUPERVISOR_IDLE_S), Isolation.PROCESS


async def find_cards(simulate: tuple[str, ...], node: str, say: Say) -> Inventory:
    """Simulated cards, or this machine's; a machine without any is offered as it is, and that is said."""
    if simulate:
        return simulated_cards(simulate, node)
    found = await real_cards()
    if not found.cards:
        say(f"No GPU was found here ({found.reason or 'none'}: {found.detail or 'no card'}): the node is offered with its cores only.")
    return found


@contextmanager
def claimed_folder(folder: Path, owner: str) -> Iterator[None]:
    """The node's folder, for one agent only. Raises NodeInUse, IdentityError when it belongs to another wallet's node."""
    private_folder(folder)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise NodeInUse(why=f"Process {pid or '?'} has {folder}.", hint="End it, or offer another node with --name.") from None
        owner_file = folder / "owner"
        if owner_file.exists() and owner_file.read_text().strip() != owner:
            raise IdentityError(
                "This node belongs to another wallet.",
                why=f"{folder} was made by {owner_file.read_text().strip()[:42]}.",
                hint="Choose that wallet with --wallet, or another name with --name.",
            )
        owner_file.write_text(owner + "\n")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Whose node it is, and where its files lie."""

    owner: str
    node_id: str
    folder: Path


async def run(settings: Settings, options: Options, say: Say) -> None:
    """Offer the node and work until told to leave. Raises BazaarError."""
    session = read_session(Path(options.delegation)) if options.delegation is not None else None
    owner = (await asyncio.to_thread(owner_of, settings, session, say)).address
    place = Place(owner=owner, node_id=node_id(owner, options.terms.name), folder=settings.home / "seller" / options.terms.name)
    with claimed_folder(place.folder, owner):
        inventory = await find_cards(options.simulate, place.node_id, say)
        asked = options.runner
        if asked is None and options.simulate and options.containers.docker_host is None:
            asked = "process"  # nobody should have to pull an image to try the market out
            say(SIMULATED)
        runner, isolation = await choose_runner(asked, options.containers, place.folder, place.node_id, say)
        inventory, left_out = usable_by(isolation, inventory)
        if left_out:
            say(left_out)
        cards = cards_offered([offered_card(card) for card in inventory.cards], options.terms)
        address = address_of(options.terms.address, isolation, settings.market)
        if isolation is Isolation.PROCESS and options.terms.accept is Accept.ANYONE:
            say(TAKES_ANYONE)
        watched = tuple(card for card in inventory.cards if card.uuid in {offered.uuid for offered in cards})
        watch = CardWatch(watched)
        before, asked_uusd = read_started(place.folder), options.terms.price_uusd_per_gpu_hour
        offer = offer_maker(settings, options, place, cards, isolation, watch=watch, machine=size(), runner=runner, address=address)
        agent = Agent(
            NodeIdentity(place.node_id, agent_boot(place.folder), boot_id(), version()),
            place.folder,
            runner,
            offer=offer,
            watch=watch,
            say=say,
            delegated=session is not None,
            keep_price=before is not None and before.price_uusd_per_gpu_hour == asked_uusd,
            resume=options.resume,
        )
        started = _started(options, isolation)
        await work(settings, agent, place, session, announced=lambda: announce(place, started, offer(), agent, say))


class OwnWallets:
    """The wallets of a home, read again only when something was put there: the offer is compared with them several times a second,
    so that whoever makes a wallet here can use the node at once."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._seen_ns = -1
        self._addresses: list[str] = []

    def addresses(self) -> list[str]:
        """Their addresses, as of now."""
        try:
            changed_ns = (self._home / "keystore").stat().st_mtime_ns
        except OSError:
            changed_ns = 0
        if changed_ns != self._seen_ns:
            self._addresses = [wallet.address for wallet in known_wallets(self._home)]
            self._seen_ns = changed_ns
        return self._addresses


def offer_maker(
    settings: Settings,
    options: Options,
    place: Place,
    cards: tuple[Card, ...],
    isolation: Isolation,
    *,
    watch: CardWatch,
    machine: Mapping[str, int],
    runner: Runner | None = None,
    address: str | None = None,
) -> Callable[[], NodeOffered]:
    """The offer as it should be now: wallets that were made meanwhile are taken too, ill cards are not let."""
    takes_own = accepted(options.terms, isolation) is Accept.OWN
    own = OwnWallets(settings.home)
    image = None if isolation is Isolation.PROCESS else options.containers.image()

    def offer() -> NodeOffered:
        return make_offer(
            options.terms,
            wallet=place.owner,
            cards=tuple(msgspec.structs.replace(card, healthy=card.healthy and watch.is_healthy(card.uuid)) for card in cards),
            isolation=isolation,
            machine=machine,
            own_wallets=own.addresses() if takes_own else (),
            default_image=image,
            images_allow=() if isolation is Isolation.PROCESS else options.containers.images_allow,
            images_warm=() if runner is None else warm_images(runner),
            egress=runner is not None and has_egress(runner),
            address=address,
            version=version(),
        )

    return offer


def _started(options: Options, isolation: Isolation) -> Started:
    return Started(
        price_uusd_per_gpu_hour=options.terms.price_uusd_per_gpu_hour,
        runner="process" if isolation is Isolation.PROCESS else "docker",
        delegation=None if options.delegation is None else str(Path(options.delegation).absolute()),
        docker_socket=None if isolation is Isolation.PROCESS else socket_of(options.containers.docker_host),
        version=version(),
    )


async def work(
    settings: Settings, agent: Agent, place: Place, session: Session | None, *, announced: Callable[[], None], heeds_signals: bool = True
) -> None:
    """Connect, run the agent, and end it in order on the first signal, at once on the second. SIGHUP leaves what runs to the next start."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if heeds_signals else ()
    acting = settings if session is not None else _as_wallet(settings, place.owner)
    client = await open_client(
        acting,
        Role.SELLER,
        name=f"seller {place.node_id}",
        lane=place.node_id,
        session=session,
        wait_s=MARKET_WAIT_S,
        on_event=agent.on_event,
        on_resync=agent.on_resync,
        node_id=place.node_id,
    )
    try:
        for number in signals:
            loop.add_signal_handler(number, _hand_over if number == signal.SIGHUP else _leave, agent)
        announcing = asyncio.create_task(_when_ready(agent, announced))
        feeding = asyncio.create_task(feed_watchdog(lambda: boot_ms() - agent.ticked_ms < HUNG_MS))
        try:
            await agent.run(client)
        finally:
            announcing.cancel()
            feeding.cancel()
            for number in signals:
                loop.remove_signal_handler(number)
    finally:
        await client.close()


def _leave(agent: Agent) -> None:
    notify("STOPPING=1")
    agent.leave()


def _hand_over(agent: Agent) -> None:
    notify("STOPPING=1")
    agent.hand_over()


async def _when_ready(agent: Agent, announced: Callable[[], None]) -> None:
    await agent.ready.wait()
    announced()
    notify("READY=1\nSTATUS=The node is offered.")


def announce(place: Place, started: Started, offer: NodeOffered, agent: Agent, say: Say) -> None:
    """Say what stands in the ledger now, and remember what was asked for: a price that is set later outlives the next start."""
    write_started(place.folder, started)
    offered = agent.priced(offer)
    if offered.price_uusd_per_gpu_hour != started.price_uusd_per_gpu_hour:
        say("The price is the one that `bazaar-seller price` has set; start with another --price to change it.")
    say(f"Offered {in_words(offered)}. Ctrl-C takes the node off the market.")


def _as_wallet(settings: Settings, wallet: str) -> Settings:
    """The same settings, acting as this wallet."""
    named = {**settings.settings, "wallet": settings.settings["wallet"]._replace(value=wallet)}
    return dataclasses.replace(settings, settings=named)
