"""One short question to Docker, in plain HTTP on its socket. Standard library only, because the guard imports it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import urllib.parse
from typing import Any

ANSWER_S = 2.0
"""How long Docker may take to answer before it is treated as away."""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(socket_path: str, method: str, target: str) -> tuple[int, Any]:
    """One request to Docker: status and decoded body. Raises OSError or HTTPException when it does not answer."""
    with contextlib.closing(_SocketConnection(socket_path)) as connection:
        connection.request(method, target)
        response = connection.getresponse()
        body = response.read()
    return response.status, json.loads(body) if body.startswith((b"{", b"[")) else None


def quoted(text: str) -> str:
    """Safe inside a request's path or query."""
    return urllib.parse.quote(text, safe="")
