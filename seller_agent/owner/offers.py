"""What a node offers, put together from what its owner said and what the machine has. No connection, no clock.

Prices are exact: a text becomes micro-USD without ever being a float. Whose jobs are taken is part of the offer; the default hangs on how
well the runner keeps jobs away from the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from events.errors import BazaarError
from events.ids import node_id
from events.naming import cards_in_words
from events.nodes import NodeOffered
from events.values import Accept, Address, Card, Isolation, LabelKey, Labels, LabelValue

PRICE_UUSD_MAX = 10**12
DEFAULT_IMAGE = "python:3.12-slim"
"""For a job that names none, with the Docker runner; the process runner has no image."""
ACCEPT_WALLETS_MAX = 64
NAME_LENGTH_MAX = 64
TAKES_ANYONE = (
    "--accept anyone with the process runner: programs of strangers will run here under your own account. They can read your files, "
    "use your network and leave something behind. Nothing isolates them. Use Docker unless every wallet of this market is yours."
)
NO_ISOLATION = (
    "Docker does not answer here, so jobs run as plain processes of this account, isolated by nothing. Unless told otherwise, only jobs "
    "of the wallets of this home are taken."
)
SIMULATED = (
    "Simulated cards are for trying things out: jobs run as plain processes of this account, isolated by nothing. Unless told otherwise, "
    "only jobs of the wallets of this home are taken. `--runner docker` runs them in containers."
)

_PRICE = re.compile(r"([0-9]{1,7})(?:\.([0-9]{1,6}))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}", re.ASCII)


_ORG = re.compile(r"o[a-z2-7]{15}", re.ASCII)


class OfferError(BazaarError):
    """What the owner said cannot be offered."""

    what = "This cannot be offered."


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner said, checked."""

    name: str
    price_uusd_per_gpu_hour: int
    accept: Accept | None = None
    """`None`: the runner's default."""
    min_gpus: int = 0
    gpus: tuple[int, ...] | None = None
    """Indices of the cards to offer; `None`: all."""
    labels: Labels = {}
    org_id: str | None = None
    address: str | None = None
    """Where other nodes reach the programs that run here."""


def parse_price(text: str) -> int:
    """Micro-USD per GPU-hour of a decimal text. Raises OfferError."""
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise OfferError(
            f"{text[:40]!a} is no price.", why="A price is USD per GPU-hour with at most six decimals.", hint="For example --price 0.35."
        )
    uusd = int(match[1]) * 1_000_000 + int((match[2] or "").ljust(6, "0"))
    if uusd > PRICE_UUSD_MAX:
        raise OfferError(f"{text[:40]!a} is too much.", why="A GPU-hour costs at most 1,000,000 USD.", hint="For example --price 0.35.")
    return uusd


def price_text(uusd: int) -> str:
    """USD with at least two decimals."""
    whole, rest = divmod(uusd, 1_000_000)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{decimals}"


def parse_labels(given: Iterable[str]) -> Labels:
    """Labels of `k=v` texts. Raises OfferError."""
    labels: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError
            labels[msgspec.convert(key, LabelKey)] = msgspec.convert(value, LabelValue)
        except (ValueError, msgspec.ValidationError):
            raise OfferError(
                f"{text[:80]!a} is no label.",
                why="A label is key=value: a lower-case key, up to 63 plain letters.",
                hint="--labels rack=b2",
            ) from None
    if len(labels) > 16:
        raise OfferError("Too many labels.", why="A node may have 16.", hint="Leave some away.")
    return labels


def parse_address(given: str | None) -> str | None:
    """An IP address or host name. Raises OfferError."""
    try:
        return None if given is None else msgspec.convert(given, Address)
    except msgspec.ValidationError:
        raise OfferError(
            f"{given[:80]!a} is no address." if given else "An address is empty.",
            why="It is an IP address or a host name, without a port.",
            hint="--address 10.0.0.7",
        ) from None


def parse_indices(text: str) -> tuple[int, ...]:
    """Card indices of a text such as `0,1`. Raises OfferError."""
    try:
        indices = tuple(int(part) for part in text.split(","))
    except ValueError:
        indices = ()
    if not indices or len(set(indices)) != len(indices) or any(not 0 <= index <= 63 for index in indices):
        raise OfferError(f"{text[:80]!a} names no cards.", why="Cards are named by different indices from 0.", hint="--gpus 0,1")
    return indices


