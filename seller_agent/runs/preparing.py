"""What comes before a run: its inputs, fetched and verified, and its specification for the runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from events.errors import BazaarError, MarketUnreachable, Refused
from events.files import FilesDiffer, HostileManifest, get_files
from events.reasons import Reason, Refusal
from seller_agent.attempts.attempt import Attempt
from seller_agent.attempts.decisions import GRACE_S, run_time_s
from seller_agent.attempts.endings import failure_reason
from seller_agent.attempts.link import Market
from seller_agent.runners import workspace
from seller_agent.runners.runner import RunCard, RunnerError, RunSpec
from seller_agent.runs.secret_files import SecretMissing
from seller_agent.sessions import session
from seller_agent.sessions import work as session_work
from seller_agent.sessions.session import Access

INPUTS_MAX_S = 20 * 60
RETRY_S = 1.0


async def fetch_inputs(market: Market, attempt: Attempt, folder: str, limit_bytes: int) -> None:
    """The job's inputs in `folder`/job, again and again while the store is away.

    Raises TimeoutError, Refused, FilesDiffer, HostileManifest, OSError.
    """
    manifest = attempt.order.program.inputs
    assert manifest is not None
    place = await asyncio.to_thread(workspace.make, folder)
    async with asyncio.timeout(INPUTS_MAX_S):
        while True:
            try:
                brought = await get_files(market.ask_files, manifest, place, job_id=attempt.job_id, limit_bytes=limit_bytes)
                break
            except MarketUnreachable:
                await asyncio.sleep(RETRY_S)
    if session.is_session(attempt.order):
        await asyncio.to_thread(session_work.note_inputs, folder, [entry.path for entry in brought])


def fault_of(error: Exception) -> tuple[Reason, str]:
    """Why preparing failed, as it is reported, and in words."""
    match error:
        case RunnerError():
            return failure_reason(error.reason), str(error)
        case HostileManifest() | FilesDiffer():
            return Reason.INPUT_CORRUPT, f"{error.what} {error.why}"
        case Refused():
            missing = error.refusal in (Refusal.UNKNOWN_JOB, Refusal.NOT_YOURS)
            return Reason.INPUT_MISSING if missing else Reason.INPUT_CORRUPT, f"{error.what} {error.why}"
        case SecretMissing():
            return Reason.SECRET_MISSING, f"{error.what} {error.why}"
        case TimeoutError() | BazaarError():
            return Reason.INPUT_TIMEOUT, f"the inputs did not arrive: {error}"
        case OSError():
            return Reason.DISK_FULL, f"the inputs could not be written: {error.strerror}"
    raise error


def make_spec(
    attempt: Attempt,
    *,
    folder: str,
    cards: tuple[RunCard, ...],
    default_image: str | None,
    output_limit_bytes: int,
    lease_until_boot_ms: int,
    out_path: Callable[[RunSpec], str],
    access: Access | None = None,
) -> RunSpec:
    """What the runner is told. The buyer's environment, and over it what every job may rely on. `access`: it is a session."""
    order, needs = attempt.order, attempt.order.requirements
    spec = RunSpec(
        key=attempt.key,
        folder=folder,
        argv=order.program.argv if access is None else session.command(order, access),
        env={},
        cards=cards,
        image=order.program.image or default_image,
        cores=needs.cores or None,
        memory_mib=needs.memory_mib or None,
        shm_mib=needs.shm_mib or None,
        network=needs.network.value,
        session=access is not None,
        has_secrets=bool(order.program.secret_names),
        timeout_s=run_time_s(attempt),
        grace_s=GRACE_S,
        output_limit_bytes=output_limit_bytes,
        lease_until_boot_ms=lease_until_boot_ms,
    )
    ours = {
        "PYTHONUNBUFFERED": "1",
        **order.program.env,
        **({} if access is None else session.environment(access)),
        "BAZAAR_JOB_ID": attempt.job_id,
        "BAZAAR_ATTEMPT": str(attempt.attempt),
        "BAZAAR_EPOCH": str(attempt.epoch),
        "BAZAAR_GPU_UUIDS": ",".join(attempt.cards),
        "BAZAAR_OUT": out_path(spec),
        **rendezvous(attempt),
    }
    return msgspec.structs.replace(spec, env=ours)


def rendezvous(attempt: Attempt) -> dict[str, str]:
    """What a rank of a gang needs to meet the others; nothing for any other job."""
    order = attempt.order
    if order.num_nodes == 1:
        return {}
    return {
        "BAZAAR_RANK": str(order.rank),
        "BAZAAR_NNODES": str(order.num_nodes),
        "BAZAAR_MASTER_ADDR": attempt.master_addr or "",
        "BAZAAR_MASTER_PORT": str(attempt.master_port or ""),
    }
