"""The content-addressed store on the stream FILES: chunks of uploads, what hash they make, and which wallet may name which hash.

Subjects: `file.c.<upload>.<n>` a chunk, `file.m.<sha256>` where the content lies, `file.r.<wallet>.<sha256>.<size>` who has brought
it. Content is stored once; every wallet that brought it is charged for it, and only such a wallet learns that it is here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from secrets import token_hex
from typing import Any

import msgspec

from events.connection import Connection
from events.errors import LogUnavailable, Refused
from events.files import CHUNK_BYTES
from events.reasons import Refusal
from events.streams import api, append, direct_get, purge
from events.subjects import FILES_STREAM

QUOTA_BYTES = 32 << 30
UPLOAD_IDLE_S = 600.0
UPLOADS_PER_WALLET = 32


class Where(msgspec.Struct, frozen=True, array_like=True):
    """Where content lies."""

    upload: str
    size: int


class _Upload:
    """A file on its way in."""

    def __init__(self, size: int, generation: int) -> None:
        self.generation = generation
        """Of the connection over which it comes."""
        self.name = token_hex(12)
        self.size = size
        self.offset = 0
        """Where the next chunk begins."""
        self.stored = 0
        """Bytes whose chunks are stored; several are on their way at once."""
        self.digest = hashlib.sha256()
        self.touched_s = time.monotonic()


class BlobStore:
    """The store. One process serves it, so that uploads and quotas have one owner."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._uploads: dict[tuple[str, str], _Upload] = {}
        self._refs: dict[str, dict[str, int]] = {}
        self._where: dict[str, Where] = {}
        self._generation = 0
        self._loading = asyncio.Lock()

    async def refresh(self) -> None:
        """Learn anew what is stored if the connection was lost since: a broker that was killed may have forgotten the last of what it took.
        Raises LogUnavailable."""
        async with self._loading:
            if self._generation != self._connection.generation:
                await self.load()

    async def load(self) -> None:
        """Learn which wallet has brought what. Raises LogUnavailable."""
        generation = self._connection.generation
        refs: dict[str, dict[str, int]] = {}
        offset = 0
        while True:
            info: dict[str, Any] = await api(
                self._connection, f"STREAM.INFO.{FILES_STREAM}", {"subjects_filter": "file.r.>", "offset": offset}
            )
            found = info["state"].get("subjects") or {}
            for subject in found:
                _, _, wallet, sha256, size = subject.split(".")
                refs.setdefault(wallet, {})[sha256] = int(size)
            offset += len(found)
            if not found or offset >= info.get("total", 0):
                break
        self._refs, self._generation = refs, generation
        self._where.clear()
        self._uploads.clear()

    def has(self, wallet: str, sha256: str) -> bool:
        """Whether this wallet has brought this content before."""
        return sha256 in self._refs.get(wallet, {})

    async def put(self, wallet: str, sha256: str, size: int, offset: int, data: bytes) -> tuple[int, bool]:
        """Take one chunk: (the offset that comes next, whether the file is stored). Raises Refused, LogUnavailable."""
        if self.has(wallet, sha256):
            return size, True
        key = (wallet, sha256)
        upload = self._uploads.get(key)
        given_up: _Upload | None = None
        if upload is None or offset == 0:
            if offset != 0:
                return 0, False
            self._check_quota(wallet, size)
            given_up, upload = upload, _Upload(size, self._connection.generation)
            self._uploads[key] = upload  # before anything is awaited: the next chunk may be here already
        if offset != upload.offset or upload.size != size:
            return upload.offset, False
        if offset + len(data) > size or (len(data) != CHUNK_BYTES and offset + len(data) != size):
            raise Refused(Refusal.MALFORMED, "a chunk does not fit its file")
        upload.offset += len(data)
        upload.touched_s = time.monotonic()
        upload.digest.update(data)
        try:
            if given_up is not None:
                await purge(self._connection, FILES_STREAM, subject=f"file.c.{given_up.name}.*")
            if data:
                await self._append(upload, f"file.c.{upload.name}.{offset // CHUNK_BYTES}", data)
        except LogUnavailable:
            if self._uploads.get(key) is upload:
                del self._uploads[key]  # it has a hole now: the client begins again
            raise
        upload.stored += len(data)
        if upload.stored < size or self._uploads.get(key) is not upload:
            return upload.offset, False
        del self._uploads[key]
        await self._finish(wallet, sha256, upload)
        return size, True

    async def _finish(self, wallet: str, sha256: str, upload: _Upload) -> None:
        """The last chunk is here: keep the file if it is what it says, once."""
        if upload.digest.hexdigest() != sha256:
            await purge(self._connection, FILES_STREAM, subject=f"file.c.{upload.name}.*")
            raise Refused(Refusal.MALFORMED, "the file does not have the hash that was announced")
        if await self.where(sha256) is None:
            await self._append(upload, f"file.m.{sha256}", msgspec.msgpack.encode(Where(upload.name, upload.size)))
        else:
            await purge(self._connection, FILES_STREAM, subject=f"file.c.{upload.name}.*")
        await self._append(upload, f"file.r.{wallet}.{sha256}.{upload.size}", b"")
        self._refs.setdefault(wallet, {})[sha256] = upload.size

    async def _append(self, upload: _Upload, subject: str, data: bytes) -> None:
        """Store something of an upload, whose earlier parts are there as long as the connection is the same. Raises LogUnavailable."""
        if upload.generation == self._connection.generation:
            await append(self._connection, subject, data)
        if upload.generation != self._connection.generation:
            raise LogUnavailable(why="the connection was lost during an upload", hint="Send the file again.")

    async def where(self, sha256: str) -> Where | None:
        """Where this content lies, None when nobody brought it. Raises LogUnavailable."""
        known = self._where.get(sha256)
        if known is None:
            stored = await direct_get(self._connection, FILES_STREAM, subject=f"file.m.{sha256}", last=True)
            if stored is None:
                return None
            if len(self._where) > 100_000:
                self._where.clear()
            known = self._where[sha256] = msgspec.msgpack.decode(stored.data, type=Where)
        return known

    async def chunk(self, sha256: str, offset: int) -> tuple[bytes, int] | None:
        """(the chunk at this offset, the size of the whole), None when the content is not here. Raises LogUnavailable."""
        where = await self.where(sha256)
        if where is None or offset % CHUNK_BYTES or offset > where.size:
            return None
        if where.size == 0:
            return b"", 0
        stored = await direct_get(self._connection, FILES_STREAM, subject=f"file.c.{where.upload}.{offset // CHUNK_BYTES}", last=True)
        return None if stored is None else (stored.data, where.size)

    async def whole(self, sha256: str, limit_bytes: int) -> bytes | None:
        """All of a small file, None when it is not here or larger. Raises LogUnavailable."""
        where = await self.where(sha256)
        if where is None or where.size > limit_bytes:
            return None
        parts = []
        for offset in range(0, where.size, CHUNK_BYTES):
            found = await self.chunk(sha256, offset)
            if found is None:
                return None
            parts.append(found[0])
        return b"".join(parts)

    async def forget_idle(self) -> None:
        """Throw away uploads that nobody goes on with."""
        late = time.monotonic() - UPLOAD_IDLE_S
        for key, upload in list(self._uploads.items()):
            if upload.touched_s < late:
                del self._uploads[key]
                await purge(self._connection, FILES_STREAM, subject=f"file.c.{upload.name}.*")

    def _check_quota(self, wallet: str, size: int) -> None:
        mine = [upload for (owner, _), upload in self._uploads.items() if owner == wallet]
        if len(mine) >= UPLOADS_PER_WALLET:
            raise Refused(Refusal.RATE_LIMITED, f"{UPLOADS_PER_WALLET} uploads at a time")
        used = sum(self._refs.get(wallet, {}).values()) + sum(upload.size for upload in mine)
        if used + size > QUOTA_BYTES:
            raise Refused(Refusal.QUOTA_EXCEEDED, f"{used} of {QUOTA_BYTES} bytes are used, {size} more do not fit")
