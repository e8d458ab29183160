"""A gang meets: rank 0 listens, the others come to it, and everybody prints who is there.

bazaar run --nodes 3 --gpus 0 examples/gang_hello.py

Needs nothing but Python. What a rank must know stands in its environment: BAZAAR_RANK, BAZAAR_NNODES, BAZAAR_MASTER_ADDR and
BAZAAR_MASTER_PORT. All ranks are matched at the same moment, but each starts when its own node is ready: so keep trying, as here.
"""

import json
import os
import socket
import time

RANK = int(os.environ["BAZAAR_RANK"])
RANKS = int(os.environ["BAZAAR_NNODES"])
MASTER = (os.environ["BAZAAR_MASTER_ADDR"], int(os.environ["BAZAAR_MASTER_PORT"]))
PATIENCE_S = 600


def lead() -> list[dict]:
    """Rank 0: wait for all others, then tell everybody who is there."""
    family = socket.AF_INET6 if ":" in MASTER[0] else socket.AF_INET
    with socket.create_server(("", MASTER[1]), family=family) as server:
        server.settimeout(PATIENCE_S)
        world, others = [me()], []
        while len(world) < RANKS:
            connection, _ = server.accept()
            stream = connection.makefile("rw")
            world.append(json.loads(stream.readline()))
            others.append(stream)
        world.sort(key=lambda one: one["rank"])
        for stream in others:
            print(json.dumps(world), file=stream, flush=True)
        return world


def join() -> list[dict]:
    """Every other rank: come to rank 0 as soon as it is there."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection = socket.create_connection(MASTER, timeout=10)
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
    with connection:
        connection.settimeout(PATIENCE_S)
        stream = connection.makefile("rw")
        print(json.dumps(me()), file=stream, flush=True)
        return json.loads(stream.readline())


def me() -> dict:
    """What the others are told of this rank."""
    return {"rank": RANK, "host": socket.gethostname(), "job": os.environ["BAZAAR_JOB_ID"], "gpus": os.environ["BAZAAR_GPU_UUIDS"]}


world = lead() if RANK == 0 else join()
print(f"rank {RANK} of {RANKS} met", *(f"{one['rank']}@{one['host']}" for one in world), flush=True)
