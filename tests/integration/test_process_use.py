"""What the process runner tells of a run's use, and how a run is given more time, with real processes."""

from __future__ import annotations

import asyncio
import time

from integration.test_process_runner import Bench, bench, output, printed_pid

from seller_agent.runners.runner import RunState, StopReason

__all__ = ["bench"]  # the fixture

BURNS_IN_A_CHILD = """
import os, time
held = bytearray(60_000_000)
for place in range(0, len(held), 4096): held[place] = 1
if os.fork() == 0:
    until = time.process_time() + 0.3
    while time.process_time() < until: pass
    os._exit(0)
os.wait()
print(os.getpid(), flush=True)
time.sleep(60)
"""

LEAVES_AN_ORPHAN = """
import os, time
said, say = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        until = time.process_time() + 0.3
        while time.process_time() < until: pass
        os.write(say, b".")
        os._exit(0)
    os._exit(0)
os.wait()
os.read(said, 1)
print(os.getpid(), flush=True)
time.sleep(60)
"""


async def test_the_use_of_a_run_counts_its_children_and_its_memory(bench: Bench) -> None:
    spec = bench.spec("python", "-c", BURNS_IN_A_CHILD)
    await bench.start(spec)
    pid = await printed_pid(spec)
    use = await bench.runner.use(spec.key)
    assert use is not None
    assert use.cpu_ms >= 300
    assert 57 <= use.memory_mib <= use.peak_memory_mib < 500
    assert (pid,) == use.pids


async def test_the_processor_time_of_an_orphan_is_counted_when_it_ends(bench: Bench) -> None:
    spec = bench.spec("python", "-c", LEAVES_AN_ORPHAN)
    await bench.start(spec)
    await printed_pid(spec)
    until = time.monotonic() + 20
    while (use := await bench.runner.use(spec.key)) is None or use.cpu_ms < 300 or len(use.pids) > 1:
        assert time.monotonic() < until, use
        await asyncio.sleep(0.05)


async def test_nothing_is_told_of_a_run_that_is_over_or_unknown(bench: Bench) -> None:
    spec = bench.spec("true")
    assert await bench.runner.use(spec.key) is None
    await bench.run(spec)
    assert await bench.runner.use(spec.key) is None


async def test_an_extended_run_ends_by_itself_after_its_first_deadline(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "sleep 1.5; echo done", timeout_s=1, grace_s=0)
    await bench.start(spec)
    await bench.runner.extend(spec.key, 60)
    status = await bench.runner.wait(spec.key)
    assert (0, None, "done\n") == (status.exit_code, status.stop_reason, output(spec))


async def test_an_extension_is_an_end_of_its_own(bench: Bench) -> None:
    spec = bench.spec("sleep", "600", timeout_s=3600, grace_s=0)
    await bench.start(spec)
    await bench.runner.extend(spec.key, 1)
    status = await bench.runner.wait(spec.key)
    assert (RunState.EXITED, StopReason.DEADLINE) == (status.state, status.stop_reason)
    assert status.ran_ms is not None and status.ran_ms >= 1000


async def test_an_extension_outlives_the_agent_that_told_it(bench: Bench) -> None:
    spec = bench.spec("sh", "-c", "sleep 4; echo done", timeout_s=3, grace_s=0)
    async with bench.killed_agent(spec):
        await bench.runner.extend(spec.key, 60)
        await bench.runner.close()
        bench.runner = bench.another()
        status = await bench.runner.wait(spec.key)
    assert (0, None, "done\n") == (status.exit_code, status.stop_reason, output(spec))


async def test_extending_what_is_gone_is_no_error(bench: Bench) -> None:
    await bench.runner.extend(bench.spec("true").key, 60)
