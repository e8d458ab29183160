"""Whether a card is of the model that a buyer named. Pure; names are compared word by word, case ignored.

Every word of the asked name, vendor words aside, must be a word of the device name, and the device name must add no word that makes it
another product. Harmless additions: vendor and brand words (`NVIDIA`, `GeForce`, `RTX`), memory sizes (`80GB`), form factors and kinds of
memory (`SXM4`, `PCIe`, `NVL`, `HBM3`), and words without meaning (`GPU`, `Graphics`, `Generation`). Everything else distinguishes: `Ti`,
`SUPER`, `D`, `Laptop`, `Max-Q`, `Ada`, `MIG`, another number. A brand glued to its number is two words: `RTX4090` is `RTX 4090`.
"""

from __future__ import annotations

import re
from functools import lru_cache

VENDOR_WORDS = frozenset({"nvidia", "geforce", "tesla", "quadro", "amd", "radeon", "instinct", "intel", "arc", "tm", "r"})
"""Ignored in what is asked, unless nothing else is asked: `NVIDIA` alone means any card of that vendor."""
HARMLESS_WORDS = VENDOR_WORDS | {"rtx", "gtx", "rx", "pcie", "pci", "oam", "nvl", "gpu", "graphics", "generation"}
"""What a device name may add and still be the model that was asked for."""

_HARMLESS = re.compile(r"\d+(g|gb|gib)|sxm\d?|hbm\d?e?", re.ASCII)
_WORD = re.compile(r"[a-z0-9]+", re.ASCII)
_GLUED = re.compile(r"(rtx|gtx|rx)(\d.*)", re.ASCII)


@lru_cache(maxsize=4096)
def words(name: str) -> frozenset[str]:
    """The words of a model name."""
    found: set[str] = set()
    for word in _WORD.findall(name.lower()):
        glued = _GLUED.fullmatch(word)
        found.update(glued.groups() if glued else (word,))
    return frozenset(found)


def is_harmless(word: str) -> bool:
    """Whether a device name that adds this word is still of the asked model."""
    return word in HARMLESS_WORDS or _HARMLESS.fullmatch(word) is not None


def model_matches(asked: str, device: str) -> bool:
    """Whether a card that calls itself `device` is what a buyer calls `asked`."""
    of_device, wanted = words(device), words(asked)
    named = wanted - VENDOR_WORDS
    if not named:
        return bool(wanted) and wanted <= of_device
    return named <= of_device and all(is_harmless(word) for word in of_device - wanted)


@lru_cache(maxsize=16384)
def any_model_matches(asked: tuple[str, ...], device: str) -> bool:
    """Whether the card is one of the models asked for."""
    return any(model_matches(name, device) for name in asked)
