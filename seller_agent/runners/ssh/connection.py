"""The only module that imports asyncssh: connections to one host, through its jump hosts, with pinned host keys and nothing but keys.

It opens channels (commands, terminals, forwarded sockets, files) and says in our words why that failed. Nothing of the owner's own SSH
settings or agent is used. It knows nothing of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import asyncssh

from seller_agent.runners.ssh.errors import ForwardingRefused, HostAway, HostKeyWrong, LoginRefused, SshFailed
from seller_agent.runners.ssh.hosts import HostEntry, Hosts, HostsError

asyncssh.set_log_level("ERROR")

CHANNELS_MAX = 8
"""Sessions on one connection; OpenSSH allows 10. Forwarded sockets do not count there."""
LINES_MAX = 16
CONNECT_MAX_S = 20.0
LOGIN_MAX_S = 15
KEEPALIVE_S, KEEPALIVES_MAX = 5, 3
TRIES = 6
"""A server turns connections away at random while many log in at once (MaxStartups)."""
PAUSE_S = 0.2
DIALLING_MAX = 4
"""So many log in through one jump host at a time."""
CLOSE_MAX_S = 2.0
KEY_KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-512", "rsa-sha2-256")
"""Asked for after those that are pinned, only so that the key of a stranger can be named."""

T = TypeVar("T")


class Finished(NamedTuple):
    """How a command ended; `code` is -1 when a signal ended it."""

    code: int
    stdout: bytes
    stderr: bytes


class _Client(asyncssh.SSHClient):
    """Notes the key that a host showed when it is not a pinned one."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown.append(key.get_fingerprint())
        return False


