"""`bazaar doctor`: checks, one after the other, everything that a job needs between this terminal and a node."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import click

from buyer_cli import render
from buyer_cli.api_reads import Api
from buyer_cli.caller import Caller, command_flags
from buyer_cli.complaint import FAILURE, IDENTITY, UNREACHABLE, Complaint, from_market
from buyer_cli.session import opened
from events.errors import BazaarError
from events.login import find_wallet
from events.market_client import ask_hello
from events.session import SessionStore
from events.values import Role
from events.wire import Hello

CLOCK_MS_MAX = 5_000
NEEDS = {"login": ("broker", "wallet"), "nodes": ("api",)}
"""Checks that say nothing new once one of these has failed."""
OK, WARNING, FAILED = "ok", "warning", "failed"


class Finding(NamedTuple):
    """One thing looked at. `exit_code` is what `doctor` leaves with when this failed."""

    check: str
    state: str
    text: str
    remedy: str = ""
    exit_code: int = 0


def _failed(check: str, error: BazaarError | Complaint) -> Finding:
    told = error if isinstance(error, Complaint) else from_market(error)
    text = told.what + (f" {told.why}" if told.why else "")
    return Finding(check, FAILED, text, told.hint, told.exit_code)


class _Examination:
    """What later checks need of earlier ones."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.hello: Hello | None = None

    def versions(self) -> list[Finding]:
        """This program and what it runs on."""
        return [Finding("versions", OK, f"gpubazaar {version('gpubazaar')}, Python {platform.python_version()}, {platform.system()}")]

    def home(self) -> list[Finding]:
        """Settings can be read."""
        return [Finding("home", OK, str(self.caller.settings.home))]

    def broker(self) -> list[Finding]:
        """Somebody answers there, and his clock is ours."""
        address = self.caller.settings.market
        started_ms = time.time_ns() // 1_000_000
        hello = asyncio.run(ask_hello(address))
        now_ms = time.time_ns() // 1_000_000
        self.hello = hello
        off_ms = hello.time_ms - (started_ms + now_ms) // 2
        market = f"market {render.text(hello.name)} ({hello.market_id[:16]})"
        text = f"{address}: {market}, version {render.text(hello.version)}, at event {hello.seq}"
        found = [Finding("broker", OK, text)]
        if abs(off_ms) > CLOCK_MS_MAX:
            remedy = "set this machine's clock (timedatectl set-ntp true)"
            found.append(
                Finding("clock", WARNING, f"{abs(off_ms) / 1000:.1f} s {'behind' if off_ms > 0 else 'ahead of'} the market's", remedy)
            )
        else:
            found.append(Finding("clock", OK, f"within {CLOCK_MS_MAX // 1000} s of the market's ({off_ms:+d} ms)"))
        return found

    def api(self) -> list[Finding]:
        """The API answers, and tells of the same market."""
        api = Api(self.caller.settings)
        told = api.get("/v1/market")
        market_id = told.get("id")
        found = []
        if self.hello is not None and market_id and market_id != self.hello.market_id:
            remedy = "set BAZAAR_MARKET and BAZAAR_API to one market"
            found.append(Finding("api", FAILED, f"it tells of another market ({render.text(market_id)[:16]})", remedy, FAILURE))
        else:
            found.append(Finding("api", OK, f"{self.caller.settings.api}, at event {render.text(told.get('as_of_seq'))}"))
        sync = told.get("sync_interval") or told.get("sync")
        if sync is not None:
            state, remedy = (OK, "") if sync == "always" else (WARNING, "sync_interval: always in nats.conf")
            found.append(Finding("store", state, f"sync_interval {render.text(sync)}", remedy))
        return found

    def nodes(self) -> list[Finding]:
        """There is something to run on."""
        nodes = [node for node in Api(self.caller.settings).items("/v1/nodes") if node.get("state") == "offered"]
        if not nodes:
            return [Finding("nodes", WARNING, "none is offered", "offer this machine: bazaar-seller run --price 0.40")]
        if all(node.get("simulated") for node in nodes):
            return [Finding("nodes", WARNING, f"{len(nodes)} offered, all with simulated cards", "jobs must say --allow-simulated")]
        return [Finding("nodes", OK, f"{len(nodes)} offered")]

    def wallet(self) -> list[Finding]:
        """Somebody can act."""
        settings = self.caller.settings
        market_id = self.hello.market_id if self.hello is not None else settings.market_id or "0" * 64
        wallet = find_wallet(settings, Role.BUYER, market_id)
        found = [Finding("wallet", OK, f"{wallet.name or 'delegated'} {wallet.address}")]
        session = SessionStore(settings.home, market_id).load(wallet.address, Role.BUYER)
        left_ms = 0 if session is None else session.expires_ms - time.time_ns() // 1_000_000
        if left_ms > 0:
            found.append(Finding("session", OK, f"for another {render.duration(left_ms // 1000)}"))
        else:
            found.append(Finding("session", OK, "none here now; one is made when it is needed"))
        return found

    def login(self) -> list[Finding]:
        """The market lets us in and knows us."""

        async def log_in() -> str:
            async with opened(self.caller) as client:
                answer = await client.sync()
                return f"let in, at event {answer.as_of_seq}"

        return [Finding("login", OK, asyncio.run(log_in()))]


@click.command()
@command_flags
def doctor(caller: Caller) -> int:
    """Check everything that a job needs; what is wrong comes with what to do about it."""
    examination = _Examination(caller)
    checks: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("versions", examination.versions),
        ("home", examination.home),
        ("broker", examination.broker),
        ("api", examination.api),
        ("nodes", examination.nodes),
        ("wallet", examination.wallet),
        ("login", examination.login),
    ]
    findings: list[Finding] = []
    for name, check in checks:
        if any(finding.state == FAILED and finding.check in NEEDS.get(name, ()) for finding in findings):
            continue
        for finding in _examined(name, check):
            findings.append(finding)
            if not caller.as_json:
                _say(caller, finding)
    if caller.as_json:
        caller.terminal.emit([_json(finding) for finding in findings])
    codes = {finding.exit_code for finding in findings if finding.state == FAILED}
    return next((code for code in (UNREACHABLE, IDENTITY) if code in codes), FAILURE if codes else 0)


def _examined(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except (BazaarError, Complaint) as error:
        return [_failed(name, error)]


def _say(caller: Caller, finding: Finding) -> None:
    caller.terminal.data(f"{finding.state.ljust(7)}  {finding.check.ljust(8)}  {render.text(finding.text)}")
    if finding.remedy:
        caller.terminal.data(f"{'':7}  {'':8}  try: {render.text(finding.remedy)}")


def _json(finding: Finding) -> dict[str, Any]:
    return {"check": finding.check, "state": finding.state, "detail": finding.text, "remedy": finding.remedy or None}
