"""Known cards and the memory that they report, so that a simulated card looks like the real one to every rule.

A table and a lookup; used for simulation only. Memory is what the driver reports, MiB, a little less or more than the round figure
on the box.
"""

from __future__ import annotations

import re

import msgspec


class KnownCard(msgspec.Struct, frozen=True):
    """One card as its driver names it; `size_gb` is the figure on the box."""

    name: str
    size_gb: int
    vram_mib: int


# A name with several sizes: the first is the one meant when no size is given.
KNOWN_CARDS: tuple[KnownCard, ...] = (
    KnownCard("NVIDIA GeForce RTX 5090", 32, 32607),
    KnownCard("NVIDIA GeForce RTX 5080", 16, 16303),
    KnownCard("NVIDIA GeForce RTX 5070 Ti", 16, 16303),
    KnownCard("NVIDIA GeForce RTX 5070", 12, 12227),
    KnownCard("NVIDIA GeForce RTX 4090", 24, 24564),
    KnownCard("NVIDIA GeForce RTX 4090 D", 24, 24564),
    KnownCard("NVIDIA GeForce RTX 4080 SUPER", 16, 16376),
    KnownCard("NVIDIA GeForce RTX 4080", 16, 16376),
    KnownCard("NVIDIA GeForce RTX 4070 Ti SUPER", 16, 16376),
    KnownCard("NVIDIA GeForce RTX 4070 Ti", 12, 12282),
    KnownCard("NVIDIA GeForce RTX 4070 SUPER", 12, 12282),
    KnownCard("NVIDIA GeForce RTX 4070", 12, 12282),
    KnownCard("NVIDIA GeForce RTX 4060 Ti", 8, 8188),
    KnownCard("NVIDIA GeForce RTX 4060 Ti", 16, 16380),
    KnownCard("NVIDIA GeForce RTX 4060", 8, 8188),
    KnownCard("NVIDIA GeForce RTX 3090 Ti", 24, 24564),
    KnownCard("NVIDIA GeForce RTX 3090", 24, 24576),
    KnownCard("NVIDIA GeForce RTX 3080 Ti", 12, 12288),
    KnownCard("NVIDIA GeForce RTX 3080", 10, 10240),
    KnownCard("NVIDIA GeForce RTX 3080", 12, 12288),
    KnownCard("NVIDIA GeForce RTX 3070 Ti", 8, 8192),
    KnownCard("NVIDIA GeForce RTX 3070", 8, 8192),
    KnownCard("NVIDIA GeForce RTX 3060 Ti", 8, 8192),
    KnownCard("NVIDIA GeForce RTX 3060", 12, 12288),
    KnownCard("NVIDIA GeForce RTX 2080 Ti", 11, 11264),
    KnownCard("NVIDIA GeForce GTX 1080 Ti", 11, 11264),
    KnownCard("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96, 97887),
    KnownCard("NVIDIA RTX 6000 Ada Generation", 48, 49140),
    KnownCard("NVIDIA RTX 5000 Ada Generation", 32, 32760),
    KnownCard("NVIDIA RTX 4000 Ada Generation", 20, 20475),
    KnownCard("NVIDIA RTX A6000", 48, 49140),
    KnownCard("NVIDIA RTX A5000", 24, 24564),
    KnownCard("NVIDIA RTX A4000", 16, 16376),
    KnownCard("NVIDIA B200", 180, 183359),
    KnownCard("NVIDIA GH200 480GB", 96, 97871),
    KnownCard("NVIDIA H200", 141, 143771),
    KnownCard("NVIDIA H100 80GB HBM3", 80, 81559),
    KnownCard("NVIDIA H100 NVL", 94, 95830),
    KnownCard("NVIDIA H100 PCIe", 80, 81559),
    KnownCard("NVIDIA A100-SXM4-80GB", 80, 81920),
    KnownCard("NVIDIA A100-SXM4-40GB", 40, 40960),
    KnownCard("NVIDIA A100 80GB PCIe", 80, 81920),
    KnownCard("NVIDIA A40", 48, 46068),
    KnownCard("NVIDIA A30", 24, 24576),
    KnownCard("NVIDIA A10G", 24, 23028),
    KnownCard("NVIDIA A10", 24, 23028),
    KnownCard("NVIDIA L40S", 48, 46068),
    KnownCard("NVIDIA L40", 48, 46068),
    KnownCard("NVIDIA L4", 24, 23034),
    KnownCard("Tesla V100-SXM2-16GB", 16, 16384),
    KnownCard("Tesla V100-SXM2-32GB", 32, 32768),
    KnownCard("Tesla P100-PCIE-16GB", 16, 16384),
    KnownCard("Tesla T4", 16, 15360),
)

DECORATION = {"nvidia", "geforce", "tesla", "generation"}
FORM_WORDS = {"sxm", "sxm2", "sxm4", "sxm5", "pcie", "hbm2", "hbm3", "hbm3e", "workstation", "edition", "blackwell"}


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s_-]+", name.lower()) if word and word not in DECORATION]


def _plain(words: list[str]) -> list[str]:
    """A name without its form factor and size, as people say it."""
    return [word for word in words if word not in FORM_WORDS and not re.fullmatch(r"\d+gb", word)]


def find_card(name: str, size_gb: int | None = None) -> KnownCard | None:
    """The known card that a person means: its whole name or what is left of it without vendor, form factor and size.

    `size_gb` picks among the sizes of one name; a size that no such card has finds nothing.
    """
    wanted = "".join(_words(name))
    sizes = [card for card in KNOWN_CARDS if size_gb in (None, card.size_gb)]
    exact = [card for card in sizes if "".join(_words(card.name)) == wanted]
    plain = [card for card in sizes if "".join(_plain(_words(card.name))) == wanted]
    return next(iter(exact + plain), None)
