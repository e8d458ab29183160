"""Events that memory no longer holds, read back from the ledger by their sequence, with whom each concerns.

The ledger knows pages by position only; the page of a sequence is found by halving, a few reads for a million pages.
"""

from __future__ import annotations

from events.errors import LogUnavailable
from events.log import StoredPage
from events.page import Record, decode_page, records_of
from services.api.access import Viewer
from services.api.asking import Source
from services.api.event_feed import Entry, Owner
from services.api.mirror import owner_of

PAGES_AT_ONCE = 64
"""Pages that are asked for together, so that a reader who stalls holds no more than these."""


class History:
    """Reads events of one market, old ones and new ones alike."""

    def __init__(self, source: Source) -> None:
        self._source = source

    async def after(self, seq: int, most: int, viewer: Viewer) -> list[Entry]:
        """Events after this one, in order, at most so many, but some when there are any. Raises LogUnavailable."""
        feed = self._source.mirror.feed
        while seq < feed.complete_after:
            found = await self._from_ledger(seq, most, viewer)
            if found:
                return found
            seq = feed.complete_after  # nothing between there and here had an effect
        return feed.after(seq, most)

    async def _from_ledger(self, seq: int, most: int, viewer: Viewer) -> list[Entry]:
        """What the ledger holds after this place and memory does not, at most about so many."""
        complete_after = self._source.mirror.feed.complete_after
        position = await self._page_of(seq + 1)
        entries: list[Entry] = []
        while len(entries) < most:
            pages = await self._pages(position)
            for page in (decode_page(stored.data) for stored in pages):
                if page.first_seq > complete_after:
                    return entries[:most]
                records = [record for record in records_of(page) if seq < record.seq <= complete_after]
                entries += [Entry(record, await self._owner(record, viewer)) for record in records]
            if not pages:
                break
            position += len(pages)
        return entries[:most]

    async def _pages(self, position: int) -> list[StoredPage]:
        until = min(position + PAGES_AT_ONCE - 1, self._source.mirror.market.pages)
        return [stored async for stored in self._source.ledger.follow(position - 1, until=until)]

    async def _page_of(self, seq: int) -> int:
        """The position of the page that holds this event."""
        low, high = 1, self._source.mirror.market.pages
        while low < high:
            middle = (low + high + 1) // 2
            stored = await self._source.ledger.read(middle)
            if stored is None:
                raise LogUnavailable(why=f"page {middle} cannot be read")
            if decode_page(stored.data).first_seq <= seq:
                low = middle
            else:
                high = middle - 1
        return low

    async def _owner(self, record: Record, viewer: Viewer) -> Owner | None:
        """Whose job an event speaks of; not looked up for who sees everything."""
        job_id: str | None = getattr(record.event, "job_id", None)
        if job_id is None or viewer.sees_all:
            return None
        job = self._source.mirror.market.jobs.get(job_id)
        if job is not None:
            return owner_of(job)
        row = await self._source.read_model.job(job_id)
        return None if row is None else Owner(row.buyer, row.org)


def json_for(entry: Entry, viewer: Viewer) -> bytes:
    """The JSON of an event as this reader may see it."""
    owner = entry.owner
    return entry.json(private=viewer.sees_all or (owner is not None and viewer.may_see(owner.buyer, owner.org)))
