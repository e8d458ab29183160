"""Queued jobs of one shape when whole wallets move: parties in their order, and each party's jobs in theirs. Pure data.

Under a policy by shares a match moves every job of a wallet at once, mostly to later. Here a party's jobs in a shape are one row, however
many they are; a row that belongs later stays where it is until somebody comes upon it.
"""

from __future__ import annotations

from typing import Any

from events.values import JobId
from projections.jobs import Job
from projections.market import Market
from services.matcher.ordered import Block, Tally
from services.matcher.policies import SEQ_BITS, share_rank
from services.matcher.price_index import NEVER, PriceIndex


class Unit:
    """A party's place in the order, and the shapes in which it has jobs."""

    __slots__ = ("parties", "rank", "shapes")

    def __init__(self, parties: tuple[str, str | None], rank: int) -> None:
        self.parties = parties
        self.rank = rank
        self.shapes: dict[Any, None] = {}

    @property
    def low(self) -> int:
        """A key that is not above that of any of its jobs."""
        return self.rank << SEQ_BITS


class _Part:
    """A party's jobs in one shape, by their place in the ledger."""

    __slots__ = ("jobs", "key", "most", "unit")

    def __init__(self, tally: Tally, unit: Unit, price: int) -> None:
        self.jobs = PriceIndex(tally)
        self.unit = unit
        self.key = unit.low
        """Where its row stands: where the party belongs, or earlier."""
        self.most = price
        """The most that any of them pays: the amount of the party's row."""


class ShareIndex:
    """What `PriceIndex` is for one order of jobs, for parties that move. Keys are those of the jobs under the policy."""

    __slots__ = ("_of_unit", "_outer", "_tally", "size")

    def __init__(self, tally: Tally) -> None:
        self._outer = PriceIndex(tally)
        self._of_unit: dict[Unit, _Part] = {}
        self._tally = tally
        self.size = 0

    @property
    def root(self) -> Block[int, int]:
        """The root over the parties; its keys are lower bounds of their jobs' keys."""
        return self._outer.root

    def low(self) -> int | None:
        """A key that is not above the first job's; None when there is no job."""
        return self._outer.low()

    def put(self, unit: Unit, seq: int, price: int, job_id: JobId) -> None:
        """A job of this party."""
        part = self._of_unit.get(unit)
        if part is None:
            part = self._of_unit[unit] = _Part(self._tally, unit, price)
            self._outer.add(part.key, price, part)
        elif price > part.most:
            self._put_row(part, price)
        part.jobs.add(seq, price, job_id)
        self.size += 1

    def take(self, unit: Unit, seq: int) -> bool:
        """Take a job of this party out; whether it has another one here."""
        part = self._of_unit[unit]
        part.jobs.remove(seq)
        self.size -= 1
        if not part.jobs.size:
            del self._of_unit[unit]
            self._outer.remove(part.key)
            return False
        most = part.jobs.most(part.jobs.root.amounts)
        if most < part.most:
            self._put_row(part, most)
        return True

    def _put_row(self, part: _Part, most: int) -> None:
        """Put a party's row where it belongs."""
        self._tally.touched += 1
        self._outer.remove(part.key)
        part.key, part.most = part.unit.low, most
        self._outer.add(part.key, most, part)

    def moved_ahead(self, unit: Unit) -> None:
        """The party belongs earlier than it did: see that its row does not stand too late."""
        part = self._of_unit[unit]
        if part.key > unit.low:
            self._put_row(part, part.most)

    def first(self, price: int, before: int = NEVER) -> tuple[int, JobId] | None:
        """The first job that pays this price, if its key is below `before`: its key and id."""
        while True:
            found: tuple[int, Any] | None = self._outer.first(price, before)
            if found is None:
                return None
            low, part = found
            if low == part.unit.low:
                break
            self._put_row(part, part.most)
        inner = part.jobs.first(price)
        assert inner is not None, "the party's row says that one of its jobs pays this"
        key = low | inner[0]
        return None if key >= before else (key, inner[1])


class Units:
    """The places of all parties in the order, under a policy by shares."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._of: dict[str, dict[Unit, None]] = {}
        """Wallet or organisation -> the units that move when what it uses changes."""
        self._by_parties: dict[tuple[str, str | None], Unit] = {}

    def of(self, job: Job) -> Unit:
        """The place of a job's parties."""
        names = (job.buyer, job.submitted.org_id)
        unit = self._by_parties.get(names)
        if unit is None:
            unit = self._by_parties[names] = Unit(names, share_rank(self._market, *names))
            for name in names:
                if name is not None:
                    self._of.setdefault(name, {})[unit] = None
        return unit

    def misplaced(self, name: str) -> list[tuple[Unit, int]]:
        """The units of this party that belong elsewhere now, each with its new rank; those without a job are forgotten."""
        found = []
        for unit in list(self._of.get(name, ())):
            if not unit.shapes:
                self._forget(unit)
                continue
            rank = share_rank(self._market, *unit.parties)
            if rank != unit.rank:
                found.append((unit, rank))
        return found

    def _forget(self, unit: Unit) -> None:
        del self._by_parties[unit.parties]
        for name in unit.parties:
            if name is not None:
                units = self._of[name]
                del units[unit]
                if not units:
                    del self._of[name]
