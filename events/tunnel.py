"""One tunnel session on a connection to the broker: runs the state machine of `tunnel_mux`, and says hello for the buyer.

Shell. What ends a session (a broken frame, silence, a lost connection, the other end's goodbye) ends its streams, each with the reason,
and nothing else. It knows nothing of jobs beyond the facts that the handshake binds, and looks into no byte that it carries.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from events import subjects, tunnel_events, tunnel_keys
from events.connection import Connection
from events.errors import BazaarError, MarketUnreachable, Refused
from events.nats_client import Message, Subscription
from events.tunnel_frames import Broken, Target
from events.tunnel_keys import Facts, Identity, Keys, NotMet
from events.tunnel_mux import Mux

log = logging.getLogger("bazaar.tunnel")

TICK_S = 5.0
"""With tunnel_mux.MISSED_MAX: an end that is silent for 15 to 20 s is taken for gone."""
HELLO_AGAIN_S = 0.25
HELLO_AGAIN_S_MAX = 2.0
MEET_S = 10.0


class NodeSilent(BazaarError):
    """The job's node does not answer an opening."""

    what = "The job's node does not answer."


class NodeRefused(BazaarError):
    """The node, or what claims to be it, was met and does not let us in; `reason` is one word."""

    what = "The job's node does not open a tunnel."

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why=why)
        self.reason = reason


class StreamEnd(Protocol):
    """What a stream is joined to here. Called in the reading loop; must be quick and raise nothing."""

    def opened(self) -> None:
        """The node has connected it."""

    def data(self, data: memoryview) -> None:
        """Bytes came; `Tunnel.consumed` gives the credit back once they are passed on."""

    def granted(self) -> None:
        """There may be room again."""

    def eof(self) -> None:
        """No more data comes; what is sent still arrives."""

    def over(self, reason: str) -> None:
        """The stream is over, both ways."""

    def resized(self, columns: int, rows: int) -> None:
        """The terminal's window has another size."""

    def exited(self, code: int) -> None:
        """The terminal's program has ended."""


AskedFor = Callable[["Tunnel", int, Target], None]
"""Told of a stream that the buyer wants: join it to something and `accept`, or `reset`."""


