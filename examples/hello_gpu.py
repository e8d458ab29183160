"""The smallest job: says what it was given, does a little work, and leaves a result behind."""

import json
import os
import time
from pathlib import Path

cards = [card for card in os.environ.get("BAZAAR_GPU_UUIDS", "").split(",") if card]
print(f"job {os.environ['BAZAAR_JOB_ID']}, attempt {os.environ['BAZAAR_ATTEMPT']}, {len(cards)} card(s)")
for index, card in enumerate(cards):
    print(f"  card {index}: {card}")

started = time.monotonic()
count = 20_000
primes = [n for n in range(2, count) if all(n % d for d in range(2, int(n**0.5) + 1))]
print(f"found {len(primes)} primes below {count}, the largest is {primes[-1]}")

result = Path(os.environ["BAZAAR_OUT"]) / "primes.json"
result.write_text(json.dumps({"count": len(primes), "largest": primes[-1], "seconds": round(time.monotonic() - started, 3)}))
print(f"wrote {result.name}")
