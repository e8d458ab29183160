"""How a wallet lets a session key speak for it: a text a person can read, signed once, checked by the callout and the matcher.

The text has the field order of EIP-4361 and is signed as EIP-191, so that any wallet can show and sign it. A checker rebuilds
the text from the parsed fields and compares: nothing can hide in it. Pure: time and ids are arguments. Also the two small
encodings that go with it, addresses (EIP-55) and nkeys.
"""

from __future__ import annotations

import re
from base64 import b32decode, b32encode, b64decode, urlsafe_b64encode
from binascii import crc_hqx
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from coincurve import PublicKey
from Crypto.Hash import keccak
from msgspec import Meta

from events.codec import HOSTILE_DECODE_ERRORS
from events.errors import Refused
from events.reasons import Refusal
from events.values import Role

DOMAIN = "gpubazaar"
"""Who asks, in the first line. A market may use its own host name."""
TEXT_MAX = 2000
TOKEN_MAX = 4096
VALIDITY_MS_MAX = 366 * 86_400_000
"""Nobody may hand out a key for longer."""
SIGNATURE_BYTES = 65

_CURVE_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_USER_PREFIX = 20 << 3  # `U` in base32
_SEED_PREFIX = 18 << 3  # `S`
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """What a wallet says about a session key."""

    wallet: str
    """`0x` and 40 hex digits, lower case."""
    nkey: str
    """The session key as `U...`."""
    market_id: str
    role: Role
    issued_ms: int
    expires_ms: int
    nonce: str
    """8 to 64 letters and digits; makes two delegations of one key differ."""
    domain: str = DOMAIN

    @property
    def key_hex(self) -> str:
        """The session key as it stands in events."""
        return raw_key(self.nkey).hex()


class SignedDelegation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The text as the wallet signed it, and the signature `r || s || v`."""

    text: Annotated[str, Meta(max_length=TEXT_MAX)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class DelegationRefused(Refused):
    """A delegation does not hold; `refusal` says why, `why` in words."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SignedDelegation)


