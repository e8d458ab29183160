"""Submit a job from a program, wait for its end, and print what it wrote: the same that `bazaar run` does, in a page of code.

    python examples/submit_from_python.py [--allow-simulated]

It acts as the wallet of BAZAAR_HOME (make one with `bazaar wallet new`) on the market that `bazaar config show` names.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
from pathlib import Path

from events import files, ids
from events.errors import BazaarError
from events.home import resolve
from events.jobs import JobSubmitted
from events.login import open_client
from events.market_client import MarketClient
from events.values import Program, Requirements, Role
from events.wire import FilesAnswer, FilesRequest, SyncJob

SCRIPT = """
import os
print("hello from", os.environ["BAZAAR_JOB_ID"], "attempt", os.environ["BAZAAR_ATTEMPT"])
"""
ENDED = {"succeeded", "failed", "timed_out", "cancelled", "expired"}


async def submit(client: MarketClient, allow_simulated: bool) -> str:
    """Ship the script, publish the job; its id once the market has taken it."""

    async def ask(request: FilesRequest) -> FilesAnswer:
        return await client.ask("files", request, FilesAnswer)

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "hello.py"
        script.write_text(SCRIPT)
        inputs, size = await files.put_files(ask, [files.LocalFile("hello.py", script)])
    job = JobSubmitted(
        job_id=ids.job_id(secrets.token_bytes(12)),
        name="hello from python",
        requirements=Requirements(num_gpus=1, allow_simulated=allow_simulated),
        program=Program(argv=("python", "hello.py"), inputs=inputs, inputs_bytes=size),
        timeout_s=600,
        queue_timeout_s=60,
        max_price_uusd_per_gpu_hour=500_000,  # 0.50 USD
    )
    outcome = await client.submit(job, timeout_s=10)
    if outcome.reason is not None:
        sys.exit(f"refused: {outcome.reason.value} {outcome.detail}")
    return job.job_id


async def until_ended(client: MarketClient, job_id: str) -> SyncJob:
    """Wait for the job. The feed says when something happened; what is true then, the market is asked."""
    moved = asyncio.Event()
    client.on_event(lambda received: moved.set())
    client.on_resync(lambda answer: moved.set())
    while True:
        (job,) = (await client.sync(job_ids=(job_id,))).jobs
        print(f"{job_id} is {job.state}", file=sys.stderr)
        if job.state in ENDED:
            return job
        await moved.wait()
        moved.clear()


async def print_output(client: MarketClient, job: SyncJob) -> None:
    """Everything that was recorded of its last attempt."""
    cursor = 0
    while True:
        request = FilesRequest(op="output", job_id=job.job_id, attempt=job.attempt, cursor=cursor)
        answer = await client.ask("files", request, FilesAnswer)
        if not answer.chunks:
            return
        for chunk in answer.chunks:
            print(chunk.data.decode(errors="backslashreplace"), end="")
        cursor = answer.cursor


async def main() -> int:
    settings = resolve({}, os.environ)
    async with await open_client(settings, Role.BUYER, name="example") as client:
        job_id = await submit(client, settings.allow_simulated or "--allow-simulated" in sys.argv)
        job = await until_ended(client, job_id)
        if job.attempt:
            await print_output(client, job)
        print(f"{job.state}, bill {(job.charged_uusd or 0) / 1_000_000:.6f} USD", file=sys.stderr)
    return 0 if job.state == "succeeded" else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except BazaarError as error:
        sys.exit(f"{error.what} {error.why} {error.hint}".strip())
