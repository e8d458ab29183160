"""A Ray cluster inside a gang: the head on rank 0, a worker on every other rank, and a task on each of them.

bazaar run --nodes 2 --gpus 1 examples/ray_gang.py          with Ray installed where the jobs run
bazaar run --nodes 2 --gpus 0 examples/ray_gang.py          without a GPU

Ray is no part of GPU Bazaar: `pip install ray` where the jobs run. Its head listens on BAZAAR_MASTER_PORT; it and its workers also use
ports that they choose themselves, so the nodes must reach each other. Rank 0 runs the tasks and then ends the cluster; the workers follow.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

RANK = int(os.environ["BAZAAR_RANK"])
RANKS = int(os.environ["BAZAAR_NNODES"])
ADDRESS = f"{os.environ['BAZAAR_MASTER_ADDR']}:{os.environ['BAZAAR_MASTER_PORT']}"
GPUS = len([uuid for uuid in os.environ["BAZAAR_GPU_UUIDS"].split(",") if uuid])
PATIENCE_S = 600


def start(*role: str) -> subprocess.Popen:
    """Ray's own processes, as children of this one, so that they end with the job."""
    common = ("--num-cpus=1", f"--num-gpus={GPUS}", f'--resources={{"rank{RANK}": 1}}', "--disable-usage-stats", "--block")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, *common]  # `ray start`, wherever its script lies
    with open(os.path.join(os.environ["BAZAAR_OUT"], f"ray-rank{RANK}.log"), "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def head_is_there() -> bool:
    """Whether the head takes connections."""
    host, _, port = ADDRESS.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


@ray.remote(num_cpus=1)
def where() -> str:
    """Runs on one node of the cluster."""
    return f"{ray.get_runtime_context().get_node_id()[:8]} with GPUs {os.environ.get('CUDA_VISIBLE_DEVICES') or 'none'}"


def lead(folder: str) -> None:
    """Rank 0: wait for all others, run a task on each, end the cluster. `folder`: a short path, for Ray puts sockets below it."""
    host, _, port = ADDRESS.rpartition(":")
    head = start("--head", f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}")
    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                ray.init(address=ADDRESS, log_to_driver=False)
                break
            except Exception:  # the head is still starting
                if head.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(1)
        while len(alive := [node for node in ray.nodes() if node["Alive"]]) < RANKS:
            if time.monotonic() > until:
                sys.exit(f"only {len(alive)} of {RANKS} ranks came")
            time.sleep(0.5)
        for node in alive:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            rank = next(name for name in node["Resources"] if name.startswith("rank"))
            print(rank, "ran on", ray.get(where.options(scheduling_strategy=place).remote()), flush=True)
        ray.shutdown()
    finally:
        head.terminate()
        head.wait()


def follow() -> None:
    """Every other rank: a worker, from when the head is there until it has gone."""
    until = time.monotonic() + PATIENCE_S
    while not head_is_there():
        if time.monotonic() > until:
            sys.exit("no head came")
        time.sleep(0.5)
    worker = start(f"--address={ADDRESS}")
    while worker.poll() is None and head_is_there():
        time.sleep(1)
    worker.kill()
    worker.wait()
    print(f"rank {RANK}: the cluster has ended", flush=True)


if RANK == 0:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as short:
        lead(short)
else:
    follow()
