"""Who comes in over HTTP: the reader's rights by token or by address, and how often it may ask."""

from __future__ import annotations

from fastapi import Request

from events.reasons import Refusal
from services.api.access import STRANGER, Grant, Viewer, http_grant, token_in
from services.api.desk import Desk
from services.api.guard import names_this_machine
from services.api.problems import ProblemFound, Trouble
from services.api.rates import Rates


class Door:
    """Lets readers of one API in. `is_local`: whoever connects without a token sees everything, for only this machine can.
    `is_proxied`: connections of this machine are a proxy's, which says whose they are."""

    def __init__(self, desk: Desk, *, is_local: bool, is_proxied: bool = False) -> None:
        assert not (is_local and is_proxied), "behind a proxy everybody looks local"
        self._desk = desk
        self._is_local = is_local
        self._is_proxied = is_proxied
        self._rates = Rates()

    def viewer(self, request: Request) -> Viewer:
        """Who asks. Raises ProblemFound: not ready, a token that is not valid, too often."""
        return self.grant(request).viewer

    def grant(self, request: Request) -> Grant:
        """Who asks, and what that hangs on. Raises ProblemFound: not ready, a token that is not valid, too often."""
        market, now_ms = self._desk.ready_source().mirror.market, self._desk.now_ms()
        token = token_in(request.headers)
        address = self._address(request)
        if token is None and not self._is_local:
            self._count(f"address {address}", now_ms)
        elif token is not None:
            # a wrong token is counted for the address, so that nobody can try many
            grant = self._of_token(request, address, now_ms)
            self._count(f"token {grant.token_sha256}", now_ms)
            return grant
        return http_grant(market, request.headers, is_loopback=self._is_local, now_ms=now_ms)

    def _address(self, request: Request) -> str:
        address = "" if request.client is None else request.client.host
        if not self._is_proxied or not names_this_machine(address):
            return address
        last = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()  # what our proxy put there; the rest is hearsay
        return last[:64] or address

    def _of_token(self, request: Request, address: str, now_ms: int) -> Grant:
        market = self._desk.ready_source().mirror.market
        try:
            return http_grant(market, request.headers, is_loopback=self._is_local, now_ms=now_ms)
        except ProblemFound:
            self._count(f"address {address}", now_ms)
            raise

    def rights(self, request: Request) -> Viewer:
        """What somebody who was let in may see by now; not counted. Raises ProblemFound."""
        source = self._desk.ready_source()
        return http_grant(source.mirror.market, request.headers, is_loopback=self._is_local, now_ms=self._desk.now_ms()).viewer

    def reader(self, request: Request) -> Viewer:
        """Who asks for what is not public. Raises ProblemFound."""
        viewer = self.viewer(request)
        if viewer == STRANGER:
            raise ProblemFound(Trouble.TOKEN_REQUIRED)
        return viewer

    def _count(self, asker: str, now_ms: int) -> None:
        again_s = self._rates.ask(asker, now_ms)
        if again_s is not None:
            raise ProblemFound(Refusal.RATE_LIMITED, "More questions than a reader may ask.", retry_after_s=again_s)
