"""One connection of the supervisor: lines that come in, lines to go out. Standard library only, copied to other machines."""

from __future__ import annotations

import json
import socket

from seller_agent.runners.process.supervisor.run import Message

LINE_MAX_BYTES = 4 << 20


class Client:
    """One connection: bytes that came in, bytes to go out."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.incoming = b""
        self.outgoing = b""

    def say(self, message: Message) -> None:
        self.outgoing += json.dumps(message).encode() + b"\n"

    def hear(self) -> list[bytes] | None:
        """The lines that are complete; None when the other side is gone or talks nonsense."""
        try:
            data = self.connection.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data or len(self.incoming) > LINE_MAX_BYTES:
            return None
        *lines, self.incoming = (self.incoming + data).split(b"\n")
        return lines
