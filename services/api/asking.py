"""A question and its answer, whichever way they travel: what every endpoint is given, what it gives back, and how it is described."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from events.connection import Connection
from events.log import Log
from events.reasons import Refusal
from events.values import JobId
from projections.jobs import Job
from services.api.access import Viewer
from services.api.mirror import Mirror
from services.api.past import Past
from services.api.problems import ProblemFound
from services.api.queries import Parameter
from services.api.read_model import FinishedJob, ReadModel


class Source(NamedTuple):
    """Where answers come from."""

    mirror: Mirror
    read_model: ReadModel
    ledger: Log
    connection: Connection
    past: Past


class Asked(NamedTuple):
    """One question. `values`: of the query, by name; `name`: the id in the path, if there is one."""

    source: Source
    viewer: Viewer
    values: dict[str, Any]
    name: str
    now_ms: int

    @property
    def mirror(self) -> Mirror:
        return self.source.mirror

    @property
    def as_of_seq(self) -> int:
        """Where the fold stands now: to be read in the same breath as what is answered."""
        return self.source.mirror.market.last_seq

    def value(self, name: str, default: Any = None) -> Any:
        """One value of the query."""
        return self.values.get(name, default)


class Reply(NamedTuple):
    """What is answered, without its `as_of_seq`: a struct, or the JSON object of one."""

    as_of_seq: int
    payload: msgspec.Struct | bytes


Handle = Callable[[Asked], Awaitable[Reply]]


class Endpoint(NamedTuple):
    """A path that can be read. `shape`: of its answer; `public`: also for strangers; `keep`: the answer changes only with the mirror."""

    path: str
    handle: Handle
    shape: type[msgspec.Struct]
    summary: str
    parameters: tuple[Parameter, ...] = ()
    public: bool = False
    keep: bool = True
    past: bool = False
    """Whether it can be asked of a past moment (`as_of`)."""


def job_in_memory(asked: Asked) -> Job | None:
    """The job in the path, when it has not ended. Raises ProblemFound when it is another's."""
    job = asked.mirror.market.jobs.get(asked.name)
    if job is None or job.ended_ms:
        return None
    if not asked.viewer.may_see_job(job):
        raise unknown_job()
    return job


async def job_that_ended(asked: Asked) -> FinishedJob:
    """The job in the path, which has ended. Raises ProblemFound."""
    if not _is_job_id(asked.name):
        raise unknown_job()
    found = asked.mirror.finished(asked.name) or await asked.source.read_model.job(asked.name)
    if found is None or found.submitted_seq > asked.as_of_seq or not asked.viewer.may_see(found.buyer, found.org):
        raise unknown_job()
    return found


def unknown_job() -> ProblemFound:
    """No such job, or none of the reader's."""
    return ProblemFound(Refusal.UNKNOWN_JOB)


def _is_job_id(text: str) -> bool:
    try:
        msgspec.convert(text, JobId)
    except msgspec.ValidationError:
        return False
    return True
