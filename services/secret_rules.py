"""Who is given the secrets of a job: the node that has the present attempt, sealed to a key that its wallet has put into the ledger.

Pure, from the fold; the gateway fetches the box and opens it. So even a broker that lied about who asks would get nothing it could open.
"""

from __future__ import annotations

from events.codec import Malformed
from events.errors import Refused
from events.reasons import Refusal
from events.sealing import BOX_BYTES_MAX
from events.values import BlobRef
from events.wire import FilesRequest
from projections.job_states import HELD, JobState
from projections.jobs import Job
from projections.market import Market

NEEDS_SECRETS = HELD - {JobState.STOPPING}


def box_of(market: Market, job: Job | None, wallet: str, request: FilesRequest) -> tuple[BlobRef, str]:
    """Where the box of this job lies, and the name of the one secret that is asked for. Raises Refused with why not, Malformed."""
    run = None if job is None else job.run
    if job is None:
        raise Refused(Refusal.UNKNOWN_JOB)
    if run is None or run.node_wallet != wallet:
        raise Refused(Refusal.NOT_YOURS, "the secrets of a job are for the node that has it")
    if run.attempt != request.attempt or job.state not in NEEDS_SECRETS:
        raise Refused(Refusal.STALE_EPOCH, "this attempt is over")
    key = market.identity.keys.get(request.key)
    if key is None or key.wallet != wallet or key.revoked or key.expires_ms <= market.time_ms:
        raise Refused(Refusal.UNKNOWN_KEY, "secrets are sealed to a session key of the node's wallet, as the ledger knows it")
    program = job.submitted.program
    if program.secrets is None or request.cursor >= len(program.secret_names):
        raise Refused(Refusal.MALFORMED, "the job has no such secret")
    if program.secrets.size > BOX_BYTES_MAX:
        raise Malformed("the box of secrets is too large")
    return program.secrets, program.secret_names[request.cursor]
