"""How the agent's own sockets reach into a run: a port on a loopback, or a socket that the job made in its folder.

A job owns its folder, so whatever lies there is looked at before it is touched: only a real socket is connected to, never a link to one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat

DIAL_S = 5.0
LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class SocketStream:
    """A connected socket as a `runner.Stream`. `take` gives the socket itself to whoever can use it better."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket: socket.socket | None = connection

    def take(self) -> socket.socket:
        """The socket; this stream is over then."""
        assert self._socket is not None
        taken, self._socket = self._socket, None
        return taken

    async def read(self, most: int) -> bytes:
        """Some bytes; empty at the end."""
        if self._socket is None:
            return b""
        try:
            return await asyncio.get_running_loop().sock_recv(self._socket, most)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """All of them. Raises ConnectionError."""
        if self._socket is None:
            raise ConnectionResetError("the connection was closed")
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def write_eof(self) -> None:
        """No more will be written."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """Let go of it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


async def dial_port(port: int) -> SocketStream:
    """Connect to a port of this machine's loopback. Raises ConnectionError."""
    for family, host in LOOPBACKS:
        with contextlib.suppress(OSError, TimeoutError):
            return SocketStream(await _connected(socket.socket(family, socket.SOCK_STREAM), (host, port)))
    raise ConnectionRefusedError(f"nothing listens on port {port} in the job")


async def dial_socket(folder: str, name: str) -> SocketStream:
    """Connect to the socket `name` directly in `folder`, however long its path is. Raises ConnectionError."""
    try:
        found = os.open(f"{folder}/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise ConnectionRefusedError(f"there is no socket {name} in the job's folder") from None
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise ConnectionRefusedError(f"{name} in the job's folder is no socket")
        return SocketStream(await _connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), f"/proc/self/fd/{found}"))
    except (OSError, TimeoutError) as error:
        raise ConnectionRefusedError(str(error) if isinstance(error, ConnectionError) else f"nobody listens on {name}") from None
    finally:
        os.close(found)


async def _connected(made: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    try:
        made.setblocking(False)
        async with asyncio.timeout(DIAL_S):
            await asyncio.get_running_loop().sock_connect(made, address)
        if made.family != socket.AF_UNIX:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made
