"""The line by which somebody joins a market: where it is, which one it is, and the certificate it shows. Versioned, with a checksum.

Shared by buyers and sellers. What the line says is tried before it is written down, and one market never takes another's place unasked.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from events.errors import BazaarError, IdentityError
from events.home import Settings, read_config, resolve, write_config
from events.market_client import ask_hello
from events.wire import Hello

VERSION = "bzj1"
CHECK_BYTES = 6
LINE_MAX = 2000
HINT = "Ask the operator for a new line of `bazaar-market invite`, and copy it whole."


class BadLine(BazaarError):
    """The text is no invitation."""

    what = "This is no invitation to a market."
    exit_code = 2


class OtherMarket(IdentityError):
    """This home has joined another market, or another one answers at that address."""

    what = "This is another market."


class _Content(msgspec.Struct, frozen=True, array_like=True):
    """What a line holds. Later versions may append."""

    market: str
    api: str
    market_id: bytes


@dataclass(frozen=True)
class Invitation:
    """A market's broker and API (addresses, perhaps with fingerprints), and its id, 64 hex digits."""

    market: str
    api: str | None
    market_id: str

    def line(self) -> str:
        """The text that `bazaar join` takes."""
        content = msgspec.msgpack.encode(_Content(self.market, self.api or "", bytes.fromhex(self.market_id)))
        return f"{VERSION}.{base64.urlsafe_b64encode(content + _check(content)).decode().rstrip('=')}"


def _check(content: bytes) -> bytes:
    return hashlib.sha256(VERSION.encode() + content).digest()[:CHECK_BYTES]


def read_line(text: str) -> Invitation:
    """What a line says; also when it was copied with the command in front. Raises BadLine."""
    line = text.strip().rpartition(" ")[2]
    version, dot, coded = line.partition(".")
    if len(line) > LINE_MAX or re.fullmatch(r"bzj[0-9]{1,4}", version) is None or not dot:
        raise BadLine(why=f"It begins with {line[:8]!a}; an invitation begins with `{VERSION}.`.", hint=HINT)
    if version != VERSION:
        raise BadLine("This invitation is of a kind that is not known here.", why=f"It is of kind {version}.", hint="Update gpubazaar.")
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        content, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
        if check != _check(content):
            raise ValueError
        found = msgspec.msgpack.decode(content, type=_Content)
    except (ValueError, msgspec.MsgspecError):
        raise BadLine(
            "The invitation is damaged.", why="Its checksum does not fit: a character is missing or changed.", hint=HINT
        ) from None
    if len(found.market_id) != 32:
        raise BadLine("The invitation is damaged.", why="It names no market.", hint=HINT)
    invitation = Invitation(found.market, found.api or None, found.market_id.hex())
    resolve({"market": invitation.market, "api": invitation.api}, {})  # addresses that are none are refused
    return invitation


async def join(settings: Settings, invitation: Invitation, *, force: bool = False) -> Hello:
    """Try what the invitation says and write it to config.toml. Raises OtherMarket, WrongCertificate, MarketUnreachable."""
    refuse_other(settings.home, invitation, force)
    hello = await ask_hello(invitation.market)
    if hello.market_id != invitation.market_id:
        raise OtherMarket(
            "Another market answers there.",
            why=f"At {invitation.market} it is {hello.market_id}, invited to was {invitation.market_id}.",
            hint=HINT,
        )
    write_config(settings.home, {"market": invitation.market, "api": invitation.api, "market_id": invitation.market_id})
    return hello


def refuse_other(home: Path, invitation: Invitation, force: bool) -> None:
    """Raises OtherMarket when this home has joined another one, unless that is to be given up."""
    config = read_config(home)
    market, market_id = config.get("market"), config.get("market_id")
    same = market_id == invitation.market_id if market_id else market in (None, invitation.market)
    if not same and not force:
        raise OtherMarket(
            "This home has another market.",
            why=f"config.toml names {market or '?'} ({(market_id or 'id unknown')[:16]}), the invitation {invitation.market_id[:16]}.",
            hint="--force puts the new one in its place; another BAZAAR_HOME keeps both.",
        )


def overruled(settings: Settings) -> list[str]:
    """Where settings of this home come from something that counts before config.toml, in words."""
    return [
        f"{name} is set by {setting.origin}, which counts before what was joined"
        for name, setting in settings.settings.items()
        if name in ("market", "api") and setting.value is not None and setting.origin.startswith("BAZAAR_")
    ]
