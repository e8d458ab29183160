"""Slurm under the same no-op jobs: its own daemons in an empty folder, tuned for latency, ended afterwards. Figures as JSON. Needs root.

Its start is that of `sbatch`, the way in for batch jobs, and beside it that of `srun`, which waits at the terminal. A full queue is made
while the node is drained. Tuned as its guide for high throughput says: no accounting, quiet logs, ended jobs forgotten soon, the first-in
scheduler without backfill, and scheduling at once and to the queue's end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stamps import Stamps, resident_bytes

CLIENTS = 4
ONE_BY_ONE = 1_000

CONFIG = """
ClusterName=bench
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={port}
SlurmdPort={port2}
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,default_queue_depth=10000,sched_min_interval=1000
SlurmctldDebug=error
SlurmdDebug=error
MinJobAge=2
SlurmdParameters=config_overrides
MaxJobCount=200000
JobCompType=jobcomp/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={slots} RealMemory=1000 State=UNKNOWN
PartitionName=bench Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Slurm:
    """One controller and one node."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        config = CONFIG.format(host=self.host, folder=folder, port=free_port(), port2=free_port(), slots=slots)
        (folder / "slurm.conf").write_text(config)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str) -> str:
        """A command of Slurm's."""
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{command}: {done.stderr}")
        return done.stdout

    def daemon(self, *command: str) -> subprocess.Popen[bytes]:
        """One of its daemons."""
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def controller(self) -> float:
        """Start the controller; seconds until it answers."""
        began = time.perf_counter()
        self.daemon("slurmctld", "-D", "-i")
        while subprocess.run(["scontrol", "ping"], env=self.environment, capture_output=True, text=True).stdout.find("is UP") < 0:
            time.sleep(0.01)
        return time.perf_counter() - began

    def until_idle(self) -> None:
        """Until nothing is queued or runs."""
        while self.run("squeue", "-h", "-o", "%i").strip():
            time.sleep(0.05)


@contextmanager
def opened(slots: int) -> Iterator[Slurm]:
    """Slurm with so many slots."""
    folder = Path(tempfile.mkdtemp(prefix="bench-slurm-"))
    folder.chmod(0o755)
    slurm = Slurm(folder, slots)
    try:
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
        slurm.daemon("munged", "-F", "--force", f"--socket={folder}/munge.socket", *munge)
        while not (folder / "munge.socket").exists():
            time.sleep(0.02)
        slurm.controller()
        slurm.daemon("slurmd", "-D", "-N", slurm.host)
        while "idle" not in slurm.run("sinfo", "-h", "-o", "%t"):
            time.sleep(0.1)
        yield slurm
    finally:
        for process in reversed(slurm.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def start(count: int, command: str = "sbatch") -> list[float]:
    """Milliseconds from the call of sbatch, or of srun, to the job's own clock."""
    with opened(8) as slurm:
        delays = []
        for number in range(count):
            path = slurm.folder / f"out{number}"
            began_ns = time.time_ns()
            if command == "srun":
                slurm.run("srun", "-o", str(path), "date", "+%s%N")
            else:
                slurm.run("sbatch", "-o", str(path), "--wrap", "date +%s%N")
            while not (path.exists() and path.stat().st_size >= 19):
                time.sleep(0.001)
            delays.append((int(path.read_text()) - began_ns) / 1e6)
        slurm.until_idle()
        time.sleep(1)  # what watches over a job ends a moment after it
        return delays


def start_srun(count: int) -> list[float]:
    """The same from the call of srun."""
    return start(count, "srun")


def drain(count: int, slots: int) -> float:
    """Seconds from the coming back of the node until the last job of a full queue has run."""
    with opened(slots) as slurm:
        stamps = Stamps(slurm.folder / "drain", count)
        slurm.run("scontrol", "update", f"NodeName={slurm.host}", "State=DRAIN", "Reason=bench")
        for number in range(count):
            slurm.run("sbatch", "-o", "/dev/null", "--wrap", " ".join(stamps.argv(number)))
        began = time.time()
        slurm.run("scontrol", "update", f"NodeName={slurm.host}", "State=RESUME")
        took_s = stamps.wait() - began
        slurm.until_idle()
        time.sleep(1)
        return took_s


HELD = ("sbatch", "-H", "-o", "/dev/null", "--wrap", "true")


def queue(count: int) -> dict[str, float]:
    """Calls of sbatch a second (of the first thousand, one after another), memory a held job, and seconds for a restart of the controller,
    ended in order, with all of them queued."""
    with opened(8) as slurm:
        controller = slurm.processes[1]
        before, began = resident_bytes(controller.pid), time.perf_counter()
        first = min(count, ONE_BY_ONE)
        for _ in range(first):
            slurm.run(*HELD)
        took_s = time.perf_counter() - began
        if count > first:
            slurm.run("sh", "-c", f"seq {count - first} | xargs -P {CLIENTS} -I N {' '.join(HELD)} >submitted")
        grown = resident_bytes(controller.pid) - before
        controller.terminate()
        controller.wait()
        restart_s = slurm.controller()
        kept = len(slurm.run("squeue", "-h", "-o", "%i").split())
        assert kept == count, f"{kept} of {count} jobs are queued after the restart"
        return {"per_s": first / took_s, "bytes": grown / count, "restart_s": restart_s}


FIGURES = {"start": start, "start_srun": start_srun, "drain": drain, "queue": queue}

if __name__ == "__main__":
    print(json.dumps(FIGURES[sys.argv[1]](*map(int, sys.argv[2:]))))
