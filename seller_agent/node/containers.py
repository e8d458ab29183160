"""Jobs in containers, as the node's owner wants them: which images, with whose logins, with what network; and the runner made of that.

It checks what the owner said before anything is offered. What containers may do is the runner's matter.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from events.images import allowed
from events.quantities import BadValue, size_mib
from events.values import ImageName, ImagePattern
from seller_agent.owner.offers import DEFAULT_IMAGE, OfferError
from seller_agent.runners.docker_engine.daemon.host import socket_of
from seller_agent.runners.runner import Runner

MIB = 1 << 20
PATTERNS_MAX = 16
Say = Callable[[str], None]


class ContainerTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner said, checked."""

    docker_host: str | None = None
    """Docker's socket as DOCKER_HOST names it; `None`: where Docker puts it by itself."""
    default_image: str | None = None
    images_allow: tuple[str, ...] = ()
    registry_auth: str | None = None
    keep_free_mib: int = 10_000
    egress: bool = False
    egress_check: tuple[tuple[str, int], ...] = ()

    def image(self) -> str | None:
        """For jobs that name none. The usual one only where it is let in; one that the owner named always is."""
        if self.default_image is not None or allowed(self.images_allow, DEFAULT_IMAGE):
            return self.default_image or DEFAULT_IMAGE
        return None


@runtime_checkable
class Containers(Protocol):
    """A runner whose offer changes with what it has and can prove."""

    def warm_images(self) -> tuple[str, ...]:
        """Images that a job could use at once, the last used first."""

    def egress_network(self) -> str | None:
        """Where jobs reach the internet; None while that is not proved."""


def warm_images(runner: Runner) -> tuple[str, ...]:
    """What is warm on this runner now."""
    return runner.warm_images() if isinstance(runner, Containers) else ()


def has_egress(runner: Runner) -> bool:
    """Whether it can give a job a way out now."""
    return isinstance(runner, Containers) and runner.egress_network() is not None


def parse_patterns(texts: Iterable[str]) -> tuple[str, ...]:
    """Image patterns. Raises OfferError."""
    patterns = tuple(texts)
    try:
        msgspec.convert(patterns, tuple[ImagePattern, ...])
    except msgspec.ValidationError:
        raise OfferError("This is no pattern for images.", why="Letters, digits and ._:/@*?-", hint="--images-allow 'pytorch/*'") from None
    if len(patterns) > PATTERNS_MAX:
        raise OfferError("Too many patterns.", why=f"An offer may name {PATTERNS_MAX}.", hint="Use * in them.")
    return patterns


def parse_image(text: str | None) -> str | None:
    """An image's name. Raises OfferError."""
    try:
        return msgspec.convert(text, ImageName | None)
    except msgspec.ValidationError:
        raise OfferError(
            "The default image has no name that an offer can hold.", why=f"{text!a:.80} is none.", hint="--default-image python:3.12"
        ) from None


def parse_room(text: str) -> int:
    """MiB to keep free. Raises OfferError."""
    try:
        return size_mib(text)
    except BadValue as error:
        raise OfferError(f"{text[:40]!a} is no size.", why=error.why, hint="--keep-free 20GB") from None


def parse_places(texts: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """`IP:PORT` each. Raises OfferError."""
    places = []
    for text in texts:
        address, _, port = text.rpartition(":")
        try:
            places.append((str(ipaddress.IPv4Address(address)), int(port)))
        except ValueError:
            raise OfferError(f"{text[:60]!a} is no place to try.", why="It must be IPv4:PORT.", hint="--egress-check 1.1.1.1:443") from None
    return tuple(places)


async def docker_runner(terms: ContainerTerms, folder: Path, node: str, *, answer_s: float | None, say: Say) -> Runner:
    """The Docker runner, once Docker has answered, with egress where that was asked for. Raises RunnerError, TimeoutError, BazaarError."""
    module = import_module("seller_agent.runners.docker_engine.runner")  # costs a third of a second to load
    store = import_module("seller_agent.runners.docker_engine.images.store")
    if terms.registry_auth is not None:
        logins = import_module("seller_agent.runners.docker_engine.images.logins")
        logins.read_logins(Path(terms.registry_auth))  # said now, not at the first pull
    images = store.ImageTerms(
        allow=terms.images_allow, default=terms.image(), logins_file=terms.registry_auth, keep_free_bytes=terms.keep_free_mib * MIB
    )
    docker = module.DockerRunner(folder, node, socket_path=socket_of(terms.docker_host), images=images)
    try:
        async with asyncio.timeout(answer_s):
            await docker.check()
        if terms.egress:
            await docker.open_egress(say, *([terms.egress_check] if terms.egress_check else []))
    except BaseException:
        await docker.close()
        raise
    runner: Runner = docker
    return runner
