"""Folding the ledger as it grows: what every service of the market does before anything else.

Checks that each page continues the one before and is signed by the market, then folds its events. A page that does not is never folded:
the log is not to be trusted from there on, and whoever follows it halts and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nacl.signing import VerifyKey

from events.errors import LogCorrupt
from events.log import Log, StoredPage
from events.market import MarketCreated
from events.page import BrokenPage, Page, Record, check_page, decode_page, page_hash, records_of
from events.reasons import Refusal
from projections import snapshot
from projections.arbiter import apply
from projections.market import Applied, Market

FoldedRecord = tuple[Record, Applied]
OnPage = Callable[[StoredPage, Page, list[FoldedRecord]], None]


class Follower:
    """A market that is folded page by page. `void` counts what was written and yet had no effect (never, if the matcher is right)."""

    def __init__(self, market: Market | None = None) -> None:
        self.market = Market() if market is None else market
        self.void: dict[str, int] = {}
        self._key = ""
        self._verify_key: VerifyKey | None = None

    def fold(self, stored: StoredPage, until: Callable[[Page], bool] | None = None) -> tuple[Page, list[FoldedRecord]]:
        """Check and fold the next page; not when it is `until` that says so: then nothing is folded. Raises LogCorrupt."""
        market = self.market
        if stored.position != market.pages + 1:
            raise LogCorrupt(why=f"page {stored.position} follows page {market.pages}")
        try:
            page = decode_page(stored.data)
            if until is not None and until(page):
                return page, []
            records = records_of(page)
            digest = self._check(page, records)
        except BrokenPage as error:
            raise LogCorrupt(why=str(error), hint="Restore a backup, or follow docs/operations.md#a-damaged-ledger.") from error
        folded: list[FoldedRecord] = []
        for record in records:
            result = apply(market, record)
            if isinstance(result, Refusal):
                self.void[result] = self.void.get(result, 0) + 1
                market.last_seq, market.time_ms = record.seq, record.time_ms
            else:
                folded.append((record, result))
        market.close_page(digest)
        return page, folded

    def _check(self, page: Page, records: list[Record]) -> bytes:
        market = self.market
        market_id, key = market.market_id, market.matcher_key
        if not market_id:
            first = records[0].event
            if not isinstance(first, MarketCreated):
                raise BrokenPage("the ledger does not begin with the creation of a market")
            market_id, key = first.market_id, first.matcher_key
        if key != self._key:
            self._key, self._verify_key = key, VerifyKey(bytes.fromhex(key))
        return check_page(
            page,
            market_id=bytes.fromhex(market_id),
            first_seq=market.last_seq + 1,
            prev_hash=market.page_hash,
            verify_key=self._verify_key,
        )

    async def catch_up(self, log: Log, on_page: OnPage | None = None) -> int:
        """Fold everything that the log holds now; how many pages that were. Raises LogCorrupt, LogUnavailable."""
        head = await log.head()
        start = self.market.pages
        if head.position < start:
            raise LogCorrupt(why=f"the ledger ends at page {head.position}, but page {start} has been seen")
        if head.position == start:
            return 0
        async for stored in log.follow(start, until=head.position):
            page, folded = self.fold(stored)
            if on_page is not None:
                on_page(stored, page, folded)
        return self.market.pages - start


async def restore(log: Log, snapshot_file: Path | None) -> tuple[Follower, str]:
    """A follower from the snapshot if it fits this very log, else from nothing; and what was decided, in words.

    Raises LogUnavailable; LogCorrupt when the log has lost pages that the snapshot's market has seen.
    """
    if snapshot_file is None or not snapshot_file.exists():
        return Follower(), "replaying the whole ledger"
    head = await log.head()
    try:
        market = snapshot.restore(snapshot_file.read_bytes(), head.created)
    except snapshot.SnapshotRefused as error:
        return Follower(), f"replaying the whole ledger: the snapshot was {error}"
    if market.pages > head.position:
        raise LogCorrupt(
            why=f"the ledger ends at page {head.position}, but the snapshot was taken at page {market.pages}",
            hint="A shorter ledger is an operator's decision: see docs/operations.md#a-damaged-ledger.",
        )
    stored = await log.read(market.pages)
    if stored is None or _hash_of(stored) != market.page_hash:
        return Follower(), "replaying the whole ledger: the snapshot's last page is not the ledger's"
    return Follower(market), f"snapshot at page {market.pages}"


def _hash_of(stored: StoredPage) -> bytes:
    try:
        return page_hash(decode_page(stored.data))
    except BrokenPage:
        return b""
