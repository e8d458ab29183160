"""The gateway: files in and out, and the output of jobs. It folds the ledger to know who may, and writes no event.

A file is read by whoever brought it, by the present node of a job that needs it, and by the buyer of a job that made it. Output is taken
from the node that has the attempt, at the place where it goes on, within the attempt's quota. Secrets are opened here, and nowhere else in
the market, only to be sealed again to the node that has the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog
from nacl.signing import SigningKey

from events import sealing, wire
from events.codec import Malformed
from events.connection import Connection, ServiceKey
from events.errors import BazaarError, LogUnavailable, MarketUnreachable, Refused
from events.files import MANIFEST_BYTES_MAX, HostileManifest, decode_manifest
from events.nats_client import Message
from events.nats_log import NatsLog
from events.reasons import Refusal
from events.stepping import end_all
from events.streams import ensure_streams
from events.values import BlobRef
from events.wire import Failure, FilesAnswer, FilesRequest, OldJob, OutputAnswer, OutputFrame
from projections.job_states import HELD, TERMINAL
from projections.jobs import Job
from projections.market import Market
from services.blobs import BlobStore
from services.follower import Follower, restore
from services.market_keys import MarketKeys
from services.output_store import OutputStore
from services.secret_rules import box_of
from services.waiting_room import Places, WaitingRoom

log = structlog.get_logger("files")

OLD_JOB_S = 1.0
LAG_S = 3.0
"""How long a question waits for the fold to see the match that it is about."""
PLACES = 128
"""Questions about files that are answered at once, and as many frames of output."""
IDLE_CHECK_S = 60.0
MANIFESTS_KNOWN = 2000


class Gateway:
    """Answers `rpc.files.*` and `output.*`."""

    def __init__(self, connection: Connection, follower: Follower, sealing_key: SigningKey | None = None) -> None:
        self._connection = connection
        self._sealing_key = sealing_key
        self._follower = follower
        self._blobs = BlobStore(connection)
        self._output = OutputStore(connection)
        self._files_places, self._output_places = Places(PLACES), Places(PLACES)
        self._room = WaitingRoom()
        self._manifests: dict[str, frozenset[str]] = {}

    @property
    def market(self) -> Market:
        """As far as it is folded."""
        return self._follower.market

    async def start(self) -> None:
        """Learn what is stored, then answer. Raises LogUnavailable."""
        await self._blobs.load()
        await self._connection.subscribe("rpc.files.*", self._on_files)
        await self._connection.subscribe("output.*.*.*.*", self._on_output)

    async def close(self) -> None:
        """Answer nobody any more."""
        await self._files_places.close()
        await self._output_places.close()

    async def follow(self, ledger: NatsLog) -> None:
        """Fold the ledger for ever. Raises LogCorrupt."""
        while True:
            try:
                async for stored in ledger.follow(self.market.pages):
                    _, folded = self._follower.fold(stored)
                    self._room.changed({getattr(record.event, "job_id", "") for record, _ in folded})
            except LogUnavailable as error:
                log.warning("the ledger is not available", why=error.why or str(error))
                await asyncio.sleep(0.2)

    async def tidy(self) -> None:
        """Throw away uploads that were given up, for ever."""
        while True:
            await asyncio.sleep(IDLE_CHECK_S)
            try:
                await self._blobs.forget_idle()
            except BazaarError as error:
                log.warning("abandoned uploads stay", why=error.why or str(error))

    # --- files ---

    async def _on_files(self, message: Message) -> None:
        if message.reply:
            await self._files_places.give(lambda: self._files(message))

    async def _files(self, message: Message) -> None:
        wallet = message.subject.rpartition(".")[2]
        try:
            request = wire.decode(message.data, FilesRequest)
            answer = await self._answer(wallet, request)
        except Malformed:  # no detail: an answer never holds bytes that the asker chose
            answer = FilesAnswer(failure=Failure(code=Refusal.MALFORMED))
        except Refused as error:
            answer = FilesAnswer(failure=Failure(code=error.refusal, detail=error.why))
        except LogUnavailable as error:
            log.warning("the store is not available", why=error.why or str(error))
            return  # the client asks again
        await self._reply(message, wire.encode(answer))

    async def _answer(self, wallet: str, request: FilesRequest) -> FilesAnswer:
        await self._blobs.refresh()
        if request.op == "have":
            return FilesAnswer(missing=tuple(sha256 for sha256 in request.hashes if not self._blobs.has(wallet, sha256)))
        if request.op == "output":
            return await self._recorded(wallet, request)
        if request.op == "secrets":
            return await self._secret(wallet, request)
        if request.sha256 is None:
            raise Refused(Refusal.MALFORMED, "no hash")
        if request.op == "put":
            if request.size > max(self.market.policy.inputs_bytes_max, self.market.policy.results_bytes_max):
                raise Refused(Refusal.QUOTA_EXCEEDED, f"a file may have {self.market.policy.inputs_bytes_max} bytes")
            next_offset, stored = await self._blobs.put(wallet, request.sha256, request.size, request.offset, request.data)
            return FilesAnswer(next_offset=next_offset, stored=stored)
        if not await self._may_read(wallet, request.sha256, request.job_id):
            raise Refused(Refusal.NOT_YOURS, "this file belongs to others")
        found = await self._blobs.chunk(request.sha256, request.offset)
        if found is None:
            raise Refused(Refusal.UNKNOWN_JOB, "this file is not stored")
        return FilesAnswer(data=found[0], size=found[1])

    async def _secret(self, wallet: str, request: FilesRequest) -> FilesAnswer:
        """One secret of a job, sealed to the asker's key. Raises Refused, Malformed for a box that was not made for this job."""
        if request.job_id is None or self._sealing_key is None:
            raise Refused(Refusal.MALFORMED, "no job" if request.job_id is None else "this market opens no secrets")
        attempt = request.attempt or 0
        job = await self._when(wallet, request.job_id, lambda job: job.run is not None and job.run.attempt >= attempt)
        box, name = box_of(self.market, job, wallet, request)
        assert job is not None
        # Who names a hash has not brought it yet; and a box that somebody else brought is not this buyer's to have opened.
        data = await self._blobs.whole(box.sha256, sealing.BOX_BYTES_MAX) if self._blobs.has(job.buyer, box.sha256) else None
        if data is None:
            raise Refused(Refusal.UNKNOWN_JOB, "the secrets are not stored")
        sealed = sealing.reseal(data, self._sealing_key, [name], job_id=request.job_id, buyer=job.buyer, to=request.key)
        log.info("a secret was given out", job=request.job_id, attempt=attempt, node_wallet=wallet, number=request.cursor)
        return FilesAnswer(data=sealed, size=len(sealed))

    async def _may_read(self, wallet: str, sha256: str, job_id: str | None) -> bool:
        if self._blobs.has(wallet, sha256):
            return True
        if job_id is None:
            return False
        for root, author in await self._roots(wallet, job_id):
            # Who names a hash has not brought it yet: only what its author may read himself is passed on.
            if not self._blobs.has(author, root.sha256) or not self._blobs.has(author, sha256):
                continue
            if sha256 == root.sha256 or sha256 in await self._named_by(root):
                return True
        return False

    async def _roots(self, wallet: str, job_id: str) -> list[tuple[BlobRef, str]]:
        """The manifests of a job that a wallet may read, and who made each."""
        old = await self._old_job(job_id)
        if old is not None:
            return [(BlobRef(sha256=old.results_sha256, size=0), old.node_wallet)] if old.buyer == wallet and old.results_sha256 else []
        job = await self._when(wallet, job_id, lambda job: bool(_roots(job, wallet)))
        return [] if job is None else _roots(job, wallet)

    async def _old_job(self, job_id: str) -> OldJob | None:
        """A job that the fold has let go of, as the read model knows it; None when it is not that old, or unknown."""
        if job_id in self.market.jobs:
            return None
        try:
            old = wire.decode(await self._connection.request("market.job", job_id.encode(), OLD_JOB_S), OldJob)
        except (MarketUnreachable, Malformed) as error:
            log.warning("the read model does not answer", why=str(error))
            return None
        return old if old.buyer else None

    async def _named_by(self, manifest: BlobRef) -> frozenset[str]:
        """The hashes that a manifest names."""
        known = self._manifests.get(manifest.sha256)
        if known is None:
            data = await self._blobs.whole(manifest.sha256, MANIFEST_BYTES_MAX)
            if data is None:
                return frozenset()
            try:
                known = frozenset(entry.sha256 for entry in decode_manifest(data))
            except HostileManifest:
                known = frozenset()
            if len(self._manifests) >= MANIFESTS_KNOWN:
                self._manifests.clear()
            self._manifests[manifest.sha256] = known
        return known

    async def _recorded(self, wallet: str, request: FilesRequest) -> FilesAnswer:
        if request.job_id is None:
            raise Refused(Refusal.MALFORMED, "no job")
        last = await self._attempt_of(wallet, request.job_id)
        attempt = request.attempt or last
        if attempt == 0:
            return FilesAnswer(cursor=request.cursor)
        chunks, cursor = await self._output.read(request.job_id, attempt, request.cursor)
        stdout_bytes, stderr_bytes = await self._output.totals(request.job_id, attempt)
        return FilesAnswer(chunks=chunks, cursor=cursor, stdout_bytes=stdout_bytes, stderr_bytes=stderr_bytes, attempt=attempt)

    async def _attempt_of(self, wallet: str, job_id: str) -> int:
        """The last attempt of a job whose output this wallet may read; 0 when there was none. Raises Refused."""
        old = await self._old_job(job_id)
        if old is not None:
            parties, attempt = (old.buyer, old.node_wallet), old.attempt
        else:
            job = await self._when(wallet, job_id, lambda job: True)
            if job is None:
                raise Refused(Refusal.UNKNOWN_JOB)
            run = job.run
            parties, attempt = (job.buyer, "" if run is None else run.node_wallet), 0 if run is None else run.attempt
        if wallet not in parties:
            raise Refused(Refusal.NOT_YOURS)
        return attempt

    # --- output ---

    async def _on_output(self, message: Message) -> None:
        if message.reply:
            await self._output_places.give(lambda: self._frame(message))

    async def _frame(self, message: Message) -> None:
        _, seller, buyer, job_id, token = message.subject.split(".")
        try:
            answer = await self._record(seller, buyer, job_id, token, wire.decode(message.data, OutputFrame))
        except Malformed:
            answer = OutputAnswer(failure=Failure(code=Refusal.MALFORMED))
        except Refused as error:
            answer = OutputAnswer(failure=Failure(code=error.refusal, detail=error.why))
        except LogUnavailable as error:
            log.warning("output was not recorded", job=job_id, why=error.why or str(error))
            return
        await self._reply(message, wire.encode(answer))

    async def _record(self, seller: str, buyer: str, job_id: str, token: str, frame: OutputFrame) -> OutputAnswer:
        def is_there(job: Job) -> bool:
            return job.run is not None and job.run.epoch >= frame.epoch and bool(job.run.output_token)

        size_bytes = sum(len(chunk.data) for chunk in frame.chunks)
        job = await self._when(seller, job_id, is_there, places=self._output_places, size_bytes=size_bytes)
        run = None if job is None else job.run
        if job is None or run is None or run.node_wallet != seller or job.buyer != buyer or run.output_token != token:
            return OutputAnswer(failure=Failure(code=Refusal.NOT_YOURS))
        if run.epoch != frame.epoch or run.attempt != frame.attempt:
            return OutputAnswer(failure=Failure(code=Refusal.STALE_EPOCH))
        limit = self.market.policy.output_bytes_max
        stdout_bytes, stderr_bytes, full = await self._output.add(job_id, frame.attempt, frame.chunks, limit)
        return OutputAnswer(stdout_bytes=stdout_bytes, stderr_bytes=stderr_bytes, full=full)

    # --- both ---

    async def _when(
        self, asker: str, job_id: str, holds: Callable[[Job], bool], *, places: Places | None = None, size_bytes: int = 0
    ) -> Job | None:
        """The job once this holds of it; the fold may be a moment behind who asks. The job as it is, or None, when it does not come.
        Raises Refused when too many wait."""

        def settled() -> bool:
            job = self.market.jobs.get(job_id)
            return job is not None and (job.state in TERMINAL or holds(job))

        if not settled():
            async with (places or self._files_places).aside():
                await self._room.wait(asker, job_id, settled, size_bytes=size_bytes, timeout_s=LAG_S)
        return self.market.jobs.get(job_id)

    async def _reply(self, question: Message, data: bytes) -> None:
        try:
            await self._connection.respond(question, data)
        except BazaarError as error:
            log.debug("an answer was lost", why=error.why or str(error))


