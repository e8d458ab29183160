"""Certificates that are believed because they were agreed on: an address may end in the fingerprint of the one that must stand there.

`tls://host:4222#sha256=<64 hex digits>` trusts exactly that certificate, whatever its name and whoever signed it; without such an end the
machine's own authorities and the host's name decide. Everything that connects passes its address through here, so none can forget to look.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import urlsplit

from events.errors import BazaarError, MarketUnreachable

FETCH_S = 5.0
PORTS = {"tls": 4222, "https": 443, "wss": 443}
"""Schemes that are encrypted, with the port that is meant when none is named."""
REFUSED = "CERTIFICATE_VERIFY_FAILED"
"""How the library calls it when a certificate is not believed."""
_PIN = re.compile(r"sha256=([0-9a-f]{64})")

_fetched: dict[str, bytes] = {}
"""Fingerprint -> certificate, for the life of this process: a fingerprint never means another one."""


class WrongCertificate(MarketUnreachable):
    """Somebody answers there, with a certificate that was not agreed on."""

    what = "The certificate is not the one that was agreed on."


def split(address: str) -> tuple[str, str | None]:
    """An address without its end, and the fingerprint (64 hex digits) that stood there. Raises BazaarError for any other end."""
    plain, mark, end = address.partition("#")
    if not mark:
        return plain, None
    found = _PIN.fullmatch(end)
    if found is None or urlsplit(plain).scheme not in PORTS:
        raise BazaarError(
            "An address ends in something that is no fingerprint.",
            why=f"`#{end[:80]!a}` stands behind {plain[:100]!a}.",
            hint="It looks like tls://host:4222#sha256=<64 hex digits>; `bazaar-market invite` prints it.",
        )
    return plain, found[1]


def pinned(address: str, fingerprint: str | None) -> str:
    """The address with its end; without a fingerprint, or where nothing is encrypted, as it is."""
    return f"{address}#sha256={fingerprint}" if fingerprint and urlsplit(address).scheme in PORTS else address


def is_encrypted(address: str) -> bool:
    """Whether the address asks for TLS."""
    return urlsplit(address).scheme in PORTS


def fingerprint(certificate: bytes) -> str:
    """Of a certificate in DER, as 64 hex digits."""
    return hashlib.sha256(certificate).hexdigest()


def fetch(address: str, timeout_s: float = FETCH_S) -> bytes:
    """The certificate that is shown there, in DER; it proves nothing by itself. Raises MarketUnreachable."""
    parts = urlsplit(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 443)
    try:
        with socket.create_connection((host, port), timeout_s) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
            certificate = secure.getpeercert(binary_form=True)
    except (OSError, ValueError) as error:
        why = "no answer in time" if isinstance(error, TimeoutError) else str(getattr(error, "strerror", None) or error)
        raise MarketUnreachable(f"Nobody shows a certificate at {address}.", why=why, hint="is the market up, with TLS?") from None
    assert certificate is not None, "a TLS server shows one"
    return certificate


def agreed(address: str, expected: str) -> bytes:
    """The certificate that is shown there, once its fingerprint is the one agreed on. Raises WrongCertificate, MarketUnreachable."""
    certificate = fetch(address)
    found = fingerprint(certificate)
    if found != expected:
        raise WrongCertificate(
            why=f"At {address} it is {found}, expected was {expected}.",
            hint="If the operator has changed it, ask for a new line of `bazaar-market invite`; else somebody stands in between.",
        )
    return certificate


def context_for(addresses: Sequence[str]) -> ssl.SSLContext | None:
    """What to connect with, None where nothing is encrypted. Asks the hosts for certificates that only their fingerprints are known of,
    so it takes a moment. Raises WrongCertificate, MarketUnreachable (when none of them can be asked), BazaarError."""
    parted = [split(address) for address in addresses]
    if not any(is_encrypted(plain) for plain, _ in parted):
        return None
    pins = {pin: plain for plain, pin in parted if pin is not None}
    if not pins:
        return ssl.create_default_context()
    trouble: MarketUnreachable | None = None
    for pin, plain in pins.items():
        try:
            _fetched.setdefault(pin, _fetched.get(pin) or agreed(plain, pin))
        except WrongCertificate:
            raise
        except MarketUnreachable as error:
            trouble = error
    certificates = [_fetched[pin] for pin in pins if pin in _fetched]
    if not certificates:
        assert trouble is not None
        raise trouble
    return trusting(certificates)


def trusting(certificates: Sequence[bytes]) -> ssl.SSLContext:
    """A context that believes exactly these certificates (DER), under whatever name they are shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is the end of the chain, whoever signed it
    context.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(certificate) for certificate in certificates))
    return context
