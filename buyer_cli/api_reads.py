"""Reading from the query API over HTTP, with the standard library only. Answers are plain JSON; problems become Complaints."""

from __future__ import annotations

import http.client
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from buyer_cli.complaint import Complaint, from_api
from events.errors import MarketUnreachable
from events.home import Settings

TIMEOUT_S = 15.0
PAGE = 500
BODY_BYTES_MAX = 64 << 20


class Api:
    """The market's query API, as the settings name it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @property
    def _base(self) -> str:
        return self._settings.api

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        # A read of this machine's own market must not go through somebody's proxy.
        return urllib.request.build_opener(urllib.request.ProxyHandler({}) if _is_local(self._base) else urllib.request.ProxyHandler())

    def get(self, path: str, query: Mapping[str, object] | None = None) -> dict[str, Any]:
        """One body. Raises Complaint for a problem, MarketUnreachable when nobody answers."""
        with self._open(path, query, TIMEOUT_S) as answer:
            body = self._read(answer)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Complaint(
                "bad_answer", "The API's answer is no JSON object.", f"{self._base}{path}", "check the address with `bazaar doctor`"
            )
        return value

    def items(self, path: str, query: Mapping[str, object] | None = None, most: int = 10_000) -> list[dict[str, Any]]:
        """All items of a list, page after page, at most `most`."""
        found: list[dict[str, Any]] = []
        cursor: object = None
        while True:
            page = self.get(path, {**(query or {}), "limit": min(PAGE, most), "cursor": cursor})
            found += page.get("items", [])
            cursor = page.get("next_cursor")
            if not cursor or len(found) >= most:
                return found[:most]

    def stream(self, path: str, query: Mapping[str, object] | None = None, last_id: int | None = None) -> Iterator[tuple[str, str]]:
        """Server-sent events, as (id, data), until the connection ends. Raises like `get`."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last_id)} if last_id is not None else {})
        with self._open(path, query, 60.0, headers) as answer:
            number, data = "", []
            try:
                for raw in answer:
                    line = raw.decode(errors="replace").rstrip("\r\n")
                    name, _, value = line.partition(":")
                    if name == "id":
                        number = value.strip()
                    elif name == "data":
                        data.append(value.removeprefix(" "))
                    elif not line and data:
                        yield number, "\n".join(data)
                        data = []
            except (OSError, http.client.HTTPException) as error:
                raise MarketUnreachable("The API's stream ended.", why=str(error)) from None

    def _open(self, path: str, query: Mapping[str, object] | None, timeout_s: float, headers: Mapping[str, str] | None = None) -> Any:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self._base}{path}" + (f"?{urllib.parse.urlencode(given, doseq=True)}" if given else "")
        request = urllib.request.Request(url, headers={"Accept": "application/json", **(headers or {})})
        if self._settings.token:
            request.add_unredirected_header("Authorization", f"Bearer {self._settings.token}")
        try:
            return self._opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise from_api(error.read(1 << 20), error.code) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            raise self._unreachable(error) from None

    def _read(self, answer: Any) -> bytes:
        try:
            body = answer.read(BODY_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        assert isinstance(body, bytes)
        return body

    def _unreachable(self, error: Exception) -> MarketUnreachable:
        reason = getattr(error, "reason", error)
        why = "no answer in time" if isinstance(reason, TimeoutError | socket.timeout) else str(getattr(reason, "strerror", None) or reason)
        hint = "is the market up? `bazaar-market status`; or set BAZAAR_API"
        return MarketUnreachable(f"Cannot reach the query API at {self._base}.", why=why, hint=hint)


def _is_local(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in {"127.0.0.1", "::1", "localhost"}
