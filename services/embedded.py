"""The embedded market: one command starts broker, callout, matcher, gateway, API and, if asked, sellers, and keeps them running.

Order: broker, callout, matcher (which makes the streams), gateway, API, sellers, and `endpoints.json` last. A store has one broker, and a
home has one `up`: both are locks that end with their process, so nothing needs cleaning after a `kill -9`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from events import pinning, wire
from events.codec import Malformed
from events.connection import GUEST, Connection, Guest
from events.delegation import seed_text
from events.errors import BazaarError, ConnectionRefused, MarketUnreachable
from events.home import MARKET_WALLET, SELLER_WALLET
from events.market import Policy
from events.subjects import rpc
from events.wallet import Keystore, Passphrases
from services import genesis
from services.broker import Broker, Place, PortTaken, in_url, reachable, start_async, take_over_async
from services.children import Child, end_left_over, write_running
from services.disk import Disk
from services.market_keys import MarketKeys
from services.processes import MarketFolder
from services.reach import Reach

READY_S = 40.0
LOOK_S = 0.1
API_BACKLOG = 512


class AlreadyUp(BazaarError):
    """Another `up` serves this home."""

    what = "This market is up already."


class NotReady(BazaarError):
    """A part of the market did not come up."""

    what = "The market did not come up."


@dataclass(frozen=True)
class SellerOptions:
    """One node that `up` offers."""

    name: str | None
    price: str
    simulate: str | None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class UpOptions:
    """What `bazaar-market up` was asked."""

    home: Path
    port: int
    api_port: int
    policy: Policy
    reach: Reach = field(default_factory=Reach)
    market_name: str = "embedded"
    sellers: tuple[SellerOptions, ...] = ()
    log_level: str = "info"
    log_json: bool = False


@dataclass
class Running:
    """What runs, for the person who started it."""

    market: str
    api: str
    market_id: str
    home: Path
    left_over: list[str] = field(default_factory=list)


class Embedded:
    """One embedded market. `run` returns after `stop`, with nothing left running."""

    def __init__(self, options: UpOptions, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._folder = MarketFolder(options.home)
        self._stopped = asyncio.Event()
        self._broker: Broker | None = None
        self._children: list[Child] = []
        self._sellers: list[Child] = []
        self._keys: MarketKeys | None = None
        self._listening: socket.socket | None = None
        """The API's, for as long as the market is up: an API that is started again listens there too."""

    def stop(self) -> None:
        """End it."""
        self._stopped.set()

    async def run(self, on_ready: Callable[[Running], None]) -> None:
        """Start everything, look after it, end it. Raises BazaarError when a part does not come up."""
        self._folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._folder):
            left_over = end_left_over(self._folder.running)
            try:
                running = await self._start()
                running.left_over = left_over
                self._write_endpoints(running)
                on_ready(running)
                await self._look_after()
            finally:
                self._folder.endpoints.unlink(missing_ok=True)
                await self._end()

    async def _start(self) -> Running:
        options, folder = self._options, self._folder
        self._keys = keys = folder.load_keys()
        market_id = await asyncio.to_thread(_prepare, folder, keys, options)
        reach = options.reach
        self._broker = broker = await take_over_async(Place(folder.path, reach.bind, options.port, reach.tls), keys)
        self._listening = listening = _listen(reach.api_bind, options.api_port)
        api = _api_address(reach, listening.getsockname()[1])
        more = ("--fd", str(listening.fileno()), *reach.api_options())
        self._children = [
            self._service("callout", broker.url),
            self._service("matcher", broker.url),
            self._service("files", broker.url),
            self._service("api", broker.url, *more, pass_fds=(listening.fileno(),)),
        ]
        for child in self._children:
            child.start()
        write_running(folder.running, self._children)
        await self._until("matcher", lambda: _market_answers(broker.url))
        await self._until("api", lambda: asyncio.to_thread(_api_answers, api))
        self._sellers = [self._seller(seller, broker.url) for seller in options.sellers]
        for seller in self._sellers:
            seller.start()
        write_running(folder.running, [*self._children, *self._sellers])
        if self._sellers:
            await self._until("seller", lambda: asyncio.to_thread(_nodes_offered, api, len(self._sellers)))
        return Running(market=broker.url, api=api, market_id=market_id, home=options.home)

    def _service(self, name: str, broker: str, *more: str, pass_fds: tuple[int, ...] = ()) -> Child:
        command = [sys.executable, "-m", "services", name, "--broker", broker, *self._logging(), *more]
        return self._child(name, command, pass_fds=pass_fds)

    def _logging(self) -> list[str]:
        return ["--log-level", self._options.log_level, *(["--log-json"] if self._options.log_json else [])]

    def _seller(self, seller: SellerOptions, broker: str) -> Child:
        command = [sys.executable, "-m", "seller_agent", "run", "--price", seller.price, "--wallet", SELLER_WALLET, "--market", broker]
        command += self._logging()
        if seller.name is not None:
            command += ["--name", seller.name]
        if seller.simulate is not None:
            command += ["--simulate-gpus", seller.simulate]
        name = f"seller-{seller.name}" if seller.name else "seller"
        # Its runs outlive it and are taken up again by the next one: when this process dies it must not stop them first.
        return self._child(name, [*command, *seller.extra], death_signal=signal.SIGKILL, gives_up_on=(2, 4))

    def _child(
        self,
        name: str,
        command: list[str],
        *,
        pass_fds: tuple[int, ...] = (),
        death_signal: int = signal.SIGTERM,
        gives_up_on: tuple[int, ...] = (),
    ) -> Child:
        environment = {**os.environ, "BAZAAR_HOME": str(self._options.home)}
        environment.pop("BAZAAR_WALLET", None)
        environment.pop("BAZAAR_PASSPHRASE_FILE", None)
        stderr = self._options.home / "log" / f"{name}.err"
        with suppress(OSError):
            if stderr.stat().st_size > 1 << 20:
                stderr.unlink()
        return Child(
            name,
            command,
            environment=environment,
            stderr=stderr,
            pass_fds=pass_fds,
            death_signal=death_signal,
            gives_up_on=gives_up_on,
        )

    async def _until(self, name: str, answers: Callable[[], object]) -> None:
        """Wait until a part answers; say which one did not."""
        deadline = time.monotonic() + READY_S
        while not await answers():  # type: ignore[misc]
            for child in [*self._children, *self._sellers]:
                child.look_after()
                if child.given_up is not None or child.restarts > 3:
                    raise NotReady(f"The {child.name} does not start.", why=self._last_words(child.name), hint="bazaar-market logs")
            if self._stopped.is_set() or time.monotonic() > deadline:
                raise NotReady(f"The {name} did not answer within {READY_S:g} s.", why=self._last_words(name), hint="bazaar-market logs")
            await asyncio.sleep(0.05)

    def _last_words(self, name: str) -> str:
        for file in sorted((self._options.home / "log").glob(f"{name}*.err")):
            lines = file.read_text(errors="replace").strip().splitlines()
            if lines:
                last = max((place for place, line in enumerate(lines) if line.startswith("error: ")), default=len(lines) - 1)
                return re.sub(r"[^\x20-\x7e]", "?", " ".join(line.strip() for line in lines[last : last + 2]))[:300]
        return ""

    def _write_endpoints(self, running: Running) -> None:
        reach = self._options.reach
        content = {"market": running.market, "api": running.api, "pid": os.getpid(), "market_id": running.market_id}
        content |= {"bind": reach.bind, "api_bind": reach.api_bind, "public_hosts": reach.public_hosts}
        draft = self._folder.endpoints.with_suffix(".new")
        draft.write_text(json.dumps(content))
        os.replace(draft, self._folder.endpoints)

    async def _look_after(self) -> None:
        """Start again what dies, until asked to stop."""
        assert self._broker is not None and self._keys is not None
        reach = self._options.reach
        place = Place(self._folder.path, reach.bind, urlsplit(self._broker.url).port or 0, reach.tls)
        disk, noted = Disk(place.store), ""
        while not self._stopped.is_set():
            news = disk.look()
            if news is not None:
                self._say(news)
                if not disk.is_full:  # JetStream keeps a stream that met a full disk stopped until it is started anew
                    await self._broker.stop_async()
            if not self._broker.is_running:
                self._say("starting the broker again")
                with suppress(BazaarError):
                    self._broker = await start_async(place, self._keys)
            for child in [*self._children, *self._sellers]:
                if child.look_after():
                    self._say(f"the {child.name} died" + ("" if child.given_up else "; starting it again"))
            running = [*self._children, *self._sellers]
            if noted != (noted := ",".join(str(child.pid) for child in running)):
                write_running(self._folder.running, running)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stopped.wait()

    async def _end(self) -> None:
        """Sellers first, so that they can report; the broker last."""
        for child in [*self._sellers, *reversed(self._children)]:
            await asyncio.to_thread(child.stop)
        if self._listening is not None:
            self._listening.close()
        if self._broker is not None:
            await self._broker.stop_async()
        self._folder.running.unlink(missing_ok=True)


