"""Secrets of a job in a sealed box: to the market's key at submission, from there to the session key of the node that has the job.

A box names its job and its buyer, so that one that is copied into another job opens for nobody. Pure but for the box itself, which needs
fresh bytes. Whatever arrives is hostile: everything that is wrong with it ends in Malformed, which never repeats what it found.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.public import SealedBox
from nacl.signing import SigningKey, VerifyKey

from events.codec import HOSTILE_DECODE_ERRORS, Malformed
from events.values import JobId, SecretName, Wallet

SECRETS_MAX = 16
SECRET_BYTES_MAX = 64 * 1024
BOX_BYTES_MAX = SECRETS_MAX * (SECRET_BYTES_MAX + 128) + 1024


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a box. Its text form hides the values."""

    job_id: JobId
    buyer: Wallet
    values: Annotated[dict[SecretName, Annotated[bytes, Meta(max_length=SECRET_BYTES_MAX)]], Meta(max_length=SECRETS_MAX)]

    def __repr__(self) -> str:
        return f"Secrets({self.job_id}, {len(self.values)} values)"

    def only(self, name: str) -> Secrets:
        """The same with one of its values. Raises Malformed when that is not in it."""
        if name not in self.values:
            raise Malformed("a secret that the job names is not in its box")
        return Secrets(job_id=self.job_id, buyer=self.buyer, values={name: self.values[name]})


_decoder = msgspec.msgpack.Decoder(Secrets)


def seal(secrets: Secrets, key: bytes) -> bytes:
    """A box that only the holder of this key can open; `key` is its ed25519 public half. Raises Malformed for a key that is none, and for
    values beyond the bounds."""
    data = msgspec.msgpack.encode(secrets)
    _decode(data)
    try:
        return bytes(SealedBox(VerifyKey(key).to_curve25519_public_key()).encrypt(data))
    except (CryptoError, ValueError, TypeError):
        raise Malformed("that is no key to seal to") from None


def unseal(box: bytes, key: SigningKey, *, job_id: str, buyer: str) -> Secrets:
    """What lies in a box of this job and this buyer. Raises Malformed."""
    if len(box) > BOX_BYTES_MAX:
        raise Malformed("the box of secrets is too large")
    try:
        data = SealedBox(key.to_curve25519_private_key()).decrypt(box)
    except (CryptoError, ValueError, TypeError):
        raise Malformed("the box of secrets is not sealed to this key, or is damaged") from None
    secrets = _decode(data)
    if secrets.job_id != job_id or secrets.buyer != buyer:
        raise Malformed("the box of secrets was made for another job")
    return secrets


def reseal(box: bytes, key: SigningKey, names: Iterable[str], *, job_id: str, buyer: str, to: bytes) -> bytes:
    """The same secrets, those of these names only, in a box for another key. Raises Malformed."""
    found = unseal(box, key, job_id=job_id, buyer=buyer)
    values = {name: found.only(name).values[name] for name in names}
    return seal(Secrets(job_id=job_id, buyer=buyer, values=values), to)


def _decode(data: bytes) -> Secrets:
    try:
        return _decoder.decode(data)
    except HOSTILE_DECODE_ERRORS:
        raise Malformed("what lies in the box of secrets is out of bounds") from None
