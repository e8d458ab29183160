"""The secrets of one market, as files that only their owner may read, and the public names that `nats.conf` knows them by.

Whoever holds this folder is the market. Nothing here reaches an argument list, an event or a log line.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

import nkeys
from nacl.signing import SigningKey

from events.errors import IdentityError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
SECRET_BYTES = 32

SEEDS = {
    "sys": nkeys.PREFIX_BYTE_USER,
    "callout": nkeys.PREFIX_BYTE_USER,
    "market": nkeys.PREFIX_BYTE_USER,
    "issuer": nkeys.PREFIX_BYTE_ACCOUNT,
    "matcher": nkeys.PREFIX_BYTE_USER,
}
"""File name without `.seed` -> what kind of nkey it is."""

SEALING_SEED, SEALING_PUBLIC = "sealing.seed", "sealing.public"
"""The key that buyers seal secrets to: its seed is read by the file gateway alone, everybody else reads the public half."""

ON_THE_BROKER = ("sys", "callout", "market", "issuer")


@dataclass(frozen=True)
class MarketKeys:
    """Every secret of a market. Seeds are nkey seeds (`SU...`, the issuer's `SA...`)."""

    sys: str = field(repr=False)
    """Logs in to the broker's system account."""
    callout: str = field(repr=False)
    """Logs in to the account where the broker asks who may come in."""
    market: str = field(repr=False)
    """Logs in to the account of the services and streams."""
    issuer: str = field(repr=False)
    """Signs the logins that the callout grants."""
    matcher: str = field(repr=False)
    """Signs the pages of the ledger."""
    live_secret: bytes = field(repr=False)
    """Makes the tokens of the live feeds."""
    sealing_public: bytes = b""
    """What buyers seal secrets to (ed25519). What opens them is not here: see `load_sealing_key`."""

    def environment(self) -> dict[str, str]:
        """What `nats.conf` asks the environment for: public keys only."""
        return {f"BAZAAR_NKEY_{name.upper()}": public_nkey(getattr(self, name)) for name in ON_THE_BROKER}

    @property
    def page_key(self) -> SigningKey:
        """The key that signs pages."""
        return signing_key(self.matcher)

    @property
    def issuer_key(self) -> SigningKey:
        """The key that signs logins."""
        return signing_key(self.issuer)


def make_seed(prefix: int = nkeys.PREFIX_BYTE_USER) -> str:
    """A fresh nkey seed."""
    return str(nkeys.encode_seed(secrets.token_bytes(SECRET_BYTES), prefix).decode())


def public_nkey(seed: str) -> str:
    """The public name of a seed: `U...`, or `A...` for an account."""
    return str(nkeys.from_seed(bytearray(seed.encode())).public_key.decode())


def signing_key(seed: str) -> SigningKey:
    """The ed25519 key of a seed."""
    return SigningKey(bytes(nkeys.decode_seed(bytearray(seed.encode()))[1]))


def load_or_make(folder: Path) -> MarketKeys:
    """The keys in `folder`; what is missing is made. Raises IdentityError when somebody else could read them."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    _refuse_if_open(folder)
    seeds = {name: _read_or_make(folder / f"{name}.seed", make_seed(prefix)) for name, prefix in SEEDS.items()}
    for name, seed in seeds.items():
        _refuse_if_damaged(folder / f"{name}.seed", seed, SEEDS[name])
    live_secret = _of_hex(folder / "live.secret", secrets.token_hex(SECRET_BYTES))
    return MarketKeys(**seeds, live_secret=live_secret, sealing_public=_sealing_public(folder))


def load_sealing_key(folder: Path) -> SigningKey:
    """What opens the boxes of secrets; for the file gateway alone. Raises IdentityError."""
    seed = _read_or_make(folder / SEALING_SEED, make_seed())
    _refuse_if_damaged(folder / SEALING_SEED, seed, nkeys.PREFIX_BYTE_USER)
    key = signing_key(seed)
    if bytes(key.verify_key) != _sealing_public(folder):
        raise _damaged(folder / SEALING_PUBLIC)
    return key


def _sealing_public(folder: Path) -> bytes:
    """The public half; the seed is looked at only where that has not been written down yet."""
    fresh = ""
    if not (folder / SEALING_PUBLIC).exists():
        seed = _read_or_make(folder / SEALING_SEED, make_seed())
        _refuse_if_damaged(folder / SEALING_SEED, seed, nkeys.PREFIX_BYTE_USER)
        fresh = bytes(signing_key(seed).verify_key).hex()
    return _of_hex(folder / SEALING_PUBLIC, fresh)


def _of_hex(file: Path, fresh: str) -> bytes:
    """The 32 bytes that a file spells in hex."""
    try:
        found = bytes.fromhex(_read_or_make(file, fresh))
    except ValueError:
        raise _damaged(file) from None
    if len(found) != SECRET_BYTES:
        raise _damaged(file)
    return found


def _read_or_make(file: Path, fresh: str) -> str:
    """What the file says; a new file appears whole or not at all, and never over an old one."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    if not file.exists():
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(fresh + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(draft, file)
        except FileExistsError:
            pass  # another process of this market was first: its key counts
        finally:
            draft.unlink()
    _refuse_if_open(file)
    return file.read_text().strip()


def _refuse_if_open(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise IdentityError(
            "The market's keys are open to others.",
            why=f"{path} has mode {mode:04o}",
            hint=f"chmod go-rwx {path}, and make a new market if somebody may have read them",
        )


def _refuse_if_damaged(file: Path, seed: str, prefix: int) -> None:
    try:
        found, _ = nkeys.decode_seed(bytearray(seed.encode()))
    except Exception as error:
        raise _damaged(file) from error
    if found != prefix:
        raise _damaged(file)


def _damaged(file: Path) -> IdentityError:
    return IdentityError(
        "A key of the market is damaged.", why=f"{file} does not hold the key it should", hint="restore the folder from a backup"
    )
