"""Dask under the same no-op jobs, run by the interpreter of an environment that has it: figures as JSON. It keeps nothing on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributed import Client, LocalCluster
from stamps import Gate, Stamps, resident_bytes


def stamp(number: int) -> int:
    """The job: a process that reads the clock."""
    return int(subprocess.run(["date", "+%s%N"], capture_output=True, check=True).stdout)


def run(argv: list[str]) -> int:
    """The job: a process."""
    return subprocess.run(argv, check=True).returncode


def opened(slots: int) -> Client:
    """A scheduler here, one worker process with eight threads for every eight slots."""
    return Client(LocalCluster(n_workers=slots // 8, threads_per_worker=8, processes=True, dashboard_address=None))


def start(count: int) -> list[float]:
    """Milliseconds from the submission to the job's own clock."""
    with opened(8) as client:
        delays = []
        for number in range(count + 5):
            began_ns = time.time_ns()
            delays.append((client.submit(stamp, number, pure=False).result() - began_ns) / 1e6)
            time.sleep(0.02)
        return delays[5:]


def drain(count: int, slots: int) -> float:
    """Seconds from the moment that all slots are free until the last job of a full queue has run."""
    with opened(slots) as client:
        gate, stamps = Gate(Path("gate").absolute(), slots), Stamps(Path("drain").absolute(), count)
        holding = client.map(run, [gate.argv(number) for number in range(slots)], pure=False)
        gate.wait()
        kept = client.map(run, [stamps.argv(number) for number in range(count)], pure=False)
        until_known(client, count)
        began = gate.open()
        ended = stamps.wait()
        client.gather([*holding, *kept])
        return ended - began


def until_known(client: Client, count: int) -> None:
    """Return when the scheduler knows so many tasks."""
    while len(client.cluster.scheduler.tasks) < count:
        time.sleep(0.005)


def queue(count: int) -> dict[str, float]:
    """Jobs a second handed to the scheduler in one call, and memory a job that waits for a resource that nobody has; client and scheduler
    share a process. It does not return: an ordinary end with so many tasks takes more than the minute that Dask itself allows for it."""
    client = opened(8)
    workers = client.run(os.getpid).values()
    before, began = resident_bytes(os.getpid()), time.perf_counter()
    kept = client.map(run, [["true"] for _ in range(count)], pure=False, resources={"GPU": 1})
    until_known(client, count)
    took_s = time.perf_counter() - began
    assert len(kept) == count
    print(json.dumps({"per_s": count / took_s, "bytes": (resident_bytes(os.getpid()) - before) / count}), flush=True)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    os._exit(0)


def main() -> None:
    """`start N`, `drain N SLOTS` or `queue N`."""
    folder = tempfile.mkdtemp(prefix="bench-dask-")
    os.chdir(folder)
    try:
        print(json.dumps({"start": start, "drain": drain, "queue": queue}[sys.argv[1]](*map(int, sys.argv[2:]))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