class Tunnel:
    """One open session. `send_on` is the subject that the other end listens to."""

    def __init__(self, connection: Connection, keys: Keys, *, send_on: str, asked: AskedFor | None = None) -> None:
        self._connection = connection
        self._generation = connection.generation
        self._mux = Mux(keys, opens=asked is None)
        self._send_on = send_on
        self._asked = asked
        self._ends: dict[int, StreamEnd] = {}
        self._loop = asyncio.get_running_loop()
        self._flushing = False
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        self._forget_hook = connection.on_up(self._came_back)
        self._heard_s = self._loop.time()
        self.on_closed: Callable[[Tunnel], None] | None = None
        self.reason = ""
        """Why it is closed; empty while it is open."""
        self.streams_opened = self.bytes_sent = self.bytes_received = 0

    @property
    def is_closed(self) -> bool:
        """Whether it can be used no more."""
        return bool(self.reason)

    @property
    def is_full(self) -> bool:
        """Whether no further stream may be opened now."""
        return self._mux.is_full

    @property
    def idle_s(self) -> float:
        """For how long there has been no stream."""
        return self._mux.idle_ticks * TICK_S

    @property
    def silent_s(self) -> float:
        """For how long nothing was heard of the other end."""
        return self._loop.time() - self._heard_s

    # ---- streams

    def open(self, target: Target, end: StreamEnd) -> int:
        """Ask for a stream that is joined to `end`; its number."""
        assert not self.is_closed
        number = self._mux.open(target)
        self._ends[number] = end
        self.streams_opened += 1
        self._soon()
        return number

    def accept(self, number: int, end: StreamEnd) -> None:
        """A stream that was asked for is joined to `end`; what came before is told to it now, or that it is over meanwhile."""
        early = self._ends.get(number)
        if self.is_closed or early is None:
            end.over(self.reason or "given up by the other end")
            return
        self._ends[number] = end
        self._mux.accept(number)
        if isinstance(early, _Early):
            early.tell(end)
        self._soon()

    def is_open(self, number: int) -> bool:
        """Whether the node has connected it and it is not over."""
        return self._mux.is_open(number)

    def room(self, number: int) -> int:
        """How many bytes `send` takes now."""
        return 0 if self.is_closed else self._mux.room(number)

    def send(self, number: int, data: bytes | memoryview) -> None:
        """Send bytes, no more than there is room for; they leave at once."""
        self.bytes_sent += len(data)
        self._mux.send(number, data)
        self._flush()

    def consumed(self, number: int, count: int) -> None:
        """So many of the bytes that came were passed on."""
        if not self.is_closed:
            self._mux.consumed(number, count)
            self._soon()

    def eof(self, number: int) -> None:
        """No more bytes from here."""
        if not self.is_closed:
            self._mux.eof(number)
            self._soon()

    def reset(self, number: int, reason: str) -> None:
        """End a stream, both ways. Its end is not told."""
        self._ends.pop(number, None)
        if not self.is_closed:
            self._mux.reset(number, reason)
            self._soon()

    def resize(self, number: int, columns: int, rows: int) -> None:
        """The window of the terminal here has another size."""
        if not self.is_closed:
            self._mux.resize(number, columns, rows)
            self._soon()

    def exit(self, number: int, code: int) -> None:
        """The terminal's program has ended."""
        if not self.is_closed:
            self._mux.exit(number, code)
            self._soon()

    def ping(self) -> None:
        """Ask the other end for a word."""
        if not self.is_closed:
            self._mux.ping()
            self._soon()

    def close(self, reason: str) -> None:
        """End it, and say so."""
        if self.is_closed:
            return
        self._mux.bye(reason)
        self._flush()
        self._over(reason)

    # ---- inside

    def heard(self, message: Message) -> None:
        """A message from the other end."""
        if self.is_closed:
            return
        self._heard_s = self._loop.time()
        try:
            events = self._mux.receive(message.data)
        except Broken as error:
            self._give_up(str(error))
            return
        for event in events:
            self._act(event)
        self._soon()

    def _act(self, event: tunnel_events.Event) -> None:
        match event:
            case tunnel_events.Asked(number, target):
                self.streams_opened += 1
                self._ends[number] = _Early()
                assert self._asked is not None
                self._asked(self, number, target)
                return
            case tunnel_events.Ended(reason):
                self._over(reason)
                return
        end = self._ends.get(event.stream)
        if end is None:
            return
        match event:
            case tunnel_events.Data(_, data):
                self.bytes_received += len(data)
                end.data(data)
            case tunnel_events.Granted():
                end.granted()
            case tunnel_events.Opened():
                end.opened()
            case tunnel_events.Eof():
                end.eof()
            case tunnel_events.Resized(_, columns, rows):
                end.resized(columns, rows)
            case tunnel_events.Exited(_, code):
                end.exited(code)
            case tunnel_events.Reset(number, reason):
                del self._ends[number]
                end.over(reason)

    def _soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self.is_closed:
            return
        if self._connection.generation != self._generation:
            self._over("the connection to the market was lost")
            return
        try:
            for message in self._mux.outgoing():
                self._connection.publish_now(self._send_on, message)
        except (MarketUnreachable, Refused) as error:
            self._over(f"the connection to the market was lost: {error.why}")

    async def _came_back(self) -> None:
        """A new connection: what was under way on the old one is lost."""
        self._over("the connection to the market was lost")

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(TICK_S, self._tick)
        try:
            self._mux.tick()
        except Broken as error:
            self._give_up(str(error))
            return
        self._flush()

    def _give_up(self, why: str) -> None:
        """The other end cannot be understood any more; it is told, in case that it listens."""
        self._mux.ended = ""
        self._mux.bye(why)
        self._flush()
        self._over(why)

    def _over(self, reason: str) -> None:
        if self.is_closed:
            return
        self.reason = reason or "closed"
        self._ticking.cancel()
        self._forget_hook()
        ends, self._ends = self._ends, {}
        for end in ends.values():
            end.over(self.reason)
        if self.on_closed is not None:
            self.on_closed(self)


