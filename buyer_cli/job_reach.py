"""The way from a job's id to its node: where the job runs at this moment, and why it cannot be connected to when it does not. Shell."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from buyer_cli import render
from buyer_cli.complaint import IDENTITY, NOT_FINISHED, NOT_FOUND, UNREACHABLE, Complaint
from buyer_cli.tunnels import Place, Reach
from events.market_client import MarketClient
from events.tunnel import NodeRefused, NodeSilent
from events.tunnel_keys import Facts
from events.wire import SyncJob

T = TypeVar("T")
CONNECTABLE = ("starting", "running")


def reach_of(client: MarketClient, url: str, job_id: str, *, buyer: str = "") -> Reach:
    """The way to a job's node, wherever it runs by the time that somebody goes there. `url`: the broker's. `buyer`: whose job it is as far
    as is known, to say so when it is not ours."""

    async def locate() -> Place:
        found = (await client.sync(job_ids=(job_id,))).jobs
        if not found:
            raise _unknown(job_id, buyer, client.wallet)
        return place_of(found[0], client)

    return Reach(url, lambda: client.session, locate)


def place_of(job: SyncJob, client: MarketClient) -> Place:
    """Where it runs. Raises Complaint when it does not, or is somebody else's."""
    if job.buyer and job.buyer != client.wallet:
        raise _unknown(job.job_id, job.buyer, client.wallet)
    if job.state in render.EXIT_CODES:
        why = f"It is {job.state}; only what runs can be connected to."
        raise Complaint(
            "not_running", f"{job.job_id} has ended.", why, f"bazaar logs {job.job_id}", exit_code=render.EXIT_CODES[job.state] or 1
        )
    if job.state not in CONNECTABLE or not job.output_token or not job.node_wallet:
        why = f"It is {job.state}."
        raise Complaint("not_running", f"{job.job_id} does not run yet.", why, f"bazaar show {job.job_id}", exit_code=NOT_FINISHED)
    session = client.session
    facts = Facts(
        market_id=session.market_id,
        job_id=job.job_id,
        attempt=job.attempt,
        epoch=job.epoch,
        buyer=session.wallet,
        seller=job.node_wallet,
    )
    return Place(facts, job.output_token)


def _unknown(job_id: str, buyer: str, me: str) -> Complaint:
    if buyer and buyer != me:
        why = f"It belongs to {buyer}; only its buyer may connect to it."
        return Complaint("not_yours", f"{job_id} is not yours.", why, "another --wallet", exit_code=IDENTITY)
    return Complaint("unknown_job", f"The market knows no {job_id} of yours that runs.", "", "bazaar ps -a", exit_code=NOT_FOUND)


async def met(job_id: str, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; a meeting that fails is said so that a person knows what to do. Raises Complaint."""
    try:
        return await work
    except NodeSilent as error:
        raise Complaint("node_away", error.what, error.why, error.hint, exit_code=UNREACHABLE) from None
    except NodeRefused as error:
        exit_code = IDENTITY if error.reason == "not_yours" else 1
        raise Complaint(error.reason, error.what, error.why, f"bazaar show {job_id}", exit_code=exit_code) from None
