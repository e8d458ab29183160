"""One directory for everything a user keeps, and where each setting comes from: flag, environment, config.toml, default.

Shell of all three programs. It finds values and files; what they mean for a market is decided elsewhere, and no key is
opened here.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import platformdirs

from events import pinning
from events.delegation import parse_address
from events.errors import BazaarError, IdentityError, MarketUnreachable
from events.values import Role

VARIABLES = {
    "home": "BAZAAR_HOME",
    "market": "BAZAAR_MARKET",
    "api": "BAZAAR_API",
    "wallet": "BAZAAR_WALLET",
    "passphrase_file": "BAZAAR_PASSPHRASE_FILE",
    "token": "BAZAAR_TOKEN",
    "allow_simulated": "BAZAAR_ALLOW_SIMULATED",
}
"""Setting -> its environment variable."""
FILE_ONLY = ("market_id",)
"""Settings that only `bazaar join` writes: they belong to the `market` that stands beside them in config.toml."""
FLAG, FILE, RUNNING, DEFAULT = "flag", "config.toml", "the market running here", "default"
SECRET = ("token",)
MARKET_WALLET, SELLER_WALLET = "market", "seller"
"""What the embedded market calls its own wallets; never picked as the buyer."""

_SCHEMES = {"market": ("nats", "tls", "ws", "wss"), "api": ("http", "https")}
_NO_MARKET = "No market is running here and none is configured."
_NO_MARKET_HINT = "Start one with `bazaar-market up`, or set BAZAAR_MARKET and BAZAAR_API."


class Setting(NamedTuple):
    """A value and where it came from: `flag`, a variable's name, `config.toml`, `the market running here` or `default`."""

    value: str | None
    origin: str


class Endpoints(msgspec.Struct, frozen=True, kw_only=True):
    """What a running embedded market writes into `market/endpoints.json`; it may hold more."""

    market: str
    api: str
    pid: int
    market_id: str | None = None
    bind: str = "127.0.0.1"
    api_bind: str = "127.0.0.1"
    public_hosts: tuple[str, ...] = ()
    """Under which names a proxy serves the API."""


class KnownWallet(NamedTuple):
    """A wallet of this home; `name` is empty when only a delegation of it lies here."""

    name: str
    address: str


@dataclass(frozen=True)
class Settings:
    """Every setting, resolved once at the start of a program."""

    home: Path
    settings: Mapping[str, Setting]
    endpoints: Endpoints | None

    @property
    def market(self) -> str:
        """The broker's address. Raises MarketUnreachable when no market is known."""
        return self._address("market")

    @property
    def api(self) -> str:
        """The query API's address, without a slash at its end. Raises MarketUnreachable when no market is known."""
        return self._address("api").rstrip("/")

    @property
    def market_id(self) -> str | None:
        """The id of `market` when it is known without asking; signatures are bound to it."""
        return self.settings["market_id"].value

    @property
    def wallet(self) -> str | None:
        """The name or address that was asked for."""
        return self.settings["wallet"].value

    @property
    def passphrase_file(self) -> Path | None:
        """Where the keystore's passphrase stands, for scripts."""
        setting = self.settings["passphrase_file"]
        if setting.value is None:
            return None
        path = Path(setting.value).expanduser()
        return self.home / path if setting.origin == FILE else path

    @property
    def token(self) -> str | None:
        """The read token for an API that asks for one."""
        return self.settings["token"].value

    @property
    def allow_simulated(self) -> bool:
        """Whether jobs may be placed on simulated cards without asking each time."""
        return self.settings["allow_simulated"].value == "1"

    def rows(self) -> list[tuple[str, str | None, str]]:
        """Name, value and origin of each setting, for a person; secrets are not shown."""
        rows: list[tuple[str, str | None, str]] = []
        for name, setting in self.settings.items():
            hidden = name in SECRET and setting.value is not None
            rows.append((name, "(set)" if hidden else setting.value, setting.origin))
        return rows

    def _address(self, name: str) -> str:
        value = self.settings[name].value
        if value is None:
            raise MarketUnreachable(_NO_MARKET, hint=_NO_MARKET_HINT)
        return value


