"""From settings to a connected client: which market, which wallet, which session key, and a new one when it ends.

Shell, shared by the three programs; the wallet's keystore is opened here and nowhere later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from events.errors import ConnectionRefused, IdentityError
from events.feed import Received
from events.home import KnownWallet, Settings, choose_wallet
from events.market_client import MarketClient, Renew, ask_hello
from events.session import Session, SessionStore
from events.values import Role
from events.wallet import Keystore, Passphrases, Signer
from events.wire import SyncAnswer

JUST_MADE_MS = 10_000


async def find_market_id(settings: Settings, *, wait_s: float = 0.0) -> str:
    """The id of the market that is meant, asked of it when nothing here knows it. Raises MarketUnreachable."""
    return settings.market_id or (await ask_hello(settings.market, wait_s=wait_s)).market_id


def find_wallet(settings: Settings, role: Role, market_id: str) -> KnownWallet:
    """Who acts at this market. Raises IdentityError."""
    return choose_wallet(settings, role, SessionStore(settings.home, market_id).delegated(role))


async def ensure_session(
    settings: Settings,
    role: Role,
    passphrases: Passphrases,
    *,
    market_id: str,
    lane: str = "",
    validity_ms: int | None = None,
    fresh: bool = False,
) -> Session:
    """The session that acts: one that lies here and still holds, else (or when `fresh`) a new one, for which the wallet is opened.
    Raises IdentityError."""
    wallet, store = find_wallet(settings, role, market_id), SessionStore(settings.home, market_id)
    if fresh:
        store.drop(wallet.address, role, lane)
    found = store.load(wallet.address, role, lane)
    if found is not None and not found.ends_within(int(time.time() * 1000)):
        return found
    unlock = _unlock(settings, wallet, passphrases)
    return await asyncio.to_thread(store.ensure, wallet.address, role, unlock, lane=lane, validity_ms=validity_ms)


def _unlock(settings: Settings, wallet: KnownWallet, passphrases: Passphrases) -> Callable[[], Signer]:
    def unlock() -> Signer:
        if not wallet.name:
            raise IdentityError(
                "There is no session to act with.",
                why=f"Wallet {wallet.address} has no keystore here, and no delegation that still holds.",
                hint="Run `bazaar login -o FILE` where its keystore lies, and bring the file here.",
            )
        return Keystore(settings.home).unlock(wallet.name, passphrases)

    return unlock


async def open_client(
    settings: Settings,
    role: Role,
    passphrases: Passphrases | None = None,
    *,
    name: str = "bazaar",
    lane: str = "",
    session: Session | None = None,
    validity_ms: int | None = None,
    wait_s: float | None = 0.0,
    on_event: Callable[[Received], None] | None = None,
    on_resync: Callable[[SyncAnswer], None] | None = None,
    job_ids: tuple[str, ...] = (),
    node_id: str | None = None,
) -> MarketClient:
    """A client that is logged in and knows where it stands. `session`: one that was brought here in a file; nothing is unlocked or
    renewed then. `lane` gives an agent a key of its own beside others of the same wallet. `wait_s`: how long to try for (None: for
    ever). The callbacks hear also what comes before this returns. Raises MarketUnreachable, ConnectionRefused, IdentityError."""
    passphrases = passphrases or Passphrases(settings.passphrase_file)
    market_id = session.market_id if session is not None and wait_s is None else await find_market_id(settings, wait_s=wait_s or 0.0)
    if session is not None and session.market_id != market_id:
        raise IdentityError("The delegation is for another market.", why=f"It names {session.market_id[:16]}, this is {market_id[:16]}.")

    async def renew(*, fresh: bool = False, quiet: bool = True) -> Session:
        keys = Passphrases(settings.passphrase_file) if quiet else passphrases
        return await ensure_session(settings, role, keys, market_id=market_id, lane=lane, validity_ms=validity_ms, fresh=fresh)

    async def start(acting: Session, renewal: Renew | None) -> MarketClient:
        client = MarketClient(settings.market, acting, settings.home, name=name, lane=lane, renew=renewal)
        if on_event is not None:
            client.on_event(on_event)
        if on_resync is not None:
            client.on_resync(on_resync)
        client.job_ids.update(job_ids)
        client.node_id = node_id
        return await client.start(wait_s=wait_s)

    if session is not None:
        return await start(session, None)
    acting = await renew(quiet=False)
    try:
        return await start(acting, renew)
    except ConnectionRefused:
        if time.time() * 1000 - acting.delegation.issued_ms < JUST_MADE_MS:
            raise
        # By the market's clock the session may be over, or its key revoked: once more, with a new one.
        return await start(await renew(fresh=True, quiet=False), renew)
