"""How `bazaar` says that something did not work: one shape for people, one for programs, and the exit code.

Everything a command raises on purpose ends here; `cli.py` prints it.
"""

from __future__ import annotations

import json

import msgspec

from buyer_cli.printable import printable
from buyer_cli.spec import SpecError
from events.errors import BazaarError, ConnectionRefused, IdentityError, MarketUnreachable, Refused
from events.reasons import REFUSALS

FAILURE, USAGE, NOT_FOUND, IDENTITY, NO_PLACE, UNREACHABLE = 1, 2, 3, 4, 5, 6
NOT_FINISHED, INTERRUPTED = 101, 130
_STATUS = {USAGE: 400, NOT_FOUND: 404, IDENTITY: 401, NO_PLACE: 422, UNREACHABLE: 503, NOT_FINISHED: 409, INTERRUPTED: 499}


class Complaint(Exception):
    """Why a command ends here: `what` happened, `why`, what to try (`hint`), a stable `code`, and the exit code."""

    def __init__(self, code: str, what: str, why: str = "", hint: str = "", *, exit_code: int = FAILURE, status: int | None = None) -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.why = why
        self.hint = hint
        self.exit_code = exit_code
        self.status = status or _STATUS.get(exit_code, 500)

    def for_people(self) -> str:
        """`error:`, `why:`, `try:`, each on its line, harmless to a terminal."""
        lines = [f"error: {printable(self.what)}"]
        if self.why:
            lines.append(f"  why: {printable(self.why)}")
        if self.hint:
            lines.append(f"  try: {printable(self.hint)}")
        return "\n".join(lines)

    def for_programs(self) -> str:
        """One RFC 9457 object."""
        return json.dumps(
            {
                "type": f"urn:gpubazaar:problem:{self.code}",
                "title": self.what,
                "status": self.status,
                "detail": self.why,
                "code": self.code,
                "hint": self.hint,
            }
        )


class _Problem(msgspec.Struct, kw_only=True):
    """A problem body as the API sends it."""

    title: str = ""
    status: int = 500
    detail: str = ""
    code: str = ""
    hint: str = ""


def from_spec(error: SpecError) -> Complaint:
    """A specification that cannot be meant is wrong usage."""
    return Complaint("invalid_spec", error.what, error.why, error.hint, exit_code=USAGE)


def from_market(error: BazaarError) -> Complaint:
    """What the market or the environment did, with the exit code of its kind."""
    if isinstance(error, Refused):
        row = REFUSALS[error.refusal]
        return Complaint(error.refusal.value, error.what, error.why, error.hint, exit_code=row.exit_code, status=row.status)
    if isinstance(error, MarketUnreachable):
        hint = error.hint or "start one with `bazaar-market up`, or look with `bazaar doctor`"
        return Complaint("market_unreachable", error.what, error.why, hint, exit_code=UNREACHABLE)
    if isinstance(error, IdentityError | ConnectionRefused):
        return Complaint("identity", error.what, error.why, error.hint or "look with `bazaar doctor`", exit_code=IDENTITY)
    return Complaint("failure", error.what, error.why, error.hint)


def from_api(body: bytes, status: int) -> Complaint:
    """A problem that the API answered with."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem(title=f"The API answered {status}.")
    exit_code = {400: USAGE, 401: IDENTITY, 403: IDENTITY, 404: NOT_FOUND, 422: USAGE, 503: UNREACHABLE}.get(status, FAILURE)
    hint = problem.hint or ("set BAZAAR_TOKEN to a read token" if status == 401 else "")
    return Complaint(problem.code or f"http_{status}", problem.title, problem.detail, hint, exit_code=exit_code, status=status)
