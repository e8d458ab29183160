"""The file gateway as a process, with real parties: what is stored is what was sent, who may read what, output in its place, restarts.

The node of these tests is played by hand, event by event, so that it can ask at every moment of an attempt, and lie.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from integration.broker_env import World, world
from integration.market_env import MarketWorld, a_job, session_of

from events import files, ids
from events.errors import BazaarError, MarketUnreachable, Refused
from events.files import (
    CHUNK_BYTES,
    FilesDiffer,
    HostileManifest,
    LocalFile,
    ManifestEntry,
    blob_ref,
    get_bytes,
    get_files,
    put_bytes,
    put_files,
)
from events.jobs import GpusReleased, JobClaimed, JobStarted, JobSucceeded
from events.market import MarketCreated, Policy
from events.market_client import MarketClient
from events.nodes import NodeOffered
from events.reasons import Refusal
from events.subjects import rpc
from events.values import Accept, BlobRef, Card, Program, Role
from events.wire import FilesAnswer, FilesRequest, OutputAnswer, OutputChunk, OutputFrame, decode
from projections.job_states import JobState
from projections.jobs import Job
from services.blobs import QUOTA_BYTES, UPLOADS_PER_WALLET

__all__ = ["world"]  # the fixture

BUYER, SELLER, STRANGER, OTHER_SELLER = 1, 2, 3, 4
OUTPUT_MAX, INPUTS_MAX = 2000, 8 << 20
STDOUT, STDERR = 1, 2


class SmallMarket(MarketWorld):
    """A market whose quotas are in reach."""

    def genesis(self) -> MarketCreated:
        policy = Policy(max_queue=1000, output_bytes_max=OUTPUT_MAX, inputs_bytes_max=INPUTS_MAX, results_bytes_max=INPUTS_MAX)
        return msgspec.structs.replace(super().genesis(), policy=policy)


class Held(NamedTuple):
    """An attempt that the node has."""

    job_id: str
    attempt: int
    epoch: int
    token: str

    @property
    def names(self) -> dict[str, Any]:
        return {"job_id": self.job_id, "attempt": self.attempt, "epoch": self.epoch}


class Stage:
    """A market with its gateway in a process, a buyer, a node, and those who have no business here."""

    def __init__(self, market: MarketWorld, home: Path) -> None:
        self.market = market
        self.home = home
        self.gateway: subprocess.Popen[bytes] | None = None
        self.buyer: MarketClient
        self.seller: MarketClient
        self.stranger: MarketClient

    async def start(self) -> Stage:
        self.start_gateway()
        self.buyer = await self.client(BUYER)
        self.seller = await self.client(SELLER, Role.SELLER)
        self.stranger = await self.client(STRANGER)
        await self.offer(self.seller)
        await self.answers(self.buyer)
        return self

    async def client(self, number: int, role: Role = Role.BUYER) -> MarketClient:
        return await self.market.client(session_of(number, role), self.home / f"party-{number}")

    def start_gateway(self) -> None:
        words = (self.home / "files.err").open("ab")
        with words:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "services", "files", "--broker", self.market.world.url],
                env={**os.environ, "BAZAAR_HOME": str(self.home)},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )

    def kill_gateway(self) -> None:
        assert self.gateway is not None
        self.gateway.kill()
        self.gateway.wait()

    async def answers(self, client: MarketClient) -> None:
        """Returns when the gateway answers this client."""
        async with asyncio.timeout(30):
            while True:
                try:
                    await client.ask("files", FilesRequest(op="have"), FilesAnswer, 2.0)
                except MarketUnreachable:
                    await asyncio.sleep(0.02)
                else:
                    return

    def said(self) -> str:
        return (self.home / "files.err").read_text(errors="replace")

    async def offer(self, seller: MarketClient, name: str = "node") -> None:
        card = Card(index=0, uuid=f"GPU-{name}", model="RTX 4090", vram_mib=24_564)
        offer = NodeOffered(
            node_id=ids.node_id(seller.wallet, name), name=name, cards=(card,), price_uusd_per_gpu_hour=1, accept=Accept.ANYONE
        )
        assert (await seller.submit(offer, 10)).reason is None

    def job(self, job_id: str) -> Job:
        return self.market.matcher.market.jobs[job_id]

    async def matched(self, program: Program | None = None) -> Held:
        """A job of the buyer that the node has been given."""
        job = a_job(program=program or Program(argv=("true",)))
        assert (await self.buyer.submit(job, 10)).reason is None
        run = self.job(job.job_id).run
        assert run is not None, "the node was not free"
        return Held(job.job_id, run.attempt, run.epoch, os.urandom(8).hex())

    async def claimed(self, program: Program | None = None) -> Held:
        held = await self.matched(program)
        assert (await self.seller.submit(JobClaimed(**held.names, output_token=held.token), 10)).reason is None
        assert (await self.seller.submit(JobStarted(**held.names), 10)).reason is None
        return held

    async def ended(self, held: Held, results: BlobRef | None = None) -> None:
        assert (await self.seller.submit(JobSucceeded(**held.names, exit_code=0, results=results), 10)).reason is None
        assert (await self.seller.submit(GpusReleased(**held.names), 10)).reason is None
        assert JobState.SUCCEEDED is self.job(held.job_id).state

    async def write(self, held: Held, *chunks: tuple[int, int, bytes], by: MarketClient | None = None, **changes: Any) -> OutputAnswer:
        """Output as the node sends it: (channel, offset, data)."""
        frame = OutputFrame(attempt=held.attempt, epoch=held.epoch, chunks=tuple(OutputChunk(*chunk) for chunk in chunks))
        frame = msgspec.structs.replace(frame, **changes)
        return await (by or self.seller).publish_output(self.buyer.wallet, held.job_id, held.token, frame)

    async def written(self, held: Held, *, by: MarketClient | None = None) -> tuple[bytes, bytes]:
        """What is recorded of stdout and stderr, each byte once and in its place."""
        parts = {STDOUT: b"", STDERR: b""}
        cursor = 0
        while True:
            answer = await (by or self.buyer).ask_files(FilesRequest(op="output", job_id=held.job_id, cursor=cursor))
            assert answer.failure is None, answer
            for chunk in answer.chunks:
                assert len(parts[chunk.channel]) == chunk.offset
                parts[chunk.channel] += chunk.data
            if not answer.chunks:
                assert (len(parts[STDOUT]), len(parts[STDERR])) == (answer.stdout_bytes, answer.stderr_bytes)
                return parts[STDOUT], parts[STDERR]
            cursor = answer.cursor

    def close(self) -> None:
        if self.gateway is not None and self.gateway.poll() is None:
            self.kill_gateway()


@pytest.fixture
async def stage(world: World, tmp_path: Path) -> AsyncIterator[Stage]:
    market = SmallMarket(world, tmp_path)
    await market.start_matcher()
    made = Stage(market, tmp_path)
    try:
        yield await made.start()
    finally:
        made.close()
        await market.stop()


async def refusal_of(asking: Any) -> Refusal:
    """Why the gateway says no."""
    with pytest.raises(Refused) as caught:
        await asking
    return caught.value.refusal


async def get(client: MarketClient, ref: BlobRef, job_id: str | None = None) -> bytes:
    return await get_bytes(client.ask_files, ref, job_id=job_id, limit_bytes=1 << 30)


# --- storing ---


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * (1 << 20) + 17])
async def test_a_file_comes_back_as_it_went_in(stage: Stage, size: int) -> None:
    data = os.urandom(size)
    ref = await put_bytes(stage.buyer.ask_files, data)
    assert data == await get(stage.buyer, ref)
    assert "Traceback" not in stage.said()


async def test_what_the_store_has_of_a_wallet_is_not_sent_again(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(300_000))
    local = [LocalFile("a", tmp_path / "a"), LocalFile("copy/of a", tmp_path / "a")]
    asked: list[str] = []

    async def ask(request: FilesRequest) -> FilesAnswer:
        asked.append(request.op)
        return await stage.buyer.ask_files(request)

    first = await put_files(ask, local)
    assert ["have"] + 4 * ["put"] == asked  # three chunks and the manifest
    asked.clear()
    assert first == await put_files(ask, local)
    assert ["have"] == asked


async def test_many_files_at_once_are_all_stored_and_no_question_goes_unanswered(stage: Stage) -> None:
    blobs = [os.urandom(size) for size in (1, 200_000, 700_000) for _ in range(8)]
    refs = await asyncio.gather(*(put_bytes(stage.buyer.ask_files, data) for data in blobs))
    assert blobs == await asyncio.gather(*(get(stage.buyer, ref) for ref in refs))
    assert "Traceback" not in stage.said()


async def test_content_that_does_not_have_its_hash_is_refused_and_not_kept(stage: Stage) -> None:
    announced = blob_ref(b"what was promised")
    lie = FilesRequest(op="put", sha256=announced.sha256, size=announced.size, data=b"something else!!!")
    assert Refusal.MALFORMED == (await stage.buyer.ask_files(lie)).failure.code  # type: ignore[union-attr]
    answer = await stage.buyer.ask_files(FilesRequest(op="have", hashes=(announced.sha256,)))
    assert (announced.sha256,) == answer.missing
    assert announced == await put_bytes(stage.buyer.ask_files, b"what was promised")


@pytest.mark.parametrize(
    ("size", "data"), [(10, b"eleven bytes"), (10, b"short"), (CHUNK_BYTES + 5, bytes(100)), (0, b"not empty")], ids=str
)
async def test_a_chunk_that_does_not_fit_its_file_is_refused(stage: Stage, size: int, data: bytes) -> None:
    request = FilesRequest(op="put", sha256=hashlib.sha256(data).hexdigest(), size=size, data=data)
    assert Refusal.MALFORMED == (await stage.buyer.ask_files(request)).failure.code  # type: ignore[union-attr]


async def test_a_file_over_the_markets_limit_is_refused_before_anything_is_sent(stage: Stage) -> None:
    request = FilesRequest(op="put", sha256="0" * 64, size=INPUTS_MAX + 1, data=bytes(CHUNK_BYTES))
    answer = await stage.buyer.ask_files(request)
    assert Refusal.QUOTA_EXCEEDED == answer.failure.code  # type: ignore[union-attr]


async def test_a_wallet_has_a_number_of_uploads_and_others_are_not_held_up(stage: Stage) -> None:
    for number in range(UPLOADS_PER_WALLET):
        begun = FilesRequest(op="put", sha256=f"{number:064x}", size=INPUTS_MAX, data=bytes(CHUNK_BYTES))
        assert (await stage.buyer.ask_files(begun)).failure is None
    one_more = FilesRequest(op="put", sha256="f" * 64, size=1, data=b"x")
    assert Refusal.RATE_LIMITED == (await stage.buyer.ask_files(one_more)).failure.code  # type: ignore[union-attr]
    await put_bytes(stage.stranger.ask_files, b"x")


def test_a_wallets_share_of_the_store_is_more_than_its_uploads_can_announce() -> None:
    """So that the two limits do not meet: a wallet that may send 32 files of the largest size at once has room for some of them."""
    assert Policy().inputs_bytes_max < QUOTA_BYTES < Policy().inputs_bytes_max * UPLOADS_PER_WALLET


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x81\xa2op\xa5steal", b"\x91" * 50_000, os.urandom(300)], ids=["empty", "c1", "op", "deep", "noise"]
)
async def test_what_is_no_question_is_answered_as_malformed_and_nothing_of_it_is_repeated(stage: Stage, data: bytes) -> None:
    answer = await stage.buyer.connection.request(rpc("files", stage.buyer.wallet), data, 10.0)
    told = decode(answer, FilesAnswer).failure
    assert told is not None and Refusal.MALFORMED == told.code
    assert len(answer) < 200


# --- who may read ---


async def test_strangers_neither_read_a_file_nor_learn_that_it_is_there(stage: Stage) -> None:
    data = os.urandom(CHUNK_BYTES + 1)
    ref = await put_bytes(stage.buyer.ask_files, data)
    there = await stage.stranger.ask_files(FilesRequest(op="get", sha256=ref.sha256, size=ref.size))
    absent = await stage.stranger.ask_files(FilesRequest(op="get", sha256="0" * 64, size=ref.size))
    assert there == absent and Refusal.NOT_YOURS == there.failure.code  # type: ignore[union-attr]
    assert (ref.sha256,) == (await stage.stranger.ask_files(FilesRequest(op="have", hashes=(ref.sha256,)))).missing
    first = await stage.stranger.ask_files(FilesRequest(op="put", sha256=ref.sha256, size=ref.size, data=data[:CHUNK_BYTES]))
    assert (CHUNK_BYTES, False) == (first.next_offset, first.stored), "a known file must be sent whole by everybody"
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.stranger, ref))
    assert ref == await put_bytes(stage.stranger.ask_files, data)
    assert data == await get(stage.stranger, ref)


async def test_a_node_reads_a_jobs_inputs_from_its_match_to_the_end_and_nobody_else_does(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("input")
    manifest, size = await put_files(stage.buyer.ask_files, [LocalFile("in.txt", tmp_path / "in.txt")])
    private = await put_bytes(stage.buyer.ask_files, b"not for this job")
    other = await stage.client(OTHER_SELLER, Role.SELLER)
    held = await stage.matched(Program(argv=("true",), inputs=manifest, inputs_bytes=size))

    entries = await get_files(stage.seller.ask_files, manifest, tmp_path / "node", job_id=held.job_id, limit_bytes=100)
    assert ["in.txt"] == [entry.path for entry in entries] and "input" == (tmp_path / "node/in.txt").read_text()
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.seller, private, held.job_id))
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.seller, manifest))
    outsiders = (refusal_of(get(outsider, manifest, held.job_id)) for outsider in (other, stage.stranger))
    assert [Refusal.NOT_YOURS, Refusal.NOT_YOURS] == await asyncio.gather(*outsiders)

    await stage.seller.submit(JobClaimed(**held.names, output_token=held.token), 10)
    await stage.seller.submit(JobStarted(**held.names), 10)
    await get(stage.seller, manifest, held.job_id)
    await stage.ended(held)
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.seller, manifest, held.job_id))


async def test_results_are_for_the_buyer_once_the_job_has_ended(stage: Stage, tmp_path: Path) -> None:
    held = await stage.claimed()
    (tmp_path / "model").write_bytes(os.urandom(200_000))
    results, _ = await put_files(stage.seller.ask_files, [LocalFile("deep/model", tmp_path / "model", True)], job_id=held.job_id)
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.buyer, results, held.job_id))
    await stage.ended(held, results)
    await get_files(stage.buyer.ask_files, results, tmp_path / "fetched", job_id=held.job_id, limit_bytes=1 << 20)
    assert (tmp_path / "model").read_bytes() == (tmp_path / "fetched/deep/model").read_bytes()
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.stranger, results, held.job_id))


async def test_a_manifest_opens_only_what_its_own_author_has_brought(stage: Stage) -> None:
    """Who knows a hash could else have any file: as a buyer who names it in his inputs, or as a node that names it in its results."""
    secret = await put_bytes(stage.stranger.ask_files, b"the stranger's own")
    naming = files.encode_manifest([ManifestEntry("loot", secret.sha256, secret.size)])
    manifest = await put_bytes(stage.buyer.ask_files, naming)
    held = await stage.claimed(Program(argv=("true",), inputs=manifest, inputs_bytes=secret.size))
    assert naming == await get(stage.seller, manifest, held.job_id)
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.seller, secret, held.job_id))

    same = await put_bytes(stage.seller.ask_files, naming)
    await stage.ended(held, same)
    assert Refusal.NOT_YOURS == await refusal_of(get(stage.buyer, secret, held.job_id))


async def test_a_job_whose_inputs_are_another_wallets_manifest_opens_nothing(stage: Stage) -> None:
    file = await put_bytes(stage.stranger.ask_files, b"the stranger's own")
    manifest = await put_bytes(stage.stranger.ask_files, files.encode_manifest([ManifestEntry("loot", file.sha256, file.size)]))
    held = await stage.claimed(Program(argv=("true",), inputs=manifest, inputs_bytes=1))
    for ref in (manifest, file):
        assert Refusal.NOT_YOURS == await refusal_of(get(stage.seller, ref, held.job_id))


async def test_questions_about_jobs_that_do_not_exist_hold_nobody_up(stage: Stage) -> None:
    """The gateway waits a moment for a job that its fold may not have yet; a wallet that makes use of that only delays itself."""
    no_job = FilesRequest(op="get", sha256="0" * 64, size=1, job_id=ids.job_id(os.urandom(12)))
    pending = [asyncio.create_task(stage.stranger.ask_files(no_job)) for _ in range(100)]
    await stage.stranger.connection.flush()
    await put_bytes(stage.buyer.ask_files, b"mine")
    assert not all(task.done() for task in pending), "the honest one was served in between"
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


# --- output ---


async def test_output_is_recorded_in_its_place_whatever_comes_twice_or_too_early(stage: Stage) -> None:
    held = await stage.claimed()
    answer = await stage.write(held, (STDOUT, 0, b"one "), (STDERR, 0, b"oops"), (STDOUT, 4, b"two "))
    assert (8, 4) == (answer.stdout_bytes, answer.stderr_bytes)
    assert 8 == (await stage.write(held, (STDOUT, 4, b"two "))).stdout_bytes
    assert 8 == (await stage.write(held, (STDOUT, 100, b"far ahead"))).stdout_bytes
    assert 14 == (await stage.write(held, (STDOUT, 4, b"two three "))).stdout_bytes
    assert (b"one two three ", b"oops") == await stage.written(held)
    assert (b"one two three ", b"oops") == await stage.written(held, by=stage.seller)


async def test_output_sent_in_many_frames_at_once_is_whole(stage: Stage) -> None:
    held = await stage.claimed()
    data = os.urandom(OUTPUT_MAX)
    frames = [(STDOUT, offset, data[offset : offset + 50]) for offset in range(0, OUTPUT_MAX, 50)]
    while (recorded := (await stage.write(held)).stdout_bytes) < OUTPUT_MAX:
        await asyncio.gather(*(stage.write(held, frame) for frame in frames if frame[1] >= recorded))
    assert (data, b"") == await stage.written(held)


async def test_output_over_the_attempts_quota_is_cut_there_and_the_node_is_told(stage: Stage) -> None:
    held = await stage.claimed()
    assert not (await stage.write(held, (STDOUT, 0, bytes(1500)))).full
    answer = await stage.write(held, (STDERR, 0, b"e" * 400), (STDOUT, 1500, b"x" * 500))
    assert (1600, 400, True) == (answer.stdout_bytes, answer.stderr_bytes, answer.full)
    answer = await stage.write(held, (STDOUT, 1600, b"more"))
    assert (1600, 400, True) == (answer.stdout_bytes, answer.stderr_bytes, answer.full)
    stdout, stderr = await stage.written(held)
    assert (bytes(1500) + b"x" * 100, b"e" * 400) == (stdout, stderr)


async def test_output_of_an_attempt_that_is_not_the_present_one_is_refused(stage: Stage) -> None:
    held = await stage.claimed()
    await stage.write(held, (STDOUT, 0, b"mine"))
    for changes in ({"epoch": held.epoch - 1}, {"attempt": held.attempt + 1}):
        answer = await stage.write(held, (STDOUT, 4, b"late"), **changes)
        assert Refusal.STALE_EPOCH == answer.failure.code  # type: ignore[union-attr]
    assert (b"mine", b"") == await stage.written(held)


async def test_output_of_anothers_job_is_refused_also_with_a_true_epoch(stage: Stage) -> None:
    held = await stage.claimed()
    other = await stage.client(OTHER_SELLER, Role.SELLER)
    for liar, named in ((other, held), (stage.stranger, held), (stage.seller, held._replace(token="0" * 16))):
        answer = await stage.write(named, (STDOUT, 0, b"forged"), by=liar)
        assert Refusal.NOT_YOURS == answer.failure.code  # type: ignore[union-attr]
    assert (b"", b"") == await stage.written(held)


async def test_output_is_read_by_its_buyer_and_its_node_and_by_nobody_else(stage: Stage) -> None:
    held = await stage.claimed()
    await stage.write(held, (STDOUT, 0, b"private"))
    answer = await stage.stranger.ask_files(FilesRequest(op="output", job_id=held.job_id))
    assert Refusal.NOT_YOURS == answer.failure.code and not answer.chunks  # type: ignore[union-attr]
    unknown = await stage.buyer.ask_files(FilesRequest(op="output", job_id=ids.job_id(bytes(12))))
    assert Refusal.UNKNOWN_JOB == unknown.failure.code  # type: ignore[union-attr]


async def test_before_the_claim_there_is_nowhere_to_write(stage: Stage) -> None:
    held = await stage.matched()
    answer = await stage.write(held, (STDOUT, 0, b"early"))
    assert Refusal.NOT_YOURS == answer.failure.code  # type: ignore[union-attr]


# --- restarts ---


async def test_an_upload_over_a_kill_of_the_gateway_is_stored_whole(stage: Stage) -> None:
    data = os.urandom(INPUTS_MAX)
    chunks = 0

    async def ask(request: FilesRequest) -> FilesAnswer:
        nonlocal chunks
        chunks += 1
        if chunks == 30:
            stage.kill_gateway()
            stage.start_gateway()
            await stage.answers(stage.buyer)
        return await stage.buyer.ask("files", request, FilesAnswer, 2.0)

    ref = await put_bytes(ask, data)
    assert data == await get(stage.buyer, ref)


async def test_output_goes_on_where_it_was_after_a_kill_of_the_gateway(stage: Stage) -> None:
    held = await stage.claimed()
    await stage.write(held, (STDOUT, 0, b"before "), (STDERR, 0, b"err"))
    stage.kill_gateway()
    stage.start_gateway()
    await stage.answers(stage.seller)
    answer = await stage.write(held)
    assert (7, 3) == (answer.stdout_bytes, answer.stderr_bytes)
    answer = await stage.write(held, (STDOUT, 7, b"after"))
    assert (12, 3) == (answer.stdout_bytes, answer.stderr_bytes)
    assert (b"before after", b"err") == await stage.written(held)


async def test_what_was_stored_before_a_kill_of_the_gateway_is_known_after_it(stage: Stage) -> None:
    ref = await put_bytes(stage.buyer.ask_files, b"kept")
    stage.kill_gateway()
    stage.start_gateway()
    await stage.answers(stage.buyer)
    assert () == (await stage.buyer.ask_files(FilesRequest(op="have", hashes=(ref.sha256,)))).missing
    assert b"kept" == await get(stage.buyer, ref)


async def test_output_and_files_over_a_kill_of_the_broker_are_whole_in_the_end(stage: Stage) -> None:
    """The broker may forget the last of what it took: whoever sends goes on from where the gateway says that it stands."""
    held = await stage.claimed()
    data = os.urandom(OUTPUT_MAX)
    blob = os.urandom(INPUTS_MAX // 2)
    storing = asyncio.create_task(put_patiently(stage.buyer, blob))
    recorded, killed = 0, False
    async with asyncio.timeout(60):
        while recorded < OUTPUT_MAX:
            try:
                answers = await asyncio.gather(
                    *(
                        stage.write(held, (STDOUT, offset, data[offset : offset + 10]))
                        for offset in range(recorded, min(recorded + 200, OUTPUT_MAX), 10)
                    )
                )
                recorded = max(answer.stdout_bytes for answer in answers)
            except BazaarError:
                await asyncio.sleep(0.05)
            if recorded > OUTPUT_MAX // 2 and not killed:
                killed = True
                await stage.market.world.restart_broker()
        ref = await storing
    assert killed
    assert (data, b"") == await stage.written(held)
    assert blob == await get(stage.buyer, ref)


async def put_patiently(client: MarketClient, data: bytes) -> BlobRef:
    """As a client does that tries again while the market is away."""
    while True:
        try:
            return await put_bytes(client.ask_files, data)
        except (MarketUnreachable, FilesDiffer):
            await asyncio.sleep(0.05)


# --- hostile manifests ---

EMPTY = hashlib.sha256(b"").hexdigest()

HOSTILE = {
    "a way out": ["../x"],
    "a way out from below": ["a/../../x"],
    "absolute": ["/etc/x"],
    "absolute after all": ["a//x"],
    "here": ["./x"],
    "nothing": [""],
    "dots": [".."],
    "twice": ["x", "x"],
    "900 deep": ["/".join(["d"] * 900)],
    "33 deep": ["/".join(["d"] * 33)],
    "a line break": ["a\nb"],
    "an escape": ["a\x1b[2Jb"],
    "a C1 control": ["a\x9bb"],
    "a backslash": ["..\\x"],
    "a NUL": ["a\0b"],
    "a name of 256 bytes": ["n" * 256],
    "a file and a folder": ["a", "a/b"],
    "a folder and a file": ["a/b/c", "a"],
    "ten thousand and one": [f"f{number}" for number in range(10_001)],
}


@pytest.mark.parametrize("paths", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_manifest_with_a_hostile_path_is_refused(paths: list[str]) -> None:
    with pytest.raises(HostileManifest):
        files.decode_manifest(msgspec.msgpack.encode([[path, EMPTY, 0, False] for path in paths]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        b"\x80",
        msgspec.msgpack.encode([["x", "not a hash", 0]]),
        msgspec.msgpack.encode([["x", EMPTY, -1]]),
    ],
    ids=["empty", "c1", "deep", "a map", "no hash", "negative"],
)
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(HostileManifest):
        files.decode_manifest(data)


async def test_a_node_that_leaves_hostile_results_harms_no_buyer(stage: Stage, tmp_path: Path) -> None:
    content = await put_bytes(stage.seller.ask_files, b"evil")
    for number, paths in enumerate((["../escaped"], ["fine", "fine"], ["a", "a/b"], [f"{tmp_path}/escaped"])):
        held = await stage.claimed()
        manifest = msgspec.msgpack.encode([[path, content.sha256, content.size, False] for path in paths])
        results = await put_bytes(stage.seller.ask_files, manifest)
        await stage.ended(held, results)
        with pytest.raises(HostileManifest):
            await get_files(stage.buyer.ask_files, results, tmp_path / f"to{number}", job_id=held.job_id, limit_bytes=1000)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("escaped", "fine", "a")]


async def test_results_through_a_link_in_the_buyers_folder_stay_inside(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "link").symlink_to(tmp_path / "outside")
    held = await stage.claimed()
    (tmp_path / "file").write_text("evil")
    results, _ = await put_files(stage.seller.ask_files, [LocalFile("link/file", tmp_path / "file")])
    await stage.ended(held, results)
    with pytest.raises(HostileManifest):
        await get_files(stage.buyer.ask_files, results, tmp_path / "to", job_id=held.job_id, limit_bytes=1000)
    assert [] == list((tmp_path / "outside").iterdir())


async def test_results_larger_than_what_is_wanted_are_not_fetched(stage: Stage, tmp_path: Path) -> None:
    held = await stage.claimed()
    (tmp_path / "large").write_bytes(bytes(2000))
    results, _ = await put_files(stage.seller.ask_files, [LocalFile("large", tmp_path / "large")])
    await stage.ended(held, results)
    with pytest.raises(FilesDiffer, match="larger"):
        await get_files(stage.buyer.ask_files, results, tmp_path / "to", job_id=held.job_id, limit_bytes=1999)


async def test_a_manifest_that_lies_about_a_size_is_noticed(stage: Stage, tmp_path: Path) -> None:
    held = await stage.claimed()
    content = await put_bytes(stage.seller.ask_files, bytes(300_000))
    results = await put_bytes(stage.seller.ask_files, files.encode_manifest([ManifestEntry("small", content.sha256, 10)]))
    await stage.ended(held, results)
    with pytest.raises(FilesDiffer):
        await get_files(stage.buyer.ask_files, results, tmp_path / "to", job_id=held.job_id, limit_bytes=1000)
    assert not (tmp_path / "to" / "small").exists()
