"""HyperQueue under the same no-op jobs, run by the interpreter of an environment that has its wheel: one figure, or several, as JSON.

Its wheel holds no `hq` command, so server, client and workers are made by `LocalCluster`, which has no journal: nothing is on disk, and
there is no restart to measure. A worker has the slots that it is told of, whatever the machine has.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from hyperqueue import Client, Job
from hyperqueue.cluster import LocalCluster, WorkerConfig
from stamps import Gate, Stamps, resident_bytes

STAMP = ["date", "+%s%N"]


def submit(client: Client, argv: list[str]) -> None:
    """One job of one task; its output goes nowhere."""
    job = Job()
    job.program(argv, stdout=None, stderr=None)
    client.submit(job)


def stamped(path: Path) -> int:
    """When the job read the clock, once it has."""
    while not (path.exists() and path.stat().st_size >= 19):
        time.sleep(0.001)
    return int(path.read_text())


def start(count: int) -> list[float]:
    """Milliseconds from the submission to the job's own clock."""
    delays = []
    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=8))
        client = cluster.client()
        for number in range(count + 5):
            path, job = Path(f"start{number}").absolute(), Job()
            job.program(STAMP, stdout=path, stderr=None)
            began_ns = time.time_ns()
            client.submit(job)
            delays.append((stamped(path) - began_ns) / 1e6)
            time.sleep(0.02)
    return delays[5:]


def drain(count: int, slots: int) -> float:
    """Seconds from the moment that all slots are free until the last job of a full queue has run."""
    with LocalCluster() as cluster:
        for _ in range(slots // 8):
            cluster.start_worker(WorkerConfig(cores=8))
        client = cluster.client()
        gate, stamps = Gate(Path("gate").absolute(), slots), Stamps(Path("drain").absolute(), count)
        for number in range(slots):
            submit(client, gate.argv(number))
        gate.wait()
        for number in range(count):
            submit(client, stamps.argv(number))
        began = gate.open()
        return stamps.wait() - began


def queue(count: int) -> dict[str, float]:
    """Submissions a second that are answered one by one, and memory a queued job; server and client share a process."""
    with LocalCluster() as cluster:
        client = cluster.client()
        for _ in range(100):
            submit(client, ["true"])
        before, began = resident_bytes(os.getpid()), time.perf_counter()
        for _ in range(count):
            submit(client, ["true"])
        took_s = time.perf_counter() - began
        return {"per_s": count / took_s, "bytes": (resident_bytes(os.getpid()) - before) / count}


def main() -> None:
    """`start N`, `drain N SLOTS` or `queue N`."""
    folder = tempfile.mkdtemp(prefix="bench-hq-")
    os.chdir(folder)
    try:
        print(json.dumps({"start": start, "drain": drain, "queue": queue}[sys.argv[1]](*map(int, sys.argv[2:]))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