class Line:
    """One connection and how many sessions use it."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self.connection = connection
        self.channels = 0
        self.channels_max = CHANNELS_MAX

    @property
    def has_room(self) -> bool:
        return self.channels < self.channels_max and not self.connection.is_closed()


class Channel:
    """Bytes to and from something on the host: a `Stream` of the runner's, and a `Terminal` when it is one."""

    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], leave: Callable[[], None]) -> None:
        self._reader = reader
        self._writer = writer
        self._leave: Callable[[], None] | None = leave
        self._unread = b""
        self.process: asyncssh.SSHClientProcess[bytes] | None = None

    def unread(self, data: bytes) -> None:
        """Give back what was read too much; it comes first."""
        self._unread = data + self._unread

    async def read(self, most: int) -> bytes:
        """Some bytes; empty at the end, also when the connection is lost."""
        if self._unread:
            data, self._unread = self._unread[:most], self._unread[most:]
            return data
        try:
            return await self._reader.read(most)
        except (asyncssh.Error, OSError):
            return b""

    async def write(self, data: bytes) -> None:
        """All of them. Raises ConnectionError."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (asyncssh.Error, OSError) as error:
            raise ConnectionResetError(str(error)) from None

    def post(self, data: bytes) -> None:
        """Send without waiting; what cannot be sent any more is dropped."""
        with contextlib.suppress(asyncssh.Error, OSError):
            self._writer.write(data)

    async def write_eof(self) -> None:
        """No more will be written."""
        with contextlib.suppress(asyncssh.Error, OSError):
            self._writer.write_eof()

    async def resize(self, columns: int, rows: int) -> None:
        """Of a terminal."""
        assert self.process is not None
        with contextlib.suppress(asyncssh.Error, OSError):
            self.process.change_terminal_size(columns, rows)

    async def exit_code(self) -> int:
        """Of a command, once it has ended; 255 when the connection was lost before."""
        assert self.process is not None
        with contextlib.suppress(asyncssh.Error, OSError):
            await self.process.wait_closed()
        if self.process.exit_signal is not None:
            return 255
        return self.process.exit_status if self.process.exit_status is not None else 255

    async def close(self) -> None:
        """Let go of it; a command without a terminal is not ended by that."""
        leave, self._leave = self._leave, None
        if leave is None:
            return
        self._writer.close()
        with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_MAX_S):
                await self._writer.wait_closed()
        leave()


class Access:
    """Connections to one host, opened as they are needed."""

    def __init__(self, entry: HostEntry, jump: Access | None) -> None:
        """Raises HostsError for a key that cannot be used."""
        self.entry = entry
        self._jump = jump
        self._dialling = asyncio.Semaphore(DIALLING_MAX)
        self._opening = asyncio.Lock()
        self._lines: list[Line] = []
        self._closed = False
        try:
            self._key = asyncssh.read_private_key(entry.key_file)
        except (asyncssh.KeyEncryptionError, asyncssh.KeyImportError, OSError) as error:
            raise HostsError(
                why=f"The key file of {entry.name!r}, {entry.key_file}, cannot be used: {error}.",
                hint="It must be a key without passphrase.",
            ) from None
        try:
            self._pinned = [asyncssh.import_public_key(text) for text in entry.host_keys]
        except asyncssh.KeyImportError as error:
            raise HostsError(why=f"A host key of {entry.name!r} cannot be used: {error}.") from None

        pinned_kinds = [kind.decode() for key in self._pinned for kind in key.sig_algorithms]
        self._key_kinds = [*dict.fromkeys((*pinned_kinds, *KEY_KINDS))]

    @property
    def lines(self) -> int:
        """How many connections are open."""
        return sum(not line.connection.is_closed() for line in self._lines)

    async def run(self, command: str, *, timeout_s: float, given: bytes = b"") -> Finished:
        """A command to its end. Raises SshFailed, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            channel = await self.command(command)
            try:
                process = channel.process
                assert process is not None
                with _in_words(self.entry):
                    stdout, stderr = await process.communicate(given)
                    await process.wait_closed()
                if process.exit_status is None and process.exit_signal is None:
                    raise HostAway(why=f"The connection to {self.entry.name} was lost.")
                return Finished(process.exit_status if process.exit_status is not None else -1, stdout or b"", stderr or b"")
            finally:
                await channel.close()

    async def command(self, command: str) -> Channel:
        """Start a command; its errors go where the caller does not look. Raises SshFailed."""
        return await self._process(lambda connection: connection.create_process(command, encoding=None))

    async def terminal(self, command: str, columns: int, rows: int) -> Channel:
        """A command on a terminal. Raises SshFailed."""
        size = (columns, rows)
        return await self._process(
            lambda connection: connection.create_process(command, encoding=None, term_type="xterm-256color", term_size=size)
        )

    async def dial_tcp(self, port: int) -> Channel:
        """Connect to a port of the host's loopback. Raises ConnectionError, SshFailed."""
        return await self._forwarded(lambda connection: connection.open_connection("127.0.0.1", port, encoding=None))

    async def dial_unix(self, path: str) -> Channel:
        """Connect to a socket on the host. Raises ConnectionError, SshFailed."""
        return await self._forwarded(lambda connection: connection.open_unix_connection(path, encoding=None))

    @contextlib.asynccontextmanager
    async def files(self) -> AsyncIterator[asyncssh.SFTPClient]:
        """The host's files. Raises SshFailed; what an operation raises is for `in_words`."""
        line, client = await self._on_line(lambda connection: connection.start_sftp_client())
        try:
            with _in_words(self.entry):
                yield client
        finally:
            client.exit()
            with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_MAX_S):
                    await client.wait_closed()
            self._leave(line)

    async def connection(self) -> asyncssh.SSHClientConnection:
        """The first connection, for tunnels to what lies behind. Raises SshFailed."""
        line = await self._room()
        line.channels -= 1
        return line.connection

    async def close(self) -> None:
        """End every connection; what runs on the host goes on."""
        self._closed = True
        lines, self._lines = self._lines, []
        for line in lines:
            line.connection.close()
        for line in lines:
            with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_MAX_S):
                    await line.connection.wait_closed()

    # Channels.

    async def _process(self, start: Callable[[asyncssh.SSHClientConnection], Awaitable[asyncssh.SSHClientProcess[bytes]]]) -> Channel:
        line, process = await self._on_line(start)
        channel = Channel(process.stdout, process.stdin, lambda: self._leave(line))
        channel.process = process
        return channel

    async def _forwarded(self, dial: Callable[[asyncssh.SSHClientConnection], Awaitable[Any]]) -> Channel:
        connection = await self.connection()
        try:
            with _in_words(self.entry):
                async with asyncio.timeout(CONNECT_MAX_S):
                    reader, writer = await dial(connection)
        except TimeoutError:
            raise ConnectionRefusedError("nobody answers there") from None
        except asyncssh.ChannelOpenError as error:
            if connection.is_closed():
                raise HostAway(why=f"The connection to {self.entry.name} was lost.") from None
            if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise ForwardingRefused(why=f"{self.entry.name}: {error.reason}") from None
            raise ConnectionRefusedError(f"nothing listens there: {error.reason}") from None
        return Channel(reader, writer, lambda: None)

    async def _on_line(self, start: Callable[[asyncssh.SSHClientConnection], Awaitable[T]]) -> tuple[Line, T]:
        """Start a session where there is room; a server may allow fewer on a connection than we thought."""
        while True:
            line = await self._room()
            try:
                with _in_words(self.entry):
                    return line, await start(line.connection)
            except asyncssh.ChannelOpenError as error:
                self._leave(line)
                if error.code == asyncssh.OPEN_REQUEST_SESSION_FAILED:
                    raise SshFailed(
                        why=f"{self.entry.name} refuses what was asked: {error.reason}.", hint="Its sshd_config must have Subsystem sftp."
                    ) from None
                if line.channels == 0 or line.connection.is_closed():
                    raise HostAway(why=f"{self.entry.name} opens no session: {error.reason}.") from None
                line.channels_max = min(line.channels_max, line.channels)
            except BaseException:
                self._leave(line)
                raise

    async def _room(self) -> Line:
        """A connection with a free place, which is taken."""
        while True:
            for line in self._lines:
                if line.has_room:
                    line.channels += 1
                    return line
            async with self._opening:
                self._lines = [line for line in self._lines if not line.connection.is_closed()]
                if any(line.has_room for line in self._lines):
                    continue
                if len(self._lines) >= LINES_MAX:
                    raise SshFailed("Too many sessions are open on a host.", why=f"{self.entry.name} has {LINES_MAX} connections.")
                self._lines.append(Line(await self._connect()))

    def _leave(self, line: Line) -> None:
        line.channels -= 1
        if line.channels == 0 and line in self._lines[1:]:
            self._lines.remove(line)
            line.connection.close()

    # Connecting.

    async def _connect(self) -> asyncssh.SSHClientConnection:
        for tries_left in reversed(range(TRIES)):
            if self._closed:
                raise HostAway(why=f"The access to {self.entry.name} has been closed.")
            try:
                tunnel = await self._jump.connection() if self._jump is not None else None
                gate = self._jump if self._jump is not None else self
                async with gate._dialling:
                    return await self._login(tunnel)
            except (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError) as error:
                if not tries_left:
                    raise HostAway(why=f"{self.entry.name} turns connections away: {error}.") from None
            await asyncio.sleep(PAUSE_S * random.uniform(0.5, 1.5) * (TRIES - tries_left))
        raise AssertionError("the last try returns or raises")

    async def _login(self, tunnel: asyncssh.SSHClientConnection | None) -> asyncssh.SSHClientConnection:
        entry, client = self.entry, _Client()
        where = f"{entry.name} ({entry.user}@{entry.address} port {entry.port}{f' through {entry.jump}' if entry.jump else ''})"
        try:
            async with asyncio.timeout(CONNECT_MAX_S):
                return await asyncssh.connect(
                    entry.address,
                    entry.port,
                    tunnel=tunnel if tunnel is not None else (),
                    username=entry.user,
                    client_keys=[self._key],
                    client_factory=lambda: client,
                    known_hosts=(self._pinned, [], []),
                    server_host_key_algs=self._key_kinds,
                    config=None,
                    agent_path=None,
                    password=None,
                    preferred_auth="publickey",
                    disable_trivial_auth=True,
                    login_timeout=LOGIN_MAX_S,
                    keepalive_interval=KEEPALIVE_S,
                    keepalive_count_max=KEEPALIVES_MAX,
                )
        except asyncssh.HostKeyNotVerifiable:
            raise self._wrong_key(where, ", ".join(client.shown) or "a certificate") from None
        except asyncssh.KeyExchangeFailed as error:
            if "host key" not in str(error).lower():
                raise SshFailed(why=f"{where}: {error}.") from None
            raise self._wrong_key(where, "no key of that kind") from None
        except asyncssh.PermissionDenied as error:
            hint = f"Add the public key of {entry.key_file} to ~/.ssh/authorized_keys of {entry.user} there."
            raise LoginRefused(why=f"{where}: {error}.", hint=hint) from None
        except (asyncssh.ConnectionLost, ConnectionResetError, BrokenPipeError):
            raise
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise HostAway(why=f"{where}: {error or 'no answer in time'}.", hint="Try `ssh` with the same names by hand.") from None

    def _wrong_key(self, where: str, shown: str) -> HostKeyWrong:
        pinned = ", ".join(key.get_fingerprint() for key in self._pinned)
        return HostKeyWrong(
            why=f"{where}: expected {pinned}, found {shown}.",
            hint="If the host was set up again, compare the new key at its console and put it into host_keys; else somebody is in between.",
        )


@contextlib.contextmanager
def _in_words(entry: HostEntry) -> Iterator[None]:
    """Losses of the connection become HostAway; refused channels and errors of files pass."""
    try:
        yield
    except (asyncssh.DisconnectError, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, ConnectionError) as error:
        raise HostAway(why=f"The connection to {entry.name} was lost: {error}.") from None


def open_access(hosts: Hosts, entry: HostEntry, gates: dict[str, Access]) -> Access:
    """The access to a host. `gates` holds those to jump hosts, shared by all that lie behind. Raises HostsError."""
    jump = hosts.jump_of(entry)
    if jump is not None and jump.name not in gates:
        gates[jump.name] = open_access(hosts, jump, gates)
    return Access(entry, None if jump is None else gates[jump.name])