# --- addresses and nkeys ---


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash (not the standardised SHA-3)."""
    return keccak.new(digest_bits=256, data=data).digest()


def checksum_address(wallet: str) -> str:
    """A lower-case address as people see it elsewhere (EIP-55)."""
    digits = wallet[2:]
    digest = keccak256(digits.encode()).hex()
    return "0x" + "".join(letter.upper() if int(nibble, 16) >= 8 else letter for letter, nibble in zip(digits, digest, strict=False))


def parse_address(text: str) -> str | None:
    """An address in any case, as lower case; `None` when it is none, or its mixed case fails the checksum of EIP-55."""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{40}", text, re.ASCII) is None:
        return None
    lower, digits = text.lower(), text[2:]
    if digits not in (digits.lower(), digits.upper()) and "0x" + digits != checksum_address(lower):
        return None
    return lower


def address_of(public_key: PublicKey) -> str:
    """The address of a secp256k1 public key."""
    return "0x" + keccak256(public_key.format(compressed=False)[1:])[12:].hex()


def nkey_of(key: bytes) -> str:
    """The `U...` form of a raw ed25519 public key."""
    assert len(key) == 32
    body = bytes((_USER_PREFIX,)) + key
    return b32encode(body + crc_hqx(body, 0).to_bytes(2, "little")).decode()


def raw_key(nkey: str) -> bytes:
    """The 32 bytes of a `U...` nkey. Raises ValueError."""
    data = _checked_base32(nkey, 56)
    if data[0] != _USER_PREFIX:
        raise ValueError("not a user nkey")
    return data[1:]


def seed_text(seed: bytes) -> str:
    """The `SU...` form of the 32 secret bytes of a session key."""
    assert len(seed) == 32
    body = bytes((_SEED_PREFIX | _USER_PREFIX >> 5, (_USER_PREFIX & 31) << 3)) + seed
    return b32encode(body + crc_hqx(body, 0).to_bytes(2, "little")).decode().rstrip("=")


def raw_seed(text: str) -> bytes:
    """The 32 secret bytes of a `SU...` seed. Raises ValueError."""
    data = _checked_base32(text, 58)
    if data[:2] != bytes((_SEED_PREFIX | _USER_PREFIX >> 5, (_USER_PREFIX & 31) << 3)):
        raise ValueError("not the seed of a user nkey")
    return data[2:]


def _checked_base32(text: str, length: int) -> bytes:
    if len(text) != length or not text.isascii():
        raise ValueError("an nkey has another length")
    data = b32decode(text + "=" * (-length % 8))
    body, checksum = data[:-2], data[-2:]
    if crc_hqx(body, 0).to_bytes(2, "little") != checksum:
        raise ValueError("the checksum of the nkey does not fit")
    return body


# --- the text ---


def delegation_text(delegation: Delegation) -> str:
    """What the wallet is asked to sign."""
    return "\n".join(
        (
            f"{delegation.domain} wants you to sign in with your Ethereum account:",
            checksum_address(delegation.wallet),
            "",
            f"Let this session key act for you as {delegation.role.value} on this GPU Bazaar market until it expires.",
            "",
            f"URI: urn:nkey:{delegation.nkey}",
            "Version: 1",
            "Chain ID: 1",
            f"Nonce: {delegation.nonce}",
            f"Issued At: {_iso(delegation.issued_ms)}",
            f"Expiration Time: {_iso(delegation.expires_ms)}",
            "Resources:",
            f"- urn:market:{delegation.market_id}",
            f"- urn:nkey:{delegation.nkey}",
            f"- urn:role:{delegation.role.value}",
        )
    )


_TIME = r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)"
_TEXT = re.compile(
    r"([a-z0-9][a-z0-9.:-]{0,99}) wants you to sign in with your Ethereum account:\n"
    r"(0x[0-9a-fA-F]{40})\n\n[^\n]*\n\n"
    r"URI: [^\n]*\nVersion: 1\nChain ID: 1\n"
    r"Nonce: ([A-Za-z0-9]{8,64})\n"
    rf"Issued At: {_TIME}\nExpiration Time: {_TIME}\n"
    r"Resources:\n- urn:market:([0-9a-f]{64})\n- urn:nkey:(U[A-Z2-7]{55})\n- urn:role:([a-z]{1,16})",
    re.ASCII,
)


def parse(text: str) -> Delegation:
    """The delegation that a text states. Raises DelegationRefused: any text but exactly the one that we would have written."""
    found = _TEXT.fullmatch(text) if len(text) <= TEXT_MAX else None
    if found is None:
        raise DelegationRefused(Refusal.MALFORMED, "The delegation is not in the form that this market reads.")
    domain, address, nonce, issued, expires, market_id, nkey, role = found.groups()
    try:
        delegation = Delegation(
            wallet=address.lower(),
            nkey=nkey,
            market_id=market_id,
            role=Role(role),
            issued_ms=_milliseconds(issued),
            expires_ms=_milliseconds(expires),
            nonce=nonce,
            domain=domain,
        )
        raw_key(nkey)
    except ValueError as error:
        raise DelegationRefused(Refusal.MALFORMED, f"The delegation states something impossible: {error}."[:200]) from None
    if delegation_text(delegation) != text:
        raise DelegationRefused(Refusal.MALFORMED, "The delegation says more or other than its fields.")
    if not delegation.issued_ms < delegation.expires_ms <= delegation.issued_ms + VALIDITY_MS_MAX:
        raise DelegationRefused(Refusal.MALFORMED, "A delegation ends after it was issued and within 366 days.")
    return delegation


def _iso(time_ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=time_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _milliseconds(iso: str) -> int:
    return (datetime.fromisoformat(iso) - _EPOCH) // _MILLISECOND


# --- the signature ---


def text_digest(text: str) -> bytes:
    """What is signed when a wallet signs a text (EIP-191, version E)."""
    data = text.encode()
    return keccak256(b"\x19Ethereum Signed Message:\n" + str(len(data)).encode() + data)


def recover(digest: bytes, signature: bytes) -> str | None:
    """The address whose key made this signature; `None` when it is none, or not in its one canonical form (65 bytes, low s)."""
    if len(signature) != SIGNATURE_BYTES:
        return None
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    v = v - 27 if v >= 27 else v
    if v not in (0, 1) or not 0 < r < _CURVE_ORDER or not 0 < s <= _CURVE_ORDER // 2:
        return None
    try:
        return address_of(PublicKey.from_signature_and_message(signature[:64] + bytes((v,)), digest, hasher=None))
    except ValueError:  # an r that is no point of the curve
        return None


# --- on the wire ---


def encode_token(signed: SignedDelegation) -> str:
    """A signed delegation as it travels in CONNECT, beside the signature of the server's nonce."""
    return urlsafe_b64encode(_encoder.encode(signed)).decode().rstrip("=")


def decode_token(token: str) -> SignedDelegation:
    """The signed delegation in a token. Raises DelegationRefused."""
    if not 0 < len(token) <= TOKEN_MAX:
        raise DelegationRefused(Refusal.MALFORMED, "The login carries no delegation of a sensible length.")
    try:
        return _decoder.decode(b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except HOSTILE_DECODE_ERRORS:
        raise DelegationRefused(Refusal.MALFORMED, "The login's token is not a delegation.") from None


def check(signed: SignedDelegation, *, market_id: str, key_hex: str, now_ms: int, wallet: str | None = None) -> Delegation:
    """The delegation, when it holds now for this market, key and (if given) wallet. Raises DelegationRefused with
    malformed, bad_signature, wrong_market, not_yours (another key or wallet) or key_expired."""
    delegation = parse(signed.text)
    if recover(text_digest(signed.text), signed.signature) != delegation.wallet:
        raise DelegationRefused(Refusal.BAD_SIGNATURE, "The wallet named in the delegation did not sign it.")
    if delegation.market_id != market_id:
        raise DelegationRefused(Refusal.WRONG_MARKET)
    if delegation.key_hex != key_hex:
        raise DelegationRefused(Refusal.NOT_YOURS, "The delegation is for another session key.")
    if wallet is not None and delegation.wallet != wallet:
        raise DelegationRefused(Refusal.NOT_YOURS, "The delegation is of another wallet.")
    if delegation.expires_ms <= now_ms:
        raise DelegationRefused(Refusal.KEY_EXPIRED)
    return delegation
