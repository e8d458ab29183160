"""Looks at everything that a seller needs: market, wallet, clock, cards, Docker, versions, disk, firewall. It changes nothing.

It gathers; what is wrong with what was found, and what would help, stands in `rules`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any

from events.errors import BazaarError
from events.home import Settings, choose_wallet
from events.market_client import ask_hello
from events.values import Role
from seller_agent.cards.card import CardTelemetry, Inventory, Vendor
from seller_agent.cards.machine import size
from seller_agent.cards.reader import CardReader, CardsHung
from seller_agent.doctor import rules
from seller_agent.doctor.rules import Finding
from seller_agent.runners.docker_engine.daemon.asking import ask
from seller_agent.runners.docker_engine.daemon.host import socket_of
from seller_agent.runners.runner import RunnerError

ANSWER_S = 5.0
SHM = Path("/dev/shm")

try:
    import grp
except ImportError:  # a system without groups
    grp = None  # type: ignore[assignment]


async def examine(settings: Settings, docker_host: str | None = None) -> list[Finding]:
    """All findings."""
    market, (found, readings) = await asyncio.gather(_market(settings), _cards())
    has_cards = any(card.vendor is Vendor.NVIDIA for card in found.cards)
    docker = await asyncio.to_thread(_docker, docker_host, has_cards)
    return [
        *market,
        _wallet(settings),
        rules.python(sys.version_info[:3], platform.python_version()),
        *rules.cards(found, size()["cores"]),
        *rules.use_of_cards(readings),
        *docker,
        rules.egress(os.geteuid(), shutil.which("iptables") is not None),
        rules.disk(_free(settings.home), str(settings.home)),
        rules.memory_files(os.access(SHM, os.W_OK), _size_of(SHM)),
    ]


async def _market(settings: Settings) -> list[Finding]:
    try:
        before_ms = time.time_ns() // 1_000_000
        hello = await ask_hello(settings.market)
        after_ms = time.time_ns() // 1_000_000
    except BazaarError as error:
        return [Finding("error", f"market: {error.what} {error.why}", error.hint)]
    off_ms = max(before_ms - hello.time_ms, hello.time_ms - after_ms, 0)
    return [Finding("ok", f"market: {hello.name} answers at {settings.market}, ledger at {hello.seq}"), rules.clock(off_ms)]


def _wallet(settings: Settings) -> Finding:
    try:
        wallet = choose_wallet(settings, Role.SELLER)
    except BazaarError as error:
        return Finding("note", f"wallet: {error.what} `bazaar-seller run` makes one named seller.")
    return Finding("ok", f"wallet: {wallet.name or 'delegated'} {wallet.address}")


async def _cards() -> tuple[Inventory, tuple[CardTelemetry, ...]]:
    reader = CardReader(ANSWER_S)
    try:
        found = await reader.inventory()
        return found, await reader.telemetry(found.cards)
    except CardsHung:
        return found, ()
    finally:
        reader.close()


def _docker(docker_host: str | None, has_cards: bool) -> list[Finding]:
    """Docker, what it starts containers with, and who may use it. Blocks."""
    try:
        socket_path = socket_of(docker_host)
        info, version = _ask(socket_path, "/info"), _ask(socket_path, "/version")
    except RunnerError as error:
        return [Finding("warning", f"docker: {error}", "Without it jobs run as plain processes, of your own wallets only.")]
    found = rules.docker(info, version, has_cards)
    found += rules.toolkit(_toolkit(), has_cards, rules.has_cdi(info))
    found += rules.docker_group(_docker_group(), os.geteuid())
    root = str(info.get("DockerRootDir") or "")
    return [*found, rules.disk(_free(Path(root)), root)] if root and Path(root).exists() else found


def _ask(socket_path: str, target: str) -> dict[str, Any]:
    """An answer of Docker. Raises RunnerError."""
    try:
        status, body = ask(socket_path, "GET", target)
    except (OSError, HTTPException, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunnerError("container_error", f"Docker does not answer at {socket_path}: {why or 'no answer'}") from None
    if status != 200 or not isinstance(body, dict):
        raise RunnerError("container_error", f"Docker answers {status} at {socket_path}")
    return body


def _toolkit() -> str | None:
    """What NVIDIA's toolkit says of its version; None without it."""
    for program in ("nvidia-ctk", "nvidia-container-cli"):
        try:
            done = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", timeout=ANSWER_S, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        return done.stdout
    return None


def _docker_group() -> list[str]:
    try:
        return list(grp.getgrnam("docker").gr_mem) if grp is not None else []
    except KeyError:
        return []


def _free(place: Path) -> int:
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _size_of(place: Path) -> int:
    return shutil.disk_usage(place).total if place.exists() else 0
