"""HyperQueue under the same no-op jobs, run by the interpreter of an environment that has its wheel: one figure, or several, as JSON.

`LocalCluster` keeps nothing on disk, so there is no restart to measure. Its own waiting polls once a second; what is timed here is what
the jobs themselves stamp.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig

STAMP = ["date", "+%s%N"]


def resident_bytes() -> int:
    """Memory of this process, which holds client and server both."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


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
    """Seconds from the coming of the workers to the last stamp of a full queue."""
    with LocalCluster() as cluster:
        client = cluster.client()
        paths = [Path(f"drain{number}").absolute() for number in range(count)]
        for path in paths:
            job = Job()
            job.program(STAMP, stdout=path, stderr=None)
            client.submit(job)
        began_ns = time.time_ns()
        for _ in range(slots // 8):
            cluster.start_worker(WorkerConfig(cores=8))
        return (max(stamped(path) for path in paths) - began_ns) / 1e9


def submit(count: int) -> dict[str, float]:
    """Submissions a second that are answered one by one, and memory a queued job."""
    with LocalCluster() as cluster:
        client = cluster.client()
        before, began = resident_bytes(), time.perf_counter()
        for _ in range(count):
            job = Job()
            job.program(["true"], stdout=None, stderr=None)
            client.submit(job)
        took_s = time.perf_counter() - began
        return {"per_s": count / took_s, "bytes": (resident_bytes() - before) / count}


def main() -> None:
    """`start N`, `drain N SLOTS` or `submit N`."""
    os.chdir(tempfile.mkdtemp(prefix="bench-hq-"))
    print(json.dumps({"start": start, "drain": drain, "submit": submit}[sys.argv[1]](*map(int, sys.argv[2:]))))


if __name__ == "__main__":
    main()
