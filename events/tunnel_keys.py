"""How the two ends of a tunnel make sure of each other, and the keys that come of it. Pure: randomness and time are arguments.

The buyer's Hello and the node's Welcome each carry a wallet's delegation and an ephemeral X25519 key, signed by the session key; the
Welcome names the Hello that it answers. Both hashes go into the keys, so market, job, epoch and both wallets are bound, and the broker
in between, or whoever runs it, can neither read nor change a byte. Losing a session key later does not open what was said before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from struct import Struct
from typing import Annotated, NamedTuple, TypeVar

import msgspec
from msgspec import Meta
from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

from events import delegation
from events.codec import HOSTILE_DECODE_ERRORS
from events.delegation import DelegationRefused, SignedDelegation
from events.tunnel_frames import PLAIN_MAX, Broken
from events.values import Attempt, JobId, Role, Seq

VERSION = 1
HELLO_BYTES_MAX = 8192
TAG_BYTES = 16
NUMBER = Struct("!Q")
NONCE = Struct("!4xQ")

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Hash = Key
SessionId = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Seal = Callable[[bytes, bytes | None, bytes, bytes], bytes]
CHACHA = "chacha20poly1305"
AES = "aes256gcm"
CIPHERS: dict[str, tuple[Seal, Seal]] = {
    AES: (bindings.crypto_aead_aes256gcm_encrypt, bindings.crypto_aead_aes256gcm_decrypt),
    CHACHA: (bindings.crypto_aead_chacha20poly1305_ietf_encrypt, bindings.crypto_aead_chacha20poly1305_ietf_decrypt),
}
"""Both as TLS 1.3 has them. AES is three times as fast where the processor has it, and not to be had where it has not."""
CONTEXT = b"\xffbazaar tunnel "
"""What a signature here begins with. No text does: a broker cannot have one made by asking a login to sign it as its nonce."""
T = TypeVar("T")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a tunnel belongs to; both ends know it before they meet."""

    market_id: str
    job_id: JobId
    attempt: Attempt
    epoch: Seq
    buyer: str
    seller: str


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """The buyer's word."""

    version: int
    session: SessionId
    facts: Facts
    session_key: Key
    delegation: SignedDelegation
    ephemeral: Key
    ciphers: Annotated[tuple[Annotated[str, Meta(max_length=40)], ...], Meta(max_length=16)]
    """What the buyer's machine can do, best first."""


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """The node's answer."""

    hello: Hash
    session_key: Key
    delegation: SignedDelegation
    ephemeral: Key
    cipher: Annotated[str, Meta(max_length=40)]
    """The one of the buyer's that is used."""


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """A Hello or a Welcome with its signature. A node that says no sends `refused`, one word, and `detail` for a person instead."""

    body: bytes = b""
    signature: bytes = b""
    refused: Annotated[str, Meta(max_length=40)] = ""
    detail: Annotated[str, Meta(max_length=200)] = ""


class Identity(NamedTuple):
    """Who speaks: a session key and the delegation to it."""

    signing_key: SigningKey
    signed: SignedDelegation


class Keys(NamedTuple):
    """One key a direction, and what they are for."""

    sending: bytes
    receiving: bytes
    cipher: str = CHACHA


class NotMet(Exception):
    """The other end is not who it must be, or said no; `reason` is one word."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


def ciphers_here() -> tuple[str, ...]:
    """What this machine can do, best first."""
    try:
        CIPHERS[AES][0](b"", None, bytes(12), bytes(32))
    except (CryptoError, AttributeError, RuntimeError):
        return (CHACHA,)
    return (AES, CHACHA)


def opening_token(job_id: str, epoch: int, output_token: str) -> str:
    """What the subject of an opening is called: only the job's buyer and its node can tell, because only they know the output token."""
    return hashlib.blake2b(f"{job_id} {epoch} {output_token}".encode(), digest_size=16, person=b"bazaar-opening").hexdigest()


def hello(facts: Facts, identity: Identity, *, session: str, ephemeral_secret: bytes) -> bytes:
    """What the buyer sends first."""
    body = Hello(
        version=VERSION,
        session=session,
        facts=facts,
        session_key=bytes(identity.signing_key.verify_key),
        delegation=identity.signed,
        ephemeral=bindings.crypto_scalarmult_base(ephemeral_secret),
        ciphers=ciphers_here(),
    )
    return _signed(b"hello", msgspec.msgpack.encode(body), identity.signing_key)


def read_hello(data: bytes, facts: Facts, *, now_ms: int) -> Hello:
    """The buyer's word, when it is this job's buyer who said it. Raises NotMet."""
    said = _opened(b"hello", data, Hello)
    if said.version != VERSION:
        raise NotMet("version", f"this node speaks version {VERSION} of the tunnel, not {said.version}")
    if said.facts != facts:
        raise NotMet("other_job", "the opening is for another job, attempt, wallet or market")
    _check(said.delegation, said.session_key, facts.market_id, facts.buyer, role=Role.BUYER, now_ms=now_ms)
    return said


