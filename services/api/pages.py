"""The dashboard and the page that describes the API: files of this package, read once, served with their hashes and a strict policy.

Nothing is built and nothing is loaded from elsewhere. What the pages show they read from the query API like everybody else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import Response

from services.api.problems import ProblemFound, Trouble

FOLDER = Path(__file__).with_name("dashboard")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Scripts and styles of this server only, none of them inline; nothing that a hostile name could smuggle in runs."""
PAGES = {"/": "index.html", "/docs": "docs.html"}
ASSETS = "/assets/"


class File(NamedTuple):
    """A file as it is served."""

    data: bytes
    kind: str
    etag: str


def load(folder: Path = FOLDER) -> dict[str, File]:
    """Every file that is served, by its path on the server."""
    found = {}
    for file in sorted(folder.rglob("*")):
        kind = KINDS.get(file.suffix)
        if kind is None or not file.is_file():
            continue
        data = file.read_bytes()
        found[ASSETS + file.relative_to(folder).as_posix()] = File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:24]}"')
    return found | {path: found[ASSETS + name] for path, name in PAGES.items()}


def add_pages(app: FastAPI) -> None:
    """Serve them."""
    files = load()

    async def asset(request: Request) -> Response:
        file = files.get(request.url.path)
        if file is None:
            raise ProblemFound(Trouble.NOT_FOUND)
        headers = {"etag": file.etag, "cache-control": "no-cache", "content-security-policy": POLICY, "content-type": file.kind}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, headers=headers)

    handler: Callable[[Request], Awaitable[Response]] = asset
    for path in (*PAGES, ASSETS + "{name:path}"):
        app.add_api_route(path, handler, methods=["GET"], include_in_schema=False)