class _Early:
    """Keeps what comes before a stream is joined to something; no more than EARLY_WINDOW, by the credit that there is. Of sizes, for
    which no credit is needed, the last one."""

    def __init__(self) -> None:
        self._told: list[Callable[[StreamEnd], None]] = []
        self._size: tuple[int, int] | None = None

    def tell(self, end: StreamEnd) -> None:
        """Everything that was kept."""
        if self._size is not None:
            end.resized(*self._size)
        for tell in self._told:
            tell(end)

    def opened(self) -> None:
        raise AssertionError("only a buyer's stream is opened by the other end")

    def data(self, data: memoryview) -> None:
        self._told.append(lambda end: end.data(data))

    def granted(self) -> None:
        pass  # what is joined later asks for the room itself

    def eof(self) -> None:
        self._told.append(lambda end: end.eof())

    def over(self, reason: str) -> None:
        self._told.append(lambda end: end.over(reason))

    def resized(self, columns: int, rows: int) -> None:
        self._size = (columns, rows)

    def exited(self, code: int) -> None:
        raise AssertionError("only a node's program ends")


async def meet(connection: Connection, facts: Facts, identity: Identity, output_token: str, *, timeout_s: float = MEET_S) -> Tunnel:
    """A session with the node of a running job, as its buyer. Raises NodeSilent, NodeRefused, MarketUnreachable."""
    session, ephemeral = secrets.token_hex(16), secrets.token_bytes(32)
    hello = tunnel_keys.hello(facts, identity, session=session, ephemeral_secret=ephemeral)
    opening = subjects.tunnel(facts.buyer, facts.seller, tunnel_keys.opening_token(facts.job_id, facts.epoch, output_token), 0)
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    made: list[Tunnel] = []

    def listen(message: Message) -> None:
        if made:
            made[0].heard(message)
        elif not answer.done():
            answer.set_result(message.data)

    subscription = await connection.subscribe(subjects.tunnel(facts.seller, facts.buyer, session, 0), listen)
    try:
        data = await _answered(connection, opening, hello, answer, timeout_s)
        now_ms = int(time.time() * 1000)
        keys = tunnel_keys.read_welcome(data, hello, facts, ephemeral_secret=ephemeral, now_ms=now_ms)
    except NotMet as error:
        await subscription.unsubscribe()
        raise NodeRefused(error.reason, str(error)) from None
    except BaseException:
        await subscription.unsubscribe()
        raise
    tunnel = Tunnel(connection, keys, send_on=subjects.tunnel(facts.buyer, facts.seller, session, 0))
    tunnel.on_closed = forget(subscription)
    made.append(tunnel)
    return tunnel


def forget(subscription: Subscription) -> Callable[[Tunnel], None]:
    """What ends a subscription once a tunnel is closed."""

    def closed(tunnel: Tunnel) -> None:
        task = asyncio.get_running_loop().create_task(_unsubscribe(subscription))
        _ending.add(task)
        task.add_done_callback(_ending.discard)

    return closed


_ending: set[asyncio.Task[None]] = set()


async def _unsubscribe(subscription: Subscription) -> None:
    with suppress(BazaarError, OSError):
        await subscription.unsubscribe()


async def _answered(connection: Connection, opening: str, hello: bytes, answer: asyncio.Future[bytes], timeout_s: float) -> bytes:
    """The answer to a hello, said again while there is none: the node may be just starting to listen."""
    loop = asyncio.get_running_loop()
    until, again_s = loop.time() + timeout_s, HELLO_AGAIN_S
    while not answer.done():
        await connection.publish(opening, hello)
        await asyncio.wait({answer}, timeout=min(again_s, max(0.001, until - loop.time())))
        if not answer.done() and loop.time() >= until:
            raise NodeSilent(
                why=f"no answer within {timeout_s:g} s: the node is away, or the job has just ended",
                hint="look with `bazaar show`, then try again",
            )
        again_s = min(2 * again_s, HELLO_AGAIN_S_MAX)
    return answer.result()
