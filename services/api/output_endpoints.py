"""What a job printed and made, as far as a reader of JSON is served by it: text, and a list of files with their hashes.

Exact bytes, and files themselves, are fetched over NATS (`bazaar logs`, `bazaar results`), where every hash is checked.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from typing import Any

import msgspec

from events.files import MANIFEST_BYTES_MAX, HostileManifest, decode_manifest
from events.reasons import Refusal
from events.wire import OutputChunk
from services.api import queries
from services.api.asking import Asked, Endpoint, Reply, job_in_memory, job_that_ended
from services.api.problems import ProblemFound
from services.blobs import BlobStore
from services.output_store import STDOUT, OutputStore

TEXT_BYTES_MAX = 1 << 20
"""Of each channel, in `results`; `logs` has all of it."""

_utf8 = getincrementaldecoder("utf-8")


class OutputPiece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of output at its place in its channel. Bytes that are no UTF-8 show as U+FFFD."""

    stream: str
    offset: int
    text: str


class LogView(msgspec.Struct, frozen=True, kw_only=True):
    """Recorded output of an attempt, some at a time; nothing in `items`: that is all so far."""

    attempt: int
    items: list[OutputPiece]
    cursor: int
    stdout_bytes: int
    stderr_bytes: int


async def logs(asked: Asked) -> Reply:
    """What an attempt printed, in the order in which it was recorded."""
    as_of_seq, job = await _job(asked)
    attempt, cursor = asked.value("attempt", job["attempt"]), asked.value("cursor", 0)
    if not attempt:
        return Reply(as_of_seq, LogView(attempt=0, items=[], cursor=cursor, stdout_bytes=0, stderr_bytes=0))
    store = OutputStore(asked.source.connection)
    chunks, cursor = await store.read(asked.name, attempt, cursor)
    stdout_bytes, stderr_bytes = await store.totals(asked.name, attempt)
    view = LogView(attempt=attempt, items=_pieces(chunks), cursor=cursor, stdout_bytes=stdout_bytes, stderr_bytes=stderr_bytes)
    return Reply(as_of_seq, view)


def _pieces(chunks: tuple[OutputChunk, ...]) -> list[OutputPiece]:
    """As text; a letter that is cut between two chunks of a channel is put together."""
    decoders = {channel: _utf8(errors="replace") for channel in (1, 2)}
    last = {chunk.channel: index for index, chunk in enumerate(chunks)}
    return [
        OutputPiece(
            stream="stdout" if chunk.channel == STDOUT else "stderr",
            offset=chunk.offset,
            text=decoders[chunk.channel].decode(chunk.data, final=last[chunk.channel] == index),
        )
        for index, chunk in enumerate(chunks)
    ]


class FileView(msgspec.Struct, frozen=True, kw_only=True):
    """A result file."""

    path: str
    sha256: str
    size: int
    executable: bool


class ResultsView(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended, what it printed (the first MiB of each channel), and which files it made."""

    state: str
    exit_code: int | None
    attempt: int
    stdout: str
    stderr: str
    is_cut: bool
    """There is more output than stands here."""
    files: list[FileView]


async def results(asked: Asked) -> Reply:
    """The results of a job that has ended."""
    if job_in_memory(asked) is not None:
        raise ProblemFound(Refusal.ILLEGAL_IN_STATE, "the job has not ended")
    as_of_seq, job = await _job(asked)
    stdout, stderr, is_cut = await _text(asked, job["attempt"])
    view = ResultsView(
        state=job["state"],
        exit_code=job["exit_code"],
        attempt=job["attempt"],
        stdout=stdout,
        stderr=stderr,
        is_cut=is_cut,
        files=await _files(asked, job["results_sha256"]),
    )
    return Reply(as_of_seq, view)


async def _text(asked: Asked, attempt: int) -> tuple[str, str, bool]:
    store, cursor = OutputStore(asked.source.connection), 0
    parts = {1: bytearray(), 2: bytearray()}
    is_cut = False
    while attempt and not is_cut:
        chunks, cursor = await store.read(asked.name, attempt, cursor)
        if not chunks:
            break
        for chunk in chunks:
            parts[chunk.channel] += chunk.data
        is_cut = any(len(part) > TEXT_BYTES_MAX for part in parts.values())
    stdout, stderr = (bytes(part[:TEXT_BYTES_MAX]).decode(errors="replace") for part in parts.values())
    return stdout, stderr, is_cut


async def _files(asked: Asked, manifest: str | None) -> list[FileView]:
    data = None if manifest is None else await BlobStore(asked.source.connection).whole(manifest, MANIFEST_BYTES_MAX)
    if data is None:
        return []
    try:
        entries = decode_manifest(data)
    except HostileManifest:
        return []  # made by the node; nobody will unpack it
    return [FileView(path=entry.path, sha256=entry.sha256, size=entry.size, executable=entry.executable) for entry in entries]


async def _job(asked: Asked) -> tuple[int, dict[str, Any]]:
    """The job in the path as plain values. Raises ProblemFound."""
    as_of_seq, found = asked.as_of_seq, job_in_memory(asked)
    if found is not None:
        return as_of_seq, msgspec.structs.asdict(asked.mirror.view_of(found))
    ended = await job_that_ended(asked)
    job: dict[str, Any] = msgspec.json.decode(ended.body)
    return as_of_seq, job


OUTPUT_ENDPOINTS = (
    Endpoint("/v1/jobs/{name}/logs", logs, LogView, "What a job printed.", queries.LOGS, keep=False),
    Endpoint("/v1/jobs/{name}/results", results, ResultsView, "What a job printed and made.", keep=False),
)
