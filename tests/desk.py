"""A market with a matching engine beside it that hears of every event as it does in a turn of the matcher."""

from __future__ import annotations

from typing import Any

from builders import START_MS, By, Happening, History, Later, make

from events import identity, jobs
from events.fact import Event
from events.market import Policy
from events.reasons import Refusal
from projections.market import Market
from services.matcher.engine import Engine
from services.matcher.matches import Match


class Desk:
    """Things happen, and the engine is asked for matches."""

    def __init__(self, *happenings: Happening, policy: Policy | None = None) -> None:
        self.history = History(at_ms=START_MS)
        self.market: Market = self.history.market
        if policy is not None:
            self.market.policy = policy
        self.engine = Engine(self.market)
        self.happen(*happenings)

    @property
    def now_ms(self) -> int:
        """The time of the next event."""
        return self.history.now_ms

    def happen(self, *happenings: Happening) -> None:
        """All of it happens; nothing may be refused."""
        for happening in happenings:
            if isinstance(happening, Later):
                self.history.now_ms += happening.ms
            else:
                refused = self.try_event(happening)
                assert refused is None, f"{happening} was refused: {refused}"

    def try_event(self, happening: Event | By) -> Refusal | None:
        """Fold an event and tell the engine what it touched; or why it has no effect."""
        event: Any = happening.event if isinstance(happening, By) else happening
        freed = self.market.leases.get(event.epoch) if isinstance(event, jobs.GpusReleased) else None
        result = self.history.try_event(happening)
        if isinstance(result, Refusal):
            return result
        job = self.market.jobs.get(getattr(event, "job_id", ""))
        for node_id in (freed, getattr(event, "node_id", None), job and job.run and job.run.node_id):
            if node_id is not None:
                self.engine.touch_node(node_id)
        if job is not None:
            self.engine.touch_job(event.job_id)
        if isinstance(event, identity.MemberAdded | identity.MemberRemoved):
            self.engine.touch_org(event.org_id)
        return None

    def next_match(self) -> Match | None:
        """What the engine would decide now; nothing is folded."""
        return self.engine.next_match(self.now_ms)

    def fold_match(self, match: Match) -> None:
        """The match happens, and with it those of the other ranks of a gang."""
        for one in (match, *match.others):
            self._fold(one)

    def _fold(self, match: Match) -> None:
        values: dict[str, Any] = {"job_id": match.job_id, "attempt": self.market.jobs[match.job_id].attempts + 1, "node_id": match.node_id}
        values |= {"cards": match.cards, "price_uusd_per_gpu_hour": match.price_uusd_per_gpu_hour, "variant": match.variant}
        self.happen(make(jobs.JobMatched, **values))

    def match_all(self) -> dict[str, str]:
        """Everything that can be matched now, in order: job name -> node name."""
        found = {}
        while (match := self.next_match()) is not None:
            self.fold_match(match)
            found[self.market.jobs[match.job_id].submitted.name] = self.market.nodes[match.node_id].offer.name
        return found

    def attempt(self, job_id: str) -> dict[str, Any]:
        """What an event of the job's present attempt names."""
        run = self.market.jobs[job_id].run
        assert run is not None
        return {"job_id": job_id, "attempt": run.attempt, "epoch": run.epoch}
