"""How far a market can be reached: where it listens, with which certificate, under which names; what would be open is refused.

Decides before anything is started. Wallets sign what they say and the broker proves who reads, so a listener in the clear lets nobody
act as another; but whoever sees the wire then reads jobs, output and read tokens.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from events import pinning
from events.errors import BazaarError
from events.home import Endpoints
from services.broker import in_url
from services.certificates import Certificate, own

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9]([a-z0-9-]{0,62}))*\.?")


class OpenBind(BazaarError):
    """The market would be open in a way that was not said."""

    what = "The market would listen to other machines without TLS."
    exit_code = 2


class BadReach(BazaarError):
    """Options that cannot be meant together."""

    what = "The market cannot be reached that way."
    exit_code = 2


@dataclass(frozen=True)
class Reach:
    """Where broker and API listen."""

    bind: str = "127.0.0.1"
    api_bind: str = "127.0.0.1"
    tls: Certificate | None = None
    public_hosts: tuple[str, ...] = ()

    @property
    def api_tls(self) -> Certificate | None:
        """What the API shows. Behind a proxy of this machine it speaks plainly: the proxy has a certificate of its own."""
        return None if self.public_hosts and is_loopback(self.api_bind) else self.tls

    def api_options(self) -> list[str]:
        """The same, for the API's own process."""
        options = [word for name in self.public_hosts for word in ("--public-host", name)]
        if self.api_tls is not None:
            options += ["--tls-cert", str(self.api_tls.certificate), "--tls-key", str(self.api_tls.key)]
        return options


@dataclass(frozen=True)
class Asked:
    """What the command line says of it."""

    bind: str = "127.0.0.1"
    api_bind: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    self_signed: bool = False
    insecure: bool = False
    public_hosts: tuple[str, ...] = ()


def decide(asked: Asked, folder: Path) -> Reach:
    """How far this market can be reached. `folder`: where a certificate of its own lies. Raises OpenBind, BadReach, BadCertificate."""
    bind, api_bind = _address(asked.bind), _address(asked.api_bind or asked.bind)
    hosts = tuple(_host(name) for name in asked.public_hosts)
    tls = _certificate(asked, folder, (bind, api_bind, *hosts))
    if tls is None and not asked.insecure:
        for what, where in (("broker", bind), ("API", api_bind)):
            if not is_loopback(where):
                raise OpenBind(
                    why=f"On {where} the {what} would show jobs, output and read tokens to whoever sees the wire.",
                    hint="--tls-self-signed, or --tls-cert F --tls-key F; or --insecure, on a network where nobody listens.",
                )
    return Reach(bind, api_bind, tls, hosts)


def _certificate(asked: Asked, folder: Path, names: tuple[str, ...]) -> Certificate | None:
    if (asked.tls_cert is None) != (asked.tls_key is None):
        raise BadReach(why="A certificate was given without its key, or a key without its certificate.", hint="--tls-cert F --tls-key F")
    if asked.tls_cert is not None and asked.tls_key is not None:
        if asked.self_signed:
            raise BadReach(why="Both a certificate and --tls-self-signed were given.", hint="leave one out")
        return Certificate(Path(asked.tls_cert), Path(asked.tls_key)).checked()
    return own(folder, ("localhost", "127.0.0.1", "::1", *names, socket.gethostname())) if asked.self_signed else None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return ipaddress.ip_address(address).is_loopback


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address("127.0.0.1" if text == "localhost" else text.strip("[]")))
    except ValueError:
        raise BadReach(why=f"{text[:80]!a} is no address of this machine.", hint="--bind 0.0.0.0 listens on all of them") from None


def _host(text: str) -> str:
    name = text.lower()
    if _NAME.fullmatch(name) is None:
        raise BadReach(why=f"{text[:80]!a} is no name of a host.", hint="--public-host market.example.org, without scheme and port")
    return name.rstrip(".")


# --- how others reach it ---


def broker_for_others(endpoints: Endpoints, host: str | None, *, pin: bool) -> str:
    """The broker's address for another machine. Raises BadReach when that cannot be told."""
    plain, fingerprint = pinning.split(endpoints.market)
    parts = urlsplit(plain)
    return pinning.pinned(f"{parts.scheme}://{in_url(_outside(endpoints, host))}:{parts.port}", fingerprint if pin else None)


def api_for_others(endpoints: Endpoints, host: str | None, *, pin: bool) -> str | None:
    """The API's address for another machine; None when it cannot be reached from there (clients then ask over the broker)."""
    if is_loopback(endpoints.api_bind):
        if endpoints.public_hosts:
            return f"https://{endpoints.public_hosts[0]}"
        if not is_loopback(endpoints.bind):
            return None
    plain, fingerprint = pinning.split(endpoints.api)
    parts = urlsplit(plain)
    return pinning.pinned(f"{parts.scheme}://{in_url(_outside(endpoints, host))}:{parts.port}", fingerprint if pin else None)


def _outside(endpoints: Endpoints, host: str | None) -> str:
    if host is not None:
        try:
            return str(ipaddress.ip_address(host.strip("[]")))
        except ValueError:
            return _host(host)
    if is_loopback(endpoints.bind):
        return endpoints.bind
    if endpoints.public_hosts:
        return endpoints.public_hosts[0]
    if not ipaddress.ip_address(endpoints.bind).is_unspecified:
        return endpoints.bind
    return _outward_address()


def _outward_address() -> str:
    """Which of this machine's addresses others see. Nothing is sent. Raises BadReach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            raise BadReach(why="This machine does not know its own address.", hint="--host NAME: how others reach it") from None
        return str(probe.getsockname()[0])
