"""Cards that do not exist, for trying things out: named by a text, and the same after every restart. Pure."""

from __future__ import annotations

import hashlib
import re

from seller_agent.cards.card import MIB, DetectedCard
from seller_agent.cards.models import find_card

SIMULATED_DRIVER = "simulated"
SIMULATED_CUDA = 12_080


def simulate(text: str, node_id: str, first_index: int = 0) -> tuple[DetectedCard, ...]:
    """Cards that do not exist, from `2xRTX 4090`, `H100`, `2xRTX 4090:24GB` or `1xA100 80GB`. Raises ValueError with the form.

    Their UUIDs depend on node and index alone, so that they are the same after every restart.
    """
    match = re.fullmatch(r"\s*(?:(\d{1,2})\s*[xX×*]\s*)?(\S.*?)(?:\s*:\s*|\s+)(\d+)\s*(GB|GiB|G)\s*", text)
    match = match or re.fullmatch(r"\s*(?:(\d{1,2})\s*[xX×*]\s*)?([^\s:][^:]*?)()()\s*", text)
    if match is None:
        raise ValueError(_form(text))
    count, name, size, unit = int(match[1] or 1), " ".join(match[2].split()), match[3], match[4]
    if not 1 <= count <= 64 or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._()/+-]{0,63}", name):
        raise ValueError(_form(text))
    model, vram_mib = _model(text, name, size, unit)
    return tuple(
        DetectedCard(
            index=index,
            uuid="SIM-" + hashlib.sha256(f"{node_id}/{index}".encode()).hexdigest()[:32],
            model=model,
            vram_mib=vram_mib,
            driver=SIMULATED_DRIVER,
            cuda=SIMULATED_CUDA,
            simulated=True,
        )
        for index in range(first_index, first_index + count)
    )


def _model(text: str, name: str, size: str, unit: str) -> tuple[str, int]:
    """Full name and memory: of the card that is meant, or as given for one that nobody knows."""
    known = find_card(name, int(size) if size else None)
    if known is not None:
        return known.name, known.vram_mib
    if not size:
        raise ValueError(f"No card is known as {name!r}: add its memory, as in '{name}:24GB'.")
    vram_mib = int(size) * 1024 if unit == "GiB" else int(size) * 10**9 // MIB
    if not 1 <= vram_mib <= 1 << 24:
        raise ValueError(_form(text))
    namesake = find_card(name)
    return namesake.name if namesake is not None else name, vram_mib


def _form(text: str) -> str:
    return (
        f"{text[:80]!r} names no cards to simulate. Write COUNTxMODEL with a count up to 64, as in '2xRTX 4090'; "
        "a model that nobody knows needs its memory too, as in '1xMy Card:24GB'."
    )
