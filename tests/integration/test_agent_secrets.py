"""Secrets on a node: there while the job runs, for nobody else, and gone afterwards, whoever was killed meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from pathlib import Path

import pytest
from integration.broker_env import until, world
from integration.docker_engine import Engine, engine
from integration.market_env import a_market
from integration.node_env import NodeWorld, RunningAgent, some_nodes
from integration.test_agent_crashes import end_supervisor
from integration.test_agent_docker import ContainerAgent

from events import ids, sealing
from events.files import put_bytes
from events.reasons import Reason
from events.sealing import Secrets
from events.values import Program
from seller_agent.runs.reaping import reap_node
from seller_agent.runs.secret_files import SecretFiles

__all__ = ["a_market", "engine", "some_nodes", "world"]  # the fixtures

VALUE = b"hunter2-\x00\xff-and more"


async def submit(nodes: NodeWorld, *argv: str, boxed_for: str | None = None) -> str:
    """A job with one secret, K."""
    job_id = ids.job_id(os.urandom(12))
    key = (await nodes.buyer.sync()).secret_key
    contents = Secrets(job_id=boxed_for or job_id, buyer=nodes.buyer.wallet, values={"K": VALUE})
    box = await put_bytes(nodes.buyer.ask_files, sealing.seal(contents, key))
    return await nodes.submit(job_id=job_id, program=Program(argv=argv, secrets=box, secret_names=("K",)))


def in_memory(agent: RunningAgent) -> list[Path]:
    """What this agent keeps under /dev/shm."""
    return list(SecretFiles(agent.folder / "runs")._folder.glob("*/*"))


async def test_a_job_reads_its_secret_and_it_is_gone_before_anything_is_collected(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    script = 'touch running; cat "$BAZAAR_SECRETS/K"; while [ ! -e go ]; do sleep 0.02; done; ln -s "$BAZAAR_SECRETS" "$BAZAAR_OUT/kept"'
    job_id = await submit(nodes, "sh", "-c", script)
    await nodes.state(job_id, "running")
    folder = agent.folder_of(job_id)
    await until((folder / "job" / "running").exists, "the program runs")
    [file] = in_memory(agent)
    assert (VALUE, 0o400) == (file.read_bytes(), stat.S_IMODE(file.stat().st_mode))
    assert 0o700 == stat.S_IMODE(file.parent.stat().st_mode) == stat.S_IMODE(file.parent.parent.stat().st_mode)
    assert [] == [
        path
        for path in agent.folder.rglob("*")
        if path.is_file() and not path.is_relative_to(folder / "log") and VALUE in path.read_bytes()
    ]
    (folder / "job" / "go").touch()
    job = await nodes.state(job_id, "succeeded", "failed")
    assert [] == in_memory(agent)
    assert job.run is not None and job.run.results is None
    assert VALUE == (await nodes.output(job_id))[0]


async def test_a_secret_that_cannot_be_opened_fails_the_job_at_nobodys_cost(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await submit(nodes, "cat", "/run/secrets/K", boxed_for=ids.job_id(os.urandom(12)))
    job = await nodes.state(job_id, "failed")
    await nodes.free()
    assert (Reason.SECRET_MISSING, 0, 1) == (job.reason, job.charged_uusd, job.attempts)
    assert [] == in_memory(agent)


async def test_an_agent_killed_during_the_run_finds_its_way_back_and_takes_them_away(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await submit(nodes, "sh", "-c", 'touch running; while [ ! -e go ]; do sleep 0.02; done; cat "$BAZAAR_SECRETS/K"')
    await nodes.state(job_id, "running")
    folder = agent.folder_of(job_id)
    await until((folder / "job" / "running").exists, "the program runs")
    await agent.kill()
    assert [VALUE] == [file.read_bytes() for file in in_memory(agent)]
    SecretFiles(agent.folder / "runs").keep("j" + "a" * 19 + "-1-1", {"K": VALUE})  # of a run that a crash has made nobody's
    (folder / "job" / "go").touch()
    await agent.start()
    await nodes.state(job_id, "succeeded", "failed")
    assert VALUE == (await nodes.output(job_id))[0]
    assert [] == in_memory(agent)


@pytest.mark.timeout(180)
async def test_a_container_finds_its_secret_where_it_was_promised_and_cannot_change_it(nodes: NodeWorld, engine: Engine) -> None:
    agent = await nodes.add(ContainerAgent(nodes, engine)).start()
    look = 'sha256sum < /run/secrets/K; ls -ln $BAZAAR_SECRETS | grep -c "^-r--------.*65534" >&2'
    script = look + "; echo x > /run/secrets/new; rm -f /run/secrets/K; sha256sum < /run/secrets/K"
    job_id = await submit(nodes, "sh", "-c", script)
    await nodes.state(job_id, "succeeded", "failed", timeout_s=60)
    stdout, stderr = await nodes.output(job_id)
    assert 2 * f"{hashlib.sha256(VALUE).hexdigest()}  -\n" == stdout.decode()
    assert stderr.startswith(b"1\n") and 2 == stderr.count(b"Read-only file system"), stderr
    await nodes.free(60)
    assert [] == in_memory(agent)


def test_without_memory_of_our_own_they_lie_in_the_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "memory" / f"gpubazaar-{os.geteuid()}").mkdir(parents=True, mode=0o755)  # somebody was here first
    files = SecretFiles(tmp_path / "runs", tmp_path / "memory")
    files.keep("run", {"K": VALUE})
    folder = tmp_path / "runs" / "run" / "secrets"
    assert not folder.is_symlink() and VALUE == (folder / "K").read_bytes()
    files.keep("run", {"K": b"again"})
    assert b"again" == (folder / "K").read_bytes()
    files.remove("run")
    assert not folder.exists()
    files.remove("run")


async def test_a_gateway_that_is_away_is_waited_for(nodes: NodeWorld) -> None:
    await nodes.agent()
    key = (await nodes.buyer.sync()).secret_key
    job_id = ids.job_id(os.urandom(12))
    contents = Secrets(job_id=job_id, buyer=nodes.buyer.wallet, values={"K": VALUE})
    box = await put_bytes(nodes.buyer.ask_files, sealing.seal(contents, key))
    await nodes.stop_gateway()
    program = Program(argv=("sh", "-c", 'cat "$BAZAAR_SECRETS/K"'), secrets=box, secret_names=("K",))
    await nodes.submit(job_id=job_id, program=program)
    await nodes.state(job_id, "claimed")
    await nodes.start_gateway()
    await nodes.state(job_id, "succeeded")
    assert VALUE == (await nodes.output(job_id))[0]


async def test_reaping_takes_the_secrets_of_what_it_ends_away(nodes: NodeWorld) -> None:
    agent = await nodes.agent()
    job_id = await submit(nodes, "sleep", "600")
    await nodes.state(job_id, "running")
    await agent.kill()
    assert 2 == end_supervisor(agent.folder / "runs")
    await until(lambda: reap_node(agent.folder, dry_run=True).late, "nobody guards it")
    assert 1 == len(in_memory(agent))
    [late] = (await asyncio.to_thread(reap_node, agent.folder, dry_run=False)).late
    assert late.gone and [] == in_memory(agent)
