"""After a job has ended: its results, its last state as JSON or in a sentence, and the exit code. Shell."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from buyer_cli import render
from buyer_cli.api_reads import Api
from buyer_cli.complaint import Complaint
from buyer_cli.session import asks_files
from buyer_cli.terminal import Terminal
from events import files
from events.errors import BazaarError
from events.jobs import JobSubmitted
from events.market_client import MarketClient
from events.values import BlobRef
from events.wire import SyncJob

RESULTS_BYTES_MAX = 2 << 30
WAIT = "2s"


async def job_json(api: Api, job: SyncJob, order: JobSubmitted | None = None) -> dict[str, Any]:
    """The job as the API tells it, no older than what we have seen; what we know ourselves when the API is away."""
    return await job_json_at(api, job.job_id, job.updated_seq) or _known(job, order)


async def job_json_at(api: Api, job_id: str, seq: int) -> dict[str, Any] | None:
    """The job as the API tells it, no older than this place in the ledger; None when the API does not."""
    try:
        return await asyncio.to_thread(api.get, f"/v1/jobs/{job_id}", {"min_seq": seq, "wait": WAIT})
    except (BazaarError, Complaint):
        return None


def _known(job: SyncJob, order: JobSubmitted | None) -> dict[str, Any]:
    """Job JSON with what the market told us directly; the rest is null."""
    told: dict[str, Any] = dict.fromkeys(render.JOB_KEYS)
    told |= {
        "id": job.job_id,
        "state": job.state,
        "reason": job.reason,
        "detail": job.detail or None,
        "node": job.node_id,
        "gpus": [{"index": None, "uuid": uuid, "model": None, "vram_mib": None} for uuid in job.cards],
        "price_uusd_per_gpu_hour": job.price_uusd_per_gpu_hour,
        "attempt": job.attempt,
        "epoch": job.epoch,
        "exit_code": job.exit_code,
        "timeout_s": job.timeout_s,
        "charged_uusd": job.charged_uusd,
        "buyer": job.buyer,
    }
    if order is not None:
        told |= {"name": order.name, "kind": order.kind.value, "num_gpus": order.requirements.num_gpus, "labels": dict(order.labels)}
    return told


async def fetch_results(client: MarketClient, terminal: Terminal, job_id: str, results: BlobRef, folder: Path) -> list[files.ManifestEntry]:
    """Every result file below `folder`, each verified. Raises Refused, FilesDiffer, HostileManifest, MarketUnreachable, Complaint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with terminal.progress("fetching results", RESULTS_BYTES_MAX) as advance:
            ask = asks_files(client)
            entries = await files.get_files(ask, results, folder, job_id=job_id, limit_bytes=RESULTS_BYTES_MAX, progress=advance)
    except OSError as error:
        why = f"{error.filename or folder}: {error.strerror}"
        raise Complaint("cannot_write", "The results cannot be written.", why, "another folder with --to or --out") from None
    terminal.note(f"results: {render.count(len(entries), 'file')}, {render.data_size(sum(entry.size for entry in entries))}, in {folder}")
    return entries


def exit_code_of(state: str, exit_code: int | None, propagate: bool) -> int:
    """How to leave after a job: its own code when that is wanted and it has one."""
    if propagate and exit_code is not None:
        return exit_code
    return render.EXIT_CODES[state]