def node_name(given: str | None, host: str) -> str:
    """The name that was given, else the host's own in letters that a name may have. Raises OfferError."""
    if given is not None:
        if _NAME.fullmatch(given) is None:
            raise OfferError(
                f"{given[:80]!a} is no name for a node.", why="A name has 1 to 64 of A-Z a-z 0-9 space and ._@+-", hint="Choose another."
            )
        return given
    cleaned = re.sub(r"[^A-Za-z0-9 ._@+-]", "-", host.split(".")[0]).lstrip(" ._@+-")[:NAME_LENGTH_MAX]
    return cleaned or "node"


def cards_offered(cards: Iterable[Card], terms: Terms) -> tuple[Card, ...]:
    """Those of the machine's cards that the owner wants to let. Raises OfferError."""
    found = tuple(cards)
    if terms.gpus is None:
        return found
    by_index = {card.index: card for card in found}
    missing = [str(index) for index in terms.gpus if index not in by_index]
    if missing:
        have = ", ".join(str(index) for index in sorted(by_index)) or "none"
        raise OfferError(f"There is no card {', '.join(missing)} here.", why=f"Cards here: {have}.", hint="Look with `bazaar-seller gpus`.")
    return tuple(by_index[index] for index in sorted(terms.gpus))


def parse_org(accept: Accept | None, org: str | None) -> tuple[Accept | None, str | None]:
    """Whose jobs are taken, with the organisation, if it is one's. Raises OfferError when one is said without the other."""
    if org is None and accept is not Accept.ORGANISATION:
        return accept, None
    if org is None:
        why = "Nobody says whose members' jobs are taken."
        raise OfferError("--accept organisation names no organisation.", why=why, hint="--org ID; `bazaar org list` shows the ids.")
    if accept not in (None, Accept.ORGANISATION):
        why = "A node of an organisation takes the jobs of its members and of nobody else."
        raise OfferError(f"--org and --accept {accept} do not go together.", why=why, hint="Leave one of them out.")
    if not _ORG.fullmatch(org):
        raise OfferError(
            f"{org[:40]!a} is no organisation's id.", why="An id is o and 15 letters and digits.", hint="Look with `bazaar org list`."
        )
    return Accept.ORGANISATION, org


def accepted(terms: Terms, isolation: Isolation) -> Accept:
    """Whose jobs are taken: what the owner said, else anyone's in containers and the owner's own as plain processes."""
    if terms.accept is not None:
        return terms.accept
    return Accept.OWN if isolation is Isolation.PROCESS else Accept.ANYONE


def make_offer(
    terms: Terms,
    *,
    wallet: str,
    cards: tuple[Card, ...],
    isolation: Isolation,
    machine: Mapping[str, int],
    own_wallets: Iterable[str] = (),
    default_image: str | None = None,
    images_allow: tuple[str, ...] = (),
    images_warm: tuple[str, ...] = (),
    egress: bool = False,
    address: str | None = None,
    version: str = "",
) -> NodeOffered:
    """The offer. `machine` has `cores` and `memory_mib`; `own_wallets` are those of this home, taken besides the owner's with `own`."""
    accept = accepted(terms, isolation)
    others = sorted(set(own_wallets) - {wallet})[:ACCEPT_WALLETS_MAX] if accept is Accept.OWN else []
    return NodeOffered(
        node_id=node_id(wallet, terms.name),
        name=terms.name,
        cards=cards,
        cores=machine["cores"],
        memory_mib=machine["memory_mib"],
        price_uusd_per_gpu_hour=terms.price_uusd_per_gpu_hour,
        isolation=isolation,
        egress=egress,
        images_allow=images_allow,
        images_warm=images_warm,
        accept=accept,
        accept_wallets=tuple(others),
        min_gpus=terms.min_gpus,
        labels=dict(terms.labels),
        org_id=terms.org_id,
        default_image=default_image,
        address=address,
        agent_version=version,
        sessions=True,
    )


def in_words(offer: NodeOffered) -> str:
    """One line for the owner."""
    named = cards_in_words((f"{card.model}{' (simulated)' if card.simulated else ''}", card.vram_mib) for card in offer.cards)
    what = named if offer.cards else f"no cards (CPU only, {offer.cores} cores)"
    whose = {Accept.ANYONE: "anyone's jobs", Accept.ORGANISATION: f"jobs of organisation {offer.org_id}", Accept.OWN: "own jobs"}[
        offer.accept
    ]
    if offer.accept is Accept.OWN and offer.accept_wallets:
        whose += f" and those of {len(offer.accept_wallets)} more wallets of this home"
    return f"{offer.name}: {what}, {price_text(offer.price_uusd_per_gpu_hour)} USD per GPU-hour, {whose}, {offer.isolation.value} runner"