def resolve(flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Settings:
    """The settings in force. `flags` names those that were given; an empty variable counts as not set.
    Raises BazaarError when config.toml or an address cannot be read."""
    home_setting = _given("home", flags, environment)
    named = home_setting.value if home_setting else None
    home = Path(named or platformdirs.user_data_dir("gpubazaar")).expanduser().absolute()
    config = read_config(home)
    endpoints = read_endpoints(home)
    found = {"home": Setting(str(home), home_setting.origin if home_setting else DEFAULT)}
    for name in (name for name in VARIABLES if name != "home"):
        found[name] = _given(name, flags, environment) or _from_file(name, config) or _default(name, endpoints)
    for name in FILE_ONLY:
        found[name] = (found["market"].origin == FILE and _from_file(name, config)) or Setting(None, DEFAULT)
    if found["market"].origin == RUNNING and endpoints is not None:
        found["market_id"] = Setting(endpoints.market_id, RUNNING)
    for name in _SCHEMES:
        found[name] = _checked_address(name, found[name])
    found["allow_simulated"] = _truth(found["allow_simulated"])
    return Settings(home, found, endpoints)


def _given(name: str, flags: Mapping[str, str | None], environment: Mapping[str, str]) -> Setting | None:
    flag = flags.get(name)
    if flag is not None:
        return Setting(flag, FLAG)
    variable = environment.get(VARIABLES[name], "")
    return Setting(variable, VARIABLES[name]) if variable else None


def _from_file(name: str, config: Mapping[str, Any]) -> Setting | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) and name == "allow_simulated":
        return Setting("1" if value else "0", FILE)
    if not isinstance(value, str):
        raise BazaarError("config.toml cannot be used.", why=f"`{name}` must be a text in quotes.", hint="Correct the file.")
    return Setting(value, FILE)


def _default(name: str, endpoints: Endpoints | None) -> Setting:
    if endpoints is not None and name in _SCHEMES:
        return Setting(getattr(endpoints, name), RUNNING)
    return Setting(None, DEFAULT)


def _truth(setting: Setting) -> Setting:
    return Setting("1" if (setting.value or "").lower() in {"1", "true", "yes", "on"} else "0", setting.origin)


def _checked_address(name: str, setting: Setting) -> Setting:
    """Several broker addresses may stand in one value, with commas; a missing scheme is the first one allowed."""
    if setting.value is None:
        return setting
    whole = []
    for part in setting.value.split(","):
        address = part.strip(" ")
        address = address if "://" in address else f"{_SCHEMES[name][0]}://{address}"
        if not _is_address(address, _SCHEMES[name]):
            raise BazaarError(
                f"`{setting.value[:100]!a}` is no address of a market.",
                why=f"It came from {setting.origin}.",
                hint=f"An address looks like {_SCHEMES[name][0]}://127.0.0.1:{4222 if name == 'market' else 8420}.",
            )
        whole.append(address)
    return Setting(",".join(whole), setting.origin)


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    if re.fullmatch(r"[!-~]+", text) is None:
        return False
    try:
        text, _ = pinning.split(text)
        parts = urlsplit(text)
        return parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0) and "@" not in parts.netloc
    except (ValueError, BazaarError):
        return False


# --- files ---


def read_config(home: Path) -> dict[str, Any]:
    """What stands in config.toml. Raises BazaarError."""
    path = home / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BazaarError("config.toml cannot be read.", why=f"{path}: {error}", hint="Correct or remove the file.") from None


