"""The two JSON web tokens of the broker's auth callout, by hand on ed25519: the question it asks, and the login we answer with.

NATS signs with `alg: ed25519-nkey` and names keys as nkeys. Only what the callout needs is here; nothing decides who may come in.
"""

from __future__ import annotations

import hashlib
from base64 import b32decode, b32encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import crc_hqx
from typing import Any, NamedTuple

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

ALGORITHM = "ed25519-nkey"
ACCOUNT_PREFIX, SERVER_PREFIX, USER_PREFIX = 0, 13 << 3, 20 << 3
REQUEST_BYTES_MAX = 64 * 1024
_HEADER = {"typ": "JWT", "alg": ALGORITHM}


class BadToken(Exception):
    """Not a token that its issuer signed."""


class ServerId(msgspec.Struct, frozen=True):
    """Which broker asks."""

    id: str
    name: str = ""


class ClientInfo(msgspec.Struct, frozen=True):
    """Who knocks, as the broker sees it."""

    host: str = ""
    id: int = 0
    nonce: str = ""


class ConnectOptions(msgspec.Struct, frozen=True):
    """What the one who knocks sent: every word of it is its own."""

    nkey: str = ""
    sig: str = ""
    auth_token: str = ""
    name: str = ""


class AuthorizationRequest(msgspec.Struct, frozen=True):
    """The `nats` claim of the broker's question."""

    server_id: ServerId
    user_nkey: str
    client_info: ClientInfo = ClientInfo()
    connect_opts: ConnectOptions = ConnectOptions()
    type: str = ""


class _Claims(msgspec.Struct, frozen=True):
    iss: str
    nats: AuthorizationRequest
    aud: str = ""


class Permissions(NamedTuple):
    """What a login may publish and subscribe to."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


_claims = msgspec.json.Decoder(_Claims)
_header = msgspec.json.Decoder(dict[str, Any])


# --- nkeys ---


def encode_nkey(prefix: int, key: bytes) -> str:
    """The name of a raw ed25519 public key."""
    body = bytes((prefix,)) + key
    return b32encode(body + crc_hqx(body, 0).to_bytes(2, "little")).decode()


def decode_nkey(name: str, prefix: int) -> bytes:
    """The raw public key of a name of this kind. Raises BadToken."""
    try:
        data = b32decode(name)
    except ValueError:
        raise BadToken("not base32") from None
    body = data[:-2]
    if len(data) != 35 or body[0] != prefix or crc_hqx(body, 0).to_bytes(2, "little") != data[-2:]:
        raise BadToken("not an nkey of the kind that belongs here")
    return body[1:]


def signature_is_good(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the raw public key made this signature."""
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def proves_key(nkey: str, nonce: str, signature: str) -> bool:
    """Whether this `U...` key signed the broker's nonce. The broker itself does not look when a callout decides."""
    try:
        return signature_is_good(decode_nkey(nkey, USER_PREFIX), nonce.encode(), _unbase64(signature))
    except (BadToken, ValueError):
        return False


# --- tokens ---


def encode_token(claims: dict[str, Any], issuer: SigningKey, *, prefix: int = ACCOUNT_PREFIX) -> str:
    """The signed token of these claims; issuer and id are filled in."""
    claims = {**claims, "iss": encode_nkey(prefix, bytes(issuer.verify_key))}
    claims["jti"] = b32encode(hashlib.sha256(msgspec.json.encode(claims)).digest()).decode().rstrip("=")
    signed = f"{_base64(msgspec.json.encode(_HEADER))}.{_base64(msgspec.json.encode(claims))}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()).signature)}"


def decode_request(token: bytes) -> AuthorizationRequest:
    """The broker's question, once a broker's signature on it holds. Raises BadToken."""
    if len(token) > REQUEST_BYTES_MAX:
        raise BadToken("too long")
    try:
        signed, _, signature = token.decode("ascii").rpartition(".")
        header, _, body = signed.partition(".")
        if _header.decode(_unbase64(header)).get("alg") != ALGORITHM:
            raise BadToken("signed in another way")
        claims = _claims.decode(_unbase64(body))
        raw_signature = _unbase64(signature)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise BadToken("not a token") from None
    if not signature_is_good(decode_nkey(claims.iss, SERVER_PREFIX), signed.encode(), raw_signature):
        raise BadToken("not signed by the broker it names")
    if claims.nats.type != "authorization_request":
        raise BadToken("not a question about a login")
    return claims.nats


def granted(
    request: AuthorizationRequest, issuer: SigningKey, *, account: str, name: str, permissions: Permissions, now_s: int, expires_s: int
) -> bytes:
    """The answer that lets a connection in, as `name` in `account`, until `expires_s`."""
    user = {
        "aud": account,
        "sub": request.user_nkey,
        "name": name,
        "iat": now_s,
        "exp": expires_s,
        "nats": {
            "type": "user",
            "version": 2,
            "pub": {"allow": list(permissions.publish)},
            "sub": {"allow": list(permissions.subscribe)},
            "subs": -1,
            "data": -1,
            "payload": -1,
        },
    }
    return _answer(request, issuer, now_s, {"jwt": encode_token(user, issuer)})


def denied(request: AuthorizationRequest, issuer: SigningKey, *, why: str, now_s: int) -> bytes:
    """The answer that keeps a connection out; `why` reaches the broker's log only."""
    return _answer(request, issuer, now_s, {"error": why})


def _answer(request: AuthorizationRequest, issuer: SigningKey, now_s: int, said: dict[str, str]) -> bytes:
    claims = {
        "aud": request.server_id.id,
        "sub": request.user_nkey,
        "iat": now_s,
        "nats": {"type": "authorization_response", "version": 2, **said},
    }
    return encode_token(claims, issuer).encode()


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    """Either alphabet, padded or not. Raises ValueError."""
    return urlsafe_b64decode(text.replace("+", "-").replace("/", "_").rstrip("=") + "=" * (-len(text.rstrip("=")) % 4))
