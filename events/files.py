"""Files of jobs: described by a manifest, stored by the hash of their content, moved in chunks. No archives anywhere.

A manifest names each file by a relative path; hostile ones end in `HostileManifest`. Putting and getting verify every hash on this side,
whatever the store says. How a question reaches the store is the caller's matter (`ask`).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import msgspec
from msgspec import Meta

from events.codec import HOSTILE_DECODE_ERRORS
from events.errors import BazaarError, MarketUnreachable, Refused
from events.reasons import Refusal
from events.values import BlobRef, Bytes, JobId, Sha256
from events.wire import FilesAnswer, FilesRequest

CHUNK_BYTES = 128 * 1024
WINDOW = 8
"""Chunks in flight."""
PUT_TRIES = 4
ASKED_AGAIN_S = (0.3, 0.6, 1.2, 2.4, 4.8, 0.0)
"""How long to wait before a question is asked again; 0: no more. Together longer than the gateway takes to be started again."""
FILES_MAX = 10_000
DEPTH_MAX = 32
PATH_BYTES_MAX = 1024
NAME_BYTES_MAX = 255
HASHES_PER_QUESTION = 500
MANIFEST_BYTES_MAX = 4 << 20


class HostileManifest(BazaarError):
    """A manifest that cannot be unpacked safely."""

    what = "The list of files is not acceptable."


class FilesDiffer(BazaarError):
    """What arrived is not what its hash says."""

    what = "A file does not have the content that its hash says."


class ManifestEntry(msgspec.Struct, frozen=True, array_like=True):
    """One file: where it lies below the folder, and what is in it."""

    path: Annotated[str, Meta(min_length=1, max_length=PATH_BYTES_MAX)]
    sha256: Sha256
    size: Bytes
    executable: bool = False


class LocalFile(NamedTuple):
    """A file on this machine and the path under which it is shipped."""

    path: str
    source: Path
    executable: bool = False
    size_max: int | None = None
    """Read no further: whoever it belongs to may be making it larger meanwhile."""


_decoder = msgspec.msgpack.Decoder(Annotated[list[ManifestEntry], Meta(max_length=FILES_MAX)])

Ask = Callable[[FilesRequest], Awaitable[FilesAnswer]]
Progress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""


def path_problem(path: str) -> str | None:
    """Why a relative path may not be unpacked, or None."""
    parts = path.split("/")
    if len(path.encode(errors="surrogatepass")) > PATH_BYTES_MAX or len(parts) > DEPTH_MAX:
        return "too long or too deep"
    if any(part in ("", ".", "..") for part in parts):
        return "absolute, or leaves its folder"
    if any(len(part.encode(errors="surrogatepass")) > NAME_BYTES_MAX for part in parts):
        return "a name is too long"
    if "\\" in path or any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 or 0xD800 <= ord(letter) < 0xE000 for letter in path):
        return "holds a control character or a backslash"
    return None


def encode_manifest(entries: Iterable[ManifestEntry]) -> bytes:
    """The manifest blob; equal files give equal bytes."""
    return msgspec.msgpack.encode(sorted(entries, key=lambda entry: entry.path))


def decode_manifest(data: bytes) -> list[ManifestEntry]:
    """The files that a manifest names. Raises HostileManifest."""
    try:
        entries: list[ManifestEntry] = _decoder.decode(data)
    except HOSTILE_DECODE_ERRORS as error:
        raise HostileManifest(why=str(error)[:200]) from None
    seen: set[str] = set()
    for entry in entries:
        problem = path_problem(entry.path)
        if problem is not None:
            raise HostileManifest(why=f"{entry.path[:80]!a}: {problem}")
        if entry.path in seen:
            raise HostileManifest(why=f"{entry.path[:80]!a} is named twice")
        seen.add(entry.path)
    for path in seen:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in seen:
                raise HostileManifest(why=f"{parent[:80]!a} is a file and a folder")
            parent = parent.rpartition("/")[0]
    return entries


def hash_file(source: Path, size_max: int | None = None) -> BlobRef:
    """Hash and size of a file as it is now. Raises FilesDiffer when it is larger than it may be."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            if size_max is not None and size > size_max:
                raise FilesDiffer("A file grew while it was read.", why=f"it had {size_max} bytes", hint="Try again.")
    return BlobRef(sha256=digest.hexdigest(), size=size)


