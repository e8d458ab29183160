"""The keystore: wallets at rest in keystore v3 files, opened only to sign a delegation or another text.

Shell. The wallet key never signs events and never leaves this module but by `export_key`; what it signed is checked by
`events/delegation.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from coincurve import PrivateKey
from Crypto.Cipher import AES

from events.delegation import address_of, checksum_address, keccak256, parse_address, text_digest
from events.errors import IdentityError
from events.home import KnownWallet, known_wallets, read_secret, write_private

SCRYPT_N = 1 << 17
"""0.3 s and 128 MiB an unlock: enough against guessing, and a small machine survives it (the usual 2^18 takes 300 MiB)."""
SCRYPT_N_MAX = 1 << 20
PBKDF2_ROUNDS_MAX = 10**7
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


class Signer(Protocol):
    """Who can sign a text as a wallet: a keystore, and later an external signer."""

    @property
    def address(self) -> str:
        """The wallet, lower case."""

    def sign_text(self, text: str) -> bytes:
        """65 bytes `r || s || v` of EIP-191, v being 27 or 28."""


class KeySigner:
    """A wallet key in memory."""

    def __init__(self, secret: bytes) -> None:
        """Raises ValueError when the 32 bytes are no key."""
        self._key = PrivateKey(secret)
        self.address = address_of(self._key.public_key)

    def sign_text(self, text: str) -> bytes:
        """65 bytes `r || s || v` of EIP-191."""
        signature = self._key.sign_recoverable(text_digest(text), hasher=None)
        return signature[:64] + bytes((signature[64] + 27,))


class Created(NamedTuple):
    """A wallet that was just made or taken in; `notice` is for the person, when there is something to say."""

    wallet: KnownWallet
    notice: str = ""


class Passphrases:
    """Where passphrases come from: the file for scripts, the one beside the keystore, or a person who is asked."""

    def __init__(self, file: Path | None = None, ask: Callable[[str], str] | None = None) -> None:
        self._file = file
        self._ask = ask

    def given(self) -> str | None:
        """The passphrase of the file for scripts. Raises IdentityError when others may read that file."""
        return None if self._file is None else read_passphrase(self._file)

    def new(self, name: str) -> str | None:
        """One for a new keystore; `None` when nobody chose one."""
        passphrase = self.given()
        if passphrase is None and self._ask is not None:
            passphrase = self._ask(f"New passphrase for wallet {name} (empty: a random one is kept beside it)") or None
        return passphrase

    def open(self, name: str, beside: Path) -> str:
        """The one of an existing keystore: that beside it, which is only there when it fits, before the one for scripts. Raises
        IdentityError when there is nobody to ask."""
        if beside.exists():
            return read_passphrase(beside)
        passphrase = self.given()
        if passphrase is not None:
            return passphrase
        if self._ask is None:
            raise IdentityError(
                f"The passphrase of wallet {name} is needed.",
                why="There is no terminal to ask on.",
                hint="Set BAZAAR_PASSPHRASE_FILE to a file (mode 0600) that holds it.",
            )
        return self._ask(f"Passphrase for wallet {name}")


def read_passphrase(path: Path) -> str:
    """The first line of a file that only its owner may read. Raises IdentityError."""
    data = read_secret(path, "The passphrase file")
    try:
        line = data.decode().split("\n", 1)[0].removesuffix("\r")
    except UnicodeDecodeError:
        line = ""
    if not line:
        raise IdentityError("The passphrase file is empty or no text.", why=str(path), hint="Write the passphrase in its first line.")
    return line


class Keystore:
    """The wallets of one home."""

    def __init__(self, home: Path, *, scrypt_n: int = SCRYPT_N) -> None:
        self._home = home
        self._folder = home / "keystore"
        self._scrypt_n = scrypt_n

    def wallets(self) -> list[KnownWallet]:
        """Every wallet here, by name."""
        return known_wallets(self._home)

    def find(self, asked: str) -> KnownWallet:
        """The wallet of this name, alias or address. Raises IdentityError."""
        address = parse_address(asked) or self.aliases().get(asked)
        for wallet in self.wallets():
            if asked == wallet.name or wallet.address == address:
                return wallet
        raise IdentityError(f"There is no wallet {asked[:80]!a} here.", hint="Look with `bazaar wallet list`.")

    def create(self, name: str, passphrases: Passphrases) -> Created:
        """A new wallet from the system's randomness. Raises IdentityError when the name is taken or not fit."""
        return self._store(name, PrivateKey().secret, passphrases.new(name))

    def import_key(self, name: str, secret_hex: str, passphrases: Passphrases) -> Created:
        """A wallet from its private key in hex. Raises IdentityError."""
        try:
            secret = bytes.fromhex(secret_hex.strip().removeprefix("0x"))
            if len(secret) != 32:
                raise ValueError
            return self._store(name, secret, passphrases.new(name))
        except ValueError:
            raise IdentityError("That is no private key.", why="A key has 64 hex digits.", hint="Copy it again.") from None

    def import_file(self, name: str, text: str, passphrase: str, passphrases: Passphrases) -> Created:
        """A wallet from a keystore file (v3) made elsewhere, opened with its own passphrase. Raises IdentityError."""
        return self._store(name, _decrypt(text.encode(), passphrase), passphrases.new(name))

    def export_file(self, asked: str) -> str:
        """The encrypted keystore file of a wallet, as other programs read it. Raises IdentityError."""
        return self._path(self.find(asked).name).read_text()

    def export_key(self, asked: str, passphrases: Passphrases) -> str:
        """The private key in hex: whoever has it is the wallet. Raises IdentityError."""
        return "0x" + self._secret(self.find(asked), passphrases).hex()

    def unlock(self, asked: str, passphrases: Passphrases) -> KeySigner:
        """A signer for a wallet. Takes 0.3 s and 128 MiB. Raises IdentityError, also for a wrong passphrase."""
        return KeySigner(self._secret(self.find(asked), passphrases))

    def aliases(self) -> dict[str, str]:
        """Name -> address of parties that a person gave names to."""
        try:
            table = tomllib.loads((self._folder / "aliases.toml").read_text()).get("aliases", {})
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise IdentityError("The list of aliases cannot be read.", why=str(error), hint="Correct keystore/aliases.toml.") from None
        found = {name: parse_address(str(address)) for name, address in table.items()} if isinstance(table, dict) else {}
        return {name: address for name, address in found.items() if address is not None}

    def alias(self, name: str, address: str | None) -> None:
        """Give an address a name of our own, or take the name away. Raises IdentityError."""
        aliases = self.aliases()
        aliases.pop(name, None)
        if address is not None:
            lower = parse_address(address)
            if lower is None:
                raise IdentityError(
                    f"{address[:80]!a} is no address.", why="40 hex digits, in a letter case that fits.", hint="Copy it again."
                )
            aliases[checked_name(name)] = lower
        lines = ["[aliases]", *(f'{alias} = "{checksum_address(to)}"' for alias, to in sorted(aliases.items())), ""]
        write_private(self._folder / "aliases.toml", "\n".join(lines).encode())

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _store(self, name: str, secret: bytes, passphrase: str | None) -> Created:
        path, beside = self._path(checked_name(name)), self._folder / f"{name}.passphrase"
        if path.exists():
            raise IdentityError(f"A wallet {name} is here already.", why=str(path), hint="Choose another name.")
        signer = KeySigner(secret)
        notice = ""
        if passphrase is None:
            passphrase = _kept_passphrase(beside)
            notice = f"No passphrase was chosen: a random one is kept in {beside}, readable by you only. Keep a copy of both files."
        else:
            beside.unlink(missing_ok=True)  # left by a wallet that is no more
        document = _encrypt(secret, passphrase, self._scrypt_n) | {"address": signer.address[2:]}
        try:
            write_private(path, json.dumps(document, indent=1).encode(), replace=False)
        except FileExistsError:
            raise IdentityError(f"A wallet {name} is here already.", why=str(path), hint="Choose another name.") from None
        return Created(KnownWallet(name, signer.address), notice)

    def _secret(self, wallet: KnownWallet, passphrases: Passphrases) -> bytes:
        beside = self._folder / f"{wallet.name}.passphrase"
        secret = _decrypt(self._path(wallet.name).read_bytes(), passphrases.open(wallet.name, beside))
        if KeySigner(secret).address != wallet.address:
            raise IdentityError("The keystore file names another address than its key has.", why=str(self._path(wallet.name)))
        return secret


