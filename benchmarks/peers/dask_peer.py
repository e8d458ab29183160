"""Dask under the same no-op jobs, run by the interpreter of an environment that has it: figures as JSON. It keeps nothing on disk."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from distributed import Client, LocalCluster


def stamp(number: int) -> int:
    """The job: a process that reads the clock."""
    return int(subprocess.run(["date", "+%s%N"], capture_output=True, check=True).stdout)


def noop(number: int) -> int:
    """The job: a process that does nothing."""
    return subprocess.run(["true"], check=True).returncode


def resident_bytes() -> int:
    """Memory of this process, which holds client and scheduler both."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def opened(slots: int) -> Client:
    """A scheduler here, one worker process with so many threads for every eight slots."""
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
    """Seconds for so many jobs, their submission counted in: there is no queue that could be filled before."""
    with opened(slots) as client:
        client.submit(noop, -1, pure=False).result()
        began = time.perf_counter()
        client.gather(client.map(noop, range(count), pure=False))
        return time.perf_counter() - began


def submit(count: int) -> dict[str, float]:
    """Jobs a second handed to the scheduler, and memory a job that waits for a resource that nobody has."""
    with opened(8) as client:
        before, began = resident_bytes(), time.perf_counter()
        kept = client.map(noop, range(count), pure=False, resources={"GPU": 1})
        while len(client.cluster.scheduler.tasks) < count:
            time.sleep(0.005)
        took_s = time.perf_counter() - began
        figures = {"per_s": count / took_s, "bytes": (resident_bytes() - before) / count}
        client.cancel(kept)
        return figures


if __name__ == "__main__":
    print(json.dumps({"start": start, "drain": drain, "submit": submit}[sys.argv[1]](*map(int, sys.argv[2:]))))
