"""Looks at everything that a seller needs, and says what is wrong and what would help. It changes nothing."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from events.errors import BazaarError
from events.home import Settings, choose_wallet
from events.market_client import ask_hello
from events.values import Role
from seller_agent.cards import DetectedCard
from seller_agent.machine import real_cards, size
from seller_agent.runners.docker_host import socket_of
from seller_agent.runners.docker_runner import DockerRunner
from seller_agent.runners.runner import RunnerError

DISK_FREE_MIN = 5 << 30
CLOCK_OFF_MAX_MS = 2000
DOCKER_ANSWER_S = 5.0


class Finding(NamedTuple):
    """One thing that was looked at. `severity`: ok, note, warning or error."""

    severity: str
    what: str
    remedy: str = ""


async def examine(settings: Settings, docker_host: str | None = None) -> list[Finding]:
    """All findings."""
    return [
        *await _market(settings),
        _wallet(settings),
        *await _cards(),
        await _docker(settings.home, docker_host),
        _disk(settings.home),
    ]


async def _market(settings: Settings) -> list[Finding]:
    try:
        before_ms = time.time_ns() // 1_000_000
        hello = await ask_hello(settings.market)
        after_ms = time.time_ns() // 1_000_000
    except BazaarError as error:
        return [Finding("error", f"market: {error.what} {error.why}", error.hint)]
    off_ms = max(before_ms - hello.time_ms, hello.time_ms - after_ms, 0)
    found = [Finding("ok", f"market: {hello.name} answers at {settings.market}, ledger at {hello.seq}")]
    if off_ms > CLOCK_OFF_MAX_MS:
        found.append(Finding("warning", f"clock: {off_ms} ms away from the market's", "Synchronise the clock (NTP)."))
    return found


def _wallet(settings: Settings) -> Finding:
    try:
        wallet = choose_wallet(settings, Role.SELLER)
    except BazaarError as error:
        return Finding("note", f"wallet: {error.what} `bazaar-seller run` makes one named seller.", "")
    return Finding("ok", f"wallet: {wallet.name or 'delegated'} {wallet.address}")


async def _cards() -> list[Finding]:
    found = await real_cards()
    machine = size()
    if not found.cards:
        what = f"cards: none ({found.reason or 'no answer'}: {found.detail or 'no card'}); {machine['cores']} cores could be offered"
        return [Finding("note", what, 'Install the NVIDIA driver, or try --simulate-gpus "2xRTX 4090".')]
    return [_card(card) for card in found.cards]


def _card(card: DetectedCard) -> Finding:
    what = f"card {card.index}: {card.model}, {card.vram_mib} MiB"
    return Finding("ok", what) if card.healthy else Finding("error", f"{what}, {card.fault}", "It is offered as unhealthy, so not let.")


async def _docker(home: Path, docker_host: str | None) -> Finding:
    try:
        return await _docker_at(socket_of(docker_host), home)
    except (RunnerError, TimeoutError) as error:
        return Finding("warning", f"docker: {error or 'no answer'}", "Without it jobs run as plain processes, of your own wallets only.")


async def _docker_at(socket_path: str, home: Path) -> Finding:
    runner = DockerRunner(home / "seller", "doctor", socket_path=socket_path)
    try:
        async with asyncio.timeout(DOCKER_ANSWER_S):
            host = await runner.check()
    finally:
        await runner.close()
    return Finding("ok", f"docker: {host.version}, {host.cores} cores, {host.memory_mib} MiB")


def _disk(home: Path) -> Finding:
    place = home if home.exists() else home.parent
    free = shutil.disk_usage(place if place.exists() else Path("/")).free
    what = f"disk: {free >> 30} GiB free at {home}"
    return Finding("ok", what) if free >= DISK_FREE_MIN else Finding("warning", what, "Inputs, results and images need room.")