def _roots(job: Job, wallet: str) -> list[tuple[BlobRef, str]]:
    """The manifests of a job that a wallet may read, and who made each."""
    roots: list[tuple[BlobRef, str]] = []
    run, inputs = job.run, job.submitted.program.inputs
    if run is not None and run.node_wallet == wallet and job.state in HELD and inputs is not None:
        roots.append((inputs, job.buyer))
    if job.buyer == wallet and run is not None and run.results is not None:
        roots.append((run.results, run.node_wallet))
    return roots


async def serve(broker: str, keys: MarketKeys, *, snapshot_file: Path, until: asyncio.Event, sealing_key: SigningKey | None = None) -> None:
    """Run until the event, wherever that finds us. Raises LogCorrupt: a damaged ledger is never served from."""
    connection = Connection(broker, ServiceKey(keys.market), "files")
    work = asyncio.create_task(_serve(connection, snapshot_file, sealing_key))
    stopped = asyncio.create_task(until.wait())
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_all((work, stopped))
        await connection.close()
    if not work.cancelled():
        failures = work.exception()
        raise failures.exceptions[0] if isinstance(failures, ExceptionGroup) else failures or AssertionError("it goes on for ever")


async def _serve(connection: Connection, snapshot_file: Path, sealing_key: SigningKey | None) -> None:
    async def streams() -> None:
        await ensure_streams(connection)

    connection.on_up(streams)
    await connection.open(wait_s=None)
    ledger = NatsLog(connection)
    follower, how = await restore(ledger, snapshot_file)
    gateway = Gateway(connection, follower, sealing_key)
    await follower.catch_up(ledger)
    await gateway.start()
    log.info("ready", how=how, seq=follower.market.last_seq)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.follow(ledger))
            group.create_task(gateway.tidy())
    finally:
        await gateway.close()
