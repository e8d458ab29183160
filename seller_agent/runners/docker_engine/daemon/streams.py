"""Docker's long answers, read as they come and cut off from any thread: a log that is followed, a pull with its progress.

Plain HTTP on Docker's socket, because the SDK can neither bound nor cut off such a reading. It knows nothing of what the answers mean.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

CHUNK_BYTES = 1 << 18


class StreamFailed(Exception):
    """Docker refused a stream: its status and words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EngineStream:
    """One answer of Docker, read as it comes and cut off from any thread.

    HTTP/1.0 on purpose: the answer then has no chunk framing and ends with the connection.
    """

    def __init__(
        self,
        socket_path: str,
        method: str,
        target: str,
        *,
        deadline_s: float | None = None,
        follower: Follower | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Ask. Raises StreamFailed when Docker refuses, OSError when it does not answer. `deadline_s` bounds the whole stream.

        `follower` can cut it off from the first moment: a pull says nothing at all before its registry does.
        """
        self._end = None if deadline_s is None else time.monotonic() + deadline_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(60)
            self._socket.connect(socket_path)
            if follower is not None:
                follower.use(self)
            lines = {"Host": "docker", "Content-Length": str(len(body)), **(headers or {})}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            self._socket.sendall(f"{method} {target} HTTP/1.0\r\n{head}\r\n".encode() + body)
            self._socket.settimeout(deadline_s)
            self._rest = self._read_head()
        except BaseException:
            self._socket.close()
            raise

    def _read_head(self) -> bytes:
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("Docker closed the connection before it answered")
            head += data
        top, _, body = head.partition(b"\r\n\r\n")
        status = int(top.split(b" ", 2)[1])
        if status != http.client.OK:
            while data := self._socket.recv(65536):
                body += data
            raise StreamFailed(status, _message(body))
        return body

    def __iter__(self) -> Iterator[bytes]:
        """The body as it comes. Raises TimeoutError past the deadline."""
        if self._rest:
            yield self._rest
        while True:
            if self._end is not None:
                self._socket.settimeout(max(0.001, self._end - time.monotonic()))
            data = self._socket.recv(CHUNK_BYTES)
            if not data:
                return
            yield data

    def lines(self) -> Iterator[dict[str, Any]]:
        """A body of JSON objects, one a line. Raises MsgspecError for anything else."""
        buffer = b""
        for data in self:
            *whole, buffer = (buffer + data).split(b"\n")
            for line in whole:
                if line.strip():
                    yield msgspec.json.decode(line, type=dict[str, Any])
        if buffer.strip():
            yield msgspec.json.decode(buffer, type=dict[str, Any])

    def cancel(self) -> None:
        """End the stream for whoever reads it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free the connection; only by its reader."""
        self._socket.close()


class Follower:
    """One stream at a time, read by a thread of its own that others can tell to let go."""

    def __init__(self) -> None:
        self.dropped = threading.Event()
        self._stream: EngineStream | None = None

    def use(self, stream: EngineStream) -> None:
        """The stream that `drop` has to cut off."""
        self._stream = stream
        if self.dropped.is_set():
            stream.cancel()

    def drop(self) -> None:
        """Let go, from any thread."""
        self.dropped.set()
        if self._stream is not None:
            self._stream.cancel()


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any])["message"])
    except (msgspec.MsgspecError, ValueError, KeyError):
        return body.decode(errors="replace")[:300]
