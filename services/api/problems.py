"""How the API says no: RFC 9457 bodies from one catalogue, the market's own refusals and a few that only HTTP has.

A problem tells what, why and what to try, in words that never contain what the caller sent, except in `errors`, quoted by JSON.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from events.reasons import REFUSALS, Refusal

MEDIA_TYPE = "application/problem+json"


class Trouble(StrEnum):
    """What only a reader can run into."""

    NOT_FOUND = "not_found"
    BAD_QUERY = "bad_query"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    WRONG_HOST = "wrong_host"
    TOKEN_REQUIRED = "token_required"
    TOKEN_REFUSED = "token_refused"
    TOO_MANY_STREAMS = "too_many_streams"
    ANSWER_TOO_LARGE = "answer_too_large"
    NOT_READY = "not_ready"
    INTERNAL = "internal"


class Row(NamedTuple):
    """One sentence each, the status, and after how many seconds asking again can help."""

    what: str
    why: str
    hint: str
    status: int
    retry_after_s: int | None = None


TROUBLES: dict[Trouble, Row] = {
    Trouble.NOT_FOUND: Row("There is nothing here.", "No resource has this path.", "See /openapi.json for those that there are.", 404),
    Trouble.BAD_QUERY: Row(
        "The query cannot be meant.", "A name is unknown or a value is out of its bounds.", "See /openapi.json for what can be asked.", 400
    ),
    Trouble.METHOD_NOT_ALLOWED: Row(
        "This API only reads.", "Only GET and HEAD are served.", "Writes are signed events: use `bazaar`, or events/market_client.py.", 405
    ),
    Trouble.WRONG_HOST: Row(
        "This API is not served under that name.",
        "It answers to this machine's own names, and to those that its operator gave it.",
        "Use 127.0.0.1 or localhost, or the operator's `--public-host`.",
        421,
    ),
    Trouble.TOKEN_REQUIRED: Row(
        "This needs a read token.", "The API is open to other machines.", "`bazaar token create NAME`, then set BAZAAR_TOKEN.", 401
    ),
    Trouble.TOKEN_REFUSED: Row("The read token is not valid.", "It is unknown, expired or revoked.", "`bazaar token create NAME`.", 401),
    Trouble.TOO_MANY_STREAMS: Row(
        "Too many streams are open.", "The number of readers that follow at once is limited.", "Close one, or try again later.", 429, 10
    ),
    Trouble.ANSWER_TOO_LARGE: Row("The answer is too large.", "Answers over NATS have 1 MiB.", "Ask with a smaller limit.", 413),
    Trouble.NOT_READY: Row("The API is not ready.", "It has not read the ledger so far.", "Try again in a moment.", 503, 1),
    Trouble.INTERNAL: Row("The API failed.", "A fault of ours; it is in the log.", "Tell the operator what was asked.", 500),
}


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One name of the query and what is wrong with its value."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is not a 2xx or a 304."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str
    instance: str | None = None
    errors: tuple[FieldError, ...] = ()
    as_of_seq: int | None = None


class ProblemFound(Exception):
    """Answer with this problem."""

    def __init__(
        self, code: Trouble | Refusal, why: str = "", *, errors: tuple[FieldError, ...] = (), retry_after_s: int | None = None
    ) -> None:
        super().__init__(code.value)
        self.retry_after_s = retry_after_s
        self.code = code
        self.why = why
        self.errors = errors

    @property
    def status(self) -> int:
        """Of the answer."""
        return TROUBLES[self.code].status if isinstance(self.code, Trouble) else REFUSALS[self.code].status

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's headers say besides."""
        headers = {}
        row = TROUBLES.get(self.code) if isinstance(self.code, Trouble) else None
        again_s = self.retry_after_s if row is None or self.retry_after_s is not None else row.retry_after_s
        if again_s is not None:
            headers["retry-after"] = str(again_s)
        if self.code is Trouble.METHOD_NOT_ALLOWED:
            headers["allow"] = "GET, HEAD"
        if self.status == 401:
            headers["www-authenticate"] = 'Bearer realm="gpubazaar"'
        return headers

    def body(self, instance: str | None = None, as_of_seq: int | None = None) -> bytes:
        """The problem as JSON. `instance` is the path that was asked."""
        row = TROUBLES[self.code] if isinstance(self.code, Trouble) else REFUSALS[self.code]
        problem = Problem(
            type=f"urn:gpubazaar:problem:{self.code.value}",
            title=row.what,
            status=row.status,
            detail=self.why or row.why,
            code=self.code.value,
            hint=row.hint,
            instance=instance,
            errors=self.errors,
            as_of_seq=as_of_seq,
        )
        return msgspec.json.encode(problem)


def bad_query(pointer: str, detail: str) -> ProblemFound:
    """One name of the query is wrong."""
    return ProblemFound(Trouble.BAD_QUERY, f"{pointer[:64]}: {detail}", errors=(FieldError(pointer=pointer[:64], detail=detail),))
