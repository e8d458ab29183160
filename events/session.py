"""Session keys on disk: a fresh ed25519 key, the wallet's delegation to it, and the files that carry both.

Shell. A session is made by itself when it is missing or about to end; that is the only moment at which a wallet key is
needed. An imported session has no wallet behind it here and cannot be renewed here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from events import delegation
from events.delegation import Delegation, SignedDelegation
from events.errors import IdentityError
from events.home import private_folder, read_secret, write_private
from events.identity import SessionKeyAuthorised
from events.values import Role
from events.wallet import Signer

DAY_MS = 86_400_000
VALIDITY_MS = {Role.BUYER: DAY_MS, Role.SELLER: 30 * DAY_MS, Role.OPERATOR: DAY_MS}
RENEW_BEFORE_MS = 60_000
"""A session with less left than this is as good as over."""
WARN_FRACTION = 7
"""A delegation is warned about from a seventh of its life before its end."""


class _SessionFile(msgspec.Struct, frozen=True, kw_only=True):
    """As it lies on disk, also the one file that `bazaar login -o` writes."""

    market_id: str
    wallet: str
    role: Role
    seed: str
    text: str
    signature: str
    expires_ms: int


class Session:
    """A session key with the delegation that lets it speak for a wallet."""

    def __init__(self, seed: bytes, signed: SignedDelegation) -> None:
        """Raises DelegationRefused when the delegation is not for this key or not signed by its wallet."""
        self.signing_key = SigningKey(seed)
        self.signed = signed
        stated = delegation.parse(signed.text)
        self.delegation: Delegation = delegation.check(signed, market_id=stated.market_id, key_hex=self.key.hex(), now_ms=stated.issued_ms)

    @cached_property
    def key(self) -> bytes:
        """The raw public key, as envelopes carry it."""
        return bytes(self.signing_key.verify_key)

    @property
    def wallet(self) -> str:
        """Whom the key speaks for."""
        return self.delegation.wallet

    @property
    def role(self) -> Role:
        """As what."""
        return self.delegation.role

    @property
    def market_id(self) -> str:
        """Where."""
        return self.delegation.market_id

    @property
    def expires_ms(self) -> int:
        """Until when."""
        return self.delegation.expires_ms

    @property
    def seed(self) -> str:
        """The secret as `SU...`, for the broker's login. Never to be shown or logged."""
        return delegation.seed_text(bytes(self.signing_key))

    @property
    def token(self) -> str:
        """What travels beside the signed nonce at the broker's login."""
        return delegation.encode_token(self.signed)

    def authorisation(self) -> SessionKeyAuthorised:
        """The first event of the key."""
        return SessionKeyAuthorised(
            key=self.key.hex(), role=self.role, expires_ms=self.expires_ms, text=self.signed.text, wallet_signature=self.signed.signature
        )

    def ends_within(self, now_ms: int, margin_ms: int = RENEW_BEFORE_MS) -> bool:
        """Whether the delegation is over or nearly so."""
        return self.expires_ms <= now_ms + margin_ms

    def warn_from_ms(self) -> int:
        """From when on a person is told that the delegation ends."""
        return self.expires_ms - (self.expires_ms - self.delegation.issued_ms) // WARN_FRACTION

    def __repr__(self) -> str:
        return f"Session({self.role.value} {self.wallet}, key {self.key.hex()[:8]})"


def make_session(signer: Signer, market_id: str, role: Role, *, now_ms: int, validity_ms: int | None = None) -> Session:
    """A fresh key that the wallet lets speak for it from now on."""
    seed = secrets.token_bytes(32)
    text = delegation.delegation_text(
        Delegation(
            wallet=signer.address,
            nkey=delegation.nkey_of(bytes(SigningKey(seed).verify_key)),
            market_id=market_id,
            role=role,
            issued_ms=now_ms,
            expires_ms=now_ms + (validity_ms or VALIDITY_MS[role]),
            nonce=secrets.token_hex(12),
        )
    )
    return Session(seed, SignedDelegation(text, signer.sign_text(text)))


class SessionStore:
    """The sessions of one home with one market. `lane` tells apart keys of one wallet and role, such as two seller agents."""

    def __init__(self, home: Path, market_id: str) -> None:
        self._folder = home / "sessions" / market_id[:16]
        self._market_id = market_id

    def path(self, wallet: str, role: Role, lane: str = "") -> Path:
        """Where a session lies."""
        return self._folder / (f"{wallet}.{role.value}.{lane}.json" if lane else f"{wallet}.{role.value}.json")

    def load(self, wallet: str, role: Role, lane: str = "") -> Session | None:
        """The session that lies here, whatever its age. Raises IdentityError when its file is damaged or others may read it."""
        path = self.path(wallet, role, lane)
        return read_session(path) if path.exists() else None

    def save(self, session: Session, lane: str = "") -> None:
        """Keep a session here."""
        write_session(session, self.path(session.wallet, session.role, lane))

    def drop(self, wallet: str, role: Role, lane: str = "") -> None:
        """Forget a session, as after its key was revoked."""
        self.path(wallet, role, lane).unlink(missing_ok=True)

    def delegated(self, role: Role) -> list[str]:
        """The addresses that have a session of this role here."""
        return sorted({path.name.split(".")[0] for path in self._folder.glob(f"0x*.{role.value}*.json")})

    def ensure(
        self,
        wallet: str,
        role: Role,
        unlock: Callable[[], Signer],
        *,
        lane: str = "",
        validity_ms: int | None = None,
        now_ms: int | None = None,
    ) -> Session:
        """A session that still holds: the one here, or a new one for which `unlock` opens the wallet. Two processes that come at
        once make one. Raises IdentityError."""
        now_ms = int(time.time() * 1000) if now_ms is None else now_ms
        with self._locked():
            session = self.load(wallet, role, lane)
            if session is None or session.market_id != self._market_id or session.ends_within(now_ms):
                session = make_session(unlock(), self._market_id, role, now_ms=now_ms, validity_ms=validity_ms)
                assert session.wallet == wallet, "another wallet was unlocked"
                self.save(session, lane)
        return session

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(private_folder(self._folder) / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def write_session(session: Session, path: Path) -> None:
    """One file (0600) that holds all a machine without keystore needs to act as the wallet until the session ends."""
    content = _SessionFile(
        market_id=session.market_id,
        wallet=session.wallet,
        role=session.role,
        seed=session.seed,
        text=session.signed.text,
        signature=session.signed.signature.hex(),
        expires_ms=session.expires_ms,
    )
    write_private(path, msgspec.json.format(msgspec.json.encode(content)) + b"\n")


def read_session(path: Path) -> Session:
    """A session from such a file. Raises IdentityError when it is no such file, damaged, or readable by others."""
    data = read_secret(path, "The delegation file")
    try:
        content = msgspec.json.decode(data, type=_SessionFile)
        session = Session(delegation.raw_seed(content.seed), SignedDelegation(content.text, bytes.fromhex(content.signature)))
    except (msgspec.MsgspecError, ValueError, RecursionError, delegation.DelegationRefused) as error:
        raise IdentityError(
            "The delegation file cannot be used.", why=f"{path}: {str(error)[:200]}", hint="Run `bazaar login` again."
        ) from None
    if (content.wallet, content.role, content.market_id) != (session.wallet, session.role, session.market_id):
        raise IdentityError("The delegation file contradicts itself.", why=str(path), hint="Run `bazaar login` again.")
    return session
