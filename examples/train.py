# /// script
# [tool.bazaar]
# gpus = 1
# vram = "16GB"
# timeout = "10m"
# max-price = "0.50"
# ///
"""A training loop small enough for any machine: fits a line by gradient descent, one line of output an epoch.

bazaar run train.py -- --epochs 3
"""

import argparse
import json
import os
import random
from pathlib import Path


def loss_and_gradient(points: list[tuple[float, float]], slope: float, offset: float) -> tuple[float, float, float]:
    """Mean squared error of the line over the points, and its derivatives by slope and offset."""
    errors = [(x, slope * x + offset - y) for x, y in points]
    scale = 2 / len(points)
    return sum(e * e for _, e in errors) / len(points), scale * sum(e * x for x, e in errors), scale * sum(e for _, e in errors)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.1)
    options = parser.parse_args()

    chance = random.Random(7)
    points = [(x, 3 * x - 1 + chance.gauss(0, 0.1)) for x in (chance.uniform(-1, 1) for _ in range(500))]
    slope = offset = 0.0
    for epoch in range(1, options.epochs + 1):
        for _ in range(20):
            loss, by_slope, by_offset = loss_and_gradient(points, slope, offset)
            slope -= options.rate * by_slope
            offset -= options.rate * by_offset
        print(f"epoch {epoch}/{options.epochs}  loss {loss:.4f}  y = {slope:.3f}x {offset:+.3f}", flush=True)

    out = Path(os.environ.get("BAZAAR_OUT", "."))
    (out / "model.json").write_text(json.dumps({"slope": slope, "offset": offset}))


if __name__ == "__main__":
    main()
