"""How people are told of cards: the same words in every program. Pure."""

from __future__ import annotations

from collections.abc import Iterable


def cards_in_words(models: Iterable[tuple[str, int]]) -> str:
    """Cards as a person names them, such as `2x NVIDIA RTX 4090 (48.0 GiB)`, of their models and memories (MiB)."""
    counted: dict[str, int] = {}
    total_mib = 0
    for model, vram_mib in models:
        name = " ".join(word for word in model.split() if word != "GeForce")
        counted[name] = counted.get(name, 0) + 1
        total_mib += vram_mib
    if not counted:
        return "no GPU"
    return " + ".join(f"{count}x {name}" for name, count in counted.items()) + f" ({total_mib / 1024:.1f} GiB)"
