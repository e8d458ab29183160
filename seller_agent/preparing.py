"""What comes before a run: its inputs, fetched and verified, and its specification for the runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from events.errors import MarketUnreachable
from events.files import get_files
from seller_agent import workspace
from seller_agent.attempts import Attempt
from seller_agent.decisions import GRACE_S
from seller_agent.endings import time_limit
from seller_agent.link import Market
from seller_agent.runners.runner import RunCard, RunSpec

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
                await get_files(market.ask_files, manifest, place, job_id=attempt.job_id, limit_bytes=limit_bytes)
                return
            except MarketUnreachable:
                await asyncio.sleep(RETRY_S)


def make_spec(
    attempt: Attempt,
    *,
    folder: str,
    cards: tuple[RunCard, ...],
    default_image: str | None,
    output_limit_bytes: int,
    lease_until_boot_ms: int,
    out_path: Callable[[RunSpec], str],
) -> RunSpec:
    """What the runner is told. The buyer's environment, and over it what every job may rely on."""
    order, needs = attempt.order, attempt.order.requirements
    spec = RunSpec(
        key=attempt.key,
        folder=folder,
        argv=order.program.argv,
        env={},
        cards=cards,
        image=order.program.image or default_image,
        cores=needs.cores or None,
        memory_mib=needs.memory_mib or None,
        shm_mib=needs.shm_mib or None,
        network=needs.network.value,
        timeout_s=time_limit(order, attempt.timeout_s, attempt.price_uusd_per_gpu_hour)[0],
        grace_s=GRACE_S,
        output_limit_bytes=output_limit_bytes,
        lease_until_boot_ms=lease_until_boot_ms,
    )
    ours = {
        "PYTHONUNBUFFERED": "1",
        **order.program.env,
        "BAZAAR_JOB_ID": attempt.job_id,
        "BAZAAR_ATTEMPT": str(attempt.attempt),
        "BAZAAR_EPOCH": str(attempt.epoch),
        "BAZAAR_GPU_UUIDS": ",".join(attempt.cards),
        "BAZAAR_OUT": out_path(spec),
    }
    return msgspec.structs.replace(spec, env=ours)