def blob_ref(data: bytes) -> BlobRef:
    """Hash and size of these bytes."""
    return BlobRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


async def put_files(
    ask: Ask, files: Sequence[LocalFile], *, job_id: JobId | None = None, progress: Progress | None = None
) -> tuple[BlobRef, int]:
    """Store these files and their manifest; the manifest and the bytes of all files. What the store has of us is not sent again.

    Raises Refused (quota), MarketUnreachable, FilesDiffer when a file changed meanwhile, HostileManifest for a name nobody could unpack.
    """
    refs = [await asyncio.to_thread(hash_file, file.source, file.size_max) for file in files]
    entries = [ManifestEntry(file.path, ref.sha256, ref.size, file.executable) for file, ref in zip(files, refs, strict=True)]
    manifest = encode_manifest(entries)
    decode_manifest(manifest)
    sources = {ref.sha256: (ref, file.source) for file, ref in zip(files, refs, strict=True)}
    manifest_ref = blob_ref(manifest)
    missing = await _missing(ask, [*(ref for ref, _ in sources.values()), manifest_ref], job_id)
    total = sum(ref.size for ref, _ in sources.values() if ref.sha256 in missing)
    done = 0
    for ref, source in sources.values():
        if ref.sha256 not in missing:
            continue
        with source.open("rb") as stream:
            async for count in _put(ask, ref, stream, job_id):
                done += count
                if progress is not None:
                    progress(done, total)
    if manifest_ref.sha256 in missing:
        await put_bytes(ask, manifest, job_id=job_id)
    return manifest_ref, sum(ref.size for ref in refs)


async def put_bytes(ask: Ask, data: bytes, *, job_id: JobId | None = None) -> BlobRef:
    """Store these bytes. Raises Refused, MarketUnreachable."""
    ref = blob_ref(data)
    async for _ in _put(ask, ref, io.BytesIO(data), job_id):
        pass
    return ref


async def _missing(ask: Ask, refs: list[BlobRef], job_id: JobId | None) -> set[str]:
    missing: set[str] = set()
    for start in range(0, len(refs), HASHES_PER_QUESTION):
        part = refs[start : start + HASHES_PER_QUESTION]
        answer = await _asked(
            ask,
            FilesRequest(op="have", hashes=tuple(ref.sha256 for ref in part), sizes=tuple(ref.size for ref in part), job_id=job_id),
        )
        missing.update(answer.missing)
    return missing


async def _put(ask: Ask, ref: BlobRef, source: BinaryIO, job_id: JobId | None) -> AsyncIterator[int]:
    """Send one blob in chunks, a window of them in flight; yields the bytes of each chunk that was taken. A store that has forgotten what
    came before (it was restarted) gets all of it again."""
    told = 0
    for _ in range(PUT_TRIES):
        source.seek(0)
        async with aclosing(_put_once(ask, ref, source.read, job_id)) as taken:
            async for done, stored in taken:
                if done > told:
                    yield done - told
                    told = done
                if stored:
                    return
    raise FilesDiffer("A file changed while it was sent.", why=f"{told} bytes were sent, {ref.size} announced", hint="Try again.")


async def _put_once(ask: Ask, ref: BlobRef, read: Callable[[int], bytes], job_id: JobId | None) -> AsyncGenerator[tuple[int, bool], None]:
    """Yields how much was taken, and whether the store has the whole; ends early when the store waits for an earlier place."""
    sent: list[tuple[int, asyncio.Task[FilesAnswer]]] = []
    offset = 0
    more = True
    try:
        while more or sent:
            while more and len(sent) < WINDOW:
                chunk = read(CHUNK_BYTES)
                if chunk or offset == 0:
                    request = FilesRequest(op="put", sha256=ref.sha256, size=ref.size, offset=offset, data=chunk, job_id=job_id)
                    offset += len(chunk)
                    sent.append((offset, asyncio.create_task(_asked(ask, request))))
                more = len(chunk) == CHUNK_BYTES
            if not sent:
                return
            end, task = sent.pop(0)
            answer = await task
            if answer.next_offset < end:
                return
            yield (ref.size if answer.stored else end), answer.stored
    finally:
        for _, task in sent:
            task.cancel()


