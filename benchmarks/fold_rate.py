"""How fast does a market fold? Events that lie in memory, pages from their bytes (hashes and signatures checked), and a whole snapshot.

Every figure is CPU time of this one process; nothing is stored, so there is no sync setting.
Run: `python benchmarks/fold_rate.py [JOBS]`
"""

from __future__ import annotations

import gc
import hashlib
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import TypeVar

from nacl.signing import SigningKey

from events.codec import encode_batch, encode_event
from events.envelope import DECISION_KEY, event_hash, seal
from events.fact import Event
from events.identity import SessionKeyAuthorised
from events.ids import job_id, node_id
from events.jobs import GpusReleased, JobClaimed, JobMatched, JobStarted, JobSubmitted, JobSucceeded
from events.log import StoredPage
from events.market import MarketCreated
from events.nodes import NodeOffered
from events.page import Origin, decode_page, encode_page, make_page, page_hash, records_of
from events.values import Card, Program, Requirements, Role
from projections import snapshot
from projections.arbiter import fold
from projections.market import Market
from services.follower import Follower
from services.processes import calm_collector

T = TypeVar("T")

MARKET = hashlib.sha256(b"market").digest()
MATCHER = SigningKey(hashlib.sha256(b"matcher").digest())
BUYER, SELLER = "0x" + "b" * 40, "0x" + "5" * 40
EVENTS_PER_PAGE = 256
NODES = 100
FOR_EVER_MS = 10**14


class Writer:
    """Writes a ledger as the matcher would, without asking whether it is legal."""

    def __init__(self) -> None:
        self.pages: list[bytes] = []
        self.keys = {wallet: SigningKey(hashlib.sha256(wallet.encode()).digest()) for wallet in (BUYER, SELLER)}
        self.numbers = dict.fromkeys(self.keys, 0)
        self.seq = 0
        self._prev = bytes(32)
        self._open: list[tuple[str, Event]] = []

    def put(self, sender: str, event: Event) -> int:
        """The sequence of the event."""
        if len(self._open) >= EVENTS_PER_PAGE:
            self.close()
        self._open.append((sender, event))
        self.seq += 1
        return self.seq

    def close(self) -> None:
        """End the page."""
        first = self.seq - len(self._open) + 1
        envelopes: list[tuple[str, bytes]] = []
        entries: list[bytes | Origin] = []
        hashes: list[bytes] = []
        for place, (sender, event) in enumerate(self._open):
            body = encode_event(event)
            if not sender:
                entries.append(body)
                hashes.append(event_hash(DECISION_KEY, first + place, body))
                continue
            key = self.keys[sender]
            self.numbers[sender] += 1
            number = self.numbers[sender]
            data = seal(key, market_id=MARKET, subject=f"intake.{sender}", seq=number, ts_ms=1, body=encode_batch([body]))
            envelopes.append((sender, data))
            entries.append((len(envelopes) - 1, 0))
            hashes.append(event_hash(bytes(key.verify_key), number, body))
        page = make_page(
            market_id=MARKET,
            first_seq=first,
            prev_hash=self._prev,
            time_ms=1_800_000_000_000 + first,
            envelopes=tuple(envelopes),
            entries=tuple(entries),
            hashes=hashes,
            signing_key=MATCHER,
        )
        self._prev = page_hash(page)
        self.pages.append(encode_page(page))
        self._open = []


