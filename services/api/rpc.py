"""The same answers over NATS: `rpc.quote.<wallet>` and `rpc.read.<wallet>`. The subject proves who asks; nobody else is told anything.

Where an answer goes cannot be seen here (the account's import names its own reply), so no problem holds bytes that the asker chose.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from events import wire
from events.codec import Malformed
from events.connection import Connection
from events.errors import BazaarError
from events.nats_client import Message
from events.reasons import Refusal
from events.why import Why, WhyAnswer, WhyRequest
from services.api.access import wallet_viewer
from services.api.asking import Asked
from services.api.desk import Desk
from services.api.problems import ProblemFound, Trouble
from services.api.quoting import quoted
from services.api.why_endpoint import job_why

log = structlog.get_logger("api")

CONCURRENCY, PER_WALLET = 32, 4
"""Questions of one kind that are answered at once, and of one wallet: some wait for the ledger, and nobody is to wait for all others."""
ANSWER_BYTES_MAX = 1 << 20

_Name = Annotated[str, Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=500)]
_Texts = Annotated[list[_Text], Meta(max_length=32)]


class ReadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """`rpc.read`: a path of the HTTP API and its query. The answer is the body that HTTP would give, a problem included."""

    path: Annotated[str, Meta(max_length=300)]
    query: Annotated[
        dict[Annotated[str, Meta(max_length=64)], _Text | Annotated[list[_Text], Meta(max_length=32)]], Meta(max_length=32)
    ] = {}


class _OldBody(msgspec.Struct):
    """What the gateway needs of an old job's JSON."""

    node: str | None = None
    attempt: int | None = None
    results_sha256: str | None = None


class Rpc:
    """Answers wallets."""

    def __init__(self, connection: Connection, desk: Desk) -> None:
        self._connection = connection
        self._desk = desk
        self._asking: Counter[str] = Counter()

    async def start(self) -> None:
        """Listen."""
        await self._connection.subscribe("rpc.quote.*", self._on_quote, concurrency=CONCURRENCY)
        await self._connection.subscribe("rpc.why.*", self._on_why, concurrency=CONCURRENCY)
        await self._connection.subscribe("rpc.read.*", self._on_read, concurrency=CONCURRENCY)
        await self._connection.subscribe("market.job", self._on_job, concurrency=CONCURRENCY)

    async def _on_quote(self, message: Message) -> None:
        if message.reply:
            await self._reply(message, wire.encode(self._quote(message.subject.rpartition(".")[2], message.data)))

    def _quote(self, wallet: str, data: bytes) -> wire.QuoteAnswer:
        source = self._desk.source
        assert source is not None, "wallets are answered once there is something to answer from"
        try:
            request = wire.decode(data, wire.QuoteRequest)
        except Malformed:
            return wire.QuoteAnswer(as_of_seq=source.mirror.market.last_seq, failure=wire.Failure(code=Refusal.MALFORMED))
        return quoted(source.mirror, request, wallet_viewer(source.mirror.market, wallet), self._desk.now_ms())

    async def _on_why(self, message: Message) -> None:
        if message.reply:
            await self._reply(message, wire.encode(await self._why(message.subject.rpartition(".")[2], message.data)))

    async def _why(self, wallet: str, data: bytes) -> WhyAnswer:
        source = self._desk.source
        assert source is not None, "wallets are answered once there is something to answer from"
        market = source.mirror.market
        try:
            request = wire.decode(data, WhyRequest)
            values = {"waits": request.waits} | ({} if request.as_of is None else {"as_of": request.as_of})
            asked = Asked(source, wallet_viewer(market, wallet), values, request.job_id, self._desk.now_ms())
            reply = await job_why(asked)
        except Malformed:
            return WhyAnswer(as_of_seq=market.last_seq, failure=wire.Failure(code=Refusal.MALFORMED))
        except ProblemFound as problem:
            return WhyAnswer(as_of_seq=market.last_seq, failure=wire.Failure(code=problem.code))
        except BazaarError as error:
            return WhyAnswer(as_of_seq=market.last_seq, failure=wire.Failure(code=Trouble.NOT_READY, detail=error.what))
        assert isinstance(reply.payload, Why)
        return WhyAnswer(as_of_seq=reply.as_of_seq, why=reply.payload)

    async def _on_read(self, message: Message) -> None:
        if message.reply:
            await self._reply(message, await self._read(message.subject.rpartition(".")[2], message.data))

    async def _read(self, wallet: str, data: bytes) -> bytes:
        if self._asking[wallet] >= PER_WALLET:
            return ProblemFound(Refusal.RATE_LIMITED).body()
        self._asking[wallet] += 1
        try:
            return await self._answer(wallet, data)
        finally:
            self._asking[wallet] -= 1
            if not self._asking[wallet]:
                del self._asking[wallet]

    async def _answer(self, wallet: str, data: bytes) -> bytes:
        try:
            request = wire.decode(data, ReadRequest)
            endpoint, name = self._desk.find(request.path)
            pairs = tuple((key, text) for key, given in request.query.items() for text in ([given] if isinstance(given, str) else given))
            viewer = wallet_viewer(self._desk.ready_source().mirror.market, wallet)
            answer = await self._desk.answer(endpoint, name, pairs, viewer)
            if len(answer.body) > ANSWER_BYTES_MAX:
                raise ProblemFound(Trouble.ANSWER_TOO_LARGE)
            return answer.body
        except Malformed:
            return ProblemFound(Refusal.MALFORMED).body()
        except ProblemFound as problem:
            return ProblemFound(problem.code).body()

    async def _on_job(self, message: Message) -> None:
        """The gateway asks for a job that is no longer in its memory. Only services of the market can name this subject."""
        await self._reply(message, wire.encode(await self._old_job(message.data.decode(errors="replace"))))

    async def _old_job(self, job_id: str) -> wire.OldJob:
        source = self._desk.source
        found = None if source is None else source.mirror.finished(job_id) or await source.read_model.job(job_id)
        if source is None or found is None:
            return wire.OldJob()
        told = msgspec.json.decode(found.body, type=_OldBody)
        node = source.mirror.market.nodes.get(told.node or "")
        return wire.OldJob(
            buyer=found.buyer,
            node_wallet="" if node is None else node.wallet,
            attempt=told.attempt or 0,
            results_sha256=told.results_sha256 or "",
        )

    async def _reply(self, message: Message, data: bytes) -> None:
        try:
            await self._connection.respond(message, data)
        except BazaarError as error:
            log.debug("an answer was lost", why=error.why or str(error))
