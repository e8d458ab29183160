"""Reading from the query API over HTTP, with the standard library only. Answers are plain JSON; problems become Complaints.

An API that wants a token, where none is set, is asked over the market's own connection instead: there the wallet's session says who reads.
"""

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

from buyer_cli.complaint import IDENTITY, Complaint, from_api
from buyer_cli.wallet_reads import PAGE as WALLET_PAGE
from buyer_cli.wallet_reads import WalletReads
from events import pinning
from events.errors import BazaarError, MarketUnreachable
from events.home import Settings

TIMEOUT_S = 15.0
PAGE = 500
BODY_BYTES_MAX = 64 << 20


class Api:
    """The market's query API, as the settings name it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wallet: WalletReads | None = None
        """Set once the API has asked for a token that is not there."""

    @property
    def _base(self) -> str:
        return pinning.split(self._settings.api)[0]

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        base, pin = pinning.split(self._settings.api)
        # A read of this machine's own market must not go through somebody's proxy, nor one whose certificate was agreed on.
        direct = _is_local(base) or pin is not None
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}) if direct else urllib.request.ProxyHandler()]
        context = pinning.context_for([self._settings.api])
        if context is not None:
            handlers.append(urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)

    def get(self, path: str, query: Mapping[str, object] | None = None) -> dict[str, Any]:
        """One body. Raises Complaint for a problem, MarketUnreachable when nobody answers."""
        if not self._asks_wallet():
            try:
                with self._open(path, query, TIMEOUT_S) as answer:
                    return self._value(path, self._read(answer))
            except Complaint as problem:
                self._turn_to_wallet(problem)
        assert self._wallet is not None
        status, body = self._wallet.ask(path, query)
        if status != 200:
            raise from_api(body, status)
        return self._value(path, body)

    def _asks_wallet(self) -> bool:
        """Whether answers come over the market's connection: once HTTP was refused, and where no API is known at all."""
        settings = self._settings
        if self._wallet is None and settings.settings["api"].value is None and settings.settings["market"].value is not None:
            self._wallet = WalletReads(settings)
        return self._wallet is not None

    def _turn_to_wallet(self, problem: Complaint) -> None:
        """Ask over the market's connection from now on. Raises the problem when that would not help."""
        if problem.code not in ("token_required", "wrong_host") or self._settings.token or self._settings.settings["market"].value is None:
            raise problem
        wallet = WalletReads(self._settings)
        try:
            wallet.open()
        except BazaarError as error:
            why = f"{problem.why} A wallet would do as well, but: {error.what} {error.why}".strip()
            raise Complaint(
                problem.code, problem.what, why, problem.hint or error.hint, exit_code=IDENTITY, status=problem.status
            ) from None
        self._wallet = wallet

    def _value(self, path: str, body: bytes) -> dict[str, Any]:
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
            page = self.get(path, {**(query or {}), "limit": min(WALLET_PAGE if self._asks_wallet() else PAGE, most), "cursor": cursor})
            found += page.get("items", [])
            cursor = page.get("next_cursor")
            if not cursor or len(found) >= most:
                return found[:most]

    def stream(self, path: str, query: Mapping[str, object] | None = None, last_id: int | None = None) -> Iterator[tuple[str, str]]:
        """Events as (id, data): server-sent ones until the connection ends, or, over the market's connection, asked for again and again.
        Raises like `get`."""
        if not self._asks_wallet():
            try:
                yield from self._sent(path, query, last_id)
                return
            except Complaint as problem:
                self._turn_to_wallet(problem)
        assert self._wallet is not None
        yield from self._wallet.follow(path, last_id)

    def _sent(self, path: str, query: Mapping[str, object] | None, last_id: int | None) -> Iterator[tuple[str, str]]:
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
