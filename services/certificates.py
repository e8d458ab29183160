"""The market's TLS certificate as files: read, or made by the market itself where none is given. The only owner of `cryptography`.

A certificate of the market's own is signed by nobody: it is believed because its fingerprint travels in the invitation.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from events import pinning
from events.errors import BazaarError

VALID_DAYS = 3650
NAME = "GPU Bazaar market"
_END = "-----END CERTIFICATE-----"


class BadCertificate(BazaarError):
    """The files given for TLS cannot be used."""

    what = "The certificate cannot be used."
    exit_code = 2


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path

    @property
    def der(self) -> bytes:
        """The first certificate in the file. Raises BadCertificate."""
        return _der(self.certificate)

    @property
    def fingerprint(self) -> str:
        """Of the first certificate in the file, as clients see it. Raises BadCertificate."""
        return pinning.fingerprint(self.der)

    @property
    def is_own(self) -> bool:
        """Whether it vouches for itself, so that nobody believes it without knowing its fingerprint. Raises BadCertificate."""
        found = x509.load_der_x509_certificate(self.der)
        return found.issuer == found.subject

    def checked(self) -> Certificate:
        """Itself, once it is proved that certificate and key belong together. Raises BadCertificate."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError) as error:
            why = str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error)
            raise BadCertificate(
                why=f"{self.certificate}, {self.key}: {why}", hint="PEM files that belong together, the key without a passphrase"
            ) from None
        ends = x509.load_der_x509_certificate(self.der).not_valid_after_utc
        if ends <= datetime.datetime.now(datetime.UTC):
            raise BadCertificate(why=f"{self.certificate} ended on {ends:%Y-%m-%d}", hint="renew it")
        return Certificate(self.certificate.resolve(), self.key.resolve())


def own(folder: Path, names: Iterable[str]) -> Certificate:
    """The market's own certificate, made at the first time, for these names and addresses. Raises BadCertificate."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    if not made.certificate.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        _write(made.key, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        _write(made.certificate, _signed(key, names).public_bytes(serialization.Encoding.PEM))
    return made.checked()


def _signed(key: ec.EllipticCurvePrivateKey, names: Iterable[str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # a client's clock may be behind
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_name(one) for one in dict.fromkeys(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write(file: Path, data: bytes) -> None:
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(draft, file)


def _der(file: Path) -> bytes:
    try:
        text = file.read_text(encoding="ascii")
        first = text[text.index("-----BEGIN CERTIFICATE-----") : text.index(_END) + len(_END)]
        return ssl.PEM_cert_to_DER_cert(first)
    except (OSError, ValueError) as error:
        raise BadCertificate(why=f"{file} holds no certificate in PEM: {error}") from None
