"""The whole market as a fold of its ledger: jobs, nodes, identity and money together, and nothing that the ledger does not say.

What an event changes is decided by `arbiter.py`; this is the state, and the counters that must agree with it. Indexes for matching,
renewals and buckets are not part of it (`services/matcher/`), and so not of its digest.
"""

from __future__ import annotations

import msgspec

from events.market import Policy
from events.page import GENESIS_HASH
from projections import nodes, parties
from projections.identity import Identity
from projections.job_states import QUEUED, TERMINAL, JobState
from projections.jobs import Job
from projections.ledger import Ledger
from projections.nodes import Node
from projections.parties import Party

FINISHED_KEPT = 10_000
"""Finished jobs kept in memory, oldest dropped first; the read model keeps all of them."""

Applied = tuple[tuple[str, int], ...]
"""The wallets that an event concerns, each with the sequence that concerned it before."""


class Limit(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What the operator allows a wallet or an organisation; `None`: no limit."""

    gpus: int | None = None
    spend_day_uusd: int | None = None
    spend_month_uusd: int | None = None
    priority_max: int | None = None


class Market(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything that is true in a market after `last_seq`."""

    market_id: str = ""
    name: str = ""
    root: str = ""
    operators: tuple[str, ...] = ()
    matcher_key: str = ""
    payments: str = "none"
    policy: Policy = Policy()
    policy_seq: int = 0
    policy_ms: int = 0
    paused: bool = False
    jobs: dict[str, Job] = {}
    nodes: dict[str, Node] = {}
    identity: Identity = msgspec.field(default_factory=Identity)
    ledger: Ledger = msgspec.field(default_factory=Ledger)
    limits: dict[str, Limit] = {}
    limits_seq: int = 0
    parties: dict[str, Party] = {}
    """Wallets and organisations that have submitted jobs."""
    gangs: dict[str, tuple[str, ...]] = {}
    """Group -> the jobs that are the ranks of its gang, in order."""
    leases: dict[int, str] = {}
    """Epoch -> node that still holds cards for it."""
    queued_of: dict[str, int] = {}
    """Wallet -> how many of its jobs are queued."""
    states: dict[str, int] = {}
    """Job state -> how many jobs ever entered it and are there now (finished ones: ever)."""
    finished: dict[str, None] = {}
    """Finished jobs in memory, oldest first."""
    last_seq_of: dict[str, int] = {}
    """Wallet -> the last event that concerned it."""
    last_seq: int = 0
    time_ms: int = 0
    pages: int = 0
    page_hash: bytes = GENESIS_HASH
    matcher_started_ms: int = 0

    def close_page(self, page_hash: bytes) -> None:
        """A page ends here; what comes next chains to this hash."""
        self.page_hash = page_hash
        self.pages += 1

    def parties_of(self, job: Job) -> tuple[Party, ...]:
        """The buyer, and the organisation for which it was submitted."""
        org_id = job.submitted.org_id
        buyer = self.parties[job.buyer]
        return (buyer,) if org_id is None else (buyer, self.parties[org_id])

    def ranks_of(self, job: Job) -> tuple[Job, ...]:
        """All ranks of its gang that are still in memory; the job alone when it is in none."""
        asked = job.submitted
        if asked.num_nodes == 1:
            return (job,)
        jobs = self.jobs
        return tuple([jobs[job_id] for job_id in self.gangs.get(asked.group_id or "", ()) if job_id in jobs])

    def _meet(self, job: Job) -> None:
        """A job is there: so are its parties."""
        for name in (job.buyer, job.submitted.org_id):
            if name is not None and name not in self.parties:
                self.parties[name] = Party(number=len(self.parties), turn_seq=job.submitted_seq)

    def took(self, job: Job, seq: int, now_ms: int) -> None:
        """A node has got the job."""
        assert job.run is not None
        for party in self.parties_of(job):
            parties.take(party, job.run.stake, seq, now_ms, self.policy.half_life_s * 1000)

    def gave_back(self, job: Job, charged_uusd: int, now_ms: int) -> None:
        """No node has the job any more; that attempt was charged with so much."""
        run = job.run
        assert run is not None
        used_gpu_ms = run.ran_ms * max(1, job.requirements.num_gpus)
        for party in self.parties_of(job):
            parties.give_back(party, run.stake, used_gpu_ms, charged_uusd, now_ms=now_ms, half_life_ms=self.policy.half_life_s * 1000)

    def change_policy(self, policy: Policy, seq: int, now_ms: int) -> None:
        """Other rules from now on."""
        before_s = self.policy.half_life_s
        self.policy, self.policy_seq, self.policy_ms = policy, seq, now_ms
        if policy.half_life_s != before_s:
            for party in self.parties.values():
                parties.rescale(party, now_ms, before_s * 1000, policy.half_life_s * 1000)

    def moved(self, job: Job, before: JobState | None) -> None:
        """Keep the counters right after a job changed its state, and drop the oldest finished jobs."""
        after = job.state
        if before is after:
            return
        states = self.states
        if before is None:
            self._meet(job)
        else:
            states[before] -= 1
            if before is QUEUED:
                left = self.queued_of[job.buyer] - 1
                if left:
                    self.queued_of[job.buyer] = left
                else:
                    del self.queued_of[job.buyer]
        states[after] = states.get(after, 0) + 1
        if after is QUEUED:
            self.queued_of[job.buyer] = self.queued_of.get(job.buyer, 0) + 1
        elif after in TERMINAL:
            self.finished[job.submitted.job_id] = None
            if len(self.finished) > FINISHED_KEPT:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        job_id = next(iter(self.finished))
        run = self.jobs[job_id].run
        if run is None or run.epoch not in self.leases:
            del self.finished[job_id]
            asked = self.jobs.pop(job_id).submitted
            group = asked.group_id or ""
            if asked.num_nodes > 1 and self.jobs.keys().isdisjoint(self.gangs[group]):
                del self.gangs[group]

    def free(self, epoch: int) -> Node | None:
        """Free the cards of an epoch, if some node still holds them."""
        name = self.leases.pop(epoch, None)
        if name is None:
            return None
        node = self.nodes[name]
        nodes.release(node, epoch)
        return node
