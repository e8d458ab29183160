"""Sessions on one agent and a real market: a small server in the place of Jupyter, as a real process, reached through its socket."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.market_env import a_market
from integration.node_env import NodeWorld, some_nodes
from integration.session_env import close, fetched, open_session

from events import ids
from events.files import LocalFile, put_files
from events.jobs import JobCancelRequested, JobSubmitted, SessionCloseRequested
from events.reasons import Reason, Refusal
from events.values import JobKind, Program, Requirements
from seller_agent.runners.workspace import SESSION_FILE
from seller_agent.sessions.keeping import SAVE_EVERY_VARIABLE, Times
from seller_agent.sessions.session import SOCKET, read_access

__all__ = ["a_market", "some_nodes", "world"]  # the fixtures


async def test_a_session_is_ready_when_it_answers_and_leaves_its_work_when_it_is_closed(nodes: NodeWorld, tmp_path: Path) -> None:
    agent = await nodes.agent()
    (tmp_path / "data.csv").write_text("1,2\n")
    (tmp_path / "notes.txt").write_text("before")
    files = [LocalFile("data.csv", tmp_path / "data.csv"), LocalFile("notes.txt", tmp_path / "notes.txt")]
    manifest, _ = await put_files(nodes.buyer.ask_files, files)
    job_id = await open_session(nodes, inputs=manifest, gpus=2)
    job = await nodes.state(job_id, "running")
    assert job.run is not None and job.run.ready_ms >= job.run.started_ms > 0
    folder = agent.folder_of(job_id)
    assert stat.S_ISSOCK((folder / "job" / SOCKET).stat().st_mode)
    assert 0o600 == (folder / SESSION_FILE).stat().st_mode & 0o777
    (folder / "job" / "notes.txt").write_text("after")
    await close(nodes, job_id)
    job = await nodes.state(job_id, "succeeded")
    await nodes.free()
    assert Reason.SESSION_CLOSED is job.reason
    wanted = {"first.txt": "begun", "last.txt": "saved at the end", "model.bin": "weights", "notes.txt": "after"}
    assert wanted == await fetched(nodes, job_id, tmp_path / "results")


async def test_the_token_is_told_to_the_program_and_to_nobody_else(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await open_session(nodes)
    await nodes.state(job_id, "running")
    folder = agent.folder_of(job_id)
    access = read_access(str(folder))
    assert access is not None and access.token
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if access.token.encode() in command]
    assert access.token.encode() not in (agent.folder / "journal.db").read_bytes() + (agent.folder / "journal.db-wal").read_bytes()
    held = [path for path in nodes.home.rglob("*") if path.is_file() and access.token.encode() in path.read_bytes()]
    assert [folder / SESSION_FILE] == held
    await close(nodes, job_id)
    await nodes.state(job_id, "succeeded")


async def test_the_work_of_a_session_that_is_timed_out_or_cancelled_is_saved(nodes: NodeWorld, tmp_path: Path) -> None:
    await nodes.agent()
    late = await open_session(nodes, timeout_s=2)
    cancelled = await open_session(nodes)
    await nodes.state(cancelled, "running")
    await nodes.buyer.submit(JobCancelRequested(job_id=cancelled), 5.0)
    assert Reason.CANCELLED_BY_BUYER is (await nodes.state(cancelled, "cancelled")).reason
    assert Reason.RUN_TIMEOUT is (await nodes.state(late, "timed_out")).reason
    for job_id in (late, cancelled):
        assert "saved at the end" == (await fetched(nodes, job_id, tmp_path / job_id))["last.txt"]
    await nodes.free()


async def test_work_is_saved_while_it_runs_and_survives_the_agent(
    nodes: NodeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SAVE_EVERY_VARIABLE, "1")
    agent = await nodes.agent()
    job_id = await open_session(nodes)
    await nodes.state(job_id, "running")
    await until(lambda: (run := nodes.job(job_id).run) is not None and run.results is not None, "the work is saved")
    await agent.kill()
    assert {"first.txt": "begun", "model.bin": "weights"} == await fetched(nodes, job_id, tmp_path / "snapshot")
    first = nodes.job(job_id).run
    assert first is not None and 0 < first.usage_ms
    before = first.results
    await agent.start()
    (agent.folder_of(job_id) / "job" / "more.txt").write_text("made later")
    await until(lambda: (run := nodes.job(job_id).run) is not None and run.results != before, "the work is saved again")
    assert "made later" == (await fetched(nodes, job_id, tmp_path / "again"))["more.txt"]
    assert 1 == nodes.job(job_id).attempts
    await close(nodes, job_id)
    assert Reason.SESSION_CLOSED is (await nodes.state(job_id, "succeeded")).reason
    await nodes.free()


async def test_a_session_that_was_closed_while_the_agent_was_away_is_closed(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await open_session(nodes)
    await nodes.state(job_id, "running")
    await agent.kill()
    await close(nodes, job_id)
    await agent.start()
    assert Reason.SESSION_CLOSED is (await nodes.state(job_id, "succeeded")).reason
    await nodes.free()


async def test_a_session_that_nobody_can_reach_is_ended_with_its_last_words(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    assert agent.agent._hands is not None
    agent.agent._hands.sessions.times = Times(ready_s=1.0)
    job_id = await open_session(nodes, "sh", "-c", "echo no such module >&2; exec sleep 60")
    job = await nodes.state(job_id, "failed")
    assert Reason.CONTAINER_ERROR is job.reason and job.run is not None
    assert "nobody could connect after 1 s; it said: no such module" == job.run.detail
    assert 0 == job.charged_uusd
    await nodes.free()


async def test_a_session_that_ends_by_itself_ends_as_its_program_did(nodes: NodeWorld) -> None:
    await nodes.agent()
    broken = await open_session(nodes, "sh", "-c", "echo the disk is on fire >&2; exit 3")
    job = await nodes.state(broken, "failed")
    assert job.run is not None
    assert (Reason.EXITED_NONZERO, 3) == (job.reason, job.run.exit_code)
    assert "it ended before anybody could connect; it said: the disk is on fire" == job.run.detail
    done = await open_session(nodes, "true", kind=JobKind.CONTAINER)
    assert Reason.EXITED_ZERO is (await nodes.state(done, "succeeded")).reason
    await nodes.free()


async def test_a_container_without_a_command_is_there_until_it_is_closed(nodes: NodeWorld, tmp_path: Path) -> None:
    agent = await nodes.agent()
    job_id = ids.job_id(os.urandom(12))
    needs = Requirements(num_gpus=0, allow_simulated=True, sessions=True)
    program = Program(image="any/image:1")
    job = JobSubmitted(job_id=job_id, kind=JobKind.CONTAINER, name="box", requirements=needs, program=program, timeout_s=60, retries=0)
    assert (await nodes.buyer.submit(job, 10.0)).reason is None
    await nodes.state(job_id, "running")
    (agent.folder_of(job_id) / "job" / "mine.txt").write_text("by hand")
    await close(nodes, job_id)
    await nodes.state(job_id, "succeeded")
    assert {"mine.txt": "by hand"} == await fetched(nodes, job_id, tmp_path / "box")


async def test_only_a_session_that_has_begun_can_be_closed(nodes: NodeWorld) -> None:
    waiting = await open_session(nodes)
    outcome = await nodes.buyer.submit(SessionCloseRequested(job_id=waiting), 5.0)
    assert Refusal.ILLEGAL_IN_STATE is outcome.reason
    await nodes.buyer.submit(JobCancelRequested(job_id=waiting), 5.0)
    await nodes.agent()
    batch = await nodes.submit("sleep", "60")
    await nodes.state(batch, "running")
    outcome = await nodes.buyer.submit(SessionCloseRequested(job_id=batch), 5.0)
    assert Refusal.ILLEGAL_IN_STATE is outcome.reason


@pytest.mark.parametrize("doing", ["idle", "busy"])
async def test_a_session_with_a_limit_is_ended_when_it_is_idle_and_not_while_it_computes(
    nodes: NodeWorld, tmp_path: Path, doing: str
) -> None:
    await nodes.agent()
    kernels = [{"last_activity": "2020-01-01T00:00:00.000000Z", "execution_state": doing}]
    (tmp_path / "kernels.json").write_text(json.dumps(kernels))
    manifest, _ = await put_files(nodes.buyer.ask_files, [LocalFile("kernels.json", tmp_path / "kernels.json")])
    idle = await open_session(nodes, inputs=manifest, idle_timeout_s=2, timeout_s=6)
    job = await nodes.state(idle, "timed_out")
    assert (Reason.IDLE if doing == "idle" else Reason.RUN_TIMEOUT) is job.reason
    assert "saved at the end" == (await fetched(nodes, idle, tmp_path / "work"))["last.txt"]


async def test_usage_is_told_while_a_session_runs(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    assert agent.agent._hands is not None
    agent.agent._hands.sessions.times = Times(usage_s=0.5)
    job_id = await open_session(nodes)
    await until(lambda: (run := nodes.job(job_id).run) is not None and run.usage_ms > 400, "usage is in the ledger")
    run = nodes.job(job_id).run
    assert run is not None and run.results is None
    await close(nodes, job_id)
    await nodes.state(job_id, "succeeded")