def _kept_passphrase(beside: Path) -> str:
    """A random passphrase, durable before the keystore that it opens; two processes that make the same wallet get the same one."""
    with suppress(FileExistsError):
        write_private(beside, secrets.token_urlsafe(24).encode() + b"\n", replace=False)
    return read_passphrase(beside)


def checked_name(name: str) -> str:
    """The name, when it is fit for a wallet. Raises IdentityError."""
    if NAME.fullmatch(name) is None:
        raise IdentityError(
            f"{name[:80]!a} is no name for a wallet.", why="A name has 1 to 32 of a-z, 0-9 and -, not - first.", hint="Choose another name."
        )
    return name


# Keystore version 3, by hand: the usual library takes 0.4 s to import, loads curves that nobody here uses, and lifts
# Python's recursion limit for the whole process, after which deeply nested hostile bytes crash it. Checked against it in the tests.


def _encrypt(secret: bytes, passphrase: str, scrypt_n: int) -> dict[str, Any]:
    salt, iv = secrets.token_bytes(32), secrets.token_bytes(16)
    parameters = {"n": scrypt_n, "r": 8, "p": 1, "dklen": 32, "salt": salt.hex()}
    derived = _derived_key("scrypt", parameters, passphrase)
    ciphertext = _aes_ctr(derived, iv).encrypt(secret)
    crypto = {
        "cipher": "aes-128-ctr",
        "cipherparams": {"iv": iv.hex()},
        "ciphertext": ciphertext.hex(),
        "kdf": "scrypt",
        "kdfparams": parameters,
        "mac": keccak256(derived[16:32] + ciphertext).hex(),
    }
    return {"version": 3, "id": str(uuid4()), "crypto": crypto}