def welcome(hello_bytes: bytes, said: Hello, identity: Identity, *, ephemeral_secret: bytes) -> tuple[bytes, Keys]:
    """The node's answer, and the keys that follow from it. Raises NotMet."""
    cipher = next((name for name in said.ciphers if name in ciphers_here()), None)
    if cipher is None:
        raise NotMet("cipher", "the two ends have no cipher in common")
    body = Welcome(
        hello=_hash(hello_bytes),
        session_key=bytes(identity.signing_key.verify_key),
        delegation=identity.signed,
        ephemeral=bindings.crypto_scalarmult_base(ephemeral_secret),
        cipher=cipher,
    )
    answer = _signed(b"welcome", msgspec.msgpack.encode(body), identity.signing_key)
    to_node, to_buyer = _derive(ephemeral_secret, said.ephemeral, hello_bytes, answer)
    return answer, Keys(to_buyer, to_node, cipher)


def refusal(reason: str, detail: str) -> bytes:
    """A node's no."""
    return msgspec.msgpack.encode(Signed(refused=reason[:40], detail=detail[:200]))


def read_welcome(data: bytes, hello_bytes: bytes, facts: Facts, *, ephemeral_secret: bytes, now_ms: int) -> Keys:
    """The keys, when it is this job's node that answered this very Hello. Raises NotMet, also when the node said no."""
    said = _opened(b"welcome", data, Welcome)
    if said.hello != _hash(hello_bytes):
        raise NotMet("other_hello", "the answer is to another opening")
    if said.cipher not in ciphers_here():
        raise NotMet("cipher", "the node chose a cipher that was not offered")
    _check(said.delegation, said.session_key, facts.market_id, facts.seller, role=Role.SELLER, now_ms=now_ms)
    to_node, to_buyer = _derive(ephemeral_secret, said.ephemeral, hello_bytes, data)
    return Keys(to_node, to_buyer, said.cipher)


def _signed(what: bytes, body: bytes, key: SigningKey) -> bytes:
    signature = key.sign(CONTEXT + what + b"\0" + body).signature
    return msgspec.msgpack.encode(Signed(body=body, signature=signature))


def _opened(what: bytes, data: bytes, shape: type[T]) -> T:
    """What was said, once its signature fits the session key that it names."""
    if len(data) > HELLO_BYTES_MAX:
        raise NotMet("malformed", "the first word is too long")
    try:
        signed = msgspec.msgpack.decode(data, type=Signed)
        if signed.refused:
            raise NotMet(_printable(signed.refused), _printable(signed.detail))
        body = msgspec.msgpack.decode(signed.body, type=shape)
        VerifyKey(body.session_key).verify(CONTEXT + what + b"\0" + signed.body, signed.signature)  # type: ignore[attr-defined]
    except (*HOSTILE_DECODE_ERRORS, BadSignatureError, CryptoError, TypeError):
        raise NotMet("malformed", "the first word is none, or its signature does not fit") from None
    return body


def _check(signed: SignedDelegation, key: bytes, market_id: str, wallet: str, *, role: Role, now_ms: int) -> None:
    try:
        found = delegation.check(signed, market_id=market_id, key_hex=key.hex(), now_ms=now_ms, wallet=wallet)
    except DelegationRefused as error:
        raise NotMet("not_yours", error.why or error.what) from None
    if found.role is not role:
        raise NotMet("not_yours", f"the session key speaks for the wallet as {found.role.value}, not as {role.value}")


def _derive(secret: bytes, public: bytes, hello_bytes: bytes, welcome_bytes: bytes) -> tuple[bytes, bytes]:
    try:
        shared = bindings.crypto_scalarmult(secret, public)
    except (CryptoError, RuntimeError):
        raise NotMet("malformed", "the other end's key is not one") from None
    both = hashlib.blake2b(shared + _hash(hello_bytes) + _hash(welcome_bytes), digest_size=64, person=b"bazaar-tunnel-1").digest()
    return both[:32], both[32:]


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Sealer:
    """Seals what one end says, numbering as it goes."""

    def __init__(self, key: bytes, cipher: str = CHACHA) -> None:
        self._key = key
        self._seal = CIPHERS[cipher][0]
        self._next = 0

    def seal(self, plain: bytes) -> bytes:
        """A message."""
        number, self._next = self._next, self._next + 1
        sealed = self._seal(plain, None, NONCE.pack(number), self._key)
        return NUMBER.pack(number) + sealed


class Unsealer:
    """Opens what the other end says: each message once, all of them, in order."""

    def __init__(self, key: bytes, cipher: str = CHACHA) -> None:
        self._key = key
        self._unseal = CIPHERS[cipher][1]
        self._next = 0

    def unseal(self, message: bytes) -> bytes:
        """What stands in a message. Raises Broken."""
        if not NUMBER.size + TAG_BYTES <= len(message) <= NUMBER.size + TAG_BYTES + PLAIN_MAX:
            raise Broken(f"a message of {len(message)} bytes")
        [number] = NUMBER.unpack_from(message)
        if number != self._next:
            what = "was lost" if number > self._next else "came again"
            raise Broken(f"message {self._next if number > self._next else number} {what} (expected {self._next}, got {number})")
        try:
            plain = self._unseal(message[NUMBER.size :], None, NONCE.pack(number), self._key)
        except CryptoError:
            raise Broken(f"message {number} is not from the other end") from None
        self._next += 1
        return plain