async def get_bytes(ask: Ask, ref: BlobRef, *, job_id: JobId | None = None, limit_bytes: int = MANIFEST_BYTES_MAX) -> bytes:
    """The bytes of a blob, verified. Raises Refused, FilesDiffer, MarketUnreachable."""
    if ref.size > limit_bytes:
        raise FilesDiffer("A file is larger than it may be.", why=f"{ref.size} bytes, {limit_bytes} allowed")
    parts: list[bytes] = []
    await _get(ask, ref, parts.append, job_id, None)
    return b"".join(parts)


async def get_files(
    ask: Ask,
    manifest: BlobRef,
    folder: Path,
    *,
    job_id: JobId | None = None,
    limit_bytes: int,
    progress: Callable[[int], None] | None = None,
) -> list[ManifestEntry]:
    """Fetch everything a manifest names into `folder`; every hash is verified before a file gets its name.

    Raises HostileManifest, FilesDiffer, Refused, MarketUnreachable, OSError.
    """
    entries = decode_manifest(await get_bytes(ask, manifest, job_id=job_id))
    if sum(entry.size for entry in entries) > limit_bytes:
        raise FilesDiffer("The files are larger than they may be.", why=f"more than {limit_bytes} bytes")
    for entry in entries:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise HostileManifest(why=f"{entry.path[:80]!a} leads outside its folder")
        draft = target.parent / f".{entry.sha256[:16]}.part"
        with draft.open("wb") as stream:
            await _get(ask, BlobRef(sha256=entry.sha256, size=entry.size), stream.write, job_id, progress)
        draft.chmod(0o755 if entry.executable else 0o644)
        os.replace(draft, target)
    return entries


async def _get(
    ask: Ask, ref: BlobRef, write: Callable[[bytes], object], job_id: JobId | None, progress: Callable[[int], None] | None
) -> None:
    digest = hashlib.sha256()
    waiting: list[asyncio.Task[FilesAnswer]] = []
    offsets = iter(range(0, max(ref.size, 1), CHUNK_BYTES))
    received = 0
    try:
        while True:
            for offset in offsets:
                request = FilesRequest(op="get", sha256=ref.sha256, size=ref.size, offset=offset, job_id=job_id)
                waiting.append(asyncio.create_task(_asked(ask, request)))
                if len(waiting) >= WINDOW:
                    break
            if not waiting:
                break
            answer = await waiting.pop(0)
            digest.update(answer.data)
            received += len(answer.data)
            write(answer.data)
            if progress is not None:
                progress(len(answer.data))
    finally:
        for task in waiting:
            task.cancel()
    if received != ref.size or digest.hexdigest() != ref.sha256:
        raise FilesDiffer(why=f"{ref.sha256[:16]}: {received} bytes arrived, {ref.size} announced", hint="Fetch again.")


async def _asked(ask: Ask, request: FilesRequest) -> FilesAnswer:
    """The store's answer; its "no" as Refused. What was lost, or asked when too much was, is asked again: all of it may be repeated."""
    for pause_s in ASKED_AGAIN_S:
        try:
            answer = await ask(request)
            if not pause_s or answer.failure is None or answer.failure.code != Refusal.RATE_LIMITED:
                break
        except MarketUnreachable:
            if not pause_s:
                raise
        await asyncio.sleep(pause_s)
    if answer.failure is not None:
        code = answer.failure.code
        raise Refused(Refusal(code) if code in set(Refusal) else Refusal.MALFORMED, answer.failure.detail)
    return answer