def begin(writer: Writer) -> list[tuple[str, str]]:
    """A market with nodes of one card; (node id, card)."""
    matcher_key = bytes(MATCHER.verify_key).hex()
    writer.put(
        "",
        MarketCreated(
            market_id=MARKET.hex(), name="bench", root=BUYER, matcher_key=matcher_key, delegation="", root_signature=bytes(65), operators=()
        ),
    )
    for wallet, role in ((BUYER, Role.BUYER), (SELLER, Role.SELLER)):
        key = bytes(writer.keys[wallet].verify_key).hex()
        writer.put(wallet, SessionKeyAuthorised(key=key, role=role, expires_ms=FOR_EVER_MS, text="", wallet_signature=bytes(65)))
    places = []
    for number in range(NODES):
        name = f"node-{number}"
        card = Card(index=0, uuid=f"GPU-{number:08d}", model="NVIDIA GeForce RTX 4090", vram_mib=24_564)
        writer.put(SELLER, NodeOffered(node_id=node_id(SELLER, name), name=name, cards=(card,), cores=16, price_uusd_per_gpu_hour=400_000))
        places.append((node_id(SELLER, name), card.uuid))
    return places


def submitted(number: int) -> JobSubmitted:
    """A job of the usual size."""
    return JobSubmitted(
        job_id=job_id(hashlib.sha256(b"%d" % number).digest()),
        name=f"train-{number}",
        requirements=Requirements(num_gpus=1, vram_mib=20_000),
        program=Program(argv=("python", "train.py", "--epochs", "3", "--seed", str(number))),
        timeout_s=3600,
        max_price_uusd_per_gpu_hour=400_000 + number,
    )


def lives(jobs: int) -> Writer:
    """A ledger in which this many jobs run from beginning to end."""
    writer = Writer()
    places = begin(writer)
    for number in range(jobs):
        node, card = places[number % NODES]
        event = submitted(number)
        name = event.job_id
        writer.put(BUYER, event)
        epoch = writer.put(
            "", JobMatched(job_id=name, attempt=1, node_id=node, cards=(card,), price_uusd_per_gpu_hour=400_000, claim_by_ms=FOR_EVER_MS)
        )
        writer.put(SELLER, JobClaimed(job_id=name, attempt=1, epoch=epoch, output_token="0" * 16))
        writer.put(SELLER, JobStarted(job_id=name, attempt=1, epoch=epoch))
        writer.put(SELLER, JobSucceeded(job_id=name, attempt=1, epoch=epoch, exit_code=0, ran_ms=5))
        writer.put(SELLER, GpusReleased(job_id=name, attempt=1, epoch=epoch))
    writer.close()
    return writer


def timed(work: str, count: int, run: Callable[[], T]) -> T:
    """Run it and print events a second of CPU time."""
    gc.collect()
    began = time.process_time()
    result = run()
    used = time.process_time() - began
    print(f"{work:<46} {count:>9,} events {used:7.2f} s CPU {count / used:>12,.0f} events/s {used / count * 1e6:8.2f} us each")
    return result


def replay(pages: list[bytes]) -> Market:
    """From the bytes of the ledger to the market."""
    follower = Follower()
    for position, data in enumerate(pages, 1):
        follower.fold(StoredPage(position, data, 0))
    assert follower.void == {}, follower.void
    return follower.market


def queued_memory(jobs: int) -> None:
    """Memory of a market, per job that waits."""
    writer = Writer()
    begin(writer)
    for number in range(jobs):
        writer.put(BUYER, submitted(number))
    writer.close()
    gc.collect()
    tracemalloc.start()
    market = replay(writer.pages)
    gc.collect()
    print(f"{'market memory per queued job':<46} {jobs:>9,} jobs   {tracemalloc.get_traced_memory()[0] / jobs:>10,.0f} bytes each")
    tracemalloc.stop()
    assert len(market.jobs) == jobs


def main() -> None:
    """Print the table."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    calm_collector()  # as the services do
    writer = lives(jobs)
    records = [record for data in writer.pages for record in records_of(decode_page(data))]
    timed("fold of events in memory", len(records), lambda: fold(records, Market()))
    market = timed("replay of pages (decode, hash, signature, fold)", writer.seq, lambda: replay(writer.pages))
    assert snapshot.digest(market) == snapshot.digest(replay(writer.pages))
    timed("snapshot to bytes", writer.seq, lambda: snapshot.encode(market))
    queued_memory(min(jobs, 20_000))


if __name__ == "__main__":
    main()
