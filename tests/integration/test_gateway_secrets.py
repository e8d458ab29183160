"""Secrets at the gateway: opened for the node that has the job, one at a time, sealed to its own key; everybody else is told no."""

from __future__ import annotations

import os

import pytest
from integration.broker_env import world
from integration.market_env import a_job, session_of
from integration.test_gateway import OTHER_SELLER, Held, Stage, stage

from events import ids, sealing
from events.files import put_bytes
from events.jobs import JobCancelRequested
from events.market_client import MarketClient
from events.reasons import Refusal
from events.sealing import Secrets
from events.values import BlobRef, Program, Role
from events.wire import FilesAnswer, FilesRequest

__all__ = ["stage", "world"]  # the fixtures

VALUES = {"HF_TOKEN": b"hunter2" * 9000, "other": b"\x00\xff"}


async def box_for(stage: Stage, job_id: str, values: dict[str, bytes] = VALUES, buyer: str | None = None) -> BlobRef:
    """A box of this job, stored by the buyer."""
    answer = await stage.buyer.sync()
    box = sealing.seal(Secrets(job_id=job_id, buyer=buyer or stage.buyer.wallet, values=values), answer.secret_key)
    return await put_bytes(stage.buyer.ask_files, box)


async def job_with(stage: Stage, box: BlobRef, job_id: str, names: tuple[str, ...] = tuple(VALUES)) -> Held:
    """A matched job with this box."""
    job = a_job(job_id=job_id, program=Program(argv=("true",), secrets=box, secret_names=names))
    assert (await stage.buyer.submit(job, 10)).reason is None
    run = stage.job(job_id).run
    assert run is not None
    return Held(job_id, run.attempt, run.epoch, os.urandom(8).hex())


async def held(stage: Stage) -> Held:
    job_id = ids.job_id(os.urandom(12))
    return await job_with(stage, await box_for(stage, job_id), job_id)


def question(held: Held, client: MarketClient, number: int = 0) -> FilesRequest:
    return FilesRequest(op="secrets", job_id=held.job_id, attempt=held.attempt, key=client.session.key, cursor=number)


async def refusal(client: MarketClient, asked: FilesRequest) -> Refusal:
    answer: FilesAnswer = await client.ask_files(asked)
    assert answer.failure is not None and b"" == answer.data
    return Refusal(answer.failure.code)


async def test_the_node_of_a_job_is_given_its_secrets_sealed_to_its_own_key(stage: Stage) -> None:
    job = await held(stage)
    assert stage.market.matcher.market.matcher_key != (await stage.buyer.sync()).secret_key.hex(), "pages are signed by another key"
    found = {}
    for number in range(2):
        answer = await stage.seller.ask_files(question(job, stage.seller, number))
        assert answer.failure is None, answer
        assert b"hunter2" not in answer.data
        found |= sealing.unseal(answer.data, stage.seller.session.signing_key, job_id=job.job_id, buyer=stage.buyer.wallet).values
    assert VALUES == found
    assert Refusal.MALFORMED is await refusal(stage.seller, question(job, stage.seller, 2))


async def test_nobody_but_the_node_of_the_job_is_given_them(stage: Stage) -> None:
    job = await held(stage)
    other = await stage.client(OTHER_SELLER, Role.SELLER)
    await stage.offer(other, "elsewhere")
    for client in (other, stage.stranger, stage.buyer):
        assert Refusal.NOT_YOURS is await refusal(client, question(job, client))


async def test_they_are_sealed_to_a_key_of_the_nodes_wallet_only(stage: Stage) -> None:
    job = await held(stage)
    unknown = session_of(2, Role.SELLER)
    for key in (stage.stranger.session.key, unknown.key, b"", bytes(32)):
        asked = FilesRequest(op="secrets", job_id=job.job_id, attempt=job.attempt, key=key)
        assert Refusal.UNKNOWN_KEY is await refusal(stage.seller, asked)


async def test_an_attempt_that_is_over_gets_none(stage: Stage) -> None:
    job = await held(stage)
    assert (await stage.buyer.submit(JobCancelRequested(job_id=job.job_id), 10)).reason is None
    assert Refusal.STALE_EPOCH is await refusal(stage.seller, question(job, stage.seller))


async def test_a_question_without_a_job_is_malformed(stage: Stage) -> None:
    assert Refusal.MALFORMED is await refusal(stage.seller, FilesRequest(op="secrets", key=stage.seller.session.key))


async def test_a_box_replayed_in_another_job_is_not_opened(stage: Stage) -> None:
    box = await box_for(stage, ids.job_id(os.urandom(12)))
    job = await job_with(stage, box, ids.job_id(os.urandom(12)))
    assert Refusal.MALFORMED is await refusal(stage.seller, question(job, stage.seller))


async def test_a_box_that_somebody_else_brought_is_not_opened(stage: Stage) -> None:
    job_id = ids.job_id(os.urandom(12))
    answer = await stage.stranger.sync()
    stolen = sealing.seal(Secrets(job_id=job_id, buyer=stage.buyer.wallet, values=VALUES), answer.secret_key)
    box = await put_bytes(stage.stranger.ask_files, stolen)
    job = await job_with(stage, box, job_id)
    assert Refusal.UNKNOWN_JOB is await refusal(stage.seller, question(job, stage.seller))


@pytest.mark.parametrize("content", [b"", os.urandom(2000)], ids=["empty", "noise"])
async def test_what_is_no_box_is_refused(stage: Stage, content: bytes) -> None:
    box = await put_bytes(stage.buyer.ask_files, content)
    job = await job_with(stage, box, ids.job_id(os.urandom(12)))
    assert Refusal.MALFORMED is await refusal(stage.seller, question(job, stage.seller))
    assert "Traceback" not in stage.said()