def _decrypt(data: bytes, passphrase: str) -> bytes:
    """The key in a keystore file. Raises IdentityError: no keystore, or not this passphrase."""
    try:
        document = {name.lower(): value for name, value in json.loads(data).items()}
        crypto = document["crypto"]
        if document["version"] != 3 or crypto["cipher"] != "aes-128-ctr":
            raise ValueError("only version 3 with aes-128-ctr is read")
        ciphertext, mac, iv = (_from_hex(text) for text in (crypto["ciphertext"], crypto["mac"], crypto["cipherparams"]["iv"]))
        derived = _derived_key(crypto["kdf"], crypto["kdfparams"], passphrase)
        secret = _aes_ctr(derived, iv).decrypt(ciphertext)
        KeySigner(secret if hmac.compare_digest(mac, keccak256(derived[16:32] + ciphertext)) else b"\1" * 32)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        why = f"{type(error).__name__}: {str(error)[:200]!a}"
        raise IdentityError("That is no keystore file.", why=why, hint="It must be keystore version 3.") from None
    if not hmac.compare_digest(mac, keccak256(derived[16:32] + ciphertext)):
        raise IdentityError("The passphrase is wrong.", why="It does not open this keystore.", hint="Try again.")
    return bytes(secret)


def _derived_key(kdf: str, parameters: Mapping[str, Any], passphrase: str) -> bytes:
    """32 bytes. A file from elsewhere must not make us use all memory or time: raises ValueError beyond our bounds."""
    salt, password = _from_hex(parameters["salt"]), passphrase.encode()
    if parameters["dklen"] != 32:
        raise ValueError("the key has another length")
    if kdf == "pbkdf2" and parameters["prf"] == "hmac-sha256":
        if not 0 < parameters["c"] <= PBKDF2_ROUNDS_MAX:
            raise ValueError("it asks for too much work")
        return hashlib.pbkdf2_hmac("sha256", password, salt, parameters["c"], 32)
    if kdf != "scrypt":
        raise ValueError("its key derivation is not known")
    n, r, p = parameters["n"], parameters["r"], parameters["p"]
    if not (n > 0 and r > 0 and p > 0) or n * r * p > SCRYPT_N_MAX * 8:
        raise ValueError("it asks for too much work")
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, dklen=32, maxmem=128 * r * (n + p + 2) + (1 << 20))


def _aes_ctr(derived: bytes, iv: bytes) -> Any:
    return AES.new(derived[:16], AES.MODE_CTR, nonce=b"", initial_value=iv)


def _from_hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))