class _locked:
    """The one `up` of a home."""

    def __init__(self, folder: MarketFolder) -> None:
        self._file = folder.lock
        self._descriptor = -1

    def __enter__(self) -> None:
        self._descriptor = os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise AlreadyUp(
                why=f"Process {pid or '?'} runs it.",
                hint="Use it, or end it with `bazaar-market down`; another BAZAAR_HOME is another market.",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _prepare(folder: MarketFolder, keys: MarketKeys, options: UpOptions) -> str:
    """Wallets and genesis of this market, made at its first start; its id."""
    keystore = Keystore(options.home)
    names = {wallet.name for wallet in keystore.wallets()}
    for name in (MARKET_WALLET, SELLER_WALLET):
        if name not in names:
            keystore.create(name, Passphrases())
    if not folder.genesis.exists():
        signer = keystore.unlock(MARKET_WALLET, Passphrases())
        event = genesis.create(
            root=signer.address,
            sign=signer.sign_text,
            name=options.market_name,
            matcher_key=bytes(keys.page_key.verify_key),
            policy=options.policy,
            random=secrets.token_bytes(16),
            now_ms=int(time.time() * 1000),
        )
        genesis.save(event, folder.genesis)
    return genesis.load(folder.genesis).market_id


def _listen(host: str, port: int) -> socket.socket:
    """The API's socket, held here so that the API can be restarted without losing its port. Raises PortTaken."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise PortTaken(
            f"Port {port} of the API is taken.", why=str(error), hint="`--api-port 0` takes a free one, `--port 0` free ones for both."
        ) from None
    listening.listen(API_BACKLOG)
    listening.set_inheritable(True)
    return listening


def _api_address(reach: Reach, port: int) -> str:
    """Where this machine reaches the API."""
    tls, host = reach.api_tls, in_url(reachable(reach.api_bind))
    return f"http://{host}:{port}" if tls is None else pinning.pinned(f"https://{host}:{port}", tls.fingerprint)


async def _market_answers(broker: str) -> bool:
    """Whether a guest is let in and greeted: broker, callout and matcher do their work."""
    connection = Connection(broker, Guest(seed_text(secrets.token_bytes(32))), "up")
    try:
        await connection.open()
        wire.decode(await connection.request(rpc("hello", GUEST), timeout_s=1.0), wire.Hello)
    except (MarketUnreachable, ConnectionRefused, Malformed):
        return False
    finally:
        await connection.close()
    return True


def api_get(api: str, path: str, timeout_s: float = 2.0) -> bytes:
    """What the API of this machine answers. Raises OSError, MarketUnreachable."""
    context, (plain, _) = pinning.context_for([api]), pinning.split(api)
    handlers = [urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=context)] if context is not None else [])]
    with urllib.request.build_opener(*handlers).open(plain + path, timeout=timeout_s) as answer:
        body: bytes = answer.read()
    return body


def _api_answers(api: str) -> bool:
    try:
        api_get(api, "/readyz")
    except (OSError, MarketUnreachable):
        return False
    return True


def _nodes_offered(api: str, count: int) -> bool:
    try:
        nodes = json.loads(api_get(api, "/v1/nodes"))["items"]
    except (OSError, ValueError, KeyError, MarketUnreachable):
        return False
    return sum(1 for node in nodes if node.get("state") == "offered" and not node.get("suspect")) >= count