def write_config(home: Path, values: Mapping[str, str | bool | None]) -> None:
    """Set top-level values in config.toml, `None` takes one away; everything else in the file stays as it was written."""
    read_config(home)  # a file that we cannot read is not ours to change
    path = home / "config.toml"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    tables = next((place for place, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    top, rest = lines[:tables], lines[tables:]
    for name, value in values.items():
        top = [line for line in top if re.match(rf"\s*{re.escape(name)}\s*=", line) is None]
        if value is not None:
            top.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    write_private(path, "\n".join([*top, *rest, ""]).encode())


def read_endpoints(home: Path) -> Endpoints | None:
    """Where the embedded market of this home listens; `None` when none is running (a file left by a dead one does not count)."""
    try:
        endpoints = msgspec.json.decode((home / "market" / "endpoints.json").read_bytes(), type=Endpoints)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
    return endpoints if _runs(endpoints.pid) else None


def _runs(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def private_folder(path: Path) -> Path:
    """The folder, made if need be, readable by its owner only."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file that only its owner may read (0600), whole or not at all. Raises FileExistsError when it may not replace one."""
    private_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_secret(path: Path, what: str) -> bytes:
    """A file that holds a secret, at most 64 KiB. Raises IdentityError when it is missing or others may read it too."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(1 << 16)
    except OSError as error:
        raise IdentityError(f"{what} cannot be read.", why=f"{path}: {error.strerror}", hint="Check the path.") from None
    if mode & 0o077:
        raise IdentityError(
            f"{what} can be read by others.", why=f"{path} has mode {mode & 0o777:04o}.", hint=f"Run `chmod 600 {path}` and try again."
        )
    return data


# --- who acts ---


def known_wallets(home: Path) -> list[KnownWallet]:
    """The wallets whose keystore lies in this home, by name. Files that are no keystore are passed over."""
    found = []
    for path in sorted((home / "keystore").glob("*.json")):
        try:
            address = parse_address("0x" + str(json.loads(path.read_bytes())["address"]).removeprefix("0x"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if address is not None:
            found.append(KnownWallet(path.stem, address))
    return found


def choose_wallet(settings: Settings, role: Role, delegated: Iterable[str] = ()) -> KnownWallet:
    """Who acts: the wallet that was asked for, else the only one that may be meant. `delegated` are the addresses of which a
    session of this role lies here without a keystore. Raises IdentityError."""
    known = known_wallets(settings.home)
    strangers = [KnownWallet("", address) for address in sorted(set(delegated) - {wallet.address for wallet in known})]
    if settings.wallet is not None:
        return _named(settings.wallet, [*known, *strangers])
    own = {Role.SELLER: SELLER_WALLET, Role.OPERATOR: MARKET_WALLET}.get(role)
    for wallet in known:
        if wallet.name == own:
            return wallet
    candidates = [wallet for wallet in known if wallet.name not in (MARKET_WALLET, SELLER_WALLET)] or strangers
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise IdentityError("There is no wallet here yet.", why=f"Looked in {settings.home / 'keystore'}.", hint="Run `bazaar wallet new`.")
    raise IdentityError(
        "Several wallets are here and none was chosen.",
        why="They are: " + ", ".join(f"{wallet.name or 'delegated'} ({wallet.address})" for wallet in candidates) + ".",
        hint="Choose one with --wallet or BAZAAR_WALLET.",
    )


def _named(asked: str, wallets: list[KnownWallet]) -> KnownWallet:
    address = parse_address(asked)
    for wallet in wallets:
        if wallet.address == address or (wallet.name and wallet.name == asked):
            return wallet
    if asked[:2].lower() == "0x" and address is None:
        raise IdentityError(
            f"{asked[:80]!a} is no address.", why="It needs 40 hex digits, in a letter case that fits.", hint="Copy it again."
        )
    if address is not None:
        return KnownWallet("", address)
    have = ", ".join(wallet.name for wallet in wallets if wallet.name) or "none"
    raise IdentityError(f"There is no wallet {asked[:80]!a} here.", why=f"Wallets here: {have}.", hint="Look with `bazaar wallet list`.")
